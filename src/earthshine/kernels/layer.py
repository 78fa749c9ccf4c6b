"""Parts of a layer for a few tokens, each in one native call: attention, or the feed-forward network, after its norm.

A decode step's operations are small, so that what Python does between them costs as much as some of them. Here the
library walks through the operations that `models` names one by one, in the same order and to the same bits. Weights are
checked once, when a layer is made; what a step brings is checked in each call. What does not fit raises KernelError.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from earthshine.errors import KernelError
from earthshine.kernels.attention import CSequence, PagedBatch, PagedTokens
from earthshine.kernels.elementwise import SCORINGS
from earthshine.kernels.library import check_status, library
from earthshine.kernels.matrix import Weight
from earthshine.kernels.native import CExpert, CMatrix, Expert, describe
from earthshine.kernels.reference import Scoring

LAYER_TOKENS = 16  # at most, in one call; with more, what lies between operations weighs little
_BF16, _FP32 = torch.bfloat16, torch.float32


class MlaShape(NamedTuple):
    """Sizes of latent attention. `eps`: of the norm before it; `latent_eps`: of those on low-rank values."""

    n_heads: int
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    eps: float
    latent_eps: float
    scale: float


class MlaTensors(NamedTuple):
    """Weights of latent attention and of the norm before it, in the library's order. Matrices are [out, in]; vectors
    are bf16."""

    norm: Tensor  # [hidden]
    q_a: Weight | None  # [q_lora_rank, hidden]; where None, so is its norm, and q takes the hidden values
    q_a_norm: Tensor | None  # [q_lora_rank]
    q: Weight  # [n_heads * (nope_dim + rope_dim), q_lora_rank or hidden]
    kv_a: Weight  # [kv_lora_rank + rope_dim, hidden]
    kv_a_norm: Tensor  # [kv_lora_rank]
    kv_b: Tensor  # bf16 [n_heads * (nope_dim + v_dim), kv_lora_rank]
    o: Weight  # [hidden, n_heads * v_dim]


class GqaShape(NamedTuple):
    """Sizes of grouped-query attention. `eps`: of the norm before it; `head_eps`: of those on heads."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope_dim: int
    eps: float
    head_eps: float
    scale: float


class GqaTensors(NamedTuple):
    """Weights of grouped-query attention and of the norm before it, as MlaTensors."""

    norm: Tensor  # [hidden]
    q: Weight  # [n_heads * head_dim, hidden]
    q_norm: Tensor  # [head_dim]
    k: Weight  # [n_kv_heads * head_dim, hidden]
    k_norm: Tensor  # [head_dim]
    v: Weight  # [n_kv_heads * head_dim, hidden]
    o: Weight  # [hidden, n_heads * head_dim]


class Router(NamedTuple):
    """What chooses experts: a matrix, and the arguments of `route` after the logits."""

    matrix: Weight  # [n_experts, hidden]
    bias: Tensor | None  # fp32 [n_experts]
    top_k: int
    n_groups: int
    groups_kept: int
    normalize: bool
    scale: float
    scoring: Scoring


class _Batch(ctypes.Structure):
    _fields_ = (
        ("sequences", ctypes.POINTER(CSequence)),
        ("n_sequences", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("pool", ctypes.c_void_p),
        ("page_tokens", ctypes.c_int64),
        ("n_pool_pages", ctypes.c_int64),
    )


class _Mla(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in MlaShape._fields[:5]),
        *((name, ctypes.c_float) for name in MlaShape._fields[5:]),
        ("norm", ctypes.c_void_p),
        ("q_a", CMatrix),
        ("q_a_norm", ctypes.c_void_p),
        ("q", CMatrix),
        ("kv_a", CMatrix),
        ("kv_a_norm", ctypes.c_void_p),
        ("kv_b", ctypes.c_void_p),
        ("o", CMatrix),
    )


class _Gqa(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in GqaShape._fields[:4]),
        *((name, ctypes.c_float) for name in GqaShape._fields[4:]),
        ("norm", ctypes.c_void_p),
        ("q", CMatrix),
        ("q_norm", ctypes.c_void_p),
        ("k", CMatrix),
        ("k_norm", ctypes.c_void_p),
        ("v", CMatrix),
        ("o", CMatrix),
    )


