"""A stored matrix as kernels take it: raw published bytes, their format and their shape; nothing is decoded.

The bytes need no alignment, so a matrix can be a view into the buffer that a disk read filled. Sizes are checked once,
when the matrix is made; values are not read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from earthshine.errors import KernelError
from earthshine.storage import INT4_PER_WORD, Storage, matrix_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """[rows, cols], that is [out, in].

    Raises UsageError for a shape that the format can't hold, and KernelError for bytes that do not fit the shape.
    """

    storage: Storage
    rows: int
    cols: int
    codes: Tensor  # uint8 [n], contiguous, on the CPU
    scales: Tensor | None = None  # uint8 [m], likewise; None for bf16

    def __post_init__(self) -> None:
        found = tuple(0 if part is None else part.numel() for part in (self.codes, self.scales))
        needed = matrix_bytes(self.storage, self.rows, self.cols)
        if found != needed:
            raise KernelError(
                f"{self.storage} {self.rows} by {self.cols} takes {needed[0]} bytes of codes and {needed[1]} "
                f"of scales; there are {found[0]} and {found[1]}."
            )
        for part in (self.codes, self.scales):
            if part is not None and (part.dtype != torch.uint8 or not part.is_contiguous() or not part.is_cpu):
                raise KernelError("The bytes of a matrix must be a contiguous uint8 tensor on the CPU.")

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.cols

    @property
    def nbytes(self) -> int:
        return sum(matrix_bytes(self.storage, self.rows, self.cols))


Weight = Tensor | Matrix  # of a product, [out, in]: plain values, or stored ones


def raw_bytes(tensor: Tensor) -> Tensor:
    """A tensor's bytes as uint8 [n], without a copy where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def int4_matrix(packed: Tensor, scale: Tensor) -> Matrix:
    """int32 [rows, cols / 8] and bf16 [rows, cols / 32] as published, without a copy."""
    _require("packed", packed, torch.int32)
    _require("scale", scale, torch.bfloat16)
    return Matrix(
        Storage.INT4_GROUP32, packed.shape[0], packed.shape[1] * INT4_PER_WORD, raw_bytes(packed), raw_bytes(scale)
    )


def fp8_matrix(weight: Tensor, scale_inv: Tensor) -> Matrix:
    """e4m3 [rows, cols] and fp32 [ceil(rows / 128), ceil(cols / 128)] as published, without a copy."""
    _require("weight", weight, torch.float8_e4m3fn)
    _require("scale_inv", scale_inv, torch.float32)
    rows, cols = weight.shape
    return Matrix(Storage.FP8_BLOCK128, rows, cols, raw_bytes(weight), raw_bytes(scale_inv))


def _require(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype or tensor.ndim != 2 or tensor.layout != torch.strided:
        raise KernelError(f"{name} is {tensor.dtype} {list(tensor.shape)}; a {dtype} matrix is expected.")
