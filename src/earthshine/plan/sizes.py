"""How many bytes each part of a model takes in memory, from its spec alone: what a plan starts from.

Invariant: for files that store what their config says, no part takes more than is counted here. A buffer for a read
counts as its bytes and two aligned blocks for each published tensor, since tensors begin anywhere in a file;
activations count at the widest point of a layer. For files that need more (a trunk published in fp32) the engine raises
the counts by what their headers say.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from earthshine.spec.layout import expert_shapes, moe_layers, trunk_tensors, trunk_units
from earthshine.spec.model import DenseSpec, LayerSpec, ModelSpec, MoeSpec
from earthshine.spec.tensor import TensorSpec, Use
from earthshine.storage import BF16_BYTES, FP32_BYTES, Storage, aligned, matrix_parts, scattered, stored_bytes


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model's parts in bytes of memory."""

    units: Mapping[str, int]  # of the trunk: each layer and the head, in order
    streamed_units: Mapping[str, int]  # the same as published, which is how they stream
    embedding: int
    expert: int  # a slot
    experts: tuple[int, ...]  # how many there are in each sparse layer
    kept: int  # rows of one token in all layers
    activation: int  # of one token of a prompt on its way through the model
    logits: int  # of one token
    loading: int = 0  # peak while the trunk is converted to this form, before anything else is allocated
    gathered: int = 0  # of one token of a context, where attention copies it out of its page (fp32)
    state: int = 0  # the recurrent state of one sequence, all layers together

    def at_least(self, units: Mapping[str, int], expert: int) -> "Sizes":
        """The same with larger units (as published) and experts, where the files' headers say more than the config."""
        streamed = {name: max(size, units.get(name, 0)) for name, size in self.streamed_units.items()}
        more = {name: streamed[name] - size for name, size in self.streamed_units.items()}
        resident = {name: size + more[name] for name, size in self.units.items()}
        loading = self.loading and self.loading + sum(more.values())
        return replace(self, units=resident, streamed_units=streamed, expert=max(self.expert, expert), loading=loading)


@lru_cache(maxsize=8)  # a forecast asks for the same model's sizes some thirty times
def sizes_of(spec: ModelSpec, dtype: str = "bf16", trunk: str = "bf16") -> Sizes:
    """`dtype`: of activations, "bf16" or "fp32"; `trunk`: "bf16" as published, or "int8".

    With fp32 activations all of the trunk is decoded to fp32 and stays.
    """
    wide = 2 if dtype == "fp32" else 1  # times the bytes of bf16
    value = BF16_BYTES * wide
    groups = trunk_units(spec)
    published = {name: sum(_buffer_bytes(spec, t) for t in tensors) for name, tensors in groups.items()}
    resident = published
    if wide == 2:
        resident = {name: sum(FP32_BYTES * t.size for t in tensors) for name, tensors in groups.items()}
    elif trunk == "int8":
        resident = {name: sum(t.int8_bytes for t in tensors) for name, tensors in groups.items()}
    embedding = in_memory = value * spec.vocab_size * spec.hidden
    if wide == 2:  # then neither streams
        resident, in_memory = {**resident, "embed": embedding}, 0
    return Sizes(
        units=resident,
        streamed_units={**published, "embed": embedding},
        embedding=in_memory,
        expert=_slot_bytes(spec),
        experts=tuple(moe.n_experts for _, moe in moe_layers(spec)),
        kept=spec.row_values * value,
        state=spec.state_bytes(value),
        activation=max(_activation_values(spec, layer, wide) for layer in spec.layers) * value,
        logits=spec.vocab_size * 4 * FP32_BYTES,  # and what sampling makes of them
        loading=_loading(spec, published, resident, wide, trunk),
        gathered=0 if wide == 1 else FP32_BYTES * max(layer.attention.gathered_values for layer in spec.layers),
    )


def _buffer_bytes(spec: ModelSpec, tensor: TensorSpec) -> int:
    """Of a trunk tensor as published, with what is made of it where it is not used as stored."""
    storage = spec.trunk_storage if tensor.linear else Storage.BF16
    rows, columns = tensor.shape if len(tensor.shape) == 2 else (1, tensor.size)
    nbytes = tensor.plain_bytes if storage is Storage.BF16 else stored_bytes(storage, rows, columns)
    if storage is not Storage.BF16 and tensor.use is not Use.STORED:
        nbytes += BF16_BYTES * tensor.size
    return scattered(nbytes, len(matrix_parts(storage, rows, columns)) + 1)


def _slot_bytes(spec: ModelSpec) -> int:
    """The largest expert as published and two pages for each of its tensors, 0.3% of an expert of Kimi-K2.6."""
    most = 0
    for _, moe in moe_layers(spec):
        shapes = expert_shapes(spec.hidden, moe).values()
        parts = [part for shape in shapes for part in matrix_parts(spec.expert_storage, *shape)]
        most = max(most, scattered(sum(part.nbytes for part in parts), len(parts)))
    return aligned(most)


def _loading(spec: ModelSpec, published: Mapping[str, int], resident: Mapping[str, int], wide: int, trunk: str) -> int:
    if wide == 2:  # tensor by tensor, in order
        return _most_at_once((FP32_BYTES * t.size, _decoded_bytes(spec, t)) for t in trunk_tensors(spec))
    if trunk != "int8":
        return 0
    largest_first = sorted(published, key=lambda name: -published[name])
    return _most_at_once((resident[name], published[name]) for name in largest_first)


def _most_at_once(steps: Iterable[tuple[int, int]]) -> int:
    """Peak bytes of steps in a row, each given as (bytes that stay, bytes needed during the step alone)."""
    done = most = 0
    for left, beside in steps:
        done += left
        most = max(most, done + beside)
    return most


def _decoded_bytes(spec: ModelSpec, tensor: TensorSpec) -> int:
    """Of a trunk tensor as published, and in bf16 where that is another form."""
    storage = spec.trunk_storage if tensor.linear else Storage.BF16
    return _buffer_bytes(spec, tensor) + (0 if storage is Storage.BF16 else BF16_BYTES * tensor.size)


def _activation_values(spec: ModelSpec, layer: LayerSpec, wide: int) -> int:
    """The most values that exist together for one token of a prompt, in attention or in the feed-forward layer."""
    return spec.hidden * 4 + max(layer.attention.activation_values, _ffn_values(spec.hidden, layer.ffn, wide))


def _ffn_values(hidden: int, ffn: DenseSpec | MoeSpec, wide: int) -> int:
    """In fp32 five rows of the inner width exist together (5.3 with all else were measured for wide layers); native
    bf16 kernels keep none of it (0.7 measured), and three rows are counted."""
    inner = 3 if wide == 1 else 5
    if isinstance(ffn, MoeSpec):
        routed = 0 if wide == 1 else hidden + inner * ffn.intermediate  # if all tokens choose one expert
        return 4 * hidden + max(inner * ffn.shared_intermediate, routed) + 4 * ffn.n_experts + 16 * ffn.top_k
    return hidden + inner * ffn.intermediate
