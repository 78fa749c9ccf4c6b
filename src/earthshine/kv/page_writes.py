"""Pages of the prefix cache that are being written to the store, by the store's own thread.

Invariant: each page and each slot of a recurrent state that is being written has a holder for that. Slots are few and a
state is as large as many pages, so states are written one at a time, and a state that its owner releases while it waits
is not written. So a running sequence always finds a slot.
"""

import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from earthshine.kv.page_key import PageKey
from earthshine.kv.page_tier import PageParts, PageStore
from earthshine.kv.pages import PagePool

_LOGGER = logging.getLogger("earthshine.kv")


@dataclass(slots=True)
class CachedPage:
    """A page in the pool. `tries`: how often it may still be offered to the store; `state`: the slot of the recurrent
    state after its last token, if that is kept; `last_use`: the highest is the latest."""

    key: PageKey
    page: int
    tokens: Sequence[int]
    tries: int
    state: int | None = None
    last_use: int = 0


class PageWrites:
    """`store` None: nothing is written. `wake` is called by the store's thread after each page."""

    def __init__(self, pool: PagePool, store: PageStore | None, wake: Callable[[], None]) -> None:
        self._pool, self._store, self._wake = pool, store, wake
        self._holders: Counter[int] = Counter()  # by page, of those that are being written
        self._done: deque[tuple[int, int | None]] = deque()  # pages and states; the store's thread alone appends
        self._states: OrderedDict[bytes, CachedPage] = OrderedDict()  # whose states wait
        self._writes_state = False

    def holders(self, page: int) -> int:
        """The number of writes that hold this page."""
        return self._holders[page]

    @property
    def is_busy(self) -> bool:
        return bool(self._holders or self._states)

    @property
    def n_done(self) -> int:
        """The number of ended writes that `settle` has not handled."""
        return len(self._done)

    def wants(self, cached: CachedPage) -> bool:
        """Whether the page must be written before it is evicted."""
        return self._store is not None and cached.tries > 0 and cached.key not in self._store

    def write(self, cached: CachedPage) -> None:
        """Begin to write a page, if `wants` it."""
        cached.tries -= 1
        self._begin(cached, None)

    def write_state(self, cached: CachedPage) -> None:
        """Write a page with the state after it, once the states queued before are written, if its state is still kept
        then."""
        if self._store is not None:
            self._states[cached.key.key] = cached
            self._next_state()

    def settle(self) -> bool:
        """Release the pages of ended writes, and begin to write the next state. Returns whether a write had ended."""
        any_done = bool(self._done)
        while self._done:
            page, state = self._done.popleft()
            self._holders[page] -= 1
            if not self._holders[page]:
                del self._holders[page]
            self._pool.release([page])  # last, since the cache then asks for whom it is held
            if state is not None and self._pool.states is not None:
                self._pool.states.release([state])
                self._writes_state = False
        self._next_state()
        return any_done

    def _next_state(self) -> None:
        while self._states and not self._writes_state:
            _, cached = self._states.popitem(last=False)
            assert self._store is not None
            if cached.state is not None and not self._store.has_state(cached.key):
                self._writes_state = True
                self._begin(cached, cached.state)

    def _begin(self, cached: CachedPage, state: int | None) -> None:
        page, states = cached.page, self._pool.states
        self._holders[page] += 1
        self._pool.hold([page])
        if state is not None and states is not None:
            states.hold([state])

        def parts() -> PageParts:
            kept = None if state is None or states is None else states.slot(state)
            return PageParts(self._pool.page(page), kept)

        def done(_: bool) -> None:
            self._done.append((page, state))
            self._wake()

        assert self._store is not None
        try:
            self._store.write(cached.key, cached.tokens, parts, done, with_state=state is not None)
        except Exception as error:  # as if the store had refused it: requests do not need it kept
            _LOGGER.error("A page could not be written.", exc_info=error)
            done(False)
