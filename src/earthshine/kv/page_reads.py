"""Pages on their way into the pool from a slower tier, read by a thread of their own.

Invariant: until a page has arrived, the reading thread alone writes to it; its fetch holds it until it is taken or the
fetch is closed. Fetches are served a page each in rotation, so that a long one does not hold up a short one. A page
that is absent or damaged ends its fetch; what was asked for after it does not come.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition, Thread

from torch import Tensor

from earthshine.kv.page_key import PageKey
from earthshine.kv.pages import PagePool

_LOGGER = logging.getLogger("earthshine.kv")

Read = Callable[[PageKey, Sequence[int]], Sequence[Tensor] | None]  # of the page with this key and these tokens


@dataclass(frozen=True, slots=True)
class PageRead:
    """One page of a fetch: what it holds, and the page of the pool that it goes to."""

    key: PageKey
    tokens: Sequence[int]
    page: int


class PageFetch:
    """Pages that were asked for together, in order. Made by PageReads.fetch."""

    def __init__(self, wanted: Sequence[PageRead], changed: Condition) -> None:
        self._changed = changed
        self._todo = deque(wanted)
        self._arrived: deque[PageRead] = deque()
        self._closed = False

    def __len__(self) -> int:
        """Pages of the pool that it holds."""
        with self._changed:
            return len(self._todo) + len(self._arrived)

    @property
    def pages(self) -> list[int]:
        """Those pages."""
        with self._changed:
            return [each.page for each in (*self._arrived, *self._todo)]

    @property
    def ended(self) -> bool:
        """Whether no further page will arrive."""
        with self._changed:
            return self._closed or not self._todo

    def take(self) -> list[PageRead]:
        """The pages that have arrived since the last call; the caller holds them from now on."""
        with self._changed:
            taken = list(self._arrived)
            self._arrived.clear()
        return taken


class PageReads:
    """`read` gets pages from the slower tier. Without `threaded`, somebody calls `read_next`, for tests."""

    def __init__(self, pool: PagePool, read: Read, *, threaded: bool = True) -> None:
        self._pool, self._read, self._threaded = pool, read, threaded
        self._fetches: deque[PageFetch] = deque()  # that wait for a page to be read
        self._reading: PageFetch | None = None
        self._n_arrived = 0
        self._ending = False
        self._changed = Condition()  # guards all of the above and a fetch's pages; never held while a page is read
        self._thread: Thread | None = None

    def fetch(self, wanted: Sequence[PageRead]) -> PageFetch:
        """Begin to read pages, whose pages of the pool the fetch holds from now on."""
        fetch = PageFetch(wanted, self._changed)
        with self._changed:
            fetch._closed = self._ending
            if wanted and not self._ending:
                self._fetches.append(fetch)
                self._changed.notify_all()
        if self._thread is None and self._threaded and not self._ending:
            self._thread = Thread(target=self._read_all, name="earthshine-page-reads", daemon=True)
            self._thread.start()
        return fetch

    def close_fetch(self, fetch: PageFetch) -> list[int]:
        """End a fetch, waiting for the page that is being read; returns the pages that it held."""
        with self._changed:
            fetch._closed = True
            if fetch in self._fetches:
                self._fetches.remove(fetch)
            self._changed.wait_for(lambda: self._reading is not fetch)
            return fetch.pages

    def wait(self, seconds: float) -> None:
        """Until another page has arrived or a fetch has ended, at most this long."""
        with self._changed:
            before = self._n_arrived
            if self._threaded and (self._fetches or self._reading):
                self._changed.wait_for(lambda: self._n_arrived != before, seconds)

    def close(self) -> None:
        """End the thread after the page that it reads."""
        with self._changed:
            self._ending = True
            for fetch in self._fetches:
                fetch._closed = True
            self._fetches.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def read_next(self) -> bool:
        """Read one page of the fetch that was served longest ago; False where no page is wanted."""
        with self._changed:
            if not self._fetches:
                return False
            fetch = self._reading = self._fetches.popleft()
            wanted = fetch._todo[0]
        found = self._read_page(wanted)
        with self._changed:
            self._reading = None
            self._n_arrived += 1
            if found:
                fetch._arrived.append(fetch._todo.popleft())
            fetch._closed = fetch._closed or not found
            if not fetch.ended:
                self._fetches.append(fetch)
            self._changed.notify_all()
        return True

    def _read_page(self, wanted: PageRead) -> bool:
        try:
            parts = self._read(wanted.key, wanted.tokens)
            if parts is None:
                return False
            self._pool.write_page(wanted.page, parts)
        except Exception as error:  # the thread must outlive it, and the page can be computed instead
            _LOGGER.error("A page could not be read.", exc_info=error)
            return False
        return True

    def _read_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._fetches or self._ending)
                if self._ending:
                    return
            self.read_next()
