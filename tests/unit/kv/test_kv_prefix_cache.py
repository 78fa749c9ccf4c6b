"""Which cached pages make room for others: those that a look at every page would choose, at a cost that is the same."""

import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earthshine.kv import PageKey, PageKeys, PagePool, PrefixCache, idle_pages, prefix_cache
from earthshine.spec.attention import Rows, State

MOST_JOBS, PAGES, CONTEXTS = 3, 12, 4


class Store:
    """Writes a page when `work` is called, refuses more than MOST_JOBS at once, and may lose what it has."""

    def __init__(self) -> None:
        self.kept: set[bytes] = set()
        self.jobs: list = []
        self.asked: list[bytes] = []

    def __contains__(self, key: PageKey) -> bool:
        return key.key in self.kept

    def has_state(self, key: PageKey) -> bool:
        return False

    def used(self, keys) -> None: ...

    def write(self, key, tokens, parts, done, *, with_state=False) -> None:
        self.asked.append(key.key)
        if len(self.jobs) < MOST_JOBS:
            self.jobs.append((key.key, done))
        else:
            done(False)

    def work(self, keeps: bool) -> None:
        key, done = self.jobs.pop(0)
        if keeps:
            self.kept.add(key)
        done(keeps)


class Bench:
    """A cache, sequences that hold some of its pages, and the order in which pages were used."""

    def __init__(self, keep_all: bool, now: list[float]) -> None:
        self.pool, self.store, self.now = PagePool(((Rows("latent", 1),),), 1, PAGES, torch.bfloat16), Store(), now
        self.cache = PrefixCache(self.pool, [self.store], self.store, keep_all=keep_all, threaded=False)
        self.keys = [PageKeys(str(i), 1).of(range(CONTEXTS), CONTEXTS) for i in range(CONTEXTS)]
        self.held: list[list[int]] = []
        self.by_use: list[bytes] = []  # the keys of the cached pages, the longest unused first

    def act(self, action: str, which: int, n: int) -> None:
        keys, cache = self.keys[which][:n], self.cache
        if action == "compute":
            self._compute(keys)
        elif action == "touch":
            cache.touch(keys)
            for each in reversed(keys):
                if each.key in self.by_use:
                    self.by_use.remove(each.key)
                    self.by_use.append(each.key)
        elif action == "end" and self.held:
            self.pool.release(self.held.pop(which % len(self.held)))
        elif action == "spill":
            cache.spill(keys)
        elif action == "work" and self.store.jobs:
            self.store.work(keeps=n > 1)
        elif action == "lose":
            self.store.kept.difference_update(each.key for each in keys)
        elif action == "wait":
            self.now[0] += 6
        elif action == "room":
            self._make_room(which + n)
        cache.settle()

    def _compute(self, keys: list[PageKey]) -> None:
        """A sequence that shares what is known and computes the rest, as far as there are free pages."""
        held = []
        for each in keys:
            page = self.cache.pages([each])
            if page:
                self.pool.hold(page)
            elif self.pool.free_pages:
                page = self.pool.allocate(1)
                self.cache.add(each, page[0], [each.start])
                self.by_use.append(each.key)
            held += page
        self.held.append(held)

    def _make_room(self, n_pages: int) -> None:
        self.cache.settle()
        expected = self._by_looking_at_every_page(n_pages)
        self.store.asked.clear()
        found = self.cache.make_room(n_pages)
        assert (found, self.store.asked, set(self.cache._cached)) == (expected[0], expected[1], set(expected[2]))
        self.by_use = expected[2]

    def idle(self, key: bytes) -> bool:
        return self.pool.holders(self.page(key)) == 1 + self.writers(key)

    def page(self, key: bytes) -> int:
        return self.cache._cached[key].page

    def writers(self, key: bytes) -> int:
        return self.cache._writes.holders(self.page(key))

    def n_evictable(self) -> int:
        return sum(self.idle(key) and not (self.cache._stuck and self.writers(key)) for key in self.by_use)

    def _by_looking_at_every_page(self, n_pages: int) -> tuple[bool, list[bytes], list[bytes]]:
        """Whether there is room, which pages are offered to the store for it, and which stay."""
        free, stuck, left, asked = self.pool.free_pages, self.cache._stuck, list(self.by_use), []
        if free >= n_pages or free + self.n_evictable() < n_pages:
            return free >= n_pages, asked, left
        tries = Counter({key: self.cache._cached[key].tries for key in left})
        alone = [key for key in left if self.pool.holders(self.page(key)) == 1]
        coming = 0 if stuck else sum(self.idle(key) and self.writers(key) > 0 for key in left)
        jobs = len(self.store.jobs)
        to_write = [key for key in alone if not stuck and tries[key] and key not in self.store.kept]
        for key in alone:
            if free < n_pages and key not in to_write:
                left.remove(key)
                free += 1
        for key in to_write:
            while free + coming < n_pages and key in left:
                if not tries[key]:
                    left.remove(key)
                    free += 1
                    continue
                tries[key] -= 1
                asked.append(key)
                if jobs < MOST_JOBS:
                    jobs, coming = jobs + 1, coming + 1
                    break
        return free >= n_pages, asked, left

    def check(self) -> None:
        assert set(self.by_use) == set(self.cache._cached)
        assert self.cache.idle_pages == sum(map(self.idle, self.by_use))
        room = self.pool.free_pages + self.n_evictable()
        assert self.cache.room() == room
        known = self.cache.pages(self.keys[0])
        found = self.keys[0][: len(known)]
        own = sum(self.idle(each.key) and not (self.cache._stuck and self.writers(each.key)) for each in found)
        assert self.cache.room(besides=known) == room - own


