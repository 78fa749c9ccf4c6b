"""One opened checkpoint: a folder of shards checked against a model's spec, tensors by Earthshine's names.

Invariant: once open, every tensor that the spec needs is there with a permitted dtype and the right shape, and
nothing unknown is. Missing, unexpected, misshapen and mistyped tensors are reported together in one CheckpointError.
Values are checked when they are read: a scale that is NaN, or a wrong stored shape, is refused by name.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Self

from torch import Tensor

from earthshine.errors import CheckpointError, UsageError
from earthshine.spec.layout import moe_layers
from earthshine.spec.model import ModelSpec, MoeSpec
from earthshine.storage import Storage
from earthshine.untrusted import shown
from earthshine.weights.checkpoint.names import (
    Published,
    PublishedTensor,
    is_ignored,
    published_expert,
    published_experts,
    published_trunk,
)
from earthshine.weights.formats import StoredLinear
from earthshine.weights.header import TensorExtent
from earthshine.weights.shards import Shards, listed, open_shards, read_bytes, read_tensor

_MAX_PROBLEMS = 1000
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ByteRange:
    """`nbytes` bytes of `file` from the absolute `offset`."""

    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class ExpertExtents:
    """The place of one routed expert. `parts` holds, for gate, up and down, the spec's tensors and their extents."""

    layer: int
    expert: int
    parts: tuple[tuple[Published, tuple[TensorExtent, ...]], ...]

    @property
    def extents(self) -> tuple[TensorExtent, ...]:
        """All three, six or nine extents by file and offset."""
        every = chain.from_iterable(extents for _, extents in self.parts)
        return tuple(sorted(every, key=lambda extent: (extent.file, extent.offset)))

    @property
    def ranges(self) -> tuple[ByteRange, ...]:
        """The same bytes, adjacent extents merged, so that an expert is one or two reads."""
        merged: list[ByteRange] = []
        for extent in self.extents:
            last = merged[-1] if merged else None
            if last is not None and last.file == extent.file and last.offset + last.nbytes == extent.offset:
                merged[-1] = ByteRange(last.file, last.offset, last.nbytes + extent.nbytes)
            else:
                merged.append(ByteRange(extent.file, extent.offset, extent.nbytes))
        return tuple(merged)

    @property
    def nbytes(self) -> int:
        return sum(extent.nbytes for _, extents in self.parts for extent in extents)


@dataclass(frozen=True, slots=True)
class Share:
    """The number of tensors and bytes of one kind ("trunk", "experts" or "ignored") in one stored format."""

    kind: str
    format: str  # a Storage value for linear layers, else a dtype such as "fp32"
    n_tensors: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a checkpoint's bytes are, every tensor counted once; by kind, then format."""

    shares: tuple[Share, ...]

    def nbytes(self, kind: str) -> int:
        return sum(share.nbytes for share in self.shares if share.kind == kind)


def _format(published: Published, extent: TensorExtent) -> str:
    quantised = published.storage is not None and published.storage is not Storage.BF16
    return str(published.storage) if quantised else _dtype_word(extent)


def _dtype_word(extent: TensorExtent) -> str:
    """Earthshine's word for a safetensors dtype."""
    return {"F32": "fp32", "F16": "fp16"}.get(extent.dtype, extent.dtype.lower())


def _problem(part: PublishedTensor, extent: TensorExtent | None) -> str | None:
    if extent is None:
        return f"{part.name} is missing"
    if extent.dtype not in part.dtypes:
        return f"{part.name} is {extent.dtype}, and should be {' or '.join(part.dtypes)}"
    if extent.shape != part.shape:
        return f"{part.name} has shape {list(extent.shape)}, and should have {list(part.shape)}"
    return None


