"""Pages on their way into the pool from slower tiers, read by a thread for each tier.

Invariant: until a page has arrived, the reading thread alone writes to it, and nobody waits for that thread: a page
that is being read when its fetch is closed comes back with `returned`. A tier serves its fetches a page each in
rotation, so that a long one does not hold up a short one, and a slow tier holds up no other. A page that one tier
lacks is looked for in the next; where none has it, or the tier's thread can't be started, its fetch ends and what was
asked for after it does not come.
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
    """One page of a fetch: what it holds, and the page of the pool that it goes to, or is in already (`in_pool`).

    `state`: the slot of the recurrent state after it, where that is asked for; likewise (`state_in_pool`).
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
    """Pages that were asked for together, in order; it is a holder of each, and of their states' slots. Made by
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
        """All that it holds, arrived or not."""
        return [each.page for each in self._wanted]

    @property
    def ended(self) -> bool:
        """Whether no further page will arrive."""
        with self._changed:
            return self._ended

    @property
    def arrived(self) -> tuple[PageRead, ...]:
        """The leading pages that are there."""
        with self._changed:
            return self._wanted[: self._n_arrived]

    def take(self) -> tuple[PageRead, ...]:
        """Those that have arrived since the last call."""
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
    """Reads from `tiers`, the first that has a page. Without `threaded`, somebody calls `read_next`, for tests."""

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
        """Begin to read pages, whose pages of the pool the fetch holds from now on."""
        fetch = PageFetch(wanted, self._changed)
        with self._changed:
            self._ask(fetch, 0)
        return fetch

    def close_fetch(self, fetch: PageFetch) -> tuple[PageRead, ...]:
        """End a fetch. Returns what has not arrived, but for a page that is being read: see `returned`."""
        with self._changed:
            fetch._ended = fetch._closed = True
            for fetches in self._queues:
                if fetch in fetches:
                    fetches.remove(fetch)
            left = fetch._wanted[fetch._n_arrived :]
            return left[1:] if fetch in self._reading.values() else left

    @property
    def n_closing(self) -> int:
        """Pages that are still being read though their fetch is closed."""
        with self._changed:
            return sum(fetch._closed for fetch in self._reading.values())

    def returned(self) -> list[PageRead]:
        """Those whose read has ended since the last call; the caller holds them from now on."""
        with self._changed:
            returned, self._returned = self._returned, []
        return returned

    def wake(self) -> None:
        """Ends a `wait`."""
        with self._changed:
            self._n_changes += 1
            self._changed.notify_all()

    def wait(self, seconds: float, others: bool = False) -> None:
        """Until a page has arrived, a fetch has ended or `wake` was called, at most this long.

        Returns at once where nothing is being read, unless `others` says that there is more to wait for.
        """
        with self._changed:
            before = self._n_changes
            if self._threaded and (others or self._reading or any(self._queues)):
                self._changed.wait_for(lambda: self._n_changes != before, seconds)

    def close(self) -> None:
        """End the threads, each after the page that it reads; one of a tier that hangs ends with the process."""
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
        """Read one page of the fetch that this tier served longest ago; False where none is wanted of it."""
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
        """Queue a fetch at the first tier from number `first` on that has its next page; it ends where none does."""
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
