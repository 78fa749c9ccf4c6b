"""The operations between matrix products, by the native library: RMS norm, rotary embedding, SwiGLU and routing.

Activations are bf16 (norm and SwiGLU also take fp32) and may be strided views whose rows are contiguous. A row's bits
depend on that row alone. Subnormal numbers count as zero; a nan comes out as 0x7fc0. Raises KernelError for tensors
that do not fit, before their addresses are passed to the library. An output may be an input itself, but may not overlap
one partially.
"""

import torch
from torch import Tensor

from earthshine.errors import KernelError
from earthshine.kernels.library import check_status, library
from earthshine.kernels.reference import Scoring

_BF16, _FP32 = torch.bfloat16, torch.float32
SCORINGS = ("sigmoid", "softmax")
MOST_EXPERTS = 4096


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, added: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """bf16(weight * bf16(x / sqrt(mean(x^2) + eps))) over the last axis, as `reference.rms_norm` for bf16.

    x: bf16 or fp32 [..., dim]; weight: bf16 [dim]. With `added`, bf16 [..., dim], x += added comes first, rounded to
    x's dtype and kept in x: a residual and the norm after it in one pass. `out`: bf16 [..., dim], which may be x.
    Heads [tokens, n_heads, dim] may be parts of wider rows, as those of queries do in a product of queries and keys.
    """
    dim = x.shape[-1] if x.ndim else 0
    if weight.dtype is not _BF16 or weight.shape != (dim,) or not weight.is_contiguous() or not weight.is_cpu:
        raise KernelError(f"The norm's weight must be contiguous bf16 [{dim}], not {_words(weight)}.")
    wide = _is_wide(x)
    if out is None:
        out = torch.empty(x.shape, dtype=_BF16)
    rows, x_row, out_row, n_heads, x_head, out_head = _heads(x, _like(out, x), added is None)
    check_status(
        library().es_rms_norm(
            x.data_ptr(),
            wide,
            x_row,
            x_head,
            None if added is None else added.data_ptr(),
            0 if added is None else _rows(_like(added, x))[1],
            weight.data_ptr(),
            eps,
            rows,
            n_heads,
            dim,
            out.data_ptr(),
            out_row,
            out_head,
        )
    )
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True, out: Tensor | None = None) -> Tensor:
    """Rotary embedding, bit for bit `reference.rotate(x, cos[:, None], sin[:, None], interleaved=interleaved)`.

    x: bf16 [rows, n_heads, dim] or [rows, dim]; cos, sin: fp32 [rows, dim / 2]; `out`: bf16 of x's shape, or x itself.
    """
    if x.dtype is not _BF16 or x.ndim not in (2, 3) or not x.is_cpu or (x.stride(-1) != 1 and x.shape[-1] > 1):
        raise KernelError(f"x must be bf16 [rows, n_heads, dim] or [rows, dim] on the CPU, not {_words(x)}.")
    rows, dim = x.shape[0], x.shape[-1]
    for angles in (cos, sin):
        if angles.dtype is not _FP32 or angles.shape != (rows, dim // 2) or not angles.is_contiguous():
            raise KernelError(f"The angles must be contiguous fp32 [{rows}, {dim // 2}], not {_words(angles)}.")
        if not angles.is_cpu:
            raise KernelError("The angles must be on the CPU.")
    if out is None:
        out = torch.empty(x.shape, dtype=_BF16)
    elif out.dtype is not _BF16 or out.shape != x.shape or not out.is_cpu or (out.stride(-1) != 1 and dim > 1):
        raise KernelError(f"out must be bf16 {list(x.shape)} on the CPU, not {_words(out)}.")
    heads = x.ndim == 3
    check_status(
        library().es_rotate(
            x.data_ptr(),
            x.stride(0),
            x.stride(1) if heads else dim,
            cos.data_ptr(),
            sin.data_ptr(),
            interleaved,
            rows,
            x.shape[1] if heads else 1,
            dim,
            out.data_ptr(),
            out.stride(0),
            out.stride(1) if heads else dim,
        )
    )
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """bf16(silu(gate) * up); gate and up: both bf16 or both fp32 [..., cols]. Returns bf16 of their shape.

    silu is within a few units in the last place of fp32, so one bf16 in some hundreds differs from the reference.
    """
    wide = _is_wide(gate)
    if up.dtype is not gate.dtype or up.shape != gate.shape or not up.is_cpu:
        raise KernelError(f"up must be on the CPU and like gate, {_words(gate)}, not {_words(up)}.")
    rows, gate_row = _rows(gate)
    up_row = _rows(up)[1]
    out = torch.empty(gate.shape, dtype=_BF16)
    check_status(
        library().es_swiglu(
            gate.data_ptr(), gate_row, up.data_ptr(), up_row, wide, rows, gate.shape[-1], out.data_ptr()
        )
    )
    return out


def route(
    logits: Tensor,
    bias: Tensor | None,
    *,
    top_k: int,
    n_groups: int = 1,
    groups_kept: int = 1,
    normalize: bool = True,
    scale: float = 1.0,
    scoring: Scoring = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """As `reference.route`: chosen int64 [tokens, top_k], the greatest first, and their fp32 weights.

    logits: fp32 [tokens, n_experts], at most 4096 experts; bias: fp32 [n_experts]. Scores are within a few units in the
    last place; from there on every bit is the reference's. Of equal scores the lower expert wins. nan counts as the
    greatest score, as in torch; under softmax one nan or inf makes every score of the token nan.
    """
    if logits.dtype is not _FP32 or logits.ndim != 2 or not logits.is_contiguous() or not logits.is_cpu:
        raise KernelError(f"The logits must be contiguous fp32 [tokens, n_experts], not {_words(logits)}.")
    tokens, n_experts = logits.shape
    if scoring not in SCORINGS:
        raise KernelError(f"scoring must be sigmoid or softmax, not {scoring!r}.")
    if bias is None:
        pass
    elif bias.dtype is not _FP32 or bias.shape != (n_experts,) or not bias.is_contiguous() or not bias.is_cpu:
        raise KernelError(f"The router's bias must be contiguous fp32 [{n_experts}], not {_words(bias)}.")
    if not 1 <= top_k <= n_experts <= MOST_EXPERTS:
        raise KernelError(f"top_k must be 1 to n_experts, and that at most {MOST_EXPERTS}, not {top_k} of {n_experts}.")
    if n_groups != 1 and (n_groups < 1 or n_experts % n_groups or n_experts < 2 * n_groups):
        raise KernelError(f"n_groups must divide {n_experts} experts into groups of two or more, not {n_groups}.")
    if not 1 <= groups_kept <= n_groups:
        raise KernelError(f"groups_kept must be between 1 and {n_groups} (n_groups), not {groups_kept}.")
    chosen = torch.empty(tokens, top_k, dtype=torch.int64)
    weight = torch.empty(tokens, top_k, dtype=_FP32)
    check_status(
        library().es_route(
            logits.data_ptr(),
            SCORINGS.index(scoring),
            None if bias is None else bias.data_ptr(),
            tokens,
            n_experts,
            top_k,
            n_groups,
            groups_kept,
            normalize,
            scale,
            chosen.data_ptr(),
            weight.data_ptr(),
        )
    )
    return chosen, weight


def _is_wide(x: Tensor) -> bool:
    """Whether x is fp32 rather than bf16; KernelError where it is neither, has no axis, or is not on the CPU."""
    wide = x.dtype is _FP32
    if (not wide and x.dtype is not _BF16) or not x.ndim or not x.is_cpu:
        raise KernelError(f"x must be bf16 or fp32 [..., dim] on the CPU, not {_words(x)}.")
    return wide


def _rows(x: Tensor) -> tuple[int, int]:
    """How many rows x has, and the elements from one to the next."""
    dim = x.shape[-1]
    if x.ndim == 2 and (x.stride(1) == 1 or dim < 2):
        return x.shape[0], x.stride(0)
    if x.is_contiguous():
        return x.numel() // dim if dim else 0, dim
    try:
        flat = x.view(-1, dim)
    except RuntimeError as problem:
        raise KernelError(f"The rows of {_words(x)} are not evenly spaced; make it contiguous.") from problem
    if flat.stride(1) != 1 and dim > 1:
        raise KernelError(f"The values of a row of {_words(x)} are not adjacent; make it contiguous.")
    return flat.shape[0], flat.stride(0)


def _heads(x: Tensor, out: Tensor, by_head: bool) -> tuple[int, int, int, int, int, int]:
    """Rows and their distances in x and out, heads of a row and theirs: one head where the rows of all are alike."""
    wider = by_head and x.ndim == 3 and not (x.is_contiguous() and out.is_contiguous())
    if wider and (x.shape[2] < 2 or x.stride(2) == out.stride(2) == 1):
        return x.shape[0], x.stride(0), out.stride(0), x.shape[1], x.stride(1), out.stride(1)
    rows, x_row = _rows(x)
    return rows, x_row, _rows(out)[1], 1, x.shape[-1], x.shape[-1]


def _like(other: Tensor, x: Tensor) -> Tensor:
    """`other`, which must be a bf16 tensor of x's shape."""
    if other.dtype is not _BF16 or other.shape != x.shape or not other.is_cpu:
        raise KernelError(f"A tensor must be bf16 {list(x.shape)} on the CPU, not {_words(other)}.")
    return other


def _words(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} on {x.device.type}"
