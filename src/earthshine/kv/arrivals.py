"""Pages that another thread receives straight into pages of the pool, such as those that a peer has prefilled.

Invariant: until its pages are verified, an arrival alone holds and writes them; then they are shared, in the order of
the sequence. Where the pool needs the room for something else, the latest arrivals are given up: their receiver closes
them, and the pages that were verified stay.
"""

from collections.abc import Callable, Sequence
from threading import Lock

import torch
from torch import Tensor

from earthshine.kv.page_key import PageKey
from earthshine.kv.pages import PagePool
from earthshine.spec.attention import Rows, State


class Arrival:
    """The pages of `keys`, to be received into `pages` of the pool. All methods may be called by any thread.

    For models with recurrent layers it has buffers of its own for the states after the last page: slots are few, and
    running sequences need them. `on_give_up` is called, on the engine's thread, when its room is needed.
    """

    def __init__(self, pool: PagePool, keys: Sequence[PageKey], tokens: Sequence[int], pages: Sequence[int]) -> None:
        self._pool, self.keys, self.pages = pool, tuple(keys), tuple(pages)
        self.start = keys[0].start
        self.end = self.start + len(keys) * pool.page_tokens
        self.tokens = tuple(tokens[self.start : self.end])
        self.on_give_up: Callable[[], None] = lambda: None
        self._parts = [(layer, n, part) for layer, parts in enumerate(pool.kept) for n, part in enumerate(parts)]
        self._states = {
            index: torch.empty(part.size, dtype=torch.float32 if part.fp32 else pool.dtype)
            for index, (_, _, part) in enumerate(self._parts)
            if isinstance(part, State)
        }
        self._lock = Lock()  # guards what follows
        self._verified, self._state_verified = self.start, False
        self._closed = self._given_up = False

    def values(self, index: int, start: int, end: int) -> list[Tensor]:
        """Where the values of a part of tokens `start` to `end` - 1 belong, in order: views [tokens, width] of rows, or
        the state [size] after the last one."""
        layer, number, part = self._parts[index]
        if not isinstance(part, Rows):
            return [self._states[index]]
        size = self._pool.page_tokens
        pages = self.pages[(start - self.start) // size : (end - self.start) // size]
        return self._pool.runs(layer, number, pages)

    def verified(self, end: int, with_states: bool) -> None:
        """All pages before position `end` hold what they should; `with_states`: and so do the states after the last."""
        with self._lock:
            self._verified = max(self._verified, end)
            self._state_verified |= with_states and end == self.end

    def close(self) -> None:
        """Nothing is written any more. What was verified will be shared, and the rest is free."""
        with self._lock:
            self._closed = True

    @property
    def given_up(self) -> bool:
        with self._lock:
            return self._given_up

    @property
    def n_verified(self) -> int:
        """Tokens from `start` on."""
        with self._lock:
            return self._verified - self.start

    @property
    def state(self) -> list[Tensor] | None:
        """The states after the last page, in the order of `StatePool.slot`; None where they have not arrived."""
        with self._lock:
            return list(self._states.values()) if self._state_verified and self._states else None

    def _give_up(self) -> None:
        with self._lock:
            if self._given_up or self._closed:
                return
            self._given_up = True
        self.on_give_up()

    def _look(self) -> tuple[int, bool]:
        """Pages verified, and whether it is closed."""
        with self._lock:
            return (self._verified - self.start) // self._pool.page_tokens, self._closed


class Arrivals:
    """All arrivals of a pool. For the thread that owns it. `share` is called with each verified page: its key, its
    number, its tokens, and the states after it where there are some; it takes holds of its own."""

    def __init__(
        self, pool: PagePool, share: Callable[[PageKey, int, Sequence[int], Sequence[Tensor] | None], None]
    ) -> None:
        self._pool, self._share = pool, share
        self._open: dict[Arrival, int] = {}  # and how many of its pages are shared

    @property
    def n_pages(self) -> int:
        """Pages that are still to come or to be shared."""
        return sum(len(arrival.pages) - shared for arrival, shared in self._open.items())

    def begin(self, keys: Sequence[PageKey], tokens: Sequence[int]) -> Arrival:
        """Takes free pages for `keys`. Raises ContextError."""
        arrival = Arrival(self._pool, keys, tokens, self._pool.allocate(len(keys)))
        self._open[arrival] = 0
        return arrival

    def settle(self) -> bool:
        """Share what was verified, and release the pages of closed arrivals. Returns whether any page was."""
        before = self.n_pages
        for arrival, shared in list(self._open.items()):
            n_verified, closed = arrival._look()
            size = self._pool.page_tokens
            for at in range(shared, n_verified):
                own = arrival.tokens[at * size : (at + 1) * size]
                last = at + 1 == len(arrival.pages)
                self._share(arrival.keys[at], arrival.pages[at], own, arrival.state if last else None)
            self._pool.release(arrival.pages[shared:n_verified])
            self._open[arrival] = n_verified
            if closed:
                self._pool.release(arrival.pages[n_verified:])
                del self._open[arrival]
        return self.n_pages < before

    def give_up(self, count: int) -> None:
        """Ask the latest arrivals for at least `count` pages, which come back once their receivers have closed them."""
        for arrival, shared in reversed(self._open.items()):
            if count <= 0:
                return
            count -= len(arrival.pages) - shared
            arrival._give_up()
