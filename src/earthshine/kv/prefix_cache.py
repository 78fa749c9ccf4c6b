"""Pages that were computed once, found again by what they hold: in the pool, else in the tiers behind it.

Invariant: a cached page is full and never written again; one that only the cache holds may be evicted, the longest
unused and the deepest of its sequence first. Tiers are read and written by other threads, and nothing here waits for
them: where room depends on a page that is being written, the caller asks again later. All but `idle_pages` is for the
thread that owns the pool.
"""

import time
from collections.abc import Iterable, Sequence
from itertools import takewhile

from torch import Tensor

from earthshine.kv.arrivals import Arrival, Arrivals
from earthshine.kv.idle_pages import IdlePages
from earthshine.kv.page_key import PageKey
from earthshine.kv.page_reads import PageFetch, PageRead, PageReads
from earthshine.kv.page_tier import PageStore, PageTier
from earthshine.kv.page_writes import CachedPage, PageWrites
from earthshine.kv.pages import PagePool

_TRIES = 2  # at once, and when the page is evicted
_STUCK_SECONDS = 5.0  # without one page written: then those that wait for a tier are not counted on any more


class PrefixCache:
    """`tiers`: where pages are looked for that the pool lacks, in this order. `store`: the one of them that pages are
    written to: with `keep_all` as soon as they are full, so that evicting one costs no more than reading it; else only
    those that `spill` names. Of models with recurrent layers, what is found ends where a state is kept. `threaded` as
    in PageReads."""

    def __init__(
        self,
        pool: PagePool,
        tiers: Sequence[PageTier] = (),
        store: PageStore | None = None,
        *,
        keep_all: bool = True,
        threaded: bool = True,
    ) -> None:
        self._pool, self._store, self._tiers, self._keeps_all = pool, store, tuple(tiers), keep_all
        self._reads = PageReads(pool, self._tiers, threaded=threaded)
        self._writes = PageWrites(pool, store, self._reads.wake)
        if pool.states is not None:
            pool.states.reclaim = self._drop_state
        self._idle = IdlePages(pool, self._writes)
        self._arrivals = Arrivals(pool, self._share_arrived)
        self._cached: dict[bytes, CachedPage] = {}
        self._with_state: dict[bytes, CachedPage] = {}  # those after which a recurrent state is kept
        self._waiting_since: float | None = None  # for a page to come back from a tier, and none has since
        self._stuck = False

    @property
    def idle_pages(self) -> int:
        """Pages that are in no sequence now. May be asked by any thread."""
        return len(self._idle)

    @property
    def is_writing(self) -> bool:
        """Whether something is on its way to the store, lent to another thread or received, or waits for `settle`."""
        return self._writes.is_busy or self._pool.n_lent > 0 or self._arrivals.n_pages > 0

    def pages(self, keys: Sequence[PageKey]) -> list[int]:
        """The pages in the pool that `keys` begin with, as they are now."""
        found = [self._cached[each.key] for each in takewhile(lambda each: each.key in self._cached, keys)]
        while self._pool.states is not None and found and found[-1].state is None:
            found.pop()
        return [cached.page for cached in found]

    def known(self, keys: Sequence[PageKey]) -> int:
        """How many of the leading `keys` a fetch is expected to find. May be asked by any thread."""
        found = list(
            takewhile(lambda each: each.key in self._cached or any(each in tier for tier in self._tiers), keys)
        )
        while self._pool.states is not None and found and found[-1].key not in self._with_state:
            if any(tier.has_state(found[-1]) for tier in self._tiers):
                break
            found.pop()
        return len(found)

    def touch(self, keys: Sequence[PageKey]) -> None:
        """Count these pages of one sequence as used just now, so that its first is evicted last."""
        used = keys[::-1]
        for each in used:
            if each.key in self._cached:
                self._idle.use(self._cached[each.key])
        if self._store is not None:
            self._store.used(used)

    # --- pages for a sequence

    def fetch(self, keys: Sequence[PageKey], tokens: Sequence[int]) -> PageFetch | None:
        """Get the leading `keys` from wherever they are, as far as there is room: pages in the pool at once, others as
        the tiers deliver them.

        `tokens`: of the whole sequence. None while there is only room for them once other pages have been written: ask
        again later. The caller ends a fetch with `end_fetch`, or with `drop_fetch`.
        """
        keys = self._within_reach(keys)
        found = [self._cached.get(each.key) for each in keys]
        in_pool = [cached.page for cached in found if cached is not None]
        self._pool.hold(in_pool)
        if not self.make_room(found.count(None)):
            self._pool.release(in_pool)
            return None
        new = iter(self._pool.allocate(found.count(None)))
        state = self._state_after(keys) if self._pool.states is not None and keys else None
        wanted = []
        for key, cached in zip(keys, found, strict=True):
            own = tokens[key.start : key.start + self._pool.page_tokens]
            page, after = cached.page if cached else next(new), state if key is keys[-1] else None
            has_state = cached is not None and cached.state is not None
            wanted.append(PageRead(key, own, page, cached is not None, after, has_state))
        return self._reads.fetch(wanted)

    def share(self, fetch: PageFetch) -> None:
        """Let others find what has arrived of a fetch so far."""
        for each in fetch.take():
            if not each.in_pool or each.reads_state:
                self.add(each.key, each.page, each.tokens, each.state)

    def end_fetch(self, fetch: PageFetch) -> tuple[list[int], int | None]:
        """The pages that have arrived and the recurrent state after them, which are the caller's from now on.

        Of a model with recurrent layers and a fetch that has not arrived as a whole, what the pool has to go on from.
        """
        unread = self._reads.close_fetch(fetch)
        self.share(fetch)
        self._release_reads(unread)
        arrived = fetch.arrived
        if self._pool.states is None or len(arrived) == len(fetch):
            return [each.page for each in arrived], arrived[-1].state if arrived else None
        self._release_reads(arrived)
        keys = [each.key for each in arrived]
        pages = self.pages(keys)
        self._pool.hold(pages)
        return pages, self._state_after(keys[: len(pages)]) if pages else None

    def drop_fetch(self, fetch: PageFetch) -> None:
        """End a fetch that nobody waits for any more."""
        pages, state = self.end_fetch(fetch)
        self._pool.release(pages)
        self._release_state(state)

    def add(self, key: PageKey, page: int, tokens: Sequence[int], state: int | None = None) -> None:
        """Share a full page of `tokens`; what is known by the same key already stays.

        `state`: the slot of the recurrent state after it, where there is one.
        """
        cached = self._cached.get(key.key)
        if cached is None:
            self._pool.hold([page])
            cached = CachedPage(key, page, tokens, _TRIES if self._keeps_all else 0)
            self._cached[key.key] = cached
            self._idle.add(cached)
            if not self._stuck and self._writes.wants(cached):
                self._writes.write(cached)
        if state is not None and cached.state is None:
            assert self._pool.states is not None
            self._pool.states.hold([state])
            cached.state = state
            self._with_state[key.key] = cached

    def expect(self, keys: Sequence[PageKey], tokens: Sequence[int]) -> Arrival | None:
        """Pages of the pool for those of `keys` that are not known, into which another thread receives them. None where
        all are known, or there is no room.

        `tokens`: of the whole sequence. What is verified is shared by `settle`, once the caller has closed it at last.
        """
        missing = keys[self.known(keys) :]
        room = self.room() - self._arrivals.n_pages  # others that arrive are not given up for these
        if not missing or room < len(missing) or not self.make_room(len(missing)):
            return None
        return self._arrivals.begin(missing, tokens)

    def keep(self, last: Iterable[PageKey]) -> None:
        """A sequence has ended; with `keep_all` the recurrent states after these of its pages go to the store."""
        if self._keeps_all:
            self._write_states(last)

    def spill(self, keys: Sequence[PageKey], last: Iterable[PageKey] = ()) -> None:
        """These will be needed again, as after a preemption: they go to the store before they are evicted, and the
        recurrent states after those in `last` at once."""
        for each in keys:
            if each.key in self._cached:
                self._cached[each.key].tries = _TRIES
        self._write_states(last)

    # --- room for others

    def settle(self) -> None:
        """Takes back what tiers have written, or read for nobody, meanwhile."""
        self._pool.take_back()
        returned, arrived = self._reads.returned(), self._arrivals.settle()
        if self._writes.settle() or returned or arrived:
            self._waiting_since, self._stuck = None, False
        self._release_reads(returned)

    def room(self, besides: Sequence[int] = ()) -> int:
        """Pages that are free or could be, without evicting `besides`: at once, or once they have been written."""
        idle = len(self._idle) - (self._idle.n_in_writing if self._stuck else 0)
        coming = 0 if self._stuck else self._reads.n_closing + self._arrivals.n_pages
        return self._pool.free_pages + coming + idle - sum(map(self._is_evictable, besides))

    def make_room(self, count: int) -> bool:
        """Whether `count` pages are free now, after as many as it takes were evicted; none is where that is too few.

        Where it is False and `room` says `count` or more, pages are on their way to the store: ask again later.
        """
        self.settle()
        if self._pool.free_pages >= count:
            return True
        if self.room() < count:
            return False
        if self._evict(count):
            return True
        self._arrivals.give_up(count - self._pool.free_pages - self._reads.n_closing - self._idle.n_in_writing)
        now = time.monotonic()
        self._waiting_since = now if self._waiting_since is None else self._waiting_since
        self._stuck = now - self._waiting_since > _STUCK_SECONDS
        return False

    def wait(self, seconds: float) -> None:
        """Until a page has been read or written, at most this long; at once where none is on its way. Pages that
        others receive end no wait."""
        if not self._writes.n_done:
            self._reads.wait(seconds, self._writes.is_busy or self._arrivals.n_pages > 0)

    def flush(self, seconds: float) -> bool:
        """Wait until everything that is to be written was tried; False if that takes longer than `seconds`."""
        until = time.monotonic() + seconds
        self.settle()
        while self._writes.is_busy and time.monotonic() < until:
            self.wait(until - time.monotonic())
            self.settle()
        return not self._writes.is_busy

    def clear(self) -> None:
        """Evict all pages from the pool; what tiers have stays."""
        for cached in list(self._cached.values()):
            self._drop(cached)

    def close(self) -> None:
        """End the reading threads, then the tiers."""
        self._reads.close()
        for tier in self._tiers:
            tier.close()

    def _within_reach(self, keys: Sequence[PageKey]) -> Sequence[PageKey]:
        """The leading `keys` that are in the pool, or in a tier as far as that can say and as there is room for them;
        of a model with recurrent layers up to the last one after which a state is."""
        known = list(
            takewhile(lambda each: each.key in self._cached or any(each in tier for tier in self._tiers), keys)
        )
        missing = [at for at, each in enumerate(known) if each.key not in self._cached]
        room = self.room([self._cached[each.key].page for each in known if each.key in self._cached])
        if len(missing) > room:
            del known[missing[room] :]
        while self._pool.states is not None and known and not self._has_state(known[-1]):
            known.pop()
        return known

    def _has_state(self, key: PageKey) -> bool:
        """Whether the state after a page is kept, or in a tier where there is a slot to read it into."""
        if key.key in self._cached and self._cached[key.key].state is not None:
            return True
        states = self._pool.states
        assert states is not None
        room = bool(states.free or self._unused_states())
        return room and any(tier.has_state(key) for tier in self._tiers)

    def _state_after(self, keys: Sequence[PageKey]) -> int:
        """The slot of the recurrent state after the last page, or a free one to read it into, held for the caller."""
        states, cached = self._pool.states, self._cached.get(keys[-1].key)
        assert states is not None
        if cached is None or cached.state is None:
            return states.take()
        states.hold([cached.state])
        return cached.state

    def _write_states(self, keys: Iterable[PageKey]) -> None:
        for each in keys:
            if each.key in self._cached:
                self._writes.write_state(self._cached[each.key])

    def _share_arrived(self, key: PageKey, page: int, tokens: Sequence[int], state: Sequence[Tensor] | None) -> None:
        states = self._pool.states
        slot = None
        if state is not None and states is not None and (states.free or self._unused_states()):
            slot = states.take()
            states.write_slot(slot, state)
        self.add(key, page, tokens, slot)
        self._release_state(slot)

    def _is_evictable(self, page: int) -> bool:
        return page in self._idle and not (self._stuck and self._writes.holders(page))

    def _evict(self, count: int) -> bool:
        """Whether `count` pages are free; if not, enough others are on their way to the store.

        What need not be written goes first, though it was used later.
        """
        while self._pool.free_pages < count:
            cached = self._idle.first_to_drop(include_unwritten=self._stuck)
            if cached is not None:
                self._drop(cached)
                continue
            coming = 0 if self._stuck else self._reads.n_closing + self._idle.n_in_writing
            cached = self._idle.first_to_write()
            if cached is None or self._pool.free_pages + coming >= count:
                return False
            self._writes.write(cached)
            self.settle()  # what the store refuses at once comes back at once
        return True

    def _drop(self, cached: CachedPage) -> None:
        self._idle.remove(cached)
        del self._cached[cached.key.key]
        self._with_state.pop(cached.key.key, None)
        self._pool.release([cached.page])
        self._release_state(cached.state)
        cached.state = None

    def _drop_state(self) -> bool:
        """Frees the slot of the state that was unused longest and that no sequence holds, if there is one."""
        cached = min(self._unused_states(), key=lambda each: each.last_use, default=None)
        if cached is None:
            return False
        self._release_state(cached.state)
        cached.state = None
        del self._with_state[cached.key.key]
        return True

    def _unused_states(self) -> list[CachedPage]:
        """The pages after which a state is kept that no sequence holds: at most as many as there are slots."""
        states = self._pool.states
        assert states is not None
        return [
            each for each in self._with_state.values() if each.state is not None and states.holders(each.state) == 1
        ]

    def _release_reads(self, reads: Iterable[PageRead]) -> None:
        for each in reads:
            self._pool.release([each.page])
            self._release_state(each.state)

    def _release_state(self, slot: int | None) -> None:
        if slot is not None:
            assert self._pool.states is not None
            self._pool.states.release([slot])
