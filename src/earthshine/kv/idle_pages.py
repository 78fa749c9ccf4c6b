"""The cached pages that no sequence uses: how many there are, and which of them was unused longest.

Kept up to date as the holders of pages change, so that neither takes longer with many cached pages, but for the
logarithm of a heap.
"""

import heapq

from earthshine.kv.page_writes import CachedPage, PageWrites
from earthshine.kv.pages import PagePool

_SPARE = 64  # entries of a heap beyond twice its pages, before those of pages that have gone are removed


class _ByUse:
    """Pages in the order of their `last_use`, which does not change while they are here."""

    def __init__(self) -> None:
        self._pages: dict[int, CachedPage] = {}
        self._heap: list[int] = []  # uses, some of pages that have gone

    def __len__(self) -> int:
        return len(self._pages)

    def add(self, cached: CachedPage) -> None:
        """Adds a page that is not here yet."""
        self._pages[cached.last_use] = cached
        heapq.heappush(self._heap, cached.last_use)
        if len(self._heap) > 2 * len(self._pages) + _SPARE:
            self._heap = sorted(self._pages)

    def discard(self, cached: CachedPage) -> bool:
        """Removes the page; returns whether it was here."""
        return self._pages.pop(cached.last_use, None) is not None

    def first(self) -> CachedPage | None:
        """The longest unused page; None where there is none."""
        while self._heap and self._heap[0] not in self._pages:
            heapq.heappop(self._heap)
        return self._pages[self._heap[0]] if self._heap else None


class IdlePages:
    """Of the pages that are added, those that nobody holds but the cache, and the store while it writes them."""

    def __init__(self, pool: PagePool, writes: PageWrites) -> None:
        self._pool, self._writes = pool, writes
        self._cached: dict[int, CachedPage] = {}  # all that were added, by their pages of the pool
        self._n_uses = 0
        # Pages held by the cache alone: most of them, and those that must be written before eviction. Then pages that
        # the store holds too.
        self._unused, self._unwritten, self._in_writing = _ByUse(), _ByUse(), set[int]()
        pool.holders_changed = self._sort

    def __len__(self) -> int:
        return len(self._unused) + len(self._unwritten) + len(self._in_writing)

    def __contains__(self, page: int) -> bool:
        """Whether a page of the cache, by its number in the pool, is idle."""
        return self._pool.holders(page) == 1 + self._writes.holders(page)

    @property
    def n_in_writing(self) -> int:
        """The number of pages that the store is writing."""
        return len(self._in_writing)

    def add(self, cached: CachedPage) -> None:
        """Adds a page that is shared from now on, and still held by others."""
        self._cached[cached.page] = cached
        self.use(cached)

    def remove(self, cached: CachedPage) -> None:
        """Removes a page that the cache is about to release."""
        del self._cached[cached.page]
        self._discard(cached)
        self._in_writing.discard(cached.page)

    def use(self, cached: CachedPage) -> None:
        """Marks the page as used just now."""
        was_there = self._discard(cached)
        self._n_uses += 1
        cached.last_use = self._n_uses
        if was_there:
            self._unused.add(cached)

    def first_to_drop(self, include_unwritten: bool) -> CachedPage | None:
        """The longest unused page that need not be written; with `include_unwritten`, the longest unused of all that
        are not being written. None where there is none."""
        while not include_unwritten and (first := self._unused.first()) is not None and self._writes.wants(first):
            self._unused.discard(first)
            self._unwritten.add(first)
        found = [self._unused.first()]
        other = self._unwritten.first()
        if other is not None and (include_unwritten or not self._writes.wants(other)):
            found.append(other)
        return min((each for each in found if each is not None), key=lambda each: each.last_use, default=None)

    def first_to_write(self) -> CachedPage | None:
        """The longest unused page, where `first_to_drop` has found none."""
        return self._unwritten.first()

    def _sort(self, page: int) -> None:
        """Updates a page's place in the order after the number of its holders has changed."""
        cached = self._cached.get(page)
        if cached is None:
            return
        self._in_writing.discard(page)
        if page not in self:
            self._discard(cached)
        elif self._writes.holders(page):
            self._discard(cached)
            self._in_writing.add(page)
        else:
            self._unused.add(cached)

    def _discard(self, cached: CachedPage) -> bool:
        """Removes the page; returns whether the cache alone held it."""
        return self._unused.discard(cached) or self._unwritten.discard(cached)
