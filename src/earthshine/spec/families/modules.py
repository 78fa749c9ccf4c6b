"""What publishers call the modules whose weights are Earthshine's tensors: one table for the reader of configs, whose
lists of exceptions name modules, and for the reader and writer of checkpoints.

Names are those of the published checkpoints, without the prefix of a family's text model. Families without a table
of their own use DeepSeek-V3's names.
"""

import re

PREFIXES = {"kimi_k25": "language_model."}
LAYERS, EXPERTS = "model.layers.", "mlp.experts."
EXPERT_MODULE = re.compile(r"model\.layers\.([0-9]{1,9})\.mlp\.experts\.([0-9]{1,9})\.(?:gate|up|down)_proj")
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
_LAYERS_OF = {"qwen3_moe": _QWEN3}


def prefix_of(family: str) -> str:
    """What stands before the names of a family's text model, such as "language_model."; mostly nothing."""
    return PREFIXES.get(family, "")


def trunk_module(family: str, name: str) -> str:
    """The module of a trunk tensor by Earthshine's name; a router's bias has no module of its own (KeyError)."""
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if layer is None:
        return _TOP[name]
    return f"{LAYERS}{layer[1]}.{_LAYERS_OF.get(family, _DEEPSEEK)[layer[2]]}"


def expert_module(layer: int, expert: int, part: str) -> str:
    """The module of a routed expert's "gate", "up" or "down"."""
    return f"{LAYERS}{layer}.{EXPERTS}{expert}.{part}_proj"
