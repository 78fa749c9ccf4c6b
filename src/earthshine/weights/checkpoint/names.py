"""Earthshine's names to published ones: one table for the reader and the writer.

The invariant: every tensor of `spec.layout` has exactly one published spelling, with the shapes and dtypes that its
storage allows. Covers DeepSeek-V3, Kimi-K2, K2-Thinking, Moonlight and, behind a prefix, Kimi-K2.5 and later.
Names and shapes are those of the published checkpoints. Refuses widths that a format can't hold.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from earthshine.errors import Unsupported
from earthshine.spec.layout import EXPERT_PARTS, TensorSpec, expert_shapes, moe_layers, trunk_tensors
from earthshine.spec.model import FP8_BLOCK, INT4_GROUP, ModelSpec, MoeSpec, Storage

_PREFIXES = {"kimi_k25": "language_model."}
_IGNORED_MODULES = {"kimi_k25": ("vision_tower.", "mm_projector.")}
_INV_FREQ = ".self_attn.rotary_emb.inv_freq"  # left in some checkpoints; computed from the config instead
_TOP = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.q_a": "self_attn.q_a_proj",
    "attention.q_a_norm": "self_attn.q_a_layernorm",
    "attention.q_b": "self_attn.q_b_proj",
    "attention.kv_a": "self_attn.kv_a_proj_with_mqa",
    "attention.kv_a_norm": "self_attn.kv_a_layernorm",
    "attention.kv_b": "self_attn.kv_b_proj",
    "attention.o": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
    "router": "mlp.gate",
    "shared.gate": "mlp.shared_experts.gate_proj",
    "shared.up": "mlp.shared_experts.up_proj",
    "shared.down": "mlp.shared_experts.down_proj",
}
_ROUTER_BIAS = "mlp.gate.e_score_correction_bias"
# fp32 holds every bf16 value, so small checkpoints may be stored wide; the other way round would lose values.
_PLAIN_DTYPES = ("BF16", "F32")
_INT4_PER_WORD = 8


@dataclass(frozen=True, slots=True)
class PublishedTensor:
    """One published tensor: its name, shape and the safetensors dtypes that are accepted for it."""

    name: str
    dtypes: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """How one of Earthshine's tensors is published: one tensor, or the parts of its storage in the decoder's order."""

    name: str  # Earthshine's
    shape: tuple[int, ...]
    storage: Storage | None  # None for what no storage applies to: norms, router, embedding, head
    parts: tuple[PublishedTensor, ...]


def _parts(base: str, shape: tuple[int, ...], storage: Storage | None) -> tuple[PublishedTensor, ...]:
    """The parts of `base` in the order in which `formats` decodes them."""
    if storage is None or storage is Storage.BF16:
        return (PublishedTensor(f"{base}.weight", _PLAIN_DTYPES, shape),)
    rows, columns = shape
    if storage is Storage.FP8_BLOCK128:
        blocks = (-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))
        return (
            PublishedTensor(f"{base}.weight", ("F8_E4M3",), shape),
            PublishedTensor(f"{base}.weight_scale_inv", ("F32",), blocks),
        )
    if columns % INT4_GROUP:
        raise Unsupported(f"{base} has {columns} inputs; int4 in groups of 32 needs a multiple of 32.")
    return (
        PublishedTensor(f"{base}.weight_packed", ("I32",), (rows, columns // _INT4_PER_WORD)),
        PublishedTensor(f"{base}.weight_scale", ("BF16",), (rows, columns // INT4_GROUP)),
        PublishedTensor(f"{base}.weight_shape", ("I32", "I64"), (2,)),  # newer compressed-tensors writes I64
    )


def _published(prefix: str, tensor: TensorSpec, trunk_storage: Storage) -> Published:
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)", tensor.name)
    if layer is None:
        base = prefix + _TOP[tensor.name]
    elif layer[2] == "router_bias":
        name = f"{prefix}model.layers.{layer[1]}.{_ROUTER_BIAS}"
        return Published(tensor.name, tensor.shape, None, (PublishedTensor(name, _PLAIN_DTYPES, tensor.shape),))
    else:
        base = f"{prefix}model.layers.{layer[1]}.{_LAYER[layer[2]]}"
    storage = trunk_storage if tensor.linear else None
    return Published(tensor.name, tensor.shape, storage, _parts(base, tensor.shape, storage))


def published_trunk(spec: ModelSpec) -> Iterator[Published]:
    """Every trunk tensor, in the order of `spec.layout.trunk_tensors`."""
    prefix = _PREFIXES.get(spec.family, "")
    for tensor in trunk_tensors(spec):
        yield _published(prefix, tensor, spec.trunk_storage)


def published_expert(spec: ModelSpec, layer: int, moe: MoeSpec, expert: int) -> tuple[Published, Published, Published]:
    """Gate, up and down of one routed expert; Earthshine calls them `layers.L.experts.E.gate` and so on."""
    base = f"{_PREFIXES.get(spec.family, '')}model.layers.{layer}.mlp.experts.{expert}"
    gate, up, down = (
        Published(
            f"layers.{layer}.experts.{expert}.{part}",
            shape,
            spec.expert_storage,
            _parts(f"{base}.{part}_proj", shape, spec.expert_storage),
        )
        for part, shape in zip(EXPERT_PARTS, expert_shapes(spec.hidden, moe).values(), strict=True)
    )
    return gate, up, down


def published_experts(spec: ModelSpec) -> Iterator[Published]:
    """Every routed expert's matrices by layer, expert and part."""
    for layer, moe in moe_layers(spec):
        for expert in range(moe.n_experts):
            yield from published_expert(spec, layer, moe, expert)


def is_ignored(spec: ModelSpec, name: str) -> bool:
    """Whether a published tensor is known and of no use: vision, inverse frequencies, layers that predict ahead."""
    if name.startswith(_IGNORED_MODULES.get(spec.family, ())):
        return True
    prefix = _PREFIXES.get(spec.family, "") + "model.layers."
    if not name.startswith(prefix):
        return False
    index = re.match(r"(0|[1-9][0-9]{0,8})\.", name[len(prefix) :])
    if index is None:
        return False
    layer = int(index[1])
    if layer < spec.n_layers:
        return name == f"{prefix}{layer}{_INV_FREQ}"
    return layer < spec.n_layers + spec.n_mtp_layers
