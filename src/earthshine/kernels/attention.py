"""Latent attention over pages, prefill and decode alike, by the native library.

A query reads the latents of its conversation where they lie in the pool, as keys and as values that all heads share.
A token's result depends on its own query and the latents up to its own: not on the batch, on how a prompt was cut, or
on what lies in a page beyond the last token. Every tensor is checked before its address crosses the boundary; what
does not fit raises KernelError.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from earthshine.errors import KernelError
from earthshine.kernels.library import check_status, library


class _Sequence(ctypes.Structure):
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
        ("kv_lora_rank", ctypes.c_int64),
        ("rope_dim", ctypes.c_int64),
        ("page_tokens", ctypes.c_int64),
        ("n_pool_pages", ctypes.c_int64),
        ("scale", ctypes.c_float),
    )


@dataclass(frozen=True, slots=True, eq=False)
class PagedTokens:
    """The next `count` tokens of a batch: positions `start` and on of one conversation, whose pages are `pages`.

    pages: int32 [n], contiguous, in main memory; position p lies in page pages[p // page_tokens] of the pool.
    """

    count: int
    start: int
    pages: Tensor


def attend_latents(
    query: Tensor, pool: Tensor, sequences: Sequence[PagedTokens], kv_lora_rank: int, scale: float
) -> Tensor:
    """Causal attention over latents: softmax(scale * query . latent) mixes the first `kv_lora_rank` values of each.

    query: bf16 [tokens, n_heads, latent_dim], the sequences' tokens one after the other; pool: bf16 [n_pages,
    page_tokens, latent_dim], with the latents of these tokens written; returns bf16 [tokens, n_heads, kv_lora_rank].
    Products of bf16, sums in fp32, shares of the softmax rounded to bf16. Latents must be finite.
    Raises KernelError for tensors, pages or positions that do not fit together.
    """
    _check_tensors(query, pool, kv_lora_rank, scale)
    tokens, n_heads, latent_dim = query.shape
    described, first = (_Sequence * len(sequences))(), 0
    for place, sequence in enumerate(sequences):
        described[place] = _describe(sequence, first, pool.shape[1])
        first += sequence.count
    if first != tokens:
        raise KernelError(f"The sequences have {first} tokens and the queries {tokens}.")
    shape = _Attention(n_heads, kv_lora_rank, latent_dim - kv_lora_rank, pool.shape[1], pool.shape[0], scale)
    out = torch.empty(tokens, n_heads, kv_lora_rank, dtype=torch.bfloat16)
    check_status(
        library().es_mla_attention(
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


def _check_tensors(query: Tensor, pool: Tensor, kv_lora_rank: int, scale: float) -> None:
    for name, tensor in (("query", query), ("pool", pool)):
        if tensor.dtype != torch.bfloat16 or tensor.ndim != 3 or not tensor.is_cpu or not tensor.is_contiguous():
            raise KernelError(
                f"The {name} is {tensor.dtype} {list(tensor.shape)}; three contiguous axes of bf16 in main memory are "
                "expected."
            )
    if query.shape[-1] != pool.shape[-1] or not 1 <= kv_lora_rank <= query.shape[-1]:
        raise KernelError(
            f"Queries of {query.shape[-1]}, latents of {pool.shape[-1]} and values of {kv_lora_rank} do not fit."
        )
    if not 0 < scale < math.inf:
        raise KernelError(f"Scores can't be scaled by {scale}; it takes a number above zero.")


def _describe(sequence: PagedTokens, first: int, page_tokens: int) -> _Sequence:
    pages, end = sequence.pages, sequence.start + sequence.count
    if pages.dtype != torch.int32 or pages.ndim != 1 or not pages.is_cpu or not pages.is_contiguous():
        raise KernelError(f"A table of pages is int32, contiguous and in main memory, not {pages.dtype}.")
    if sequence.count < 0 or sequence.start < 0 or end > pages.shape[0] * page_tokens:
        raise KernelError(
            f"Positions {sequence.start} to {end} do not fit in {len(pages)} pages of {page_tokens} tokens."
        )
    return _Sequence(first, sequence.count, sequence.start, pages.data_ptr(), pages.shape[0])
