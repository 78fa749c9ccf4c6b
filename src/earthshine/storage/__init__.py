"""The facts of stored formats, each said once: blocks, groups, bytes of a matrix, alignment of reads, tokens of a page.

Every other package takes them from here. Nothing is decoded, and nothing is read. Raises UsageError for a matrix that
a format can't hold.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from earthshine.errors import UsageError

FP32_BYTES, BF16_BYTES = 4, 2  # of a value
FP8_BLOCK = 128  # rows and columns that share one fp32 scale
INT4_GROUP = 32  # columns of a row that share one bf16 scale
INT4_PER_WORD = 8  # values in an int32
INT8_GROUP = 128  # columns of a row that share one fp32 scale
ALIGNMENT = 4096  # O_DIRECT takes offsets, lengths and addresses that are multiples of it
PAGE_TOKENS = 64  # tokens of a page of the KV cache


class Storage(StrEnum):
    """How the values of a matrix [rows, cols], that is [out, in], are stored: its tensors, in order."""

    BF16 = "bf16"  # bf16 [rows, cols]
    # 8 values plus 8 in an int32, the first in its lowest bits, [rows, cols / 8]; bf16 scales [rows, cols / 32]; the
    # shape, [2]
    INT4_GROUP32 = "int4-g32"
    FP8_BLOCK128 = "fp8-128x128"  # e4m3 [rows, cols]; fp32 scales [ceil(rows / 128), ceil(cols / 128)]
    INT8_GROUP128 = "int8-g128"  # int8 [rows, cols]; fp32 scales [rows, ceil(cols / 128)]. Our own; never published

    @property
    def value_type(self) -> str:
        """Of its values alone, as machine profiles and options name it: "bf16", "fp8", "int4" or "int8"."""
        return self.value.partition("-")[0]


QUANTISED = frozenset((Storage.FP8_BLOCK128, Storage.INT4_GROUP32))  # published forms with scales


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a stored matrix."""

    shape: tuple[int, ...]
    item_bytes: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.item_bytes


def matrix_parts(storage: Storage, rows: int, cols: int) -> tuple[Part, ...]:
    """The tensors of a matrix [rows, cols]: values, then scales, then the stored shape, as far as there are any.

    Raises UsageError for a shape that the format can't hold.
    """
    if rows < 0 or cols < 0 or (storage is Storage.INT4_GROUP32 and cols % INT4_GROUP):
        raise UsageError(f"A matrix of {rows} by {cols} can't be stored as {storage}.")
    if storage is Storage.BF16:
        return (Part((rows, cols), BF16_BYTES),)
    if storage is Storage.FP8_BLOCK128:
        blocks = (-(-rows // FP8_BLOCK), -(-cols // FP8_BLOCK))
        return Part((rows, cols), 1), Part(blocks, FP32_BYTES)
    if storage is Storage.INT4_GROUP32:
        words, groups = (rows, cols // INT4_PER_WORD), (rows, cols // INT4_GROUP)
        return Part(words, 4), Part(groups, BF16_BYTES), Part((2,), 4)
    return Part((rows, cols), 1), Part((rows, -(-cols // INT8_GROUP)), FP32_BYTES)


def stored_bytes(storage: Storage, rows: int, cols: int) -> int:
    """Bytes of all tensors of a matrix."""
    return sum(part.nbytes for part in matrix_parts(storage, rows, cols))


@lru_cache(maxsize=1024)  # a decoded token makes thousands of matrices of a few shapes
def matrix_bytes(storage: Storage, rows: int, cols: int) -> tuple[int, int]:
    """Bytes of a matrix's values and of its scales (0 in bf16), which is what a kernel reads."""
    parts = matrix_parts(storage, rows, cols)
    return parts[0].nbytes, parts[1].nbytes if len(parts) > 1 else 0


def aligned(nbytes: int) -> int:
    """`nbytes`, rounded up to what a read can end at."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def padded(offset: int, nbytes: int) -> int:
    """Bytes of buffer that a read of `nbytes` from `offset` takes: it begins and ends at multiples of the alignment."""
    return aligned(offset % ALIGNMENT + nbytes)


def scattered(nbytes: int, n_tensors: int) -> int:
    """An upper bound on the buffer for `n_tensors` tensors of `nbytes` in all, wherever in their files they begin."""
    return nbytes + 2 * ALIGNMENT * n_tensors


def page_count(n_tokens: int) -> int:
    """Pages that hold `n_tokens` tokens of one sequence."""
    return -(-n_tokens // PAGE_TOKENS)
