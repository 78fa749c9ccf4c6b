"""Seeded tiny checkpoints in the published formats, and transformers' DeepseekV3, Qwen3Moe and KimiLinear over the same
files.

The oracle reads the files with the `safetensors` library and decodes them by itself, so that a mistake in
Earthshine's reader, decoders or mathematics shows as a difference.
"""

import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from checkpoints.quantization import published_quantization
from checkpoints.writer import published_tensors, tensor_shapes, write_checkpoint
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    KimiLinearForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from earthshine.spec import spec_from_config
from earthshine.storage import Storage

VOCAB = 160
PROMPT = [(7 * i * i + 3 * i + 11) % (VOCAB - 1) for i in range(100)]
STORAGES = {"bf16": Storage.BF16, "fp8": Storage.FP8_BLOCK128, "int4": Storage.INT4_GROUP32}
# 32 original positions stretched eightfold: a prompt of 100 tokens lies mostly past the original window.
YARN = {
    "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 32, "type": "yarn",
}  # fmt: skip
# As Qwen's cards write it, without the keys whose defaults it uses.
QWEN_YARN: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 32, "rope_type": "yarn"}


class Tiny(Protocol):
    """A model small enough to test."""

    def config(self) -> dict[str, Any]:
        """Its config.json."""
        ...


@dataclass(frozen=True)
class Case:
    """One corner of the format: how queries are made, how experts are grouped, how weights are stored."""

    q_lora_rank: int | None = 48
    n_groups: int = 1
    storage: str = "bf16"
    yarn: bool = True
    n_experts: int = 16

    def config(self) -> dict[str, Any]:
        quantization = published_quantization(STORAGES[self.storage])
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "attention_bias": False,
            "bos_token_id": 0,
            "eos_token_id": VOCAB - 1,
            "first_k_dense_replace": 1,
            "hidden_act": "silu",
            "hidden_size": 160,
            "intermediate_size": 192,
            "kv_lora_rank": 32,
            "max_position_embeddings": 256,
            "model_type": "kimi_k2" if self.storage == "int4" else "deepseek_v3",
            "moe_intermediate_size": 64,
            "moe_layer_freq": 1,
            "n_group": self.n_groups,
            "n_routed_experts": self.n_experts,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_attention_heads": 4,
            "num_experts_per_tok": 4,
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
            "num_nextn_predict_layers": 0,
            "q_lora_rank": self.q_lora_rank,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "rms_norm_eps": 1e-2,  # large enough to be seen; the latent norms keep 1e-6
            "rope_scaling": YARN if self.yarn else None,
            "rope_theta": 10000.0,
            "routed_scaling_factor": 2.5,
            "scoring_func": "sigmoid",
            "tie_word_embeddings": False,
            "topk_group": 4 if self.n_groups > 1 else 1,
            "topk_method": "noaux_tc",
            "torch_dtype": "bfloat16",
            "v_head_dim": 16,
            "vocab_size": VOCAB,
        } | ({"quantization_config": quantization} if quantization else {})


@dataclass(frozen=True)
class Qwen3:
    """One corner of Qwen3-MoE: how many heads share a key head, how experts are weighed, how weights are stored."""

    n_kv_heads: int = 2
    head_dim: int = 32  # more than hidden_size / n_heads
    normalize: bool = True
    storage: str = "bf16"
    n_experts: int = 16
    yarn: bool = False
    attention_factor: float | None = None  # of YaRN, where not its own
    scales: str = "float32"  # of fp8

    def config(self) -> dict[str, Any]:
        quantization = published_quantization(STORAGES[self.storage])
        yarn = dict(QWEN_YARN)
        if self.attention_factor is not None:
            yarn["attention_factor"] = self.attention_factor
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "attention_bias": False,
            "bos_token_id": 0,
            "decoder_sparse_step": 1,
            "eos_token_id": VOCAB - 1,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": 160,
            "intermediate_size": 192,
            "max_position_embeddings": 256,
            "mlp_only_layers": [],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": 64,
            "norm_topk_prob": self.normalize,
            "num_attention_heads": 8,
            "num_experts": self.n_experts,
            "num_experts_per_tok": 4,
            "num_hidden_layers": 3,
            "num_key_value_heads": self.n_kv_heads,
            "rms_norm_eps": 1e-2,  # large enough to be seen
            "rope_scaling": yarn if self.yarn else None,
            "rope_theta": 10000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_sliding_window": False,
            "vocab_size": VOCAB,
        } | ({"quantization_config": quantization} if quantization else {})


