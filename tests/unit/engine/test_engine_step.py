"""One step over several timelines gives each row what it would get alone, or changes nothing."""

import pytest
import torch

from earthshine.engine import StepRow, step
from earthshine.errors import ContextError, UsageError
from earthshine.kv import Timeline

FIRST, SECOND, THIRD = [1, 2, 3, 4, 5, 6, 7], [9, 8, 7], [30]


def alone(decoder, pool, *chunks):
    timeline = Timeline(pool)
    return timeline, torch.cat([step(decoder, [StepRow(timeline, chunk)])[0] for chunk in chunks])


def state(timeline):
    return [timeline.read(layer, timeline.length).clone() for layer in range(len(timeline.pool.kept))]


def test_rows_of_one_step_get_what_each_gets_alone(decoder, make_pool):
    """Prefill, a continued prefill and a decoding row in one batch."""
    pool = make_pool()
    wholes = [alone(decoder, pool, tokens) for tokens in (FIRST, SECOND + SECOND, THIRD + FIRST)]
    second, _ = alone(decoder, pool, SECOND)
    third, _ = alone(decoder, pool, THIRD + FIRST[:-1])
    first = Timeline(pool)
    together = step(decoder, [StepRow(first, FIRST), StepRow(second, SECOND), StepRow(third, FIRST[-1:])])
    for hidden, timeline, (whole, expected) in zip(together, (first, second, third), wholes, strict=True):
        assert torch.equal(hidden, expected[-len(hidden) :])
        assert all(torch.equal(a, b) for a, b in zip(state(timeline), state(whole), strict=True))
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


def test_a_fork_continues_like_the_whole(decoder, make_pool):
    pool = make_pool()
    trunk, _ = alone(decoder, pool, FIRST)
    fork = trunk.fork(5)
    forked = step(decoder, [StepRow(fork, SECOND), StepRow(trunk, THIRD)])
    assert torch.equal(forked[0], alone(decoder, pool, FIRST[:5] + SECOND)[1][5:])
    assert torch.equal(forked[1], alone(decoder, pool, FIRST + THIRD)[1][7:])


def test_a_failing_decoder_leaves_every_timeline_as_it_was(decoder, make_pool):
    pool = make_pool()
    timeline, _ = alone(decoder, pool, FIRST)
    before, free = state(timeline), pool.free_pages
    decoder.fail_at = 2
    with pytest.raises(RuntimeError, match="disk"):
        step(decoder, [StepRow(timeline, SECOND), StepRow(Timeline(pool), FIRST)])
    assert (timeline.length, pool.free_pages) == (7, free)
    assert all(torch.equal(a, b) for a, b in zip(state(timeline), before, strict=True))
    resumed = step(decoder, [StepRow(timeline, SECOND)])[0]
    assert torch.equal(resumed, alone(decoder, pool, FIRST + SECOND)[1][7:])


def test_when_the_second_row_finds_no_page_the_first_keeps_none(decoder, make_pool):
    pool = make_pool(n_pages=2)
    rows = [StepRow(Timeline(pool), FIRST[:4]), StepRow(Timeline(pool), FIRST)]
    with pytest.raises(ContextError, match="1 pages free, but 2 are needed"):
        step(decoder, rows)
    assert pool.free_pages == 2
    assert decoder.steps == []


def test_rows_without_tokens_and_doubled_timelines_are_refused(decoder, make_pool):
    timeline = Timeline(make_pool())
    for rows in ([], [StepRow(timeline, [])], [StepRow(timeline, [1]), StepRow(timeline, [2])]):
        with pytest.raises(UsageError):
            step(decoder, rows)
    assert timeline.length == 0
