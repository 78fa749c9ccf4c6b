"""The trunk from disk: units (the layers, the head) that stay in memory, or that stream through two buffers.

Invariant: weights have the published values whether they are resident or streamed; only an int8 trunk rounds them. A
streamed unit is checked each time it is read, and stays in place while it is leased. Units are used in order, so the
next one that streams is read while the present one computes; reads of experts go first. Embeddings may stay on disk,
since a token needs one row. Refuses what the checkpoint refuses.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from earthshine.errors import CheckpointError, UsageError
from earthshine.kernels import Matrix, Weight
from earthshine.spec.layout import trunk_tensors, trunk_units
from earthshine.spec.model import ModelSpec
from earthshine.spec.tensor import TensorSpec, Use
from earthshine.storage import ALIGNMENT, BF16_BYTES, QUANTISED, padded
from earthshine.units import format_bytes
from earthshine.untrusted import open_regular, shown
from earthshine.weights.checkpoint import Checkpoint
from earthshine.weights.checkpoint.names import Published, published_trunk
from earthshine.weights.formats import StoredLinear, encode_int8, exactly, kernel_scales
from earthshine.weights.header import ITEM_BYTES, TensorExtent, read_exactly
from earthshine.weights.manifest import Manifest, trunk_ranges
from earthshine.weights.reading import Reader, ReadProgress, Segment, Ticket
from earthshine.weights.shards import view_bytes
from earthshine.weights.slots import Arena
from earthshine.weights.streaming import StreamedUnits, UnitWeights, finish


@dataclass(frozen=True, slots=True)
class _Placed:
    """A published tensor's parts, each with the page of the buffer that its read goes to."""

    tensor: TensorSpec
    published: Published
    parts: tuple[tuple[TensorExtent, int], ...]
    own: int | None  # the page of its converted copy; None for what is used as published


@dataclass(frozen=True, slots=True)
class Unit:
    """The tensors that are read and kept together: those of a layer, or the head. `nbytes`: of a buffer for it."""

    name: str
    placed: tuple[_Placed, ...]
    nbytes: int


def units(checkpoint: Checkpoint) -> dict[str, Unit]:
    """The layers as "layers.0" and so on, and "head", in the order of a forward pass."""
    published = {tensor.name: tensor for tensor in published_trunk(checkpoint.spec)}
    groups = trunk_units(checkpoint.spec).items()
    return {name: _unit(checkpoint, name, tensors, published) for name, tensors in groups}


def embedding_bytes(spec: ModelSpec) -> int:
    """Bytes of the embedding in bf16."""
    return BF16_BYTES * spec.vocab_size * spec.hidden


