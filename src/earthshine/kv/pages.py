"""The pool of pages: the rows of every layer, a free list, and a count of holders for each page.

A page holds what `page_tokens` consecutive tokens of a sequence keep in every layer. Pages of a shared prefix have
several holders and return to the free list with the last of them. The pool never grows: when pages run out, the
request is refused and nothing has changed. Not for concurrent use; one step runs at a time.
"""

import heapq
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from earthshine.errors import ContextError, UsageError
from earthshine.spec.attention import Rows
from earthshine.units import format_bytes

Kept = Sequence[Sequence[Rows]]  # by layer


class PagePool:
    """`kept`: by layer, what a sequence keeps there. A page that nobody holds has undefined values.

    Raises UsageError for sizes below one and ContextError where the memory can't be had.
    """

    def __init__(self, kept: Kept, page_tokens: int, n_pages: int, dtype: torch.dtype) -> None:
        widths = [rows.width for layer in kept for rows in layer]
        if min(n_pages, page_tokens, len(widths), *widths) < 1:
            raise UsageError(
                f"A page pool needs rows to keep, pages and page tokens above zero, not {widths}, {n_pages} and "
                f"{page_tokens}."
            )
        self.kept, self.n_pages, self.page_tokens = kept, n_pages, page_tokens
        sizes = [n_pages * page_tokens * width for width in widths]
        try:
            # Uninitialised, so that the system commits memory only as pages are first written.
            self._values = torch.empty(sum(sizes), dtype=dtype)
        except (RuntimeError, MemoryError, OverflowError, TypeError):  # a size beyond int64 is a TypeError
            raise ContextError(
                f"The cache needs {format_bytes(sum(sizes) * dtype.itemsize)}, which this machine does not have; use "
                "fewer pages."
            ) from None
        parts = self._values.split(sizes)
        self._parts = [part.view(n_pages, page_tokens, width) for part, width in zip(parts, widths, strict=True)]
        firsts = accumulate(map(len, kept), initial=0)
        self._rows = [
            tuple(self._parts[first : first + len(layer)]) for layer, first in zip(kept, firsts, strict=False)
        ]
        self._free = list(range(n_pages))  # a heap: the lowest page first, so that a lone sequence lies in order
        self._holders = [0] * n_pages

    @property
    def dtype(self) -> torch.dtype:
        return self._values.dtype

    @property
    def bytes(self) -> int:
        """Of all pages, held or free."""
        return self._values.nbytes

    def rows(self, layer: int, part: int = 0) -> Tensor:
        """[n_pages, page_tokens, width]: the `part`-th of the rows that `layer` keeps."""
        rows: Tensor = self._rows[layer][part]
        return rows

    def page(self, page: int) -> list[Tensor]:
        """Views [page_tokens, width] of a page's rows: all parts of every layer, in order."""
        return [part[page] for part in self._parts]

    def write_page(self, page: int, parts: Sequence[Tensor]) -> None:
        """`parts`: as `page` gives them."""
        for mine, part in zip(self.page(page), parts, strict=True):
            mine.copy_(part)

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def holders(self, page: int) -> int:
        """How many timelines hold `page`; a page with more than one is read only."""
        return self._holders[page]

    def allocate(self, count: int) -> list[int]:
        """`count` free pages with one holder each, lowest first. Raises ContextError, and then takes none."""
        if count > len(self._free):
            raise ContextError(f"The cache has {len(self._free)} pages free, but {count} are needed.")
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
