"""Where the bytes of one expert are in a slot after they were read, and the matrices over them.

Invariant: a matrix is a view of the published bytes, at any address, except FP8 scales, which are widened to fp32. What
is checked once after a read (scales, stored shapes) holds as long as the slot belongs to the expert. Refuses scales
that are NaN or infinite, shape tensors that contradict the config, and an expert that is larger than its slot.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from earthshine.errors import CheckpointError
from earthshine.kernels import Expert, Matrix, Weight, raw_bytes
from earthshine.spec.layout import moe_layers
from earthshine.storage import ALIGNMENT, QUANTISED, Storage, aligned, matrix_bytes, padded, scattered
from earthshine.untrusted import shown
from earthshine.weights.checkpoint import ByteRange, Checkpoint, ExpertExtents
from earthshine.weights.checkpoint.names import Published
from earthshine.weights.formats import exactly, kernel_scales
from earthshine.weights.header import TensorExtent

# Of an unsigned view of the scales: where the exponent is all ones, and the bits below the sign.
_NOT_FINITE = {
    "BF16": ("<u2", 0x7F80, 0x7FFF), "F16": ("<u2", 0x7C00, 0x7FFF), "F32": ("<u4", 0x7F800000, 0x7FFFFFFF),
}  # fmt: skip
_SHAPE_DTYPES = {"I32": "<i4", "I64": "<i8"}


@dataclass(frozen=True, slots=True)
class PlacedMatrix:
    """One matrix in a slot: its published tensors, each with the byte of the slot at which it begins."""

    published: Published
    parts: tuple[tuple[TensorExtent, int], ...]


@dataclass(frozen=True, slots=True)
class PlacedExpert:
    """One expert in a slot: the ranges to read, each with the page of the slot that it goes to, and its matrices."""

    layer: int
    expert: int
    ranges: tuple[tuple[ByteRange, int], ...]
    matrices: tuple[PlacedMatrix, PlacedMatrix, PlacedMatrix]
    nbytes: int  # as published

    def published(self, slot: memoryview) -> list[memoryview]:
        """The published bytes of each range, without the rest of the pages that they are in."""
        begins = [at + span.offset % ALIGNMENT for span, at in self.ranges]
        return [slot[begin : begin + span.nbytes] for begin, (span, _) in zip(begins, self.ranges, strict=True)]


def slot_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of a slot for any routed expert, wherever its parts begin; 0 for a model without experts.

    The largest expert as published and two pages for each of its tensors, 0.3% of an expert of Kimi-K2.6.
    """
    firsts = [checkpoint.expert_extents(layer, 0) for layer, _ in moe_layers(checkpoint.spec)]
    most = max((scattered(first.nbytes, len(first.extents)) for first in firsts), default=0)
    return aligned(most)


def place(extents: ExpertExtents, room: int) -> PlacedExpert:
    """The layout of an expert in a slot of `room` bytes. Takes 11 microseconds, so it is not cached."""
    ranges = []
    used = 0
    for span in extents.ranges:
        ranges.append((span, used))
        used += padded(span.offset, span.nbytes)
    if used > room:
        where = f"layer {extents.layer} expert {extents.expert}"
        raise CheckpointError(f"{where} takes more room than the layer's first expert; all must be stored alike.")
    gate, up, down = (
        PlacedMatrix(published, tuple((part, _begin(part, ranges)) for part in parts))
        for published, parts in extents.parts
    )
    nbytes = sum(span.nbytes for span, _ in ranges)
    return PlacedExpert(extents.layer, extents.expert, tuple(ranges), (gate, up, down), nbytes)


def _begin(part: TensorExtent, ranges: list[tuple[ByteRange, int]]) -> int:
    for span, at in ranges:
        inside = part.offset - span.offset
        if span.file == part.file and 0 <= inside <= span.nbytes - part.nbytes:
            return at + span.offset % ALIGNMENT + inside
    raise AssertionError("an expert's ranges hold all its parts")


def check_values(expert: PlacedExpert, slot: memoryview) -> None:
    """Raises CheckpointError, naming the tensor, for a scale that is NaN or infinite and for a stored shape that
    differs from the config's.

    Zero and negative scales are valid. Takes 50 microseconds for an expert of Kimi-K2.6.
    """
    for matrix in expert.matrices:
        if matrix.published.storage not in QUANTISED:
            continue
        extent, begin = matrix.parts[1]
        if not _all_finite(extent, slot, begin):
            raise CheckpointError(f"{shown(extent.name)} holds a scale that is NaN or infinite; the file is damaged.")
        if matrix.published.storage is Storage.INT4_GROUP32:
            extent, begin = matrix.parts[2]
            says = np.ndarray((2,), _SHAPE_DTYPES[extent.dtype], slot, begin).tolist()
            if says != list(matrix.published.shape):
                right = list(matrix.published.shape)
                raise CheckpointError(f"{shown(extent.name)} says {says}, but the config makes it {right}.")


def _all_finite(extent: TensorExtent, slot: memoryview, begin: int) -> bool:
    dtype, exponent, magnitude = _NOT_FINITE[extent.dtype]
    # numpy reads at any address; one pass without a copy is enough where no scale is negative, and none usually is.
    bits = np.ndarray((extent.nbytes // np.dtype(dtype).itemsize,), dtype, slot, begin)
    return not bits.size or bool(bits.max() < exponent) or not bool(((bits & magnitude) >= exponent).any())


def stored_expert(expert: PlacedExpert, slot: Tensor) -> Expert:
    """The expert over the slot's bytes, uint8 [slot bytes], for kernels that take bf16 activations.

    Plain weights published in fp32 are converted to bf16 in place. Raises CheckpointError where that would round one.
    """
    gate, up, down = (_matrix(matrix, slot) for matrix in expert.matrices)
    return Expert(gate, up, down)


def weights(expert: PlacedExpert, slot: Tensor) -> tuple[Weight, Weight, Weight]:
    """Gate, up and down as views of the slot, for fp32 activations: unquantised fp32 weights stay fp32."""
    gate, up, down = (
        _wide(matrix, slot) if matrix.parts[0][0].dtype == "F32" else _matrix(matrix, slot)
        for matrix in expert.matrices
    )
    return gate, up, down


def _wide(matrix: PlacedMatrix, slot: Tensor) -> Tensor:
    extent, begin = matrix.parts[0]
    raw = slot[begin : begin + extent.nbytes]
    return (raw.clone() if begin % 4 else raw).view(torch.float32).view(matrix.published.shape)


def _matrix(matrix: PlacedMatrix, slot: Tensor) -> Matrix:
    rows, cols = matrix.published.shape
    extent, begin = matrix.parts[0]
    storage = matrix.published.storage or Storage.BF16
    codes = slot[begin : begin + extent.nbytes]
    if extent.dtype == "F32":
        codes = codes[: matrix_bytes(storage, rows, cols)[0]]
        codes.copy_(raw_bytes(exactly(_wide(matrix, slot), torch.bfloat16, extent.name)))
    if len(matrix.parts) == 1:
        return Matrix(storage, rows, cols, codes)
    extent, begin = matrix.parts[1]
    return Matrix(storage, rows, cols, codes, kernel_scales(storage, slot[begin : begin + extent.nbytes], extent))