@dataclass(frozen=True)
class KimiLinear:
    """One corner of Kimi-Linear: which layers are latent attention, the rest being delta attention, counted from 1."""

    latent_layers: tuple[int, ...] = (3,)
    n_layers: int = 4
    n_experts: int = 16
    storage: str = "bf16"

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["KimiLinearForCausalLM"],
            "bos_token_id": 0,
            "dtype": "bfloat16",
            "eos_token_id": VOCAB - 1,
            "first_k_dense_replace": 1,
            "head_dim": 24,
            "hidden_act": "silu",
            "hidden_size": 160,
            "intermediate_size": 192,
            "kv_lora_rank": 32,
            "linear_attn_config": {
                "full_attn_layers": list(self.latent_layers),
                "head_dim": 32,
                "kda_layers": [i for i in range(1, self.n_layers + 1) if i not in self.latent_layers],
                "num_heads": 4,
                "short_conv_kernel_size": 4,
            },
            "mla_use_nope": True,
            "model_max_length": 256,
            "model_type": "kimi_linear",
            "moe_intermediate_size": 64,
            "moe_layer_freq": 1,
            "moe_renormalize": True,
            "moe_router_activation_func": "sigmoid",
            "num_attention_heads": 4,
            "num_expert_group": 1,
            "num_experts": self.n_experts,
            "num_experts_per_token": 4,
            "num_hidden_layers": self.n_layers,
            "num_key_value_heads": 4,
            "num_nextn_predict_layers": 0,
            "num_shared_experts": 1,
            "pad_token_id": VOCAB - 1,
            "q_lora_rank": None,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "rms_norm_eps": 1e-2,  # large enough to be seen; the latent norms keep 1e-6
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "routed_scaling_factor": 2.446,
            "tie_word_embeddings": False,
            "topk_group": 1,
            "use_grouped_topk": True,
            "v_head_dim": 16,
            "vocab_size": VOCAB,
        }


def _values(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Large enough queries and keys that attention is far from uniform, or score errors could not be seen."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith("router_bias"):
        return 0.1 * noise
    if name.endswith(("a_log", "dt_bias")):
        return noise  # decays from nearly all to nearly nothing
    if len(shape) == 1:
        return ((2.5 if name.endswith("attention.q_norm") else 1.0) * (1 + 0.2 * noise)).bfloat16()
    gain = 1.0 if name == "embed" else (2.5 if ".q" in name or "kv_" in name else 1.0) * shape[-1] ** -0.5
    return (gain * noise).bfloat16()


def _with_scales(case: Tiny, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """FP8's scales in the dtype that the case asks for, rounded."""
    dtype = getattr(torch, getattr(case, "scales", "float32"))
    for name, tensor in tensors:
        yield name, tensor.to(dtype) if name.endswith("_scale_inv") else tensor


def write_tiny(folder: Path, case: Tiny, seed: int = 0) -> Path:
    """config.json and shards of a random model; the same seed gives the same bytes."""
    generator = torch.Generator().manual_seed(seed)
    spec = spec_from_config(case.config())
    tensors = {name: _values(name, shape, generator) for name, shape in tensor_shapes(spec).items()}
    write_checkpoint(folder, _with_scales(case, published_tensors(spec, tensors)), shard_bytes=200_000)
    (folder / "config.json").write_text(json.dumps(case.config()))
    return folder


def _decoded(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors to fp32 values, by the formats' definitions, with the publishers' rounding to bf16."""
    values = {}
    for name, tensor in stored.items():
        base, _, part = name.rpartition(".")
        if part == "weight_packed":
            codes = torch.stack([(tensor >> 4 * i) & 15 for i in range(8)], -1).flatten(1) - 8
            scale = stored[f"{base}.weight_scale"].repeat_interleave(32, 1)
            values[f"{base}.weight"] = (codes.bfloat16() * scale).float()
        elif f"{name}_scale_inv" in stored:
            scale = stored[f"{name}_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            rows, columns = tensor.shape
            values[name] = (tensor.float() * scale[:rows, :columns].float()).bfloat16().float()
        elif part in ("weight", "e_score_correction_bias"):
            values[name] = tensor.float()
    return values


def _fused(values: dict[str, Tensor], n_experts: int) -> dict[str, Tensor]:
    """transformers holds a layer's experts as two stacks."""
    fused = {name: value for name, value in values.items() if ".experts." not in name}
    for layer in {name.split(".mlp.experts.")[0] for name in values if ".experts." in name}:
        parts = {
            part: torch.stack([values[f"{layer}.mlp.experts.{e}.{part}_proj.weight"] for e in range(n_experts)])
            for part in ("gate", "up", "down")
        }
        fused[f"{layer}.mlp.experts.gate_up_proj"] = torch.cat((parts["gate"], parts["up"]), 1)
        fused[f"{layer}.mlp.experts.down_proj"] = parts["down"]
    return fused


def oracle(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """transformers' model over the values in `folder`."""
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "kimi_linear":
        return _pretrained(folder, dtype)
    rope: dict[str, Any] = {"rope_type": "default"}
    if config["rope_scaling"]:
        rope = {key: value for key, value in config["rope_scaling"].items() if key != "type"} | {"rope_type": "yarn"}
    dropped = ("architectures", "quantization_config", "rope_scaling", "model_type", "torch_dtype", "rope_theta")
    kept = {key: value for key, value in config.items() if key not in dropped}
    rope["rope_theta"] = config["rope_theta"]
    made = Qwen3MoeConfig if config["model_type"] == "qwen3_moe" else DeepseekV3Config
    of = Qwen3MoeForCausalLM if made is Qwen3MoeConfig else DeepseekV3ForCausalLM
    model = of(made(**kept, rope_parameters=rope, attn_implementation="eager"))
    stored: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        stored |= load_file(shard)
    state = _fused(_decoded(stored), config.get("n_routed_experts") or config["num_experts"])
    model.load_state_dict(state, strict=True)
    model.eval().to(dtype)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.data = state[name].clone()  # kept in fp32, as published
    return model


def _pretrained(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """As transformers itself reads the published names; every weight must be found and used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # rope_scaling, which the published config has
        model, report = KimiLinearForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()
