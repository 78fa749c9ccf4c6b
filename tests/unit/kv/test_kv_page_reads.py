"""Pages read by a thread of their own: in order, in rotation, and not written to once nobody waits for them."""

import threading
from collections.abc import Sequence

import pytest
import torch

from earthshine.kv import PageKey, PageKeys, PagePool
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


def values(key: PageKey, tokens: Sequence[int]) -> list[torch.Tensor]:
    """The page that the tier has: its tokens, twice."""
    return [torch.tensor(tokens, dtype=torch.float32)[:, None].expand(PAGE, 2)]


def test_pages_arrive_in_order_with_what_they_hold():
    pool = make_pool()
    reads = PageReads(pool, values)
    asked, found = wanted(pool, "", 5), []
    fetch = reads.fetch(asked)
    while not (ended := fetch.ended) or len(fetch):
        found += fetch.take()
        if not ended:
            reads.wait(10)
    assert found == asked
    for each in found:
        assert torch.equal(pool.page(each.page)[0], values(each.key, each.tokens)[0])
    assert reads.close_fetch(fetch) == []
    reads.close()


def test_fetches_are_served_a_page_each_in_rotation():
    """A long fetch before it does not hold up a short one."""
    pool, order = make_pool(), []

    def read(key: PageKey, tokens: Sequence[int]) -> list[torch.Tensor]:
        order.append(key)
        return values(key, tokens)

    reads = PageReads(pool, read, threaded=False)
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

    def read(key: PageKey, tokens: Sequence[int]) -> list[torch.Tensor] | None:
        if key == one[1].key:
            if fails:
                raise RuntimeError("no such tier")
            return None
        return values(key, tokens)

    reads = PageReads(pool, read, threaded=False)
    first, second = reads.fetch(one), reads.fetch(other)
    while reads.read_next():
        pass
    assert first.ended
    assert first.take() == one[:1]
    assert reads.close_fetch(first) == [one[1].page, one[2].page]
    assert second.take() == other
    assert len(caplog.records) == fails


def test_closing_a_fetch_waits_for_the_page_that_is_being_read():
    """The page is the caller's again only once the reading thread is done with it."""
    pool, begun, go_on = make_pool(), threading.Event(), threading.Event()
    done = []

    def read(key: PageKey, tokens: Sequence[int]) -> list[torch.Tensor]:
        begun.set()
        go_on.wait(60)
        done.append(key)
        return values(key, tokens)

    reads = PageReads(pool, read)
    asked = wanted(pool, "", 3)
    fetch = reads.fetch(asked)
    assert begun.wait(60)
    threading.Timer(0.05, go_on.set).start()
    assert sorted(reads.close_fetch(fetch)) == sorted(each.page for each in asked)
    assert done == [asked[0].key]
    assert fetch.ended
    reads.close()


def test_fetch_after_the_end_reads_nothing():
    pool = make_pool()
    reads = PageReads(pool, values)
    reads.close()
    fetch = reads.fetch(wanted(pool, "", 2))
    assert fetch.ended
    assert fetch.take() == []
    reads.wait(60)
    assert len(reads.close_fetch(fetch)) == 2