class _Ffn(ctypes.Structure):
    _fields_ = (
        ("eps", ctypes.c_float),
        ("norm", ctypes.c_void_p),
        ("router", CMatrix),
        ("bias", ctypes.c_void_p),
        ("scoring", ctypes.c_int32),
        ("normalize", ctypes.c_int32),
        ("top_k", ctypes.c_int64),
        ("n_groups", ctypes.c_int64),
        ("groups_kept", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("shared", CExpert),
    )


class AttentionLayer:
    """attention(norm(x)) for the tokens of a step, whose rows it writes to the pool."""

    def __init__(self, function: str, described: ctypes.Structure, width: int, rope_dim: int, keep: object) -> None:
        """`width`: values that a token keeps; `keep`: what `described` points into."""
        self._function, self._described, self._keep = function, described, keep
        self._hidden, self._width, self._pairs = described.o.rows, width, rope_dim // 2

    def __call__(
        self, x: Tensor, pool: Tensor, sequences: Sequence[PagedTokens], angles: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """x: bf16 [tokens, hidden], at most LAYER_TOKENS; pool: bf16 [n_pages, page_tokens, width], in which the pages
        of these positions are this batch's to write; angles: cos and sin, fp32 [tokens, rope_dim / 2], or None where
        nothing rotates. Returns bf16 [tokens, hidden]."""
        tokens = _check_rows("x", x, self._hidden)
        n_pages, page_tokens, width = pool.shape
        if pool.dtype is not _BF16 or width != self._width or not pool.is_contiguous() or not pool.is_cpu:
            raise KernelError(f"The pool must have bf16 rows of {self._width}, not {pool.dtype} {list(pool.shape)}.")
        for part in angles or ():
            if part.dtype is not _FP32 or part.shape != (tokens, self._pairs) or not part.is_contiguous():
                raise KernelError(
                    f"Angles must be fp32 [{tokens}, {self._pairs}], not {part.dtype} {list(part.shape)}."
                )
            if not part.is_cpu:
                raise KernelError(f"Angles must be on the CPU, not on {part.device}.")
        batch = sequences if isinstance(sequences, PagedBatch) else PagedBatch(sequences)
        cos, sin = (None, None) if angles is None else (angles[0].data_ptr(), angles[1].data_ptr())
        step = _Batch(batch.described(page_tokens), len(batch), tokens, cos, sin, pool.data_ptr(), page_tokens, n_pages)
        out = torch.empty_like(x)
        call = getattr(library(), self._function)
        check_status(call(ctypes.byref(self._described), ctypes.byref(step), x.data_ptr(), out.data_ptr()))
        return out


def mla_layer(shape: MlaShape, tensors: MlaTensors) -> AttentionLayer:
    """Latent attention, absorbed."""
    norm, q_a, q_a_norm, q, kv_a, kv_a_norm, kv_b, o = tensors
    if not isinstance(kv_b, Tensor):
        raise KernelError(f"kv_b is stored as {kv_b.storage}; latent attention takes it as a bf16 tensor.")
    if tuple(kv_b.shape) != (shape.n_heads * (shape.nope_dim + shape.v_dim), shape.kv_lora_rank):
        raise KernelError(f"kv_b is {list(kv_b.shape)}, which does not fit {shape}.")
    if (q_a is None) != (q_a_norm is None):
        raise KernelError("Low-rank queries need both q_a and q_a_norm.")
    described = _Mla(
        *shape,
        _vector(norm, o.shape[0]),
        CMatrix() if q_a is None else describe(q_a),
        None if q_a is None or q_a_norm is None else _vector(q_a_norm, q_a.shape[0]),
        describe(q),
        describe(kv_a),
        _vector(kv_a_norm, shape.kv_lora_rank),
        describe(kv_b).codes,
        describe(o),
    )
    return AttentionLayer("es_mla_layer", described, shape.kv_lora_rank + shape.rope_dim, shape.rope_dim, tensors)


def gqa_layer(shape: GqaShape, tensors: GqaTensors) -> AttentionLayer:
    """Grouped-query attention."""
    norm, q, q_norm, k, k_norm, v, o = tensors
    described = _Gqa(
        *shape,
        _vector(norm, o.shape[0]),
        describe(q),
        _vector(q_norm, shape.head_dim),
        describe(k),
        _vector(k_norm, shape.head_dim),
        describe(v),
        describe(o),
    )
    return AttentionLayer("es_gqa_layer", described, 2 * shape.n_kv_heads * shape.head_dim, shape.rope_dim, tensors)


class UseCount:
    """How many experts were chosen so far, once a call, over all tables that share it. Any thread may read it."""

    def __init__(self) -> None:
        self.n = 0


class ExpertTable:
    """All routed experts of a layer, which stay where they are; `count` counts those that calls choose."""

    def __init__(self, experts: Sequence[Expert], count: UseCount | None = None) -> None:
        self._experts = tuple(experts)
        self.described = (CExpert * len(experts))(*[expert.descriptor for expert in experts])
        self.count = count or UseCount()

    def __len__(self) -> int:
        return len(self._experts)


class FfnLayer:
    """x + added, then the norm of that through the chosen experts and the network for all tokens, added to it.

    norm: bf16 [hidden]; router: None for a dense layer; shared: gate, up and down of the network for all tokens, or
    None. Raises KernelError where there is neither, and for weights of another width than norm's.
    """

    def __init__(
        self, norm: Tensor, eps: float, *, router: Router | None, shared: tuple[Weight, Weight, Weight] | None
    ) -> None:
        self._keep = (norm, router, shared)
        self._n_experts = 0 if router is None else router.matrix.shape[0]
        self._hidden = norm.shape[0]
        if router is None and shared is None:
            raise KernelError("A feed-forward layer needs a router, a network for all tokens, or both.")
        widths = {
            "The router's columns": None if router is None else router.matrix.shape[1],
            "The rows of down": None if shared is None else shared[2].shape[0],
        }
        for name, width in widths.items():
            if width not in (None, self._hidden):
                raise KernelError(f"{name} are {width}; the norm is {self._hidden} wide.")
        self._described = _Ffn(eps=eps, norm=_vector(norm, norm.shape[0]))
        if shared is not None:
            self._described.shared = CExpert(*map(describe, shared))
        if router is not None:
            self._described.router = describe(router.matrix)
            self._described.bias = None if router.bias is None else _vector(router.bias, self._n_experts, _FP32)
            self._described.scoring = SCORINGS.index(router.scoring)
            for name in ("normalize", "top_k", "n_groups", "groups_kept", "scale"):
                setattr(self._described, name, getattr(router, name))

    def __call__(self, x: Tensor, added: Tensor, experts: ExpertTable | None) -> Tensor:
        """x, added: bf16 [tokens, hidden], at most LAYER_TOKENS. Changes x and returns it."""
        tokens = _check_rows("x", x, self._hidden)
        if _check_rows("added", added, self._hidden) != tokens or (0 if experts is None else len(experts)) != (
            self._n_experts
        ):
            raise KernelError(f"`added` must have {tokens} rows, as x has, and the table {self._n_experts} experts.")
        used = ctypes.c_int64()
        check_status(
            library().es_ffn_layer(
                ctypes.byref(self._described),
                None if experts is None else experts.described,
                x.data_ptr(),
                added.data_ptr(),
                tokens,
                ctypes.byref(used),
            )
        )
        if experts is not None:
            experts.count.n += used.value
        return x


def _check_rows(name: str, x: Tensor, hidden: int) -> int:
    """How many rows x has."""
    if x.dtype is not _BF16 or x.ndim != 2 or not x.is_contiguous() or not x.is_cpu:
        raise KernelError(f"{name} must be contiguous rows of bf16 on the CPU, not {x.dtype} {list(x.shape)}.")
    tokens, width = x.shape
    if width != hidden or tokens > LAYER_TOKENS:
        raise KernelError(f"{name} must have at most {LAYER_TOKENS} rows of {hidden}, not {[tokens, width]}.")
    return int(tokens)


def _vector(vector: Weight, size: int, dtype: torch.dtype = _BF16) -> int:
    """The address of [size] values."""
    if not isinstance(vector, Tensor) or vector.dtype is not dtype or tuple(vector.shape) != (size,):
        raise KernelError(f"A vector must be {dtype} [{size}], not {list(vector.shape)}.")
    if not vector.is_contiguous() or not vector.is_cpu:
        raise KernelError("A vector must be contiguous and on the CPU.")
    return vector.data_ptr()
