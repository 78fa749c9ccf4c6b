"""The pool of pages: the rows of every layer, a free list, and the number of holders of each page.

A page holds what `page_tokens` consecutive tokens of a sequence keep in every layer. Pages of a shared prefix have
several holders, and are free once the last one releases them. The pool never grows: when pages run out, an allocation
raises ContextError and nothing has changed. Not thread-safe.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from earthshine.errors import ContextError, UsageError
from earthshine.kv.places import Places
from earthshine.kv.states import StatePool
from earthshine.spec.attention import STATES_PER_SEQUENCE, Kept, Rows, State
from earthshine.units import format_bytes


class PagePool(Places):
    """`kept`: by layer, what a sequence keeps there. The values of a free page are undefined.

    `states`: `n_states` slots for recurrent states, by default those of one sequence; None for a model that keeps none.
    Raises UsageError for sizes below 1, and ContextError where the memory can't be allocated.
    """

    def __init__(
        self, kept: Kept, page_tokens: int, n_pages: int, dtype: torch.dtype, n_states: int = STATES_PER_SEQUENCE
    ) -> None:
        places = {
            (layer, index): part.width
            for layer, parts in enumerate(kept)
            for index, part in enumerate(parts)
            if isinstance(part, Rows)
        }
        widths = list(places.values())
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
        super().__init__(n_pages, "page")
        self._rows = {
            place: values.view(n_pages, page_tokens, width)
            for (place, width), values in zip(places.items(), self._values.split(sizes), strict=True)
        }
        recurrent = any(isinstance(part, State) for parts in kept for part in parts)
        self.states = StatePool(kept, n_states, dtype) if recurrent else None

    @property
    def dtype(self) -> torch.dtype:
        return self._values.dtype

    @property
    def bytes(self) -> int:
        """Bytes of all pages, without recurrent states."""
        return self._values.nbytes

    @property
    def state_bytes(self) -> int:
        """Bytes of one recurrent state."""
        return self.states.bytes // self.states.n_slots if self.states else 0

    @property
    def free_pages(self) -> int:
        return self.free

    def rows(self, layer: int, part: int = 0) -> Tensor:
        """[n_pages, page_tokens, width]: the rows of part `part` of a layer."""
        rows: Tensor = self._rows[layer, part]
        return rows

    def runs(self, layer: int, part: int, pages: Sequence[int]) -> list[Tensor]:
        """Views [tokens, width] of the pages' rows, in order: one for each run of consecutive pages."""
        rows, found, first = self.rows(layer, part), [], 0
        for at in range(1, len(pages) + 1):
            if at == len(pages) or pages[at] != pages[at - 1] + 1:
                found.append(rows[pages[first] : pages[at - 1] + 1].flatten(0, 1))
                first = at
        return found

    def page(self, page: int) -> list[Tensor]:
        """Views [page_tokens, width] of a page's rows: all parts of every layer, in order."""
        return [rows[page] for rows in self._rows.values()]

    def write_page(self, page: int, parts: Sequence[Tensor]) -> None:
        """Write a page's rows; `parts` as returned by `page`. Raises UsageError for another number, shape or dtype."""
        rows = self.page(page)
        if [(part.shape, part.dtype) for part in parts] != [(mine.shape, mine.dtype) for mine in rows]:
            raise UsageError("These are not the parts of a page of this pool.")
        for mine, part in zip(rows, parts, strict=True):
            mine.copy_(part)
