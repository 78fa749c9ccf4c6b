"""The operations. Which implementation serves each one is decided here, and nowhere else.

`reference` is the oracle. The native library serves bf16 activations on the CPU, with weights in any stored format.
`rows` is torch made independent of the batch; it serves fp32 activations, training, and machines without the library.
EARTHSHINE_KERNELS can choose the reference or an instruction set, and EARTHSHINE_CPU hides the better ones. A fallback
is never silent: `implementations()` says what serves and why a better one does not.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from earthshine.errors import KernelError
from earthshine.kernels import attention, elementwise, layer, library, native, recurrent, reference, rows
from earthshine.kernels.attention import PagedBatch, PagedTokens
from earthshine.kernels.layer import (
    LAYER_TOKENS,
    AttentionLayer,
    ExpertTable,
    FfnLayer,
    GqaShape,
    GqaTensors,
    MlaShape,
    MlaTensors,
    Router,
    UseCount,
)
from earthshine.kernels.matrix import Matrix, Weight, fp8_matrix, int4_matrix, raw_bytes
from earthshine.kernels.native import Expert
from earthshine.kernels.recurrent import RecurrentTokens
from earthshine.kernels.rows import attend
from earthshine.settings import KERNEL_CHOICES, read_settings

__all__ = [
    "LAYER_TOKENS",
    "AttentionLayer",
    "Expert",
    "ExpertTable",
    "FfnLayer",
    "GqaShape",
    "GqaTensors",
    "Implementation",
    "Matrix",
    "MlaShape",
    "MlaTensors",
    "PagedBatch",
    "PagedTokens",
    "RecurrentTokens",
    "Router",
    "UseCount",
    "Weight",
    "add_rms_norm",
    "attend",
    "decode",
    "ffn",
    "ffn_layer",
    "fp8_matrix",
    "gated_rms_norm",
    "gqa_layer",
    "implementations",
    "int4_matrix",
    "kda",
    "linear",
    "linear_by_head",
    "mla_layer",
    "moe_ffn",
    "moe_sum",
    "numerics",
    "paged_attention",
    "raw_bytes",
    "rms_norm",
    "rotate",
    "route",
    "set_threads",
    "swiglu",
    "threads",
]

_NATIVE = (
    "add_rms_norm", "decode", "ffn", "ffn_layer", "gated_rms_norm", "gqa_layer", "kda", "linear", "linear_by_head",
    "mla_layer", "moe_ffn", "moe_sum", "paged_attention", "rms_norm", "rotate", "route", "swiglu",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Implementation:
    """The implementation of one operation on bf16 in this process, and why a better one does not serve ("" for the
    best)."""

    operation: str
    name: str  # "torch" or "native" and its instruction set
    reason: str


def implementations() -> tuple[Implementation, ...]:
    """One entry per operation, sorted by name. Raises KernelError where EARTHSHINE_KERNELS can't be satisfied here."""
    serving = _serving()
    served = [Implementation(operation, serving.name, serving.reason) for operation in _NATIVE]
    served.append(Implementation("attend", "torch", "Only training and comparisons use keys and values by head."))
    return tuple(sorted(served, key=lambda implementation: implementation.operation))


def numerics(dtype: torch.dtype = torch.bfloat16) -> str:
    """A name of the numerics on activations of `dtype`: equal names mean equal bits of all results.

    VDPBF16PS adds in its own order; all other instruction sets add alike. Results of torch depend on its version and on
    the vector instructions that it reports. Raises KernelError as `implementations`.
    """
    by_torch = f"torch-{torch.__version__}-{torch.backends.cpu.get_cpu_capability()}"
    if not _serving().native:
        return by_torch
    if dtype != torch.bfloat16:
        return f"{by_torch}-native"  # experts are summed by the library
    return "native-vdpbf16ps" if library.instruction_set() == "avx512_bf16" else "native"