def _problems(shards: Shards, spec: ModelSpec) -> Iterator[str]:
    expected: set[str] = set()  # of those that are there, so that a config can't make it larger than the files
    for published in chain(published_trunk(spec), published_experts(spec)):
        for part in published.parts:
            extent = shards.get(part.name)
            if extent is not None:
                expected.add(part.name)
            problem = _problem(part, extent)
            if problem is not None:
                yield problem
    for name in shards:
        if name not in expected and not is_ignored(spec, name):
            yield f"{shown(name)} is unexpected"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder of published weights that fits `spec`; open it with `Checkpoint.open`."""

    spec: ModelSpec
    shards: Shards
    _trunk: dict[str, Published]
    _moe: dict[int, MoeSpec]

    @classmethod
    def open(cls, folder: Path, spec: ModelSpec) -> Self:
        """Reads headers only. CheckpointError lists what does not fit (no more than the first thousand are sought);
        Unsupported for widths that int4 can't hold."""
        shards = open_shards(folder)
        problems = list(islice(_problems(shards, spec), _MAX_PROBLEMS))
        if problems:
            raise CheckpointError(f"The weights in {shown(folder)} do not fit their config, {listed(problems)}.")
        trunk = {published.name: published for published in published_trunk(spec)}
        return cls(spec, shards, trunk, dict(moe_layers(spec)))

    def trunk(self, name: str) -> Tensor:
        """A trunk tensor by Earthshine's name, in its published values: bf16 from fp8 or int4, else as stored."""
        published = self._trunk.get(name)
        if published is None:
            raise UsageError(f"{shown(name)} is not a trunk tensor of this model.")
        names = tuple(part.name for part in published.parts)
        tensors = tuple(read_tensor(self.shards[part]) for part in names)
        linear = StoredLinear(published.shape, published.storage, names, tensors)
        linear.check()
        return linear.decode()

    def expert_extents(self, layer: int, expert: int) -> ExpertExtents:
        """The places of a routed expert's three, six or nine tensors."""
        moe = self._moe.get(layer)
        if moe is None or not 0 <= expert < moe.n_experts:
            raise UsageError(f"layer {layer} has no routed expert {expert}.")
        matrices = published_expert(self.spec, layer, moe, expert)
        parts = tuple((matrix, tuple(self.shards[part.name] for part in matrix.parts)) for matrix in matrices)
        return ExpertExtents(layer, expert, parts)

    def coverage(self) -> Coverage:
        """Tensors and bytes by kind and stored format, for people to read."""
        totals: dict[tuple[str, str], tuple[int, int]] = {}
        counted: set[str] = set()

        def count(kind: str, label: str, extent: TensorExtent) -> None:
            tensors, nbytes = totals.get((kind, label), (0, 0))
            totals[kind, label] = tensors + 1, nbytes + extent.nbytes
            counted.add(extent.name)

        for kind, every in (("trunk", self._trunk.values()), ("experts", published_experts(self.spec))):
            for published in every:
                for part in published.parts:
                    extent = self.shards[part.name]
                    count(kind, _format(published, extent), extent)
        for name, extent in self.shards.items():
            if name not in counted:
                count("ignored", _dtype_word(extent), extent)
        return Coverage(tuple(Share(kind, label, *totals[kind, label]) for kind, label in sorted(totals)))

    def fingerprint(self) -> str:
        """64 hex digits that identify the model, so that a state saved by one is refused by another.

        blake2b-256 over the spec, every used tensor's name, dtype and shape, the first and last 4 KiB of every trunk
        tensor (7 MB of a K2.6), and those of each sparse layer's first expert.
        """
        digest = hashlib.blake2b(digest_size=32)
        digest.update(f"earthshine model 2\n{self.spec}\n".encode())
        for published in chain(self._trunk.values(), published_experts(self.spec)):
            for part in published.parts:
                extent = self.shards[part.name]
                digest.update(f"{part.name} {extent.dtype} {extent.shape}\n".encode())
        firsts = (published_expert(self.spec, layer, moe, 0) for layer, moe in self._moe.items())
        for published in chain(self._trunk.values(), *firsts):
            for part in published.parts:
                digest.update(_sample(self.shards[part.name]))
        return digest.hexdigest()


def _sample(extent: TensorExtent) -> bytes:
    """A tensor's first and last 4 KiB, which differ between trained models."""
    ends = (extent.offset, max(extent.offset, extent.offset + extent.nbytes - _SAMPLE_BYTES))
    size = min(extent.nbytes, _SAMPLE_BYTES)
    return b"".join(read_bytes(extent.file, offset, size) for offset in ends)
