"""Recurrences over the tokens of several sequences, by the native library: Kimi Delta Attention and its output norm.

A sequence keeps a state of constant size, which a call updates in place. Tokens are computed one after the other in
prefill as in decode, so a token's bits depend only on its sequence up to it: not on how a prompt is cut, on the batch,
on threads or on the instruction set. Raises KernelError for tensors that do not fit, before their addresses are passed
to the library.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from earthshine.errors import KernelError
from earthshine.kernels.library import check_status, library

_BF16, _FP32 = torch.bfloat16, torch.float32
MOST_HEAD_DIM, MOST_KERNEL = 256, 8


class _Shape(ctypes.Structure):
    _fields_ = (
        ("n_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("kernel", ctypes.c_int64),
        ("gate_is_fp32", ctypes.c_int32),
        ("beta_is_fp32", ctypes.c_int32),
        ("is_bounded", ctypes.c_int32),
        ("lower_bound", ctypes.c_float),
    )


class _Sequence(ctypes.Structure):
    _fields_ = (
        ("first", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("state", ctypes.c_void_p),
        ("tail", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True, eq=False)
class RecurrentTokens:
    """The next `count` tokens of a batch: those of one sequence, and what it keeps, which a call updates in place.

    state: fp32 [n_heads, key_dim, value_dim]; tail: [conv_kernel - 1, channels] in the activations' dtype, the last
    inputs of the convolution, oldest first. Both are zeros before a sequence's first token.
    """

    count: int
    state: Tensor
    tail: Tensor


def kda(
    qkv: Tensor,
    gate: Tensor,
    beta: Tensor,
    sequences: Sequence[RecurrentTokens],
    *,
    conv: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    lower_bound: float | None = None,
) -> Tensor:
    """Kimi Delta Attention, as `reference.kda`: fp32 [tokens, n_heads, head_dim], before the output's norm and gate.

    qkv: bf16 [tokens, 3 * n_heads * head_dim], q, then k, then v, before the convolution; gate: bf16 or fp32 [tokens,
    n_heads * head_dim], the logits of the decay; beta: bf16 or fp32 [tokens, n_heads], logits; conv: fp32 [3 * n_heads
    * head_dim, kernel], bf16 being widened in each call; a_log: fp32 [n_heads]; dt_bias: fp32 [n_heads * head_dim].
    head_dim is a multiple of 16, at most 256; the kernel at most 8. Products, sums and the state are fp32 throughout.
    Raises KernelError for tensors that do not fit, and for sequences that share a state.
    """
    n_heads, channels = a_log.numel(), qkv.shape[-1]
    head_dim, kernel = channels // (3 * max(n_heads, 1)), conv.shape[-1]
    _check_sizes(n_heads, head_dim, channels, kernel, lower_bound)
    tokens, width = qkv.shape[0], n_heads * head_dim
    conv = conv.float()
    _check("qkv", qkv, (_BF16,), (tokens, channels))
    _check("gate", gate, (_BF16, _FP32), (tokens, width))
    _check("beta", beta, (_BF16, _FP32), (tokens, n_heads))
    _check("convolution", conv, (_FP32,), (channels, kernel))
    _check("a_log", a_log, (_FP32,), (n_heads,))
    _check("dt_bias", dt_bias, (_FP32,), (width,))
    described, first = (_Sequence * len(sequences))(), 0
    for place, sequence in enumerate(sequences):
        _check("state", sequence.state, (_FP32,), (n_heads, head_dim, head_dim))
        _check("tail", sequence.tail, (_BF16,), (kernel - 1, channels))
        described[place] = _Sequence(first, sequence.count, sequence.state.data_ptr(), sequence.tail.data_ptr())
        first += sequence.count
    if first != tokens or any(sequence.count < 0 for sequence in sequences):
        raise KernelError(f"The sequences have {[sequence.count for sequence in sequences]} tokens and qkv {tokens}.")
    bounded = lower_bound is not None
    shape = _Shape(
        n_heads, head_dim, kernel, gate.dtype is _FP32, beta.dtype is _FP32, bounded, lower_bound if bounded else 0.0
    )
    out = torch.empty(tokens, n_heads, head_dim)
    check_status(
        library().es_kda(
            ctypes.byref(shape),
            described,
            len(sequences),
            qkv.data_ptr(),
            gate.data_ptr(),
            beta.data_ptr(),
            tokens,
            conv.data_ptr(),
            a_log.data_ptr(),
            dt_bias.data_ptr(),
            out.data_ptr(),
        )
    )
    return out


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """bf16(weight * (x / sqrt(mean(x^2) + eps)) * sigmoid(gate)) over the last axis, as `reference.gated_rms_norm`.

    x: fp32 [..., dim]; gate: bf16 [..., dim]; weight: fp32 [dim]; returns bf16 of x's shape. All of it is computed in
    fp32 and rounded once.
    """
    dim = x.shape[-1] if x.ndim else 0
    _check("norm's input", x, (_FP32,), x.shape)
    _check("output gate", gate, (_BF16,), x.shape)
    _check("norm's weight", weight, (_FP32,), (dim,))
    out = torch.empty(x.shape, dtype=_BF16)
    rows = x.numel() // dim if dim else 0
    check_status(
        library().es_gated_rms_norm(
            x.data_ptr(), gate.data_ptr(), dim, weight.data_ptr(), eps, rows, dim, out.data_ptr()
        )
    )
    return out


def _check(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], shape: Sequence[int]) -> None:
    if tensor.dtype in dtypes and tensor.shape == tuple(shape) and tensor.is_contiguous() and tensor.is_cpu:
        return
    wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    raise KernelError(
        f"The {name} must be contiguous {wanted} {list(shape)} on the CPU, not "
        f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device.type}."
    )


def _check_sizes(n_heads: int, head_dim: int, channels: int, kernel: int, lower_bound: float | None) -> None:
    if n_heads < 1 or channels != 3 * n_heads * head_dim:
        raise KernelError(f"qkv must have 3 x n_heads x head_dim channels, not {channels} with {n_heads} heads.")
    if head_dim < 1 or head_dim % 16 or head_dim > MOST_HEAD_DIM:
        raise KernelError(f"head_dim must be a multiple of 16 up to {MOST_HEAD_DIM}, not {head_dim}.")
    if not 1 <= kernel <= MOST_KERNEL:
        raise KernelError(f"The convolution's kernel must be between 1 and {MOST_KERNEL} tokens, not {kernel}.")
    if lower_bound is not None and not -math.inf < lower_bound < 0:
        raise KernelError(f"The decay's lower bound must be below 0, not {lower_bound}.")