def set_threads(n_threads: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Set the number of threads of an operation on activations of `dtype`, 1 to 512. No result depends on it.

    Where the native library serves, torch keeps one thread: more would busy-wait on the kernels' processors. It also
    keeps one for fp32: with more, MKL on Intel's processors divides a sum among them, and its bits change.
    """
    native_serves = library.available() and _serving().native
    if native_serves:
        library.set_threads(n_threads)
    torch.set_num_threads(1 if native_serves or dtype != torch.bfloat16 else n_threads)


def threads() -> int:
    """The number of threads of an operation."""
    return library.threads() if library.available() else torch.get_num_threads()


def decode(matrix: Matrix) -> Tensor:
    """A stored matrix to bf16 [rows, cols]."""
    return native.decode(matrix) if _serving().native else reference.decode(matrix)


def linear(x: Tensor, weight: Weight, out_dtype: torch.dtype | None = None) -> Tensor:
    """[..., in] by [out, in] to [..., out], in x's dtype unless another is asked for; summed in fp32."""
    wanted = out_dtype or x.dtype
    if _is_stored(weight) and _is_native(x, weight):
        return native.linear(x, weight, wanted)
    wide = decode(weight) if isinstance(weight, Matrix) else weight
    if wanted == x.dtype == wide.dtype:
        return rows.linear(x, wide)
    return rows.linear(x.float(), wide.float()).to(wanted)


def linear_by_head(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """[..., n_heads, in] by [n_heads, out, in] to [..., n_heads, out]: every head has a matrix of its own.

    `out` may be a part of a wider tensor; it is returned.
    """
    if x.ndim == 3 and weight.dtype == torch.bfloat16 and _is_native(x, weight):
        result = x.new_empty(*x.shape[:-1], weight.shape[1]) if out is None else out
        native.linear_by_head(x, weight, result)
        return result
    product = rows.linear_by_head(x, weight)
    return product if out is None else out.copy_(product)


def ffn(x: Tensor, gate: Weight, up: Weight, down: Weight) -> Tensor:
    """As `reference.ffn`. gate x and up x stay in fp32, as an expert's do, except where gradients are needed."""
    if all(_is_stored(weight) and _is_native(x, weight) for weight in (gate, up, down)):
        return native.ffn(x, gate, up, down)
    wide = None if torch.is_grad_enabled() else torch.float32
    return linear(swiglu(linear(x, gate, wide), linear(x, up, wide)).to(x.dtype), down)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, as `reference.rms_norm`."""
    if weight.dtype == torch.bfloat16 and _is_native(x, weight):
        return elementwise.rms_norm(x, weight, eps)
    return reference.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + added, and the norm of that. What x was may be overwritten."""
    if weight.dtype == torch.bfloat16 and _is_native(x, added, weight):
        return x, elementwise.rms_norm(x, weight, eps, added=added)
    total = x + added
    return total, reference.rms_norm(total, weight, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True) -> Tensor:
    """Rotary embedding over interleaved pairs or over halves, as `reference.rotate`.

    cos and sin: fp32 [tokens, ..., dim / 2].
    """
    if x.ndim == cos.ndim and x.ndim in (2, 3) and cos.shape[1:-1] in ((), (1,)) and _is_native(x):
        angles = (cos, sin) if x.ndim == 2 else (cos[:, 0], sin[:, 0])
        return elementwise.rotate(x, *angles, interleaved=interleaved)
    return reference.rotate(x, cos, sin, interleaved=interleaved)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise."""
    return elementwise.swiglu(gate, up) if _is_native(gate, up) else rows.swiglu(gate, up)


def route(
    logits: Tensor,
    bias: Tensor | None,
    *,
    top_k: int,
    n_groups: int = 1,
    groups_kept: int = 1,
    normalize: bool = True,
    scale: float = 1.0,
    scoring: reference.Scoring = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """As `reference.route`, whose docstring gives the shapes."""
    plain = bias is None or bias.dtype == torch.float32
    own = plain and logits.is_cpu and not logits.requires_grad and _serving().native
    choose = elementwise.route if own else rows.route
    return choose(
        logits,
        bias,
        top_k=top_k,
        n_groups=n_groups,
        groups_kept=groups_kept,
        normalize=normalize,
        scale=scale,
        scoring=scoring,
    )


def paged_attention(
    query: Tensor,
    pool: Tensor,
    sequences: Sequence[PagedTokens],
    scale: float,
    *,
    n_kv_heads: int = 1,
    value_offset: int = 0,
    value_dim: int,
) -> Tensor:
    """Causal attention over rows in pages, as `attention.paged_attention`, whose docstring gives the shapes."""
    attend_pages = attention.paged_attention if _is_native(query) else rows.paged_attention
    return attend_pages(
        query, pool, sequences, scale, n_kv_heads=n_kv_heads, value_offset=value_offset, value_dim=value_dim
    )


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
    """Kimi Delta Attention, as `recurrent.kda`, whose docstring gives the shapes; fp32 qkv takes fp32 tails."""
    if _is_native(qkv):
        return recurrent.kda(
            qkv, gate, beta, sequences, conv=conv, a_log=a_log, dt_bias=dt_bias, lower_bound=lower_bound
        )
    return reference.kda(qkv, gate, beta, sequences, conv=conv, a_log=a_log, dt_bias=dt_bias, lower_bound=lower_bound)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight * sigmoid(gate) in fp32, to gate's dtype; x: fp32, weight: fp32 [dim]."""
    if x.dtype == weight.dtype == torch.float32 and _is_native(gate, x, weight):
        return recurrent.gated_rms_norm(x, gate, weight, eps)
    return rows.gated_rms_norm(x, gate, weight, eps)


def moe_ffn(x: Tensor, experts: Sequence[Expert], token: Tensor, begin: Sequence[int], each: Tensor) -> None:
    """As `reference.moe_ffn`, whose docstring gives the shapes."""
    (native if _is_native(x) else reference).moe_ffn(x, experts, token, begin, each)


def moe_sum(each: Tensor, token: Tensor, weight: Tensor, total: Tensor) -> None:
    """As `reference.moe_sum`, whose docstring gives the shapes."""
    (native if _serving().native else reference).moe_sum(each, token, weight, total)


def mla_layer(shape: MlaShape, tensors: MlaTensors) -> AttentionLayer | None:
    """As `layer.mla_layer`; None where the library does not take these weights, and one operation after the other
    serves."""
    return layer.mla_layer(shape, tensors) if _takes(*tensors) else None


def gqa_layer(shape: GqaShape, tensors: GqaTensors) -> AttentionLayer | None:
    """As `layer.gqa_layer`, or None as `mla_layer`."""
    return layer.gqa_layer(shape, tensors) if _takes(*tensors) else None


def ffn_layer(
    norm: Tensor, eps: float, *, router: Router | None, shared: tuple[Weight, Weight, Weight] | None
) -> FfnLayer | None:
    """As `layer.FfnLayer`, or None as `mla_layer`."""
    if router is not None and router.bias is not None and router.bias.dtype != torch.float32:
        return None
    matrix = None if router is None else router.matrix
    return FfnLayer(norm, eps, router=router, shared=shared) if _takes(norm, matrix, *(shared or ())) else None


def _takes(*weights: Weight | None) -> bool:
    """Whether the library serves layers with these weights; None stands for one that a layer does without."""
    return _serving().native and all(
        _is_stored(weight) and (isinstance(weight, Matrix) or (weight.is_cpu and not weight.requires_grad))
        for weight in weights
        if weight is not None
    )


def _is_stored(weight: Weight) -> bool:
    """Whether the native library takes it without a copy."""
    return isinstance(weight, Matrix) or (weight.dtype == torch.bfloat16 and weight.is_contiguous())


def _is_native(x: Tensor, *others: Weight) -> bool:
    if x.dtype is not torch.bfloat16 or not x.is_cpu or not _serving().native:
        return False
    if not torch.is_grad_enabled():
        return True
    return not any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in (x, *others))


@dataclass(frozen=True, slots=True)
class _Serving:
    native: bool
    name: str
    reason: str


@functools.cache
def _serving() -> _Serving:
    """What serves in this process: settled at the first use, since a process keeps one environment."""
    asked = read_settings().kernels
    if asked == "reference":
        return _Serving(False, "torch", "EARTHSHINE_KERNELS asks for the reference.")
    if not library.available():
        if asked == "auto":
            return _Serving(False, "torch", library.reason())
        raise KernelError(f"EARTHSHINE_KERNELS asks for {asked}, but: {library.reason()}")
    offered = library.instruction_sets()
    if asked not in ("auto", *offered):
        permitted = ", ".join(("auto", "reference", *offered))
        raise KernelError(f"EARTHSHINE_KERNELS asks for {asked}: {library.refusal(asked)} Permitted are {permitted}.")
    library.force(asked)
    serving = library.instruction_set()
    if serving != offered[0]:
        return _Serving(True, f"native {serving}", f"EARTHSHINE_KERNELS asks for {asked}; {offered[0]} would run here.")
    better = KERNEL_CHOICES[KERNEL_CHOICES.index(serving) + 1 :]
    reasons = dict.fromkeys(library.refusal(name) for name in reversed(better))
    return _Serving(True, f"native {serving}", " ".join(reasons))
