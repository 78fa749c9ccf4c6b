"""Matrix products by the native library: a linear layer, one per head, and the experts of a batch.

Raises KernelError for tensors that do not fit, before their addresses are passed to the library. Activations are bf16
on the CPU; weights are bf16 tensors or a Matrix in any stored format.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from earthshine.errors import KernelError
from earthshine.kernels.library import check_status, library
from earthshine.kernels.matrix import Matrix, Weight
from earthshine.storage import Storage

_BF16 = torch.bfloat16
_FORMATS = {  # by their numbers in native/include/earthshine.h
    Storage.BF16: 0,
    Storage.FP8_BLOCK128: 1,
    Storage.INT4_GROUP32: 2,
    Storage.INT8_GROUP128: 3,
}
_FFN_TOKENS = 256  # whose fp32 results exist at once: 7 MiB at Kimi-K2.6's width


class CMatrix(ctypes.Structure):
    _fields_ = (
        ("format", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    )


class CExpert(ctypes.Structure):
    _fields_ = (("gate", CMatrix), ("up", CMatrix), ("down", CMatrix))


class _Heads(ctypes.Structure):
    _fields_ = (
        ("n_heads", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("by_columns", ctypes.c_int32),
        ("head_bytes", ctypes.c_int64),
        ("x_row", ctypes.c_int64),
        ("x_head", ctypes.c_int64),
        ("y_row", ctypes.c_int64),
        ("y_head", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Expert:
    """One routed expert: gate and up [intermediate, hidden], down [hidden, intermediate].

    Its form for the library is made once, since a decoded token meets hundreds of experts.
    """

    gate: Matrix
    up: Matrix
    down: Matrix
    descriptor: CExpert = field(init=False)

    def __post_init__(self) -> None:
        described = CExpert(describe(self.gate), describe(self.up), describe(self.down))
        object.__setattr__(self, "descriptor", described)


def decode(matrix: Matrix) -> Tensor:
    """As `reference.decode`, to the same bits except the sign and payload of a nan: bf16 [rows, cols]."""
    out = torch.empty(matrix.shape, dtype=_BF16)
    check_status(library().es_decode(ctypes.byref(describe(matrix)), out.data_ptr()))
    return out


def linear(x: Tensor, weight: Weight, out_dtype: torch.dtype) -> Tensor:
    """bf16 [..., in] by [out, in] to bf16 or fp32 [..., out]; summed in fp32."""
    matrix = describe(weight)
    rows, columns = weight.shape
    if x.dtype != _BF16 or x.shape[-1:] != (columns,) or not columns or out_dtype not in (_BF16, torch.float32):
        raise KernelError(f"{x.dtype} {list(x.shape)} by {[rows, columns]} to {out_dtype} can't be multiplied.")
    x = x.contiguous()
    out = torch.empty((*x.shape[:-1], rows), dtype=out_dtype)
    m = x.numel() // columns
    check_status(library().es_linear(ctypes.byref(matrix), x.data_ptr(), m, out.data_ptr(), out_dtype == torch.float32))
    return out


def linear_by_head(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """out[t, h] = x[t, h] by weight[h], for bf16 x [tokens, n_heads, in] and weight [n_heads, rows, in].

    `weight` may be transposed in memory: of its last two axes either may be the contiguous one. x and out
    [tokens, n_heads, rows] may be parts of wider tensors.
    """
    tokens, n_heads, columns = x.shape
    heads, rows, width = weight.shape
    fits = heads == n_heads and width == columns and out.shape == (tokens, n_heads, rows)
    by_columns = weight.stride(1) == 1 and rows > 1
    packed = weight.stride()[1:] == ((1, rows) if by_columns else (columns, 1)) or (rows == weight.stride(2) == 1)
    inner = x.stride(2) == 1 and out.stride(2) == 1
    if not (fits and packed and inner) or {x.dtype, weight.dtype, out.dtype} != {_BF16}:
        raise KernelError(f"{list(x.shape)} by {list(weight.shape)} to {list(out.shape)}, head by head, does not fit.")
    shape = _Heads(
        n_heads, rows, columns, by_columns, 2 * weight.stride(0), x.stride(0), x.stride(1), out.stride(0), out.stride(1)
    )
    check_status(
        library().es_linear_by_head(ctypes.byref(shape), weight.data_ptr(), x.data_ptr(), tokens, out.data_ptr())
    )


def ffn(x: Tensor, gate: Weight, up: Weight, down: Weight) -> Tensor:
    """A dense SwiGLU layer, bf16 [..., hidden] to the same, as if it were the one expert of all tokens."""
    expert = (CExpert * 1)(CExpert(describe(gate), describe(up), describe(down)))
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    tokens, hidden = flat.shape
    each = torch.empty(min(tokens, _FFN_TOKENS), hidden)
    out = torch.empty_like(flat) if tokens > _FFN_TOKENS else None
    for first in range(0, tokens, _FFN_TOKENS):
        part = flat if out is None else flat[first : first + _FFN_TOKENS]
        n = part.shape[0]
        token, begin = torch.arange(n, dtype=torch.int32), (ctypes.c_int64 * 2)(0, n)
        check_status(
            library().es_moe_ffn(
                expert, 1, begin, part.data_ptr(), n, token.data_ptr(), hidden, gate.shape[0], each.data_ptr()
            )
        )
        if out is not None:
            out[first : first + n] = each[:n]
    return (each.to(_BF16) if out is None else out).view(x.shape)


def moe_ffn(x: Tensor, experts: Sequence[Expert], token: Tensor, begin: Sequence[int], each: Tensor) -> None:
    """As `reference.moe_ffn`."""
    tokens, hidden = x.shape
    n = len(experts)
    if not n:
        return
    if x.dtype != _BF16 or token.dtype != torch.int32 or each.dtype != torch.float32 or len(begin) != n + 1:
        raise KernelError("Experts take bf16 activations, int32 tokens, fp32 results, one more boundary than experts.")
    if begin[0] < 0 or any(b < a for a, b in pairwise(begin)) or begin[-1] > min(token.shape[0], each.shape[0]):
        raise KernelError("The boundaries of the experts' pairs do not ascend within the pairs.")
    if each.shape[1:] != (hidden,) or not (x.is_contiguous() and token.is_contiguous() and each.is_contiguous()):
        raise KernelError(f"Results must be contiguous and {hidden} wide, as the activations are.")
    described = (CExpert * n)(*[expert.descriptor for expert in experts])
    bounds = (ctypes.c_int64 * (n + 1))(*begin)
    check_status(
        library().es_moe_ffn(
            described, n, bounds, x.data_ptr(), tokens, token.data_ptr(), hidden, experts[0].gate.rows, each.data_ptr()
        )
    )


def moe_sum(each: Tensor, token: Tensor, weight: Tensor, total: Tensor) -> None:
    """As `reference.moe_sum`, with fused multiply-adds."""
    pairs, hidden = each.shape
    right = (each.dtype, weight.dtype, total.dtype, token.dtype) == (torch.float32,) * 3 + (torch.int32,)
    if not right or token.shape != (pairs,) or weight.shape != (pairs,) or total.shape[1:] != (hidden,):
        raise KernelError("A weighted sum takes fp32 results and weights, int32 tokens, one each a pair.")
    if not all(part.is_contiguous() for part in (each, token, weight, total)):
        raise KernelError("A weighted sum takes contiguous tensors.")
    check_status(
        library().es_moe_sum(
            each.data_ptr(), token.data_ptr(), weight.data_ptr(), pairs, total.shape[0], hidden, total.data_ptr()
        )
    )


def describe(weight: Weight) -> CMatrix:
    """A weight as the library takes it; it must stay where it is."""
    if isinstance(weight, Matrix):
        scales = None if weight.scales is None else weight.scales.data_ptr()
        return CMatrix(_FORMATS[weight.storage], weight.rows, weight.cols, weight.codes.data_ptr(), scales)
    if weight.dtype != _BF16 or weight.ndim != 2 or not weight.is_contiguous() or not weight.is_cpu:
        raise KernelError(f"A weight must be a contiguous bf16 matrix on the CPU, not {weight.dtype}.")
    return CMatrix(_FORMATS[Storage.BF16], *weight.shape, weight.data_ptr(), None)
