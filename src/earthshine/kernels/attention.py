"""Causal attention over rows in pages, for prefill and decode, by the native library.

A query reads the keys and values of its sequence in place in the pool. Absorbed MLA is the case whose values are a part
of keys that all heads share; grouped-query attention is another. A token's result depends only on its own query and the
rows up to its own: not on the batch, on how a prompt was cut, or on the rest of a page. Raises KernelError for tensors
that do not fit, before their addresses are passed to the library.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from earthshine.errors import KernelError
from earthshine.kernels.library import check_status, library


class CSequence(ctypes.Structure):
    _fields_ = (
        ("first", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("start", ctypes.c_int64),
        ("pages", ctypes.c_void_p),
        ("n_pages", ctypes.c_int64),
    )


class _Attention(ctypes.Structure):
    _fields_ = (
        ("n_heads", ctypes.c_int64),
        ("n_kv_heads", ctypes.c_int64),
        ("key_dim", ctypes.c_int64),
        ("value_offset", ctypes.c_int64),
        ("value_dim", ctypes.c_int64),
        ("page_tokens", ctypes.c_int64),
        ("n_pool_pages", ctypes.c_int64),
        ("scale", ctypes.c_float),
    )


@dataclass(frozen=True, slots=True, eq=False)
class PagedTokens:
    """The next `count` tokens of a batch: positions `start` and on of one sequence, whose pages are `pages`.

    pages: int32 [n], contiguous, on the CPU; position p is in page pages[p // page_tokens] of the pool.
    """

    count: int
    start: int
    pages: Tensor


class PagedBatch(tuple[PagedTokens, ...]):
    """The sequences of a batch, in order. Their form for the library is made once, since every layer asks for it."""

    _described: "ctypes.Array[CSequence]"
    _page_tokens = n_tokens = 0

    def described(self, page_tokens: int) -> "ctypes.Array[CSequence]":
        """Raises KernelError for a table of another type, or with fewer pages than positions."""
        if self._page_tokens != page_tokens:
            described, first = (CSequence * len(self))(), 0
            for place, sequence in enumerate(self):
                described[place] = _describe(sequence, first, page_tokens)
                first += sequence.count
            self._described, self._page_tokens, self.n_tokens = described, page_tokens, first
        return self._described


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
    """Causal attention: softmax(scale * query . key) weighs the values of the sequence up to each token.

    query: bf16 [tokens, n_heads, key_dim], the sequences' tokens one after the other; each kv head is shared by
    n_heads / n_kv_heads query heads in a row. pool: bf16 [n_pages, page_tokens, n_kv_heads * width], with the rows of
    these tokens written. Within a kv head's width = max(key_dim, value_offset + value_dim) values the key is the first
    key_dim, and the value is value_dim from value_offset on. Returns bf16 [tokens, n_heads, value_dim].
    Products of bf16, sums in fp32, shares of the softmax rounded to bf16. Keys and values must be finite.
    Raises KernelError for tensors, pages or positions that do not fit together.
    """
    _check_tensors(query, pool, scale)
    tokens, n_heads, key_dim = query.shape
    _check_heads(n_heads, n_kv_heads, (key_dim, value_offset, value_dim), pool.shape[-1])
    batch = sequences if isinstance(sequences, PagedBatch) else PagedBatch(sequences)
    described = batch.described(pool.shape[1])
    if batch.n_tokens != tokens:
        raise KernelError(f"The sequences have {batch.n_tokens} tokens and the queries {tokens}.")
    shape = _Attention(n_heads, n_kv_heads, key_dim, value_offset, value_dim, pool.shape[1], pool.shape[0], scale)
    out = torch.empty(tokens, n_heads, value_dim, dtype=torch.bfloat16)
    check_status(
        library().es_paged_attention(
            ctypes.byref(shape),
            described,
            len(sequences),
            query.data_ptr(),
            tokens,
            pool.data_ptr(),
            out.data_ptr(),
        )
    )
    return out


def _check_tensors(query: Tensor, pool: Tensor, scale: float) -> None:
    for name, tensor in (("query", query), ("pool", pool)):
        if tensor.dtype != torch.bfloat16 or tensor.ndim != 3 or not tensor.is_cpu or not tensor.is_contiguous():
            raise KernelError(
                f"The {name} must be a contiguous tensor of three dimensions, in bf16 on the CPU, not {tensor.dtype} "
                f"{list(tensor.shape)}."
            )
    if not 0 < scale < math.inf:
        raise KernelError(f"The scale must be a finite number above 0, not {scale}.")


def _check_heads(n_heads: int, n_kv_heads: int, sizes: tuple[int, int, int], row: int) -> None:
    key_dim, value_offset, value_dim = sizes
    if n_kv_heads < 1 or n_heads < 1 or n_heads % n_kv_heads:
        raise KernelError(f"n_heads must be a multiple of n_kv_heads, not {n_heads} with {n_kv_heads}.")
    if key_dim < 1 or value_dim < 1 or value_offset < 0:
        raise KernelError(
            f"key_dim and value_dim must be at least 1 and value_offset at least 0, not {key_dim}, {value_dim} and "
            f"{value_offset}."
        )
    width = max(key_dim, value_offset + value_dim)
    if row != n_kv_heads * width:
        raise KernelError(
            f"A token's row in the pool must have {n_kv_heads} x {width} values, n_kv_heads times what key_dim "
            f"{key_dim}, value_dim {value_dim} and value_offset {value_offset} span, not {row}."
        )


def _describe(sequence: PagedTokens, first: int, page_tokens: int) -> CSequence:
    pages, end = sequence.pages, sequence.start + sequence.count
    if pages.dtype != torch.int32 or pages.ndim != 1 or not pages.is_cpu or not pages.is_contiguous():
        raise KernelError(f"Pages must be contiguous int32 [n] on the CPU, not {pages.dtype} {list(pages.shape)}.")
    if sequence.count < 0 or sequence.start < 0 or end > pages.shape[0] * page_tokens:
        raise KernelError(
            f"Positions {sequence.start} to {end} do not fit in {len(pages)} pages of {page_tokens} tokens."
        )
    return CSequence(first, sequence.count, sequence.start, pages.data_ptr(), pages.shape[0])
