"""A stored matrix as kernels take it: raw published bytes, their format and their shape; nothing is decoded.

The bytes may lie anywhere and need no alignment, so a matrix can be a view into the buffer that a disk read filled.
Sizes are checked here, once, when the matrix is made; values are not looked at.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from earthshine.errors import KernelError

FP8_BLOCK = 128  # rows and columns that share one fp32 scale
INT4_GROUP = 32  # columns of a row that share one bf16 scale
INT8_GROUP = 128  # columns of a row that share one fp32 scale


class Format(IntEnum):
    """How values are stored; the numbers are those of native/include/earthshine.h."""

    BF16 = 0  # codes: bf16 [rows, cols]; no scales
    FP8_BLOCK128 = 1  # codes: e4m3fn [rows, cols]; scales: fp32 [ceil(rows / 128), ceil(cols / 128)]
    INT4_GROUP32 = 2  # codes: nibbles plus 8, the lower one first, [rows, cols / 2]; scales: bf16 [rows, cols / 32]
    INT8_GROUP128 = 3  # codes: int8 [rows, cols]; scales: fp32 [rows, ceil(cols / 128)]


def stored_bytes(form: Format, rows: int, cols: int) -> tuple[int, int]:
    """Bytes of codes and of scales. Raises KernelError for a shape that the format can't hold."""
    if rows < 0 or cols < 0 or (form is Format.INT4_GROUP32 and cols % INT4_GROUP):
        raise KernelError(f"A matrix of {rows} by {cols} can't be stored as {form.name.lower()}.")
    if form is Format.BF16:
        return 2 * rows * cols, 0
    if form is Format.FP8_BLOCK128:
        return rows * cols, 4 * -(-rows // FP8_BLOCK) * -(-cols // FP8_BLOCK)
    if form is Format.INT4_GROUP32:
        return rows * cols // 2, 2 * rows * (cols // INT4_GROUP)
    return rows * cols, 4 * rows * -(-cols // INT8_GROUP)


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """[rows, cols], that is [out, in]. Raises KernelError where the bytes are not as many as format and shape need."""

    form: Format
    rows: int
    cols: int
    codes: Tensor  # uint8 [n], contiguous, in main memory
    scales: Tensor | None = None  # uint8 [m], likewise; None for bf16

    def __post_init__(self) -> None:
        found = tuple(0 if part is None else part.numel() for part in (self.codes, self.scales))
        needed = stored_bytes(self.form, self.rows, self.cols)
        if found != needed:
            raise KernelError(
                f"{self.form.name.lower()} {self.rows} by {self.cols} takes {needed[0]} bytes of codes and {needed[1]} "
                f"of scales; there are {found[0]} and {found[1]}."
            )
        for part in (self.codes, self.scales):
            if part is not None and (part.dtype != torch.uint8 or not part.is_contiguous() or not part.is_cpu):
                raise KernelError("The bytes of a matrix must be a contiguous uint8 tensor in main memory.")

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.cols

    @property
    def nbytes(self) -> int:
        return sum(stored_bytes(self.form, self.rows, self.cols))


Weight = Tensor | Matrix  # of a product, [out, in]: plain values, or stored ones as they lie


def raw_bytes(tensor: Tensor) -> Tensor:
    """A tensor's bytes as uint8 [n], without a copy where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def int4_matrix(packed: Tensor, scale: Tensor) -> Matrix:
    """int32 [rows, cols / 8] and bf16 [rows, cols / 32] as published, without a copy."""
    _require("packed", packed, torch.int32)
    _require("scale", scale, torch.bfloat16)
    return Matrix(Format.INT4_GROUP32, packed.shape[0], packed.shape[1] * 8, raw_bytes(packed), raw_bytes(scale))


def fp8_matrix(weight: Tensor, scale_inv: Tensor) -> Matrix:
    """e4m3 [rows, cols] and fp32 [ceil(rows / 128), ceil(cols / 128)] as published, without a copy."""
    _require("weight", weight, torch.float8_e4m3fn)
    _require("scale_inv", scale_inv, torch.float32)
    rows, cols = weight.shape
    return Matrix(Format.FP8_BLOCK128, rows, cols, raw_bytes(weight), raw_bytes(scale_inv))


def _require(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype or tensor.ndim != 2 or tensor.layout != torch.strided:
        raise KernelError(f"{name} is {tensor.dtype} {list(tensor.shape)}; a {dtype} matrix is expected.")
