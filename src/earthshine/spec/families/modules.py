"""What publishers call the modules whose weights are Earthshine's tensors: one table for the reader of configs, whose
lists of exceptions name modules, and for the reader and writer of checkpoints.

Names are those of the published checkpoints, without the prefix of a family's text model. Families without a table
of their own use DeepSeek-V3's names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

PREFIXES = {"kimi_k25": "language_model."}
LAYERS = "model.layers."
_TOP = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_EVERY = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.o": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
    "router": "mlp.gate",
}
_DEEPSEEK = _EVERY | {
    "attention.q_a": "self_attn.q_a_proj",
    "attention.q_a_norm": "self_attn.q_a_layernorm",
    "attention.q_b": "self_attn.q_b_proj",
    "attention.kv_a": "self_attn.kv_a_proj_with_mqa",
    "attention.kv_a_norm": "self_attn.kv_a_layernorm",
    "attention.kv_b": "self_attn.kv_b_proj",
    "shared.gate": "mlp.shared_experts.gate_proj",
    "shared.up": "mlp.shared_experts.up_proj",
    "shared.down": "mlp.shared_experts.down_proj",
}
_QWEN3 = _EVERY | {
    "attention.q_norm": "self_attn.q_norm",
    "attention.k": "self_attn.k_proj",
    "attention.k_norm": "self_attn.k_norm",
    "attention.v": "self_attn.v_proj",
}
# Kimi-Linear's two kinds of attention share q, o and the norms; its experts are beside the attention's "self_attn".
_KIMI_LINEAR = {
    name: module.replace("mlp.", "block_sparse_moe.") if name.startswith(("router", "shared.")) else module
    for name, module in _DEEPSEEK.items()
} | {
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.q_conv": "self_attn.q_conv1d",
    "attention.k_conv": "self_attn.k_conv1d",
    "attention.v_conv": "self_attn.v_conv1d",
    "attention.f_a": "self_attn.f_a_proj",
    "attention.f_b": "self_attn.f_b_proj",
    "attention.b": "self_attn.b_proj",
    "attention.a_log": "self_attn.A_log",
    "attention.dt_bias": "self_attn.dt_bias",
    "attention.g_a": "self_attn.g_a_proj",
    "attention.g_b": "self_attn.g_b_proj",
    "attention.o_norm": "self_attn.o_norm",
}
_LAYERS_OF = {"qwen3_moe": _QWEN3, "kimi_linear": _KIMI_LINEAR}
PARAMETERS = ("attention.a_log", "attention.dt_bias")  # published as themselves, without ".weight"


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """Where a layer's routed experts are, such as "mlp.experts.", and what their parts are called."""

    module: str
    parts: Mapping[str, str]  # by "gate", "up" and "down"

    @property
    def pattern(self) -> re.Pattern[str]:
        """A part's whole module; its groups are the layer and the expert."""
        parts = "|".join(self.parts.values())
        return re.compile(rf"{re.escape(LAYERS)}([0-9]{{1,9}})\.{re.escape(self.module)}([0-9]{{1,9}})\.(?:{parts})")


_EXPERTS = ExpertNames("mlp.experts.", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"})
_EXPERTS_OF = {"kimi_linear": ExpertNames("block_sparse_moe.experts.", {"gate": "w1", "up": "w3", "down": "w2"})}


def prefix_of(family: str) -> str:
    """What stands before the names of a family's text model, such as "language_model."; mostly nothing."""
    return PREFIXES.get(family, "")


def trunk_module(family: str, name: str) -> str:
    """The module of a trunk tensor by Earthshine's name; a router's bias has no module of its own (KeyError)."""
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if layer is None:
        return _TOP[name]
    return f"{LAYERS}{layer[1]}.{_LAYERS_OF.get(family, _DEEPSEEK)[layer[2]]}"


def expert_names(family: str) -> ExpertNames:
    return _EXPERTS_OF.get(family, _EXPERTS)


def expert_module(family: str, layer: int, expert: int, part: str) -> str:
    """The module of a routed expert's "gate", "up" or "down"."""
    names = expert_names(family)
    return f"{LAYERS}{layer}.{names.module}{expert}.{names.parts[part]}"