class StoredTrunk:
    """Implements `models.Trunk` over a checkpoint, for bf16 activations."""

    dtype = torch.bfloat16

    def __init__(
        self,
        checkpoint: Checkpoint,
        reader: Reader,
        *,
        streamed: frozenset[str] = frozenset(),
        embedding_on_disk: bool = False,
        int8: bool = False,
        manifest: Manifest | None = None,
        progress: ReadProgress | None = None,
    ) -> None:
        """`streamed`: names of units that are read whenever they are needed; the others are read now, `int8` ones
        rounded. Raises CheckpointError for what can't be read or is damaged."""
        self._checkpoint, self._reader, self._manifest, self._int8 = checkpoint, reader, manifest, int8
        self._units = units(checkpoint)
        self._ranges = dict(trunk_ranges(checkpoint))
        self._streamed = [name for name in self._units if name in streamed]
        self.norm = self._alone("norm")
        self._rows = _Rows(checkpoint) if embedding_on_disk else None
        if embedding_on_disk and manifest is not None:  # once, since a row has no checksum of its own
            manifest.check_stored("embed", self._ranges["embed"])
        self._resident: dict[str, AbstractContextManager[UnitWeights]] = {}
        self.bytes_streamed = 0
        self._load(progress)
        self._embed = None if embedding_on_disk else self._alone("embed")
        self._streaming: StreamedUnits | None = None
        if self._streamed:
            most = max(self._units[name].nbytes for name in self._streamed)
            self._streaming = StreamedUnits(self._streamed, most, reader, self._unit_tickets, self._unit_views)

    def embed(self, tokens: Tensor) -> Tensor:
        """int64 [...] to bf16 [..., hidden]."""
        if self._embed is not None:
            return functional.embedding(tokens, self._embed)
        assert self._rows is not None
        return self._rows.read(tokens)

    def layer(self, index: int) -> AbstractContextManager[UnitWeights]:
        """One layer's weights, by Trunk's names; where they are streamed, they stay while the context lasts."""
        return self._weights(f"layers.{index}")

    def head(self) -> AbstractContextManager[Weight]:
        """[vocab_size, hidden], likewise."""
        return _only(self._weights("head"), "head")

    def _alone(self, name: str) -> Tensor:
        """A tensor that belongs to no unit, read and checked as those are."""
        tensor = next(tensor for tensor in trunk_tensors(self._checkpoint.spec) if tensor.name == name)
        published = next(found for found in published_trunk(self._checkpoint.spec) if found.name == name)
        unit = _unit(self._checkpoint, name, [tensor], {name: published})
        try:
            memory = Arena(unit.nbytes, 1)
        except UsageError:
            size = format_bytes(unit.nbytes)
            raise CheckpointError(f"The trunk tensor {name} takes {size}, more memory than there is.") from None
        tickets = self._tickets(unit, memory.view(0))
        for ticket in tickets:
            self._reader.queue(ticket)
        finish(tickets)
        value = _views(unit, memory.tensor(0))[name]
        assert isinstance(value, Tensor), f"{name} is published in full"
        return value if unit.placed[0].own is None else value.clone()  # without what it was made from

    def _load(self, progress: ReadProgress | None) -> None:
        """Reads every resident unit, one ahead of the one that is checked; for int8 none ahead, to save memory."""
        names = [name for name in self._units if name not in self._streamed]
        if self._int8:
            names.sort(key=lambda name: -self._units[name].nbytes)
        total, done = sum(self._units[name].nbytes for name in names), 0
        ahead: list[tuple[str, Arena, list[Ticket]]] = []
        for name in [*names, ""]:
            if name:
                memory = Arena(self._units[name].nbytes, 1)
                ahead.append((name, memory, self._tickets(self._units[name], memory.view(0))))
                for ticket in ahead[-1][2]:
                    self._reader.queue(ticket)
            while len(ahead) > (1 if name and not self._int8 else 0):
                ready, memory, tickets = ahead.pop(0)
                finish(tickets)
                self._keep(ready, memory)
                done += self._units[ready].nbytes
                if progress is not None:
                    progress(done, total)

    def _keep(self, name: str, memory: Arena) -> None:
        views = _views(self._units[name], memory.tensor(0))
        if not self._int8:
            self._resident[name] = nullcontext(views)
            return
        specs = {_short(placed.tensor.name): placed for placed in self._units[name].placed}
        rounded = {
            short: encode_int8(weight) if specs[short].tensor.rounds_to_int8 else _copied(weight)
            for short, weight in views.items()
        }
        self._resident[name] = nullcontext(rounded)

    def _weights(self, name: str) -> AbstractContextManager[UnitWeights]:
        found = self._resident.get(name)
        if found is not None:
            return found
        assert self._streaming is not None
        return self._streaming.lease(name)

    def _unit_tickets(self, name: str, buffer: memoryview) -> list[Ticket]:
        return self._tickets(self._units[name], buffer)

    def _unit_views(self, name: str, memory: Tensor) -> UnitWeights:
        self.bytes_streamed += self._units[name].nbytes
        return _views(self._units[name], memory)

    def _tickets(self, unit: Unit, buffer: memoryview) -> list[Ticket]:
        """One read a tensor, so that an expert's read waits for no more than that."""
        tickets = []
        for placed in unit.placed:
            segments = [
                Segment(
                    extent.file, extent.offset, extent.nbytes, buffer[at : at + padded(extent.offset, extent.nbytes)]
                )
                for extent, at in placed.parts
            ]
            tickets.append(self._reader.ticket(segments, self._check(placed, buffer)))
        return tickets

    def _check(self, placed: _Placed, buffer: memoryview) -> Callable[[], None] | None:
        manifest, name = self._manifest, placed.tensor.name
        if manifest is None:
            return None
        ordered = sorted(placed.parts, key=lambda part: (part[0].file, part[0].offset))
        starts = [(at + extent.offset % ALIGNMENT, extent.nbytes) for extent, at in ordered]
        where = self._ranges[name][0]

        def check() -> None:
            manifest.check_trunk(name, [buffer[start : start + nbytes] for start, nbytes in starts], where)

        return check


@contextmanager
def _only(unit: AbstractContextManager[UnitWeights], name: str) -> Iterator[Weight]:
    with unit as weights:
        yield weights[name]


