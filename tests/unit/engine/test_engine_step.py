"""One step over several page tables gives each row what it would get alone, or changes nothing."""

import pytest
import torch

from earthshine.engine import StepRow, step
from earthshine.errors import ContextError, UsageError
from earthshine.kv import PageTable

FIRST, SECOND, THIRD = [1, 2, 3, 4, 5, 6, 7], [9, 8, 7], [30]


def alone(decoder, pool, *chunks):
    page_table = PageTable(pool)
    return page_table, torch.cat([step(decoder, [StepRow(page_table, chunk)])[0] for chunk in chunks])


def state(page_table):
    return [page_table.read(layer, page_table.length).clone() for layer in range(len(page_table.pool.kept))]


def test_rows_of_one_step_get_what_each_gets_alone(decoder, make_pool):
    """Prefill, a continued prefill and a decoding row in one batch."""
    pool = make_pool()
    wholes = [alone(decoder, pool, tokens) for tokens in (FIRST, SECOND + SECOND, THIRD + FIRST)]
    second, _ = alone(decoder, pool, SECOND)
    third, _ = alone(decoder, pool, THIRD + FIRST[:-1])
    first = PageTable(pool)
    together = step(decoder, [StepRow(first, FIRST), StepRow(second, SECOND), StepRow(third, FIRST[-1:])])
    for hidden, page_table, (whole, expected) in zip(together, (first, second, third), wholes, strict=True):
        assert torch.equal(hidden, expected[-len(hidden) :])
        assert all(torch.equal(a, b) for a, b in zip(state(page_table), state(whole), strict=True))
    assert decoder.steps[-1] == FIRST + SECOND + FIRST[-1:]


def test_the_split_into_steps_does_not_matter(decoder, make_pool):
    pool = make_pool()
    _, whole = alone(decoder, pool, FIRST)
    for cut in range(1, len(FIRST)):
        _, pieces = alone(decoder, pool, FIRST[:cut], FIRST[cut:])
        assert torch.equal(pieces, whole)


def test_page_size_does_not_matter(decoder, make_pool):
    results = [alone(decoder, make_pool(page_tokens=size), FIRST, SECOND)[1] for size in (1, 2, 3, 64)]
    assert all(torch.equal(result, results[0]) for result in results)


def test_sequences_that_share_pages_continue_like_the_whole(decoder, make_pool):
    pool = make_pool()
    one, _ = alone(decoder, pool, FIRST)
    other = PageTable(pool)
    pool.hold(one.pages[:2])
    other.adopt(one.pages[:2])
    other.truncate(5)
    continued = step(decoder, [StepRow(other, SECOND), StepRow(one, THIRD)])
    assert torch.equal(continued[0], alone(decoder, pool, FIRST[:5] + SECOND)[1][5:])
    assert torch.equal(continued[1], alone(decoder, pool, FIRST + THIRD)[1][7:])


def test_a_failing_decoder_leaves_every_page_table_as_it_was(decoder, make_pool):
    pool = make_pool()
    page_table, _ = alone(decoder, pool, FIRST)
    before, free = state(page_table), pool.free_pages
    decoder.fail_at = 2
    with pytest.raises(RuntimeError, match="disk"):
        step(decoder, [StepRow(page_table, SECOND), StepRow(PageTable(pool), FIRST)])
    assert (page_table.length, pool.free_pages) == (7, free)
    assert all(torch.equal(a, b) for a, b in zip(state(page_table), before, strict=True))
    resumed = step(decoder, [StepRow(page_table, SECOND)])[0]
    assert torch.equal(resumed, alone(decoder, pool, FIRST + SECOND)[1][7:])


def test_when_the_second_row_finds_no_page_the_first_keeps_none(decoder, make_pool):
    pool = make_pool(n_pages=2)
    rows = [StepRow(PageTable(pool), FIRST[:4]), StepRow(PageTable(pool), FIRST)]
    with pytest.raises(ContextError, match="1 pages free, but 2 are needed"):
        step(decoder, rows)
    assert pool.free_pages == 2
    assert decoder.steps == []


def test_rows_without_tokens_and_doubled_page_tables_are_refused(decoder, make_pool):
    page_table = PageTable(make_pool())
    for rows in ([], [StepRow(page_table, [])], [StepRow(page_table, [1]), StepRow(page_table, [2])]):
        with pytest.raises(UsageError):
            step(decoder, rows)
    assert page_table.length == 0
