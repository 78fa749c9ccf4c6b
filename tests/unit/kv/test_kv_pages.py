"""The page pool and page tables: written rows are read back, and every page is released."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earthshine.errors import ContextError, UsageError
from earthshine.kv import PagePool, PageTable
from earthshine.spec.attention import Rows

LAYERS, PAGE = 2, 4
KEPT = ((Rows("latent", 3),),) * LAYERS


def make_pool(n_pages: int = 8) -> PagePool:
    return PagePool(KEPT, PAGE, n_pages, torch.float32)


def latents(layer: int, start: int, end: int, mark: int = 0) -> torch.Tensor:
    """Values that name their layer, position and writer."""
    column = torch.arange(start, end, dtype=torch.float32)[:, None] + 1000 * layer + 10000 * mark
    return column + torch.tensor([0.0, 0.25, 0.5])


def extend(page_table: PageTable, end: int, mark: int = 0) -> None:
    start = page_table.length
    page_table.reserve(end)
    for layer in range(LAYERS):
        page_table.write(layer, start, latents(layer, start, end, mark))
    page_table.commit(end)


def share(page_table: PageTable, length: int) -> PageTable:
    """Another page table of the first `length` positions, over the same pages."""
    other = PageTable(page_table.pool)
    pages = page_table.pages[: -(-length // PAGE)]
    page_table.pool.hold(pages)
    other.adopt(pages)
    other.truncate(length)
    return other


def assert_holds(page_table: PageTable, *parts: tuple[int, int, int]) -> None:
    for layer in range(LAYERS):
        want = torch.cat([latents(layer, *part) for part in parts])
        assert torch.equal(page_table.read(layer, len(want)), want)


def test_the_pool_counts_its_bytes():
    assert make_pool(8).bytes == 2 * 8 * 4 * 3 * 4


def test_allocate_names_how_many_pages_are_free_and_needed_and_takes_none():
    pool = make_pool(3)
    pool.allocate(1)
    with pytest.raises(ContextError, match=r"2 pages free, but 3 are needed"):
        pool.allocate(3)
    assert pool.free_pages == 2


@pytest.mark.parametrize("n_pages", [2**50, 2**70])
def test_a_pool_beyond_memory_is_refused(n_pages):
    with pytest.raises(ContextError, match="use fewer pages"):
        make_pool(n_pages)


@pytest.mark.parametrize("extent", [((), 4, 8), (((Rows("x", 0),),), 4, 8), (KEPT, 0, 8), (KEPT, 4, -1)])
def test_a_pool_without_extent_is_refused(extent):
    with pytest.raises(UsageError, match="above zero"):
        PagePool(*extent, torch.float32)


def test_layers_keep_rows_of_their_own_widths_and_some_several_or_none():
    """The rows of every part are written, read and copied with the page, each apart from the others."""
    kept = ((Rows("latent", 3),), (), (Rows("key_value", 8), Rows("index", 2)))
    pool = PagePool(kept, PAGE, 4, torch.float32)
    assert pool.bytes == 4 * PAGE * (3 + 8 + 2) * 4
    one, parts = PageTable(pool), [(0, 0), (2, 0), (2, 1)]
    one.reserve(6)
    rows = {place: torch.randn(6, pool.rows(*place).shape[-1]) for place in parts}
    for layer, part in parts:
        one.write(layer, 0, rows[layer, part], part)
    one.commit(6)
    other = share(one, 6)
    other.reserve(7)  # copies the last page
    assert other.pages[1] != one.pages[1]
    for page_table in (one, other):
        assert all(torch.equal(page_table.read(layer, 6, part), rows[layer, part]) for layer, part in parts)


def test_a_page_without_holder_can_be_neither_shared_nor_released():
    pool = make_pool()
    page = pool.allocate(1)
    pool.release(page)
    with pytest.raises(UsageError, match="no holder"):
        pool.release(page)
    with pytest.raises(UsageError, match="no holder"):
        pool.hold(page)
    assert pool.free_pages == 8


def test_what_is_written_in_pieces_is_read_whole():
    page_table = PageTable(make_pool())
    for end in (1, 3, 9, 10, 17):
        extend(page_table, end)
    assert_holds(page_table, (0, 17))
    assert page_table.length == 17
    assert len(page_table.pages) == 5


def test_pages_in_order_are_read_in_place_and_scattered_ones_are_gathered():
    pool = make_pool()
    one, other = PageTable(pool), PageTable(pool)
    extend(one, 4)
    assert one.read(0, 4).untyped_storage().data_ptr() == pool.rows(0).untyped_storage().data_ptr()
    extend(other, 5, mark=1)
    extend(one, 9)
    assert one.pages == (0, 3, 4)
    assert_holds(one, (0, 9))
    assert_holds(other, (0, 5, 1))
    assert one.read(0, 9).untyped_storage().data_ptr() != pool.rows(0).untyped_storage().data_ptr()
    extend(one, 11, mark=2)
    assert_holds(one, (0, 9), (9, 11, 2))


def test_the_table_leads_to_every_position():
    pool = make_pool()
    blocker, page_table = PageTable(pool), PageTable(pool)
    extend(page_table, 3)
    extend(blocker, 1)
    extend(page_table, 10)
    for position in range(10):
        page, offset = page_table.tensor[position // PAGE], position % PAGE
        for layer in range(LAYERS):
            assert torch.equal(pool.rows(layer)[page, offset], latents(layer, position, position + 1)[0])


def test_writing_outside_what_is_reserved_is_refused():
    page_table = PageTable(make_pool())
    extend(page_table, 5)
    with pytest.raises(UsageError, match="5 to 5 are reserved"):
        page_table.write(0, 5, latents(0, 5, 6))
    page_table.reserve(7)
    with pytest.raises(UsageError, match="5 to 7 are reserved"):
        page_table.write(0, 4, latents(0, 4, 6))
    with pytest.raises(UsageError, match="5 to 7 are reserved"):
        page_table.write(0, 6, latents(0, 6, 8))
    with pytest.raises(UsageError, match="5 to 7 are reserved"):
        page_table.commit(8)
    assert_holds(page_table, (0, 5))


def test_latents_of_another_dtype_or_width_are_refused():
    page_table = PageTable(make_pool())
    page_table.reserve(1)
    with pytest.raises(UsageError, match=r"torch\.bfloat16"):
        page_table.write(0, 0, latents(0, 0, 1).bfloat16())
    with pytest.raises(UsageError, match=r"not \[2\]"):
        page_table.write(0, 0, latents(0, 0, 1)[:, :2])


@pytest.mark.parametrize("length", [-1, 5])
def test_lengths_beyond_the_page_table_are_refused(length):
    page_table = PageTable(make_pool())
    extend(page_table, 4)
    for call in (page_table.truncate, lambda n: page_table.read(0, n)):
        with pytest.raises(UsageError):
            call(length)
    assert page_table.length == 4


def test_truncating_returns_pages_and_what_was_reserved():
    pool = make_pool()
    page_table = PageTable(pool)
    extend(page_table, 13)
    page_table.reserve(30)
    assert pool.free_pages == 0
    page_table.truncate(5)
    assert pool.free_pages == 6
    assert_holds(page_table, (0, 5))
    page_table.release()
    page_table.release()
    assert pool.free_pages == 8


def test_a_failed_reserve_changes_nothing():
    pool = make_pool(4)
    page_table = PageTable(pool)
    extend(page_table, 6)
    with pytest.raises(ContextError):
        page_table.reserve(17)
    assert (page_table.length, len(page_table.pages), pool.free_pages) == (6, 2, 2)
    assert page_table.capacity(6) == 16


def test_pages_are_shared_until_one_side_writes():
    pool = make_pool()
    one = PageTable(pool)
    extend(one, 10)
    other = share(one, 6)
    assert pool.free_pages == 5
    assert other.pages == one.pages[:2]
    extend(other, 9, mark=1)
    assert other.pages[0] == one.pages[0]
    assert other.pages[1] != one.pages[1]
    assert_holds(other, (0, 6), (6, 9, 1))
    assert_holds(one, (0, 10))
    extend(one, 12, mark=2)
    assert_holds(one, (0, 10), (10, 12, 2))
    one.release()
    assert_holds(other, (0, 6), (6, 9, 1))
    other.release()
    assert pool.free_pages == 8


def test_what_was_reserved_before_a_cut_must_be_reserved_again():
    """The cut may end inside a page that another page table holds."""
    pool = make_pool()
    one = PageTable(pool)
    extend(one, 7)
    other = share(one, 7)
    other.reserve(8)
    extend(one, 8)
    other.truncate(5)
    with pytest.raises(UsageError, match="5 to 5 are reserved"):
        other.write(0, 5, latents(0, 5, 6, mark=1))
    assert_holds(one, (0, 8))


def test_capacity_counts_the_copy_of_a_shared_page():
    pool = make_pool(3)
    one = PageTable(pool)
    extend(one, 6)
    other = share(one, 6)
    assert other.capacity(6) == 8
    assert other.capacity(4) == 8
    assert other.capacity(0) == 4
    other.reserve(8)
    assert pool.free_pages == 0
    assert one.capacity(6) == 8
    third = share(other, 6)
    assert third.capacity(6) == 6
    with pytest.raises(ContextError, match="0 pages free, but 1 are needed"):
        third.reserve(7)


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["extend", "truncate", "share", "release"]), st.integers(0, 3), st.integers(0, 14)),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(ACTIONS)
def test_any_sequence_of_operations_keeps_values_and_accounts_for_pages(actions):
    """Held against plain lists: values, capacity as a promise that reserve keeps, and all pages back at the end."""
    pool = make_pool(6)
    page_tables = [PageTable(pool) for _ in range(4)]
    models: list[list[int]] = [[], [], [], []]  # each position's mark
    for mark, (action, which, n) in enumerate(actions):
        page_table, model = page_tables[which], models[which]
        if action == "extend":
            end = len(model) + n
            if end > page_table.capacity(len(model)):
                with pytest.raises(ContextError):
                    page_table.reserve(end)
            else:
                extend(page_table, end, mark)
                model += [mark] * n
        elif action == "truncate":
            page_table.truncate(min(n, len(model)))
            del model[n:]
        elif action == "share":
            target = (which + 1) % 4
            page_tables[target].release()
            page_tables[target], models[target] = share(page_table, min(n, len(model))), model[:n]
        else:
            page_table.release()
            model.clear()
        for each, marks in zip(page_tables, models, strict=True):
            if marks:
                assert_holds(each, *((i, i + 1, m) for i, m in enumerate(marks)))
    for page_table in page_tables:
        page_table.release()
    assert pool.free_pages == 6
