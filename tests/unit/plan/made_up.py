"""Models and machines that are small enough to compute by hand, and checkpoints of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from checkpoints.quantization import published_quantization
from checkpoints.writer import published_tensors, tensor_shapes, write_checkpoint

from earthshine.machine import DiskRate, Machine
from earthshine.plan import MemoryPlan, Sizes
from earthshine.spec import ModelSpec, spec_from_config
from earthshine.storage import Storage
from earthshine.weights.checkpoint import Checkpoint

GIB, MIB = 1 << 30, 1 << 20
STORAGES = {"bf16": Storage.BF16, "fp8": Storage.FP8_BLOCK128, "int4": Storage.INT4_GROUP32}


def config(storage: str = "bf16", **changed: Any) -> dict[str, Any]:
    """A dense layer and two sparse ones of 16 experts, of which a token chooses 4; all sizes differ where they can."""
    quantization = published_quantization(STORAGES[storage])
    return {
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "bos_token_id": 0, "eos_token_id": 159,
        "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 160, "intermediate_size": 192,
        "kv_lora_rank": 32, "max_position_embeddings": 4096, "moe_intermediate_size": 64, "moe_layer_freq": 1,
        "model_type": "kimi_k2" if storage == "int4" else "deepseek_v3", "n_group": 1, "n_routed_experts": 16,
        "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 4, "num_experts_per_tok": 4,
        "num_hidden_layers": 3, "num_key_value_heads": 4, "num_nextn_predict_layers": 0, "q_lora_rank": 48,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "rms_norm_eps": 1e-5, "rope_scaling": None,
        "rope_theta": 10000.0, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False,
        "topk_group": 1, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "v_head_dim": 16, "vocab_size": 160,
    } | ({"quantization_config": quantization} if quantization else {}) | changed  # fmt: skip


QWEN3 = {
    "architectures": ["Qwen3MoeForCausalLM"], "eos_token_id": 159, "head_dim": 48, "hidden_act": "silu",
    "hidden_size": 160, "max_position_embeddings": 4096, "model_type": "qwen3_moe", "moe_intermediate_size": 64,
    "norm_topk_prob": True, "num_attention_heads": 4, "num_experts": 16, "num_experts_per_tok": 4,
    "num_hidden_layers": 3, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "vocab_size": 160,
}  # fmt: skip


def made(storage: str = "bf16", **changed: Any) -> ModelSpec:
    return spec_from_config(config(storage, **changed))


def written(
    folder: Path, storage: str = "bf16", *, widen: bool = False, shard_bytes: int = 90_000, **changed: Any
) -> Checkpoint:
    """A random checkpoint in `folder` with its config; `widen`: what is not quantised is published in fp32."""
    return _write(folder, config(storage, **changed), widen, shard_bytes)


def written_qwen3(folder: Path) -> Checkpoint:
    """The same for grouped-query attention: three sparse layers."""
    return _write(folder, QWEN3, False, 90_000)


def _write(folder: Path, made: dict[str, Any], widen: bool, shard_bytes: int) -> Checkpoint:
    generator, spec = torch.Generator().manual_seed(0), spec_from_config(made)
    tensors = {
        name: torch.randn(shape, generator=generator).mul(0.2).to(torch.float32 if "bias" in name else torch.bfloat16)
        for name, shape in tensor_shapes(spec).items()
    }
    if widen:
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
    write_checkpoint(folder, published_tensors(spec, tensors), shard_bytes)
    (folder / "config.json").write_text(json.dumps(made))
    return Checkpoint.open(folder, spec)


# 1 GB/s from disk, 10 GB/s of memory; products 20 GFLOP/s at one row to 100 from 100 rows on, whatever the format.
_RISING = ((1, 20e9), (100, 100e9))
FLAT = Machine(
    name="made up", source="a test", measured=None, identity=None, processors=4, memory_bytes=64 * GIB,
    memory_read=10e9, disk=(DiskRate(1 << 20, 1, 1e9),), attention=((1, 50e9), (1 << 14, 50e9)), layer_seconds=1e-6,
    products=dict.fromkeys(("bf16", "int4", "fp8", "int8"), _RISING),
)  # fmt: skip


def machine(**changed: Any) -> Machine:
    return replace(FLAT, **changed)


def memory_plan(sizes: Sizes, **changed: Any) -> MemoryPlan:
    """Everything in memory, except what is changed."""
    held = {"streamed": (), "embedding_on_disk": False, "slots_per_layer": max(sizes.experts, default=0)}
    counts = {"budget_bytes": GIB, "context_tokens": 1024, "batch": 1, "pages": 16, "prefill_tokens": 512}
    return MemoryPlan(**(held | counts | {"transit_slots": 0, "parts": {}, "smallest": GIB} | changed))


def k2_6(shared_data: Path) -> ModelSpec:
    return spec_from_config(json.loads((shared_data / "configs/moonshotai--Kimi-K2.6_config.json").read_text()))
