"""Pages and recurrent states that are being written: held until the end, states one at a time."""

import torch

from earthshine.kv import PageKey, PageKeys, PageParts, PagePool
from earthshine.kv.page_writes import CachedPage, PageWrites
from earthshine.spec.attention import Rows, State

PAGE = 4
KEPT = ((Rows("latent", 2),), (State("sum", (2,), fp32=True),))


class Store:
    """Writes a page when `work` is called."""

    def __init__(self) -> None:
        self.jobs: list = []
        self.kept: dict[PageKey, PageParts] = {}

    def __contains__(self, key: PageKey) -> bool:
        return key in self.kept

    def has_state(self, key: PageKey) -> bool:
        return key in self.kept and self.kept[key].state is not None

    def write(self, key, tokens, parts, done, *, with_state=False) -> None:
        self.jobs.append((key, parts, done, with_state))

    def work(self) -> None:
        key, parts, done, with_state = self.jobs.pop(0)
        self.kept[key] = parts()
        assert (self.kept[key].state is not None) == with_state
        done(True)


def setup(n_states: int = 4) -> tuple[PagePool, Store, PageWrites, list[CachedPage]]:
    pool, store, woken = PagePool(KEPT, PAGE, 4, torch.bfloat16, n_states), Store(), []
    keys, pages, states = PageKeys("", PAGE).of(range(16), 4), pool.allocate(4), pool.states.allocate(n_states)
    cached = [
        CachedPage(key, page, list(range(PAGE)), 2, states[i] if i < n_states else None)
        for i, (key, page) in enumerate(zip(keys, pages, strict=True))
    ]
    return pool, store, PageWrites(pool, store, lambda: woken.append(1)), cached


def test_states_are_written_one_at_a_time_and_held_meanwhile():
    pool, store, writes, cached = setup()
    for each in cached[:3]:
        writes.write_state(each)
    for done in range(3):
        assert len(store.jobs) == 1
        assert [pool.states.holders(each.state) for each in cached[:3]] == [1 + (i == done) for i in range(3)]
        assert [pool.holders(each.page) for each in cached[:3]] == [1 + (i == done) for i in range(3)]
        assert writes.is_busy
        store.work()
        assert writes.settle()
    assert not writes.is_busy
    assert not writes.settle()
    assert all(store.has_state(each.key) for each in cached[:3])


def test_state_that_is_dropped_while_it_waits_is_not_written():
    pool, store, writes, cached = setup()
    for each in cached[:3]:
        writes.write_state(each)
    pool.states.release([cached[1].state])
    cached[1].state = None
    store.work()
    assert writes.settle()
    assert [key for key, *_ in store.jobs] == [cached[2].key]


def test_state_that_the_store_has_is_not_written_again():
    _, store, writes, cached = setup()
    for _ in range(2):
        writes.write_state(cached[0])
        while store.jobs:
            store.work()
            writes.settle()
    assert not writes.is_busy
    store.kept[cached[1].key] = PageParts([])
    writes.write_state(cached[1])
    assert len(store.jobs) == 1, "of this one it had the rows alone"


def test_page_may_be_written_with_and_without_its_state_at_once():
    pool, store, writes, cached = setup()
    assert writes.wants(cached[0])
    writes.write(cached[0])
    writes.write_state(cached[0])
    assert (writes.holders(cached[0].page), pool.holders(cached[0].page)) == (2, 3)
    store.work()
    writes.settle()
    assert (writes.holders(cached[0].page), pool.holders(cached[0].page)) == (1, 2)
    store.work()
    writes.settle()
    assert (writes.holders(cached[0].page), pool.holders(cached[0].page)) == (0, 1)
    assert not writes.wants(cached[0])


def test_without_a_store_nothing_is_written():
    pool, _, _, cached = setup()
    writes = PageWrites(pool, None, lambda: None)
    assert not writes.wants(cached[0])
    writes.write_state(cached[0])
    assert not writes.is_busy


def test_write_that_raises_is_one_that_the_store_refused(caplog):
    """Nothing stays held, and the states that wait are still written."""
    pool, store, writes, cached = setup()
    write, refused = store.write, cached[0].key

    def fails_once(key, *args, **kwargs) -> None:
        if key == refused:
            raise OSError("no such store")
        write(key, *args, **kwargs)

    store.write = fails_once
    writes.write(cached[0])
    writes.write_state(cached[0])
    writes.write_state(cached[1])
    assert writes.settle()
    assert (pool.holders(cached[0].page), pool.states.holders(cached[0].state)) == (1, 1)
    assert [key for key, *_ in store.jobs] == [cached[1].key]
    store.work()
    writes.settle()
    assert not writes.is_busy
    assert [record.message for record in caplog.records] == ["A page could not be written."] * 2
