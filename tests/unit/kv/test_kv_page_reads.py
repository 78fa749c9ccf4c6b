"""Pages read by other threads: in order, in rotation, and not written once their fetch is closed."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from earthshine.kv import PageKey, PageKeys, PageParts, PagePool, PrefixCache, page_reads
from earthshine.kv.page_reads import PageRead, PageReads
from earthshine.spec.attention import Rows

PAGE = 4
KEPT = ((Rows("latent", 2),),)


def make_pool(n_pages: int = 12) -> PagePool:
    return PagePool(KEPT, PAGE, n_pages, torch.float32)


def wanted(pool: PagePool, tenant: str, count: int) -> list[PageRead]:
    tokens = list(range(count * PAGE))
    keys, pages = PageKeys(tenant, PAGE).of(tokens, count), pool.allocate(count)
    return [PageRead(key, tokens[key.start : key.start + PAGE], page) for key, page in zip(keys, pages, strict=True)]


class Tier:
    """Has the pages that `read` gives; without `keys` it says that it has all of them."""

    def __init__(self, read, keys=None) -> None:
        self.read, self._keys = read, keys

    def __contains__(self, key: PageKey) -> bool:
        return self._keys is None or key in self._keys

    def has_state(self, key: PageKey) -> bool:
        return False

    def close(self) -> None: ...


def values(key: PageKey, tokens: Sequence[int]) -> PageParts:
    """The page that the tier has: its tokens, twice."""
    return PageParts([torch.tensor(tokens, dtype=torch.float32)[:, None].expand(PAGE, 2)])


def test_pages_arrive_in_order_with_what_they_hold():
    pool = make_pool()
    reads = PageReads(pool, [Tier(values)])
    asked, found = wanted(pool, "", 5), []
    fetch = reads.fetch(asked)
    while not fetch.ended:
        reads.wait(10)
        found += fetch.take()
    found += fetch.take()
    assert found == asked
    for each in found:
        assert torch.equal(pool.page(each.page)[0], values(each.key, each.tokens).rows[0])
    assert reads.close_fetch(fetch) == ()
    reads.close()


def test_fetches_are_served_a_page_each_in_rotation():
    """A long fetch before it does not hold up a short one."""
    pool, order = make_pool(), []

    def read(key: PageKey, tokens: Sequence[int]) -> PageParts:
        order.append(key)
        return values(key, tokens)

    reads = PageReads(pool, [Tier(read)], threaded=False)
    long, short = wanted(pool, "long", 5), wanted(pool, "short", 2)
    fetches = [reads.fetch(long), reads.fetch(short)]
    for _ in range(4):
        assert reads.read_next()
    assert fetches[1].ended
    assert order == [long[0].key, short[0].key, long[1].key, short[1].key]
    while reads.read_next():
        pass
    assert [len(fetch.take()) for fetch in fetches] == [5, 2]


@pytest.mark.parametrize("fails", [False, True])
def test_absent_page_ends_its_fetch_alone(fails, caplog):
    pool = make_pool()
    one, other = wanted(pool, "one", 3), wanted(pool, "other", 3)

    def read(key: PageKey, tokens: Sequence[int]) -> PageParts | None:
        if key == one[1].key:
            if fails:
                raise RuntimeError("no such tier")
            return None
        return values(key, tokens)

    reads = PageReads(pool, [Tier(read)], threaded=False)
    first, second = reads.fetch(one), reads.fetch(other)
    while reads.read_next():
        pass
    assert first.ended
    assert first.take() == (one[0],)
    assert reads.close_fetch(first) == tuple(one[1:])
    assert second.take() == tuple(other)
    assert len(caplog.records) == fails


def test_closing_a_fetch_does_not_wait_for_the_page_that_is_being_read():
    """That page comes back once the reading thread is done with it."""
    pool, begun, go_on = make_pool(), threading.Event(), threading.Event()
    done = []

    def read(key: PageKey, tokens: Sequence[int]) -> PageParts:
        begun.set()
        go_on.wait(60)
        done.append(key)
        return values(key, tokens)

    reads = PageReads(pool, [Tier(read)])
    asked = wanted(pool, "", 3)
    fetch = reads.fetch(asked)
    assert begun.wait(60)
    assert reads.close_fetch(fetch) == tuple(asked[1:])
    assert (fetch.ended, reads.n_closing, reads.returned()) == (True, 1, [])
    go_on.set()
    while reads.n_closing:
        reads.wait(60)
    assert reads.returned() == [asked[0]]
    assert reads.returned() == []
    assert done == [asked[0].key]
    reads.close()


def test_page_that_one_tier_lacks_is_read_from_the_next():
    pool = make_pool()
    asked = wanted(pool, "", 5)
    keys = [each.key for each in asked]
    order = []

    def tier(number: int, listed: list[PageKey], had: list[PageKey]) -> Tier:
        def read(key: PageKey, tokens: Sequence[int]) -> PageParts | None:
            order.append((number, keys.index(key)))
            return values(key, tokens) if key in had else None

        return Tier(read, listed)

    tiers = [tier(0, keys[1:4], keys[1:3]), tier(1, [keys[0], keys[3]], [keys[0], keys[3]]), tier(2, keys[4:], [])]
    reads = PageReads(pool, tiers, threaded=False)
    fetch = reads.fetch(asked)
    while any(reads.read_next(number) for number in range(3)):
        pass
    assert order == [(1, 0), (0, 1), (0, 2), (0, 3), (1, 3), (2, 4)]
    assert fetch.arrived == tuple(asked[:4])
    assert fetch.ended
    for each in fetch.arrived:
        assert torch.equal(pool.page(each.page)[0], values(each.key, each.tokens).rows[0])


def test_pages_in_the_pool_are_not_read():
    pool, order = make_pool(), []
    asked = [replace(each, in_pool=number in (0, 2, 3)) for number, each in enumerate(wanted(pool, "", 4))]

    def read(key: PageKey, tokens: Sequence[int]) -> PageParts:
        order.append(key)
        return values(key, tokens)

    reads = PageReads(pool, [Tier(read)], threaded=False)
    fetch = reads.fetch(asked)
    assert fetch.take() == (asked[0],)
    assert reads.read_next()
    assert fetch.take() == tuple(asked[1:])
    assert fetch.ended
    assert order == [asked[1].key]
    assert reads.fetch(asked[2:]).ended


def test_tier_that_hangs_holds_up_no_other():
    pool, begun, go_on = make_pool(), threading.Event(), threading.Event()
    slow, fast = wanted(pool, "slow", 3), wanted(pool, "fast", 3)

    def hang(key: PageKey, tokens: Sequence[int]) -> PageParts:
        begun.set()
        go_on.wait(60)
        return values(key, tokens)

    reads = PageReads(pool, [Tier(values, [each.key for each in fast]), Tier(hang, [each.key for each in slow])])
    late = reads.fetch(slow)
    assert begun.wait(60)
    fetch = reads.fetch(fast)
    while not fetch.ended:
        reads.wait(60)
    assert fetch.arrived == tuple(fast)
    assert not late.ended
    go_on.set()
    while not late.ended:
        reads.wait(60)
    assert late.arrived == tuple(slow)
    reads.close()


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [torch.zeros(PAGE, 2), torch.zeros(PAGE, 2)],
        [torch.zeros(1, 2)],
        [torch.zeros(PAGE, 1)],
        [torch.zeros(PAGE, 2, dtype=torch.float64)],
    ],
    ids=["none", "two", "one row", "narrow", "fp64"],
)
def test_page_of_another_shape_is_not_taken(wrong, caplog):
    """Not even one that would fit if it were repeated."""
    pool = make_pool()
    asked = wanted(pool, "", 2)
    reads = PageReads(pool, [Tier(lambda key, tokens: PageParts(wrong))], threaded=False)
    fetch = reads.fetch(asked)
    assert reads.read_next()
    assert fetch.ended
    assert fetch.arrived == ()
    assert reads.close_fetch(fetch) == tuple(asked)
    assert "could not be read" in caplog.text


def test_fetch_after_the_end_reads_nothing():
    pool = make_pool()
    reads = PageReads(pool, [Tier(values)])
    reads.close()
    fetch = reads.fetch(wanted(pool, "", 2))
    assert fetch.ended
    assert fetch.take() == ()
    reads.wait(60)
    assert len(reads.close_fetch(fetch)) == 2


def test_thread_that_cannot_be_started_ends_the_fetch_and_the_next_tries_again(monkeypatch, caplog):
    pool, may_start = make_pool(), False

    class Limited(threading.Thread):
        def start(self) -> None:
            if not may_start:
                raise RuntimeError("can't start new thread")
            super().start()

    monkeypatch.setattr(page_reads, "Thread", Limited)
    reads = PageReads(pool, [Tier(values)])
    for tenant in ("one", "other"):
        asked = wanted(pool, tenant, 2)
        fetch = reads.fetch(asked)
        assert fetch.ended
        assert fetch.take() == ()
        assert reads.close_fetch(fetch) == tuple(asked)
    assert [record.message for record in caplog.records] == [
        "No thread can be started to read pages; they are computed instead."
    ]
    may_start = True
    asked = wanted(pool, "later", 2)
    fetch = reads.fetch(asked)
    while not fetch.ended:
        reads.wait(10)
    assert fetch.take() == tuple(asked)
    reads.close()


def test_sequence_is_computed_where_no_reading_thread_can_be_started(monkeypatch):
    """Nothing stays held, so that its pages can be computed."""

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(page_reads, "Thread", type("Never", (threading.Thread,), {"start": fail}))
    pool = make_pool()
    cache = PrefixCache(pool, [Tier(values)])
    tokens = list(range(3 * PAGE))
    fetch = cache.fetch(PageKeys("", PAGE).of(tokens, 3), tokens)
    assert fetch is not None
    assert fetch.ended
    cache.share(fetch)
    assert cache.end_fetch(fetch) == ([], None)
    assert pool.free_pages == 12
    cache.close()
