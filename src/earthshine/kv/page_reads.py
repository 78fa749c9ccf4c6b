"""Pages that are read into the pool from slower tiers, by one thread for each tier.

Invariant: until a page has arrived, only the reading thread writes to it, and no other thread waits for it: a page that
is being read when its fetch is closed comes back with `returned`. A tier reads one page of each of its fetches in
rotation, so that a long fetch does not delay a short one. A page that one tier lacks is looked for in the next. Where
no tier has it, or a tier's thread can't be started, its fetch ends, and the pages after it are not read.
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Condition, Thread

from earthshine.kv.page_key import PageKey
from earthshine.kv.page_tier import PageTier
from earthshine.kv.pages import PagePool

_LOGGER = logging.getLogger("earthshine.kv")
_END_SECONDS = 10  # that a read under way has when all of it is closed


@dataclass(frozen=True, slots=True)
class PageRead:
    """One page of a fetch: its key and tokens, and its page of the pool (`in_pool`: which holds it already).

    `state`: the slot for the recurrent state after it, where that is needed; `state_in_pool` likewise.
    """

    key: PageKey
    tokens: Sequence[int]
    page: int
    in_pool: bool = False
    state: int | None = None
    state_in_pool: bool = False

    @property
    def reads_state(self) -> bool:
        return self.state is not None and not self.state_in_pool

    @property
    def is_there(self) -> bool:
        return self.in_pool and not self.reads_state


class PageFetch:
    """Pages that were requested together, in order. It is a holder of each page and of their states' slots. Created by
    PageReads.fetch."""

    def __init__(self, wanted: Sequence[PageRead], changed: Condition) -> None:
        self._changed, self._wanted = changed, tuple(wanted)
        self._n_arrived = self._n_taken = 0
        self._ended = self._closed = False
        self._skip()

    def __len__(self) -> int:
        return len(self._wanted)

    @property
    def pages(self) -> list[int]:
        """All its pages, arrived or not."""
        return [each.page for each in self._wanted]

    @property
    def ended(self) -> bool:
        """Whether no further page will arrive."""
        with self._changed:
            return self._ended

    @property
    def arrived(self) -> tuple[PageRead, ...]:
        """The leading pages that have arrived."""
        with self._changed:
            return self._wanted[: self._n_arrived]

    def take(self) -> tuple[PageRead, ...]:
        """Pages that have arrived since the last call."""
        with self._changed:
            taken = self._wanted[self._n_taken : self._n_arrived]
            self._n_taken = self._n_arrived
        return taken

    @property
    def _next(self) -> PageRead:
        return self._wanted[self._n_arrived]

    def _arrive(self) -> None:
        self._n_arrived += 1
        self._skip()

    def _skip(self) -> None:
        """Past what the pool has, to the next page that must be read."""
        while self._n_arrived < len(self._wanted) and self._next.is_there:
            self._n_arrived += 1
        self._ended = self._ended or self._n_arrived == len(self._wanted)


class PageReads:
    """Reads each page from the first of `tiers` that has it. Without `threaded`, the caller reads by `read_next` (for
    tests)."""

    def __init__(self, pool: PagePool, tiers: Sequence[PageTier], *, threaded: bool = True) -> None:
        self._pool, self._tiers, self._threaded = pool, tiers, threaded
        self._queues: list[deque[PageFetch]] = [deque() for _ in tiers]  # whose next page that tier is asked for
        self._reading: dict[int, PageFetch] = {}  # by the tier's number
        self._returned: list[PageRead] = []
        self._n_changes = 0
        self._ending = False
        self._changed = Condition()  # guards all of the above and fetches; never held while a page is read
        self._threads: dict[int, Thread] = {}
        self._start_failed = False

    def fetch(self, wanted: Sequence[PageRead]) -> PageFetch:
        """Begin to read pages into pages of the pool, of which the fetch becomes a holder."""
        fetch = PageFetch(wanted, self._changed)
        with self._changed:
            self._ask(fetch, 0)
        return fetch

    def close_fetch(self, fetch: PageFetch) -> tuple[PageRead, ...]:
        """End a fetch. Returns its pages that have not arrived, except one that is being read: see `returned`."""
        with self._changed:
            fetch._ended = fetch._closed = True
            for fetches in self._queues:
                if fetch in fetches:
                    fetches.remove(fetch)
            left = fetch._wanted[fetch._n_arrived :]
            return left[1:] if fetch in self._reading.values() else left

    @property
    def n_closing(self) -> int:
        """Pages that are still being read although their fetch is closed."""
        with self._changed:
            return sum(fetch._closed for fetch in self._reading.values())

    def returned(self) -> list[PageRead]:
        """Pages of closed fetches whose read has ended since the last call. The caller becomes their holder."""
        with self._changed:
            returned, self._returned = self._returned, []
        return returned

    def wake(self) -> None:
        """End a `wait`."""
        with self._changed:
            self._n_changes += 1
            self._changed.notify_all()

    def wait(self, seconds: float, others: bool = False) -> None:
        """Wait at most this long until a page has arrived, a fetch has ended or `wake` was called.

        Returns at once where nothing is being read, unless `others` is set: then there are other events to wait for.
        """
        with self._changed:
            before = self._n_changes
            if self._threaded and (others or self._reading or any(self._queues)):
                self._changed.wait_for(lambda: self._n_changes != before, seconds)

    def close(self) -> None:
        """End the threads after the pages that they read. The thread of a tier that hangs ends with the process."""
        with self._changed:
            self._ending = True
            for fetch in (fetch for fetches in self._queues for fetch in fetches):
                fetch._ended = True
            for fetches in self._queues:
                fetches.clear()
            self._changed.notify_all()
        for thread in self._threads.values():
            thread.join(_END_SECONDS)

    def read_next(self, tier: int = 0) -> bool:
        """Read one page of the fetch that this tier served longest ago. Returns False where it has none to read."""
        with self._changed:
            if not self._queues[tier]:
                return False
            fetch = self._reading[tier] = self._queues[tier].popleft()
            wanted = fetch._next
        found = self._read_page(self._tiers[tier], wanted)
        with self._changed:
            del self._reading[tier]
            if fetch._closed:
                self._returned.append(wanted)
            elif found:
                fetch._arrive()
                self._ask(fetch, 0)
            else:
                self._ask(fetch, tier + 1)
            self.wake()
        return True

    def _ask(self, fetch: PageFetch, first: int) -> None:
        """Queue a fetch at the first tier, from number `first` on, that has its next page. End it where none has."""
        if fetch._ended:
            return
        wanted = fetch._next
        having = (n for n, tier in enumerate(self._tiers) if n >= first and _has(tier, wanted))
        found = None if self._ending else next(having, None)
        if found is None or not self._is_served(found):
            fetch._ended = True
            return
        self._queues[found].append(fetch)
        self._changed.notify_all()

    def _is_served(self, tier: int) -> bool:
        """Whether the tier's thread runs, or could be started: a limit of threads may be reached for a while."""
        if not self._threaded or tier in self._threads:
            return True
        thread = Thread(target=self._read_all, args=(tier,), name="earthshine-page-reads", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            if not self._start_failed:
                _LOGGER.error("No thread can be started to read pages; they are computed instead.", exc_info=error)
            self._start_failed = True
            return False
        self._threads[tier] = thread
        return True

    def _read_page(self, tier: PageTier, wanted: PageRead) -> bool:
        try:
            parts = tier.read(wanted.key, wanted.tokens)
            if parts is None or (wanted.reads_state and parts.state is None):
                return False
            if not wanted.in_pool:
                self._pool.write_page(wanted.page, parts.rows)
            if wanted.state is not None and wanted.reads_state:
                assert self._pool.states is not None
                self._pool.states.write_slot(wanted.state, parts.state or ())
        except Exception as error:  # the thread must outlive it, and the page can be computed instead
            _LOGGER.error("A page could not be read.", exc_info=error)
            return False
        return True

    def _read_all(self, tier: int) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queues[tier] or self._ending)
                if self._ending:
                    return
            self.read_next(tier)


def _has(tier: PageTier, wanted: PageRead) -> bool:
    return tier.has_state(wanted.key) if wanted.reads_state else wanted.key in tier