ACTIONS = ("compute", "compute", "compute", "touch", "end", "end", "spill", "work", "lose", "wait", "room", "room")


@settings(max_examples=200)
@given(
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(ACTIONS), st.integers(0, CONTEXTS - 1), st.integers(1, CONTEXTS)),
        min_size=30,
        max_size=80,
    ),
)
def test_room_is_made_as_by_looking_at_every_page(keep_all, actions):
    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_cache, "time", SimpleNamespace(monotonic=lambda: now[0]))
        patch.setattr(idle_pages, "_SPARE", 0)
        bench = Bench(keep_all, now)
        for action in actions:
            bench.act(*action)
            bench.check()


def calls_of_making_room(n_pages: int, keep_all: bool, spilled: bool) -> int:
    """Calls of Python for one page, of `n_pages` that are cached, half of them in use."""
    store = Store()
    pool = PagePool(((Rows("latent", 1),),), 1, n_pages, torch.bfloat16)
    cache = PrefixCache(pool, [store], store, keep_all=keep_all, threaded=False)
    keys, pages = PageKeys("", 1).of(range(n_pages), n_pages), pool.allocate(n_pages)
    for key, page in zip(keys, pages, strict=True):
        cache.add(key, page, [key.start])
        if store.jobs:
            store.work(keeps=True)
            cache.settle()
    if spilled:
        cache.spill(keys)
    pool.release(pages[n_pages // 2 :])
    assert cache.make_room(1) is not spilled
    pool.allocate(pool.free_pages)
    calls: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, argument: calls.update((event,)))
    try:
        cache.room()
        cache.make_room(1)
    finally:
        sys.setprofile(None)
    return calls["call"]


@pytest.mark.parametrize(("keep_all", "spilled"), [(False, False), (False, True), (True, False)])
def test_cost_of_room_does_not_grow_with_cached_pages(keep_all, spilled):
    assert calls_of_making_room(40, keep_all, spilled) == calls_of_making_room(4000, keep_all, spilled) > 0


def test_recurrent_state_that_was_unused_longest_makes_room_for_another():
    kept = ((Rows("latent", 1),), (State("sum", (2,), fp32=True),))
    pool = PagePool(kept, 1, 4, torch.bfloat16, n_states=3)
    cache = PrefixCache(pool)
    keys, pages, slots = PageKeys("", 1).of(range(3), 3), pool.allocate(3), pool.states.allocate(3)
    for key, page, slot in zip(keys, pages, slots, strict=True):
        cache.add(key, page, [key.start], slot)
    cache.touch(keys[:1])
    pool.states.release(slots[:1] + slots[2:])  # a sequence still holds the second
    assert pool.states.take() == slots[2]
    assert pool.states.take() == slots[0]
    assert cache.pages(keys) == pages[:2]
