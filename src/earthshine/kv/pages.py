"""The pool of latent pages: one tensor, a free list, and a count of holders for each page.

A page holds the latents of `page_tokens` consecutive tokens in every layer. Pages of a shared prefix have several
holders and return to the free list with the last of them. The pool never grows: when pages run out, the request
is refused and nothing has changed. Not for concurrent use; one step runs at a time.
"""

import heapq
from collections.abc import Sequence

import torch

from earthshine.errors import ContextError, UsageError
from earthshine.units import format_bytes


class PagePool:
    """`tensor` is [n_layers, n_pages, page_tokens, latent_dim]; a page that nobody holds has undefined values.

    Raises UsageError for sizes below one and ContextError where the memory can't be had.
    """

    def __init__(self, n_layers: int, latent_dim: int, page_tokens: int, n_pages: int, dtype: torch.dtype) -> None:
        shape = (n_layers, n_pages, page_tokens, latent_dim)
        if min(shape) < 1:
            raise UsageError(f"A page pool needs layers, pages, page tokens and a latent size above zero, not {shape}.")
        size_bytes = n_layers * n_pages * page_tokens * latent_dim * dtype.itemsize
        try:
            # Uninitialised, so that the system commits memory only as pages are first written.
            self.tensor = torch.empty(shape, dtype=dtype)
        except (RuntimeError, MemoryError, OverflowError, TypeError):  # a size beyond int64 is a TypeError
            raise ContextError(
                f"The latent cache needs {format_bytes(size_bytes)}, which this machine does not have; use fewer pages."
            ) from None
        self._free = list(range(n_pages))  # a heap: the lowest page first, so that a lone conversation lies in order
        self._holders = [0] * n_pages

    @property
    def n_layers(self) -> int:
        return self.tensor.shape[0]

    @property
    def n_pages(self) -> int:
        return self.tensor.shape[1]

    @property
    def page_tokens(self) -> int:
        return self.tensor.shape[2]

    @property
    def latent_dim(self) -> int:
        return self.tensor.shape[3]

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def bytes(self) -> int:
        """Of all pages, held or free."""
        return self.tensor.nbytes

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def holders(self, page: int) -> int:
        """How many timelines hold `page`; a page with more than one is read only."""
        return self._holders[page]

    def allocate(self, count: int) -> list[int]:
        """`count` free pages with one holder each, lowest first. Raises ContextError, and then takes none."""
        if count > len(self._free):
            raise ContextError(f"The latent cache has {len(self._free)} pages free, but {count} are needed.")
        pages = [heapq.heappop(self._free) for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def hold(self, pages: Sequence[int]) -> None:
        """Add a holder to each of `pages`, which must have one already."""
        self._require_held(pages)
        for page in pages:
            self._holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Take a holder from each of `pages`; those left without one are free again."""
        self._require_held(pages)
        for page in pages:
            self._holders[page] -= 1
            if self._holders[page] == 0:
                heapq.heappush(self._free, page)

    def _require_held(self, pages: Sequence[int]) -> None:
        free = [page for page in pages if self._holders[page] == 0]
        if free:
            raise UsageError(f"Page {free[0]} has no holder; only pages that were allocated can be shared or released.")
