"""Measures the kernels' rates on this machine: memory reads, products by stored weights, attention over latents.

Every function returns plain numbers, one per repeat; the caller takes the median. Weights and latents are parts of one
region of memory and are used one after another, so that at few rows they come from memory and not from a cache, as a
model's do. Refuses a region that is too small for one of them.
"""

import ctypes
import mmap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle, islice

import torch
from torch import Tensor

from earthshine import kernels
from earthshine.errors import KernelError
from earthshine.kernels import library
from earthshine.kernels.attention import PagedTokens
from earthshine.kernels.matrix import Matrix
from earthshine.kernels.native import Expert
from earthshine.storage import BF16_BYTES, PAGE_TOKENS, Storage, matrix_bytes

# Kimi-K2.6's expert, and its latents.
HIDDEN, INTERMEDIATE = 7168, 2048
RANK, ROPE = 512, 64
CONTEXT_TOKENS = 8192

_SAMPLE_SECONDS = 0.03  # of one repeat, so that a clock and an interruption matter little
_MOST_SECONDS = 2.0  # of all repeats at one point, after which no further one begins
_MOST_CALLS = 10_000  # of one repeat, whatever the clock says
_TOGETHER = 8  # experts a call, as one layer's of a decoded token
_SPARE = 64  # between two matrices, so that each begins at a cache line


Memory = Tensor  # uint8 [n]: what weights and latents are cut from


def make_memory(nbytes: int) -> Memory:
    """uint8 [nbytes] of touched memory, in huge pages where there are some; read as bf16 it is normal numbers.

    Raises KernelError where the system has no room.
    """
    try:
        region = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError):
        raise KernelError(f"{nbytes} bytes to measure with are more than this machine can map.") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            region.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(region, dtype=torch.uint8)
    some = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).bfloat16().view(torch.uint8)
    for part in memory.split(len(some)):
        part.copy_(some[: len(part)])
    return memory


