"""Pages that were computed once, found again by what they hold: in the pool, else in the tiers behind it.

Invariant: a cached page is full and never written again; one that only the cache holds may be evicted, the longest
unused and the deepest of its sequence first. Tiers are read and written by other threads, and nothing here waits for
them: where room depends on a page that is being written, the caller asks again later. All but `idle_pages` is for the
thread that owns the pool.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from earthshine.kv.page_key import PageKey
from earthshine.kv.page_reads import PageFetch, PageRead, PageReads
from earthshine.kv.page_tier import PageStore, PageTier
from earthshine.kv.pages import PagePool

_TRIES = 2  # at once, and when the page is evicted
_STUCK_SECONDS = 5.0  # without one page written: then those that wait for a tier are not counted on any more


@dataclass(slots=True)
class _Held:
    """A page in the pool. `tries`: how often it may still be offered to the store; `state`: the slot of the recurrent
    state after its last token, if that is kept."""

    key: PageKey
    page: int
    tokens: Sequence[int]
    tries: int
    state: int | None = None


class PrefixCache:
    """`tiers`: where pages are looked for that the pool lacks, in this order. `store`: the one of them that pages are
    written to: with `keep_all` as soon as they are full, so that evicting one costs no more than reading it; else only
    those that `spill` names. Of models with recurrent layers, pages stay in memory, and what is found ends where a
    state is kept. `threaded` as in PageReads."""

    def __init__(
        self,
        pool: PagePool,
        tiers: Sequence[PageTier] = (),
        store: PageStore | None = None,
        *,
        keep_all: bool = True,
        threaded: bool = True,
    ) -> None:
        in_memory = pool.states is not None
        self._pool, self._store = pool, None if in_memory else store
        self._tiers = () if in_memory else tuple(tiers)
        self._reads = PageReads(pool, self._tiers, threaded=threaded)
        self._tries = _TRIES if keep_all and self._store is not None else 0
        if pool.states is not None:
            pool.states.reclaim = self._drop_state
        self._held: OrderedDict[bytes, _Held] = OrderedDict()  # the longest unused first
        self._writing: set[int] = set()  # pages that the store holds until they are written
        self._written: deque[int] = deque()  # pages that the store is done with; its thread alone appends
        self._waiting_since: float | None = None  # for a page to come back from a tier, and none has since
        self._stuck = False

    @property
    def idle_pages(self) -> int:
        """Pages that are in no sequence now. May be asked by any thread."""
        return sum(self._idle(held.page) for held in list(self._held.values()))

    def pages(self, keys: Sequence[PageKey]) -> list[int]:
        """The pages in the pool that `keys` begin with, as they are now."""
        found = [self._held[each.key] for each in takewhile(lambda each: each.key in self._held, keys)]
        while self._pool.states is not None and found and found[-1].state is None:
            found.pop()
        return [held.page for held in found]

    def touch(self, keys: Sequence[PageKey]) -> None:
        """Count these pages of one sequence as used just now, so that its first is evicted last."""
        used = keys[::-1]
        for each in used:
            if each.key in self._held:
                self._held.move_to_end(each.key)
        if self._store is not None:
            self._store.used(used)

    # --- pages for a sequence

    def fetch(self, keys: Sequence[PageKey], tokens: Sequence[int]) -> PageFetch | None:
        """Get the leading `keys` from wherever they are, as far as there is room: pages in the pool at once, others as
        the tiers deliver them.

        `tokens`: of the whole sequence. None while there is only room for them once other pages have been written: ask
        again later. The caller ends a fetch with `end_fetch`, or with `drop_fetch`.
        """
        keys = keys[: self._n_known(keys)]
        found = [self._held.get(each.key) for each in keys]
        in_pool = [held.page for held in found if held is not None]
        self._pool.hold(in_pool)
        count = min(found.count(None), self.room())
        if not self.make_room(count):
            self._pool.release(in_pool)
            return None
        new, wanted = iter(self._pool.allocate(count)), []
        for key, held in zip(keys, found, strict=True):
            page = next(new, None) if held is None else held.page
            if page is None:
                break
            own = tokens[key.start : key.start + self._pool.page_tokens]
            wanted.append(PageRead(key, own, page, held is not None))
        self._pool.release([held.page for held in found[len(wanted) :] if held is not None])
        return self._reads.fetch(wanted, self._hold_state(keys))

    def share(self, fetch: PageFetch) -> None:
        """Let others find what has arrived of a fetch so far."""
        for each in fetch.take():
            if not each.in_pool:
                self.add(each.key, each.page, each.tokens)

    def end_fetch(self, fetch: PageFetch) -> tuple[list[int], int | None]:
        """The pages that have arrived and the state after them, which are the caller's from now on."""
        unread = self._reads.close_fetch(fetch)
        self.share(fetch)
        self._pool.release(unread)
        return [each.page for each in fetch.arrived], fetch.state

    def drop_fetch(self, fetch: PageFetch) -> None:
        """End a fetch that nobody waits for any more."""
        pages, state = self.end_fetch(fetch)
        self._pool.release(pages)
        if state is not None:
            assert self._pool.states is not None
            self._pool.states.release([state])

    def add(self, key: PageKey, page: int, tokens: Sequence[int], state: int | None = None) -> None:
        """Share a full page of `tokens`; what is known by the same key already stays.

        `state`: the slot of the recurrent state after it, where there is one.
        """
        held = self._held.get(key.key)
        if held is None:
            self._pool.hold([page])
            self._held[key.key] = held = _Held(key, page, tokens, self._tries)
            self._offer(held)
        if state is not None and held.state is None:
            assert self._pool.states is not None
            self._pool.states.hold([state])
            held.state = state

    def spill(self, keys: Sequence[PageKey]) -> None:
        """These will be needed again, as after a preemption: they go to the store before they are evicted."""
        for each in keys:
            held = self._held.get(each.key)
            if held is not None and self._store is not None:
                held.tries = _TRIES

    # --- room for others

    def settle(self) -> None:
        """Takes back the pages that tiers have written, or read for nobody, meanwhile."""
        returned = self._reads.returned()
        if returned or self._written:
            self._waiting_since, self._stuck = None, False
        self._pool.release(returned)
        while self._written:
            page = self._written.popleft()
            self._pool.release([page])
            self._writing.discard(page)

    def room(self, besides: Sequence[int] = ()) -> int:
        """Pages that are free or could be, without evicting `besides`: at once, or once they have been written."""
        coming = 0 if self._stuck else self._reads.n_closing
        idle = sum(self._evictable(held.page) for held in self._held.values())
        return self._pool.free_pages + coming + idle - sum(map(self._evictable, besides))

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
        now = time.monotonic()
        self._waiting_since = now if self._waiting_since is None else self._waiting_since
        self._stuck = now - self._waiting_since > _STUCK_SECONDS
        return False

    def wait(self, seconds: float) -> None:
        """Until a page has been read or written, at most this long; returns at once where none is on its way."""
        if not self._written:
            self._reads.wait(seconds, bool(self._writing))

    def clear(self) -> None:
        """Evict all pages from the pool; what tiers have stays."""
        for held in self._held.values():
            self._release(held)
        self._held.clear()

    def close(self) -> None:
        """End the reading threads, then the tiers."""
        self._reads.close()
        for tier in self._tiers:
            tier.close()

    def _n_known(self, keys: Sequence[PageKey]) -> int:
        """How many leading `keys` are in the pool, or in a tier as far as that can say."""
        if self._pool.states is not None:
            return len(self.pages(keys))
        known = takewhile(lambda each: each.key in self._held or any(each in tier for tier in self._tiers), keys)
        return sum(1 for _ in known)

    def _hold_state(self, keys: Sequence[PageKey]) -> int | None:
        """The slot of the recurrent state after the last of the pages, held for the caller."""
        if self._pool.states is None or not keys:
            return None
        slot = self._held[keys[-1].key].state
        assert slot is not None
        self._pool.states.hold([slot])
        return slot

    def _idle(self, page: int) -> bool:
        """Whether nobody but the cache, and the store while it writes it, holds this page of the cache."""
        return self._pool.holders(page) == 1 + (page in self._writing)

    def _evictable(self, page: int) -> bool:
        return self._idle(page) and not (self._stuck and page in self._writing)

    def _evict(self, count: int) -> bool:
        """Whether `count` pages are free; if not, enough others are on their way to the store.

        What need not be written goes first, though it was used later.
        """
        for held in list(self._held.values()):
            if self._pool.free_pages >= count:
                return True
            if self._pool.holders(held.page) == 1 and not self._to_write(held):
                self._drop(held)
        coming = 0 if self._stuck else self._reads.n_closing + sum(map(self._idle, self._writing))
        for held in list(self._held.values()):
            if self._pool.free_pages + coming >= count:
                break
            if self._pool.holders(held.page) > 1:
                continue
            while self._pool.holders(held.page) == 1:
                if self._offer(held):
                    self.settle()  # what the store refuses at once comes back at once
                else:
                    self._drop(held)
            coming += held.page in self._writing
        return self._pool.free_pages >= count

    def _drop(self, held: _Held) -> None:
        del self._held[held.key.key]
        self._release(held)

    def _release(self, held: _Held) -> None:
        self._pool.release([held.page])
        if held.state is not None:
            assert self._pool.states is not None
            self._pool.states.release([held.state])

    def _drop_state(self) -> bool:
        """Frees the slot of the state that was unused longest and that no sequence holds, if there is one."""
        states = self._pool.states
        assert states is not None
        for held in self._held.values():
            if held.state is not None and states.holders(held.state) == 1:
                states.release([held.state])
                held.state = None
                return True
        return False

    def _to_write(self, held: _Held) -> bool:
        """Whether the page goes to the store before it is evicted."""
        return self._store is not None and not self._stuck and held.tries > 0 and held.key not in self._store

    def _offer(self, held: _Held) -> bool:
        """Whether the page is on its way to the store now."""
        store, page = self._store, held.page
        if store is None or not self._to_write(held):
            return False
        held.tries -= 1
        self._pool.hold([page])  # until it is written
        self._writing.add(page)

        def done(_: bool) -> None:
            self._written.append(page)
            self._reads.wake()

        store.write(held.key, held.tokens, lambda: self._pool.page(page), done)
        return True