class _Rows:
    """Embedding rows, read as tokens need them: 14 KB each in Kimi-K2.6, through the page cache."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        extent = checkpoint.shards[next(p for p in published_trunk(checkpoint.spec) if p.name == "embed").parts[0].name]
        self._extent, self._hidden = extent, checkpoint.spec.hidden
        self._file = open_regular(extent.file, shown(extent.file.name), CheckpointError)
        self._was = os.fstat(self._file)

    def read(self, tokens: Tensor) -> Tensor:
        """int64 [...] to bf16 [..., hidden]; CheckpointError for a file that was changed."""
        unique, inverse = torch.unique(tokens, return_inverse=True)
        row_bytes = self._extent.nbytes // self._extent.shape[0]
        raw = bytearray()
        for token in unique.tolist():
            raw += read_exactly(self._file, self._extent.offset + token * row_bytes, row_bytes, self._extent.file.name)
        now = os.fstat(self._file)
        if (now.st_size, now.st_mtime_ns) != (self._was.st_size, self._was.st_mtime_ns):
            raise CheckpointError(f"{shown(self._extent.file.name)} was written to while in use. Load the model again.")
        wide = torch.float32 if self._extent.dtype == "F32" else torch.bfloat16
        rows = (
            torch.frombuffer(raw, dtype=wide).view(-1, self._hidden)
            if raw
            else torch.empty(0, self._hidden, dtype=wide)
        )
        return exactly(rows, torch.bfloat16, "embed")[inverse]


def _short(name: str) -> str:
    return name.split(".", 2)[2] if name.startswith("layers.") else name


def _unit(checkpoint: Checkpoint, name: str, tensors: list[TensorSpec], published: Mapping[str, Published]) -> Unit:
    placed, used = [], 0
    for tensor in tensors:
        parts = []
        for part in published[tensor.name].parts:
            extent = checkpoint.shards[part.name]
            parts.append((extent, used))
            used += padded(extent.offset, extent.nbytes)
        room = _own_bytes(tensor, published[tensor.name], parts[0][0])
        placed.append(_Placed(tensor, published[tensor.name], tuple(parts), used if room else None))
        used += padded(0, room)
    return Unit(name, tuple(placed), used)


def _own_bytes(tensor: TensorSpec, published: Published, extent: TensorExtent) -> int:
    """Bytes of a converted copy, for a tensor that is decoded, cast or not aligned to its type; 0 for others."""
    if published.storage in QUANTISED:
        return 0 if tensor.use is Use.STORED else BF16_BYTES * tensor.size
    wanted = "BF16"
    if tensor.published_fp32:
        wanted = "F32"
    elif tensor.in_fp32:
        wanted = extent.dtype
    item_bytes = ITEM_BYTES[wanted]
    return item_bytes * tensor.size if extent.dtype != wanted or extent.offset % item_bytes else 0


def _views(unit: Unit, memory: Tensor) -> dict[str, Weight]:
    """The unit's weights in the buffer they were read into; those used in another form than published are converted."""
    weights: dict[str, Weight] = {}
    for placed in unit.placed:
        raw = [
            memory[at + extent.offset % ALIGNMENT : at + extent.offset % ALIGNMENT + extent.nbytes]
            for extent, at in placed.parts
        ]
        tensors = tuple(view_bytes(part, extent) for part, (extent, _) in zip(raw, placed.parts, strict=True))
        names = tuple(extent.name for extent, _ in placed.parts)
        linear = StoredLinear(placed.published.shape, placed.published.storage, names, tensors)
        linear.check()
        value = _used(placed, linear, raw)
        if placed.own is not None and isinstance(value, Tensor):  # in the unit's own memory, which is counted
            room = memory[placed.own : placed.own + value.nbytes].view(value.dtype).view(value.shape)
            value = room.copy_(value)
        weights[_short(placed.tensor.name)] = value
    return weights


def _used(placed: _Placed, linear: StoredLinear, raw: list[Tensor]) -> Weight:
    tensor, storage = placed.tensor, placed.published.storage
    if storage in QUANTISED and tensor.use is Use.STORED:
        rows, columns = placed.published.shape
        return Matrix(storage, rows, columns, raw[0], kernel_scales(storage, raw[1], placed.parts[1][0]))
    if tensor.published_fp32:
        return linear.decode().float()
    value = linear.decode()
    return value if tensor.in_fp32 else exactly(value, torch.bfloat16, tensor.name)


def _copied(weight: Weight) -> Weight:
    return weight if isinstance(weight, Matrix) else weight.clone()
