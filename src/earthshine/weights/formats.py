"""Stored linear layers: the tensors as published, their checks, the decoded matrix, and int8, a form of our own.

Invariant: decoding yields exactly the published values, in bf16 for quantised formats and in the stored dtype
otherwise. Refuses scales that are NaN or infinite and shape tensors that contradict the config, naming the tensor.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from earthshine import kernels
from earthshine.errors import CheckpointError
from earthshine.kernels import Matrix, Weight, raw_bytes
from earthshine.storage import INT8_GROUP, Storage
from earthshine.untrusted import shown
from earthshine.weights.header import TensorExtent
from earthshine.weights.shards import view_bytes


@dataclass(frozen=True, slots=True, eq=False)
class StoredLinear:
    """[out, in] as published. `tensors` and their published `names` in the order of the storage:

    bf16: weight; fp8: e4m3 [out, in], fp32, bf16 or fp16 [ceil(out/128), ceil(in/128)]; int4: int32 [out, in/8], bf16
    [out, in/32], integer [2]. Shapes and dtypes were checked when the checkpoint was opened; `check` judges values.
    """

    shape: tuple[int, ...]
    storage: Storage | None
    names: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]

    def check(self) -> None:
        """Raises CheckpointError for a scale, norm or router bias that is NaN or infinite, and for a stored shape that
        differs from the config's.

        Zero and negative scales are valid.
        """
        if len(self.shape) == 1 and not bool(torch.isfinite(self.tensors[0]).all()):
            raise CheckpointError(f"{shown(self.names[0])} holds a value that is NaN or infinite; the file is damaged.")
        if self.storage is None or self.storage is Storage.BF16:
            return
        if not bool(torch.isfinite(self.tensors[1]).all()):
            raise CheckpointError(f"{shown(self.names[1])} holds a scale that is NaN or infinite; the file is damaged.")
        if self.storage is Storage.INT4_GROUP32 and self.tensors[2].tolist() != list(self.shape):
            raise CheckpointError(
                f"{shown(self.names[2])} says {self.tensors[2].tolist()}, but the config makes it {list(self.shape)}."
            )

    def decode(self) -> torch.Tensor:
        """The matrix [out, in]: bf16 from fp8 and int4, the stored dtype otherwise."""
        if self.storage is Storage.FP8_BLOCK128:
            return kernels.decode(kernels.fp8_matrix(self.tensors[0], self.tensors[1].float()))
        if self.storage is Storage.INT4_GROUP32:
            return kernels.decode(kernels.int4_matrix(self.tensors[0], self.tensors[1]))
        return self.tensors[0].view(self.shape)


def kernel_scales(storage: Storage, raw: torch.Tensor, extent: TensorExtent) -> torch.Tensor:
    """The bytes of a matrix's scales as kernels take them: `raw` itself, except FP8 scales in fewer bits than
    fp32, which holds their values exactly."""
    if storage is not Storage.FP8_BLOCK128 or extent.dtype == "F32":
        return raw
    return raw_bytes(view_bytes(raw, extent).float())


def dense(weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    """[out, in] in `dtype`, which must be bf16 or wider, from stored bytes or from a tensor that is already dense."""
    return (kernels.decode(weight) if isinstance(weight, Matrix) else weight).to(dtype)


def exactly(value: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """`value` in `dtype`. Raises CheckpointError, naming the tensor, where that would round a published value."""
    used = value.to(dtype)
    if used.dtype.itemsize < value.dtype.itemsize and not torch.equal(used.to(value.dtype), value):
        raise CheckpointError(f"{shown(name)} is published in more digits than bf16 has; load this model in fp32.")
    return used


def encode_int8(weight: Weight) -> Matrix:
    """Symmetric int8 in groups of 128 columns, scaled so that the largest value of a group is 127: half of bf16's size,
    and lossy.

    Works on a few rows at a time, since temporary values take about six times the rows' size in fp32.
    """
    plain = kernels.decode(weight) if isinstance(weight, Matrix) else weight
    rows, columns = plain.shape
    codes = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows, -(-columns // INT8_GROUP))
    step = max(1, (1 << 20) // max(columns, 1))
    for first in range(0, rows, step):
        block = functional.pad(plain[first : first + step].float(), (0, -columns % INT8_GROUP))
        groups = block.view(len(block), -1, INT8_GROUP)
        scale = groups.abs().amax(-1) / 127
        whole = (groups / torch.where(scale == 0, 1.0, scale)[..., None]).round_()
        codes[first : first + step] = whole.view(len(block), -1)[:, :columns]
        scales[first : first + step] = scale
    return Matrix(Storage.INT8_GROUP128, rows, columns, raw_bytes(codes), raw_bytes(scales))