def read_word(memory: Memory) -> int | None:
    """Reads all of `memory` with all threads: the exclusive or of its 64-bit words. Without the library, torch reads
    it and there is no word."""
    word = ctypes.c_uint64()
    if not library.available():
        memory[: memory.numel() // 8 * 8].view(torch.int64).sum()
        return None
    library.check_status(library.library().es_read(memory.data_ptr(), memory.numel(), ctypes.byref(word)))
    return word.value


def read_rates(memory: Memory, repeats: int) -> list[float]:
    """Bytes per second at which all threads read `memory`."""
    return [memory.numel() * rate for rate in _rates(cycle([lambda: read_word(memory)]), 1, repeats)]


def linear_rates(memory: Memory, storage: Storage, rows: int, repeats: int) -> list[float]:
    """FLOP/s of `kernels.linear`: bf16 [rows, 7168] by [2048, 7168] of a format, a different matrix every call."""
    matrices = list(_matrices(memory, storage, INTERMEDIATE, HIDDEN))
    x = torch.randn(rows, HIDDEN).bfloat16()
    calls = [lambda m=matrix: kernels.linear(x, m) for matrix in matrices]
    flops = 2.0 * INTERMEDIATE * HIDDEN * rows
    return [flops * rate for rate in _rates(cycle(calls), len(calls) if rows == 1 else 1, repeats)]


def expert_rates(memory: Memory, storage: Storage, rows: int, repeats: int) -> list[float]:
    """FLOP/s of `kernels.moe_ffn` over experts of a format, `rows` each; up to eight experts per call."""
    experts = list(_experts(memory, storage))
    n = min(_TOGETHER if rows < 64 else 1, len(experts))
    groups = [experts[first : first + n] for first in range(0, len(experts) - n + 1, n)]
    x = torch.randn(rows, HIDDEN).bfloat16()
    token, begin = torch.arange(rows, dtype=torch.int32).repeat(n), [rows * i for i in range(n + 1)]
    each = torch.empty(n * rows, HIDDEN)
    calls = [lambda g=group: kernels.moe_ffn(x, g, token, begin, each) for group in groups]
    flops = 6.0 * INTERMEDIATE * HIDDEN * rows * n
    return [flops * rate for rate in _rates(cycle(calls), len(calls) if rows == 1 else 1, repeats)]


def attention_rates(memory: Memory, n_heads: int, tokens: int, repeats: int) -> list[float]:
    """FLOP/s of the last `tokens` of 8192 over a sequence's latents, another sequence every call.

    An operation is a multiplication or an addition that a query and a latent that it sees need.
    """
    latent, n_pages = RANK + ROPE, CONTEXT_TOKENS // PAGE_TOKENS
    pages = memory.numel() // (BF16_BYTES * PAGE_TOKENS * latent)
    if pages < n_pages:
        raise KernelError(f"{memory.numel()} bytes hold no {CONTEXT_TOKENS} latents; give more memory.")
    pool = memory[: pages * BF16_BYTES * PAGE_TOKENS * latent].view(torch.bfloat16).view(pages, PAGE_TOKENS, latent)
    query = torch.randn(tokens, n_heads, latent).bfloat16()
    start = CONTEXT_TOKENS - tokens
    firsts = range(0, pages - n_pages + 1, n_pages)
    sequences = [[PagedTokens(tokens, start, torch.arange(f, f + n_pages, dtype=torch.int32))] for f in firsts]
    calls = [lambda s=s: kernels.paged_attention(query, pool, s, latent**-0.5, value_dim=RANK) for s in sequences]
    flops = 2.0 * n_heads * (latent + RANK) * sum(start + token + 1 for token in range(tokens))
    return [flops * rate for rate in _rates(cycle(calls), len(calls) if tokens == 1 else 1, repeats)]


def _rates(calls: Iterator[Callable[[], object]], least: int, repeats: int) -> list[float]:
    """Calls per second in each of at least one repeat, of `least` calls or more; the first call is not counted."""
    began = time.perf_counter()
    next(calls)()
    once = max(time.perf_counter() - began, 1e-9)
    count = max(1, min(least, int(_MOST_SECONDS / once)), min(int(_SAMPLE_SECONDS / once), _MOST_CALLS))
    rates: list[float] = []
    while not rates or (len(rates) < repeats and time.perf_counter() - began < _MOST_SECONDS):
        now = time.perf_counter()
        for call in islice(calls, count):
            call()
        rates.append(count / max(time.perf_counter() - now, 1e-9))
    return rates


def _matrices(memory: Memory, storage: Storage, rows: int, cols: int) -> Iterator[Matrix]:
    """Matrices one behind the other, as many as there is room for. Raises KernelError where there is room for none."""
    sizes = [-(-size // _SPARE) * _SPARE for size in matrix_bytes(storage, rows, cols)]
    if memory.numel() < sum(sizes):
        raise KernelError(f"{memory.numel()} bytes hold no matrix of {rows} by {cols}; give more memory.")
    for first in range(0, memory.numel() - sum(sizes) + 1, sum(sizes)):
        yield _matrix(memory[first : first + sum(sizes)], storage, rows, cols)


def _matrix(memory: Memory, storage: Storage, rows: int, cols: int) -> Matrix:
    codes, scales = matrix_bytes(storage, rows, cols)
    after = -(-codes // _SPARE) * _SPARE
    return Matrix(storage, rows, cols, memory[:codes], memory[after : after + scales] if scales else None)


def _experts(memory: Memory, storage: Storage) -> Iterator[Expert]:
    up, down = list(_matrices(memory, storage, INTERMEDIATE, HIDDEN)), (HIDDEN, INTERMEDIATE)
    if len(up) < 3:
        raise KernelError(f"{memory.numel()} bytes hold no expert; give more memory.")
    for gate, other, last in zip(up[::3], up[1::3], up[2::3], strict=False):
        yield Expert(gate, other, Matrix(storage, *down, last.codes, last.scales))
