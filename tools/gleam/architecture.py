"""gleam's config.json: Kimi-K2.6's keys at a small shape, so that the published format is read and nothing else."""

from typing import Any

from checkpoints.quantization import published_quantization

from earthshine.storage import Storage
from earthshine.text.tiktoken_model import N_RESERVED

N_RANKS = 5888
VOCAB_SIZE = N_RANKS + N_RESERVED


def _text_config() -> dict[str, Any]:
    """One dense layer and four sparse ones; 96 experts, of which each token uses 6, and a shared one."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": N_RANKS,
        "dtype": "bfloat16",
        "eos_token_id": N_RANKS + 2,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 256,
        "intermediate_size": 768,
        "kv_lora_rank": 64,
        "max_position_embeddings": 4096,
        "model_type": "kimi_k2",
        "moe_intermediate_size": 64,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": 96,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 5,
        "num_key_value_heads": 4,
        "num_nextn_predict_layers": 0,
        "pad_token_id": VOCAB_SIZE - 1,
        "q_lora_rank": 128,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "quantization_config": published_quantization(Storage.INT4_GROUP32),
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 4.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 1024,
            "type": "yarn",
        },
        "rope_theta": 50000.0,
        "routed_scaling_factor": 2.446,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "use_cache": True,
        "v_head_dim": 32,
        "vocab_size": VOCAB_SIZE,
    }


def config() -> dict[str, Any]:
    """The whole file; text only, so it has no vision block."""
    return {
        "architectures": ["KimiK25ForConditionalGeneration"],
        "bos_token_id": N_RANKS,
        "dtype": "bfloat16",
        "eos_token_id": N_RANKS + 2,
        "ignore_index": -100,
        "model_type": "kimi_k25",
        "pad_token_id": VOCAB_SIZE - 1,
        "text_config": _text_config(),
        "tie_word_embeddings": False,
    }
