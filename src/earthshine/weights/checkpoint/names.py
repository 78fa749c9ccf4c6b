"""Earthshine's names to published ones: one table for reading and writing.

Invariant: every tensor of `spec.layout` has exactly one published spelling, with the shapes and dtypes that its
storage allows. Covers DeepSeek-V3, Kimi-K2, K2-Thinking, Moonlight, Qwen3-MoE, Kimi-Linear and, behind a prefix,
Kimi-K2.5 and later. Names of modules are those of `spec.families.modules`, shapes those of the published checkpoints.
Refuses widths that a format can't hold.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from earthshine.errors import Unsupported
from earthshine.spec.families.modules import LAYERS, PARAMETERS, expert_module, prefix_of, trunk_module
from earthshine.spec.layout import EXPERT_PARTS, expert_shapes, moe_layers, trunk_tensors
from earthshine.spec.model import ModelSpec, MoeSpec
from earthshine.spec.tensor import TensorSpec
from earthshine.storage import INT4_GROUP, Storage, matrix_parts

_IGNORED_MODULES = {"kimi_k25": ("vision_tower.", "mm_projector.")}
_INV_FREQ = ".self_attn.rotary_emb.inv_freq"  # left in some checkpoints; computed from the config instead
_ROUTER_BIAS = "e_score_correction_bias"
# fp32 holds every bf16 value, so small checkpoints may be stored wide; the other way round would lose values.
_PLAIN_DTYPES = ("BF16", "F32")
_SCALE_DTYPES = ("F32", "BF16", "F16")  # of FP8's blocks: DeepSeek and Kimi publish the first, Qwen the others
_PARTS = {  # spellings and dtypes of a quantised matrix's tensors, in the order of `storage.matrix_parts`
    Storage.FP8_BLOCK128: (("weight", ("F8_E4M3",)), ("weight_scale_inv", _SCALE_DTYPES)),
    Storage.INT4_GROUP32: (
        ("weight_packed", ("I32",)),
        ("weight_scale", ("BF16",)),
        ("weight_shape", ("I32", "I64")),  # newer compressed-tensors writes I64
    ),
}


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
    if storage is Storage.INT4_GROUP32 and columns % INT4_GROUP:
        raise Unsupported(f"{base} has {columns} inputs; int4 in groups of 32 needs a multiple of 32.")
    parts = zip(_PARTS[storage], matrix_parts(storage, rows, columns), strict=True)
    return tuple(PublishedTensor(f"{base}.{name}", dtypes, part.shape) for (name, dtypes), part in parts)


def _published(spec: ModelSpec, tensor: TensorSpec) -> Published:
    prefix = prefix_of(spec.family)
    if tensor.name.endswith(".router_bias"):
        name = f"{prefix}{trunk_module(spec.family, tensor.name.removesuffix('_bias'))}.{_ROUTER_BIAS}"
        return Published(tensor.name, tensor.shape, None, (PublishedTensor(name, _PLAIN_DTYPES, tensor.shape),))
    storage = spec.trunk_storage if tensor.linear else None
    base = prefix + trunk_module(spec.family, tensor.name)
    shape = tensor.published_shape or tensor.shape
    if tensor.name.endswith(PARAMETERS):
        return Published(tensor.name, tensor.shape, None, (PublishedTensor(base, _PLAIN_DTYPES, shape),))
    return Published(tensor.name, tensor.shape, storage, _parts(base, shape, storage))


def published_trunk(spec: ModelSpec) -> Iterator[Published]:
    """Every trunk tensor, in the order of `spec.layout.trunk_tensors`."""
    for tensor in trunk_tensors(spec):
        yield _published(spec, tensor)


def published_expert(spec: ModelSpec, layer: int, moe: MoeSpec, expert: int) -> tuple[Published, Published, Published]:
    """Gate, up and down of one routed expert; Earthshine calls them `layers.L.experts.E.gate` and so on."""
    prefix = prefix_of(spec.family)
    gate, up, down = (
        Published(
            f"layers.{layer}.experts.{expert}.{part}",
            shape,
            spec.expert_storage,
            _parts(prefix + expert_module(spec.family, layer, expert, part), shape, spec.expert_storage),
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
    prefix = prefix_of(spec.family) + LAYERS
    if not name.startswith(prefix):
        return False
    index = re.match(r"(0|[1-9][0-9]{0,8})\.", name[len(prefix) :])
    if index is None:
        return False
    layer = int(index[1])
    if layer < spec.n_layers:
        return name == f"{prefix}{layer}{_INV_FREQ}"
    return layer < spec.n_layers + spec.n_mtp_layers
