"""A page table: one sequence's pages, in the order of its tokens, and its recurrent state where the model has one.

Invariant: in every layer the rows of positions below `length` are written, and pages with other holders are never
written (the last one is copied first). Refuses writes to positions that were not reserved. The owner must release a
page table. A recurrent state can't be cut anywhere: `truncate` goes back to the last checkpoint at or before the given
length, and returns its length.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from earthshine.errors import ContextError, UsageError
from earthshine.kv.pages import PagePool
from earthshine.kv.recurrence import Recurrence
from earthshine.spec.attention import Rows


class PageTable:
    """An empty sequence in `pool`. For each step: reserve, write every layer, commit."""

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self._pages: list[int] = []
        self._length = 0
        self._writable_end = 0
        self._tensor: Tensor | None = None  # and what follows from it: whether each page follows the one before
        self._in_one_piece = False
        self.recurrence = Recurrence(pool.states, pool.page_tokens) if pool.states is not None else None

    @property
    def length(self) -> int:
        """Tokens whose rows are written in every layer."""
        return self._length

    @property
    def pages(self) -> tuple[int, ...]:
        return tuple(self._pages)

    @property
    def tensor(self) -> Tensor:
        """int32 [pages]: position p is in `pool.rows(layer)[tensor[p // page_tokens], p % page_tokens]`."""
        if self._tensor is None:
            self._tensor = torch.tensor(self._pages, dtype=torch.int32)
            self._in_one_piece = bool(self._pages) and bool((self._tensor.diff() == 1).all())
        return self._tensor

    def capacity(self, keep: int) -> int:
        """The most tokens that `reserve` could reach after truncate(keep), with the pages that are free now."""
        kept = self._count(keep)
        room = self.pool.free_pages + sum(self.pool.holders(page) == 1 for page in self._pages[kept:])
        if keep % self.pool.page_tokens and self.pool.holders(self._pages[kept - 1]) > 1:
            if room == 0:
                return keep
            room -= 1  # for the copy of the last, shared page
        return (kept + room) * self.pool.page_tokens

    def reserve(self, end: int, checkpoint: bool = True) -> None:
        """Make positions `length` to `end` - 1 writable. Raises ContextError; nothing has changed then.

        `checkpoint`: whether the step may keep a recurrent state at a page boundary.
        """
        if end <= self._length:
            return
        first = self._length // self.pool.page_tokens
        copied = first < len(self._pages) and self.pool.holders(self._pages[first]) > 1
        new = self.pool.allocate(max(0, self._count(end) - len(self._pages)) + copied)
        if self.recurrence is not None:
            try:
                self.recurrence.reserve(self._length, end, checkpoint)
            except ContextError:
                self.pool.release(new)
                raise
        if copied:
            mine = new.pop(0)
            self.pool.write_page(mine, self.pool.page(self._pages[first]))
            self.pool.release([self._pages[first]])
            self._pages[first] = mine
        self._pages += new
        if new or copied:
            self._tensor = None
        self._writable_end = max(end, self._writable_end)

    def write(self, layer: int, start: int, rows: Tensor, part: int = 0) -> None:
        """Write rows [tokens, width], in the pool's dtype, at positions start, start + 1, ... of part `part` of a
        layer.

        Raises UsageError for positions that are not reserved; committed positions are never overwritten.
        """
        end = start + rows.shape[0]
        kept = self.pool.rows(layer, part)
        if start < self._length or end > self._writable_end:
            raise UsageError(
                f"Positions {start} to {end} can't be written; {self._length} to {self._writable_end} are reserved."
            )
        if rows.dtype != kept.dtype or rows.shape[1:] != kept.shape[2:]:
            raise UsageError(
                f"Layer {layer} keeps {kept.shape[2]} values of {kept.dtype} per token, "
                f"not {list(rows.shape[1:])} of {rows.dtype}."
            )
        lane = self._in_order(kept)
        if lane is not None:
            lane[start:end] = rows
            return
        position = torch.arange(start, end)
        page = self.tensor.long()[position // self.pool.page_tokens]
        slots = page * self.pool.page_tokens + position % self.pool.page_tokens
        kept.flatten(0, 1).index_copy_(0, slots, rows)

    def read(self, layer: int, length: int, part: int = 0) -> Tensor:
        """Rows [length, width] of the first positions: a view of the pool where the pages are consecutive, else a copy.

        Valid until this page table changes. May include positions beyond `length` that the current step has written.
        """
        if not 0 <= length <= len(self._pages) * self.pool.page_tokens:
            raise UsageError(f"{length} positions can't be read; the page table has {len(self._pages)} pages.")
        kept = self.pool.rows(layer, part)
        lane = self._in_order(kept)
        if lane is not None:
            return lane[:length]
        return kept.index_select(0, self.tensor[: self._count(length)]).flatten(0, 1)[:length]

    def copies(self) -> Iterator[Tensor]:
        """Every part up to `length`, by layer: rows [length, width], and states [size] if `length` is not 0."""
        for layer, parts in enumerate(self.pool.kept):
            for index, part in enumerate(parts):
                if isinstance(part, Rows):
                    yield self.read(layer, self._length, index).clone()
                elif self.recurrence is not None and self.recurrence.slot is not None:
                    assert self.pool.states is not None
                    yield self.pool.states.part(layer, index)[self.recurrence.slot].flatten().clone()

    def fill(self, length: int, copies: Iterable[Tensor]) -> None:
        """Fill an empty page table with what `copies` returned for a table of `length` tokens. Raises ContextError."""
        self.reserve(length, checkpoint=False)
        given = iter(copies)
        for layer, parts in enumerate(self.pool.kept):
            for index, part in enumerate(parts):
                if isinstance(part, Rows):
                    self.write(layer, 0, next(given), index)
                elif length and self.recurrence is not None:
                    assert self.pool.states is not None
                    target = self.pool.states.part(layer, index)[self.recurrence.segments[0].target]
                    target.copy_(next(given).view_as(target))
        self.commit(length)

    def commit(self, length: int) -> None:
        """Set the length. Every layer must have been written up to it, within what was reserved."""
        if not self._length <= length <= max(self._writable_end, self._length):
            raise UsageError(f"{length} tokens can't be kept; {self._length} to {self._writable_end} are reserved.")
        self._length = length
        if self.recurrence is not None:
            self.recurrence.commit(length)

    @property
    def checkpoints(self) -> list[int]:
        """The lengths at which a recurrent state is kept, ascending."""
        return sorted(self.recurrence.checkpoints) if self.recurrence is not None else []

    def checkpoint(self, length: int) -> int | None:
        """The slot of the recurrent state after `length` tokens, if it is kept."""
        return self.recurrence.checkpoints.get(length) if self.recurrence is not None else None

    def state_after(self, length: int) -> int | None:
        """The same, also of a state that the step under way extends to `length`."""
        at = self._length
        for segment in self.recurrence.segments if self.recurrence is not None else ():
            at += segment.count
            if at == length:
                return segment.target
        return self.checkpoint(length)

    def nearest(self, length: int) -> int:
        """The length that truncate(length) would return: less than `length` where a recurrent state has no checkpoint
        there."""
        return length if self.recurrence is None else self.recurrence.nearest(length, self._length)

    def truncate(self, length: int) -> int:
        """Remove the positions from `length` on and all reserved ones. Pages without a token are released.

        Returns the length that is left; see `nearest`.
        """
        if not 0 <= length <= self._length:
            raise UsageError(f"A page table of {self._length} tokens can't be cut to {length}.")
        if self.recurrence is not None:
            if length == self._length:
                self.recurrence.drop_step()
            else:
                length = self.recurrence.rewind(length)
        kept = self._count(length)
        gone = self._pages[kept:]
        self._length = self._writable_end = length
        del self._pages[kept:]
        self._tensor = None
        self.pool.release(gone)
        return length

    def adopt(self, pages: Sequence[int], state: int | None = None) -> None:
        """Append full pages that others computed. The caller's hold on each becomes this page table's.

        `state`: the slot of the recurrent state after them, with the caller's hold. Raises UsageError where the last
        page is not full, or positions are reserved.
        """
        if self._length != len(self._pages) * self.pool.page_tokens:
            raise UsageError(f"Pages can follow only full ones; this page table ends at {self._length}.")
        self._pages += pages
        self._length = self._writable_end = len(self._pages) * self.pool.page_tokens
        self._tensor = None
        if self.recurrence is not None and pages:
            if state is None:
                raise UsageError("Pages of a model with recurrent layers are of no use without the state after them.")
            self.recurrence.adopt(state, self._length)

    def release(self) -> None:
        """Release all pages. The page table is empty afterwards and may be used again."""
        self.truncate(0)

    def _count(self, length: int) -> int:
        return -(-length // self.pool.page_tokens)

    def _in_order(self, kept: Tensor) -> Tensor | None:
        """All pages of one layer's rows as one view [positions, width], if each page follows the one before it."""
        if self.tensor.shape[0] == 0 or not self._in_one_piece:
            return None
        return kept[self._pages[0] : self._pages[-1] + 1].flatten(0, 1)
