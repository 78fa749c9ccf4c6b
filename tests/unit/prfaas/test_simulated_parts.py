import math
import random
from dataclasses import replace

import pytest

from earthshine.loadgen.trace import BLOCK_TOKENS, Arrival
from earthshine.prfaas.route import Cached
from earthshine.prfaas.simulator.prefix import PrefixCache
from earthshine.prfaas.simulator.sharing import ProcessorSharing
from earthshine.prfaas.workload import (
    PAPER_LENGTHS,
    PAPER_OUTPUT_TOKENS,
    at_rate,
    drawn,
    overlaid,
    poisson,
    reply_blocks,
    whole_blocks,
)

from .simulated import profile

ROWS, STATE = 0.9 * 1000 * BLOCK_TOKENS, 1e5  # bytes of a block, and of a recurrent state


def shared_in_small_steps(joins: list[tuple[float, float]], rate: float) -> list[float]:
    """Ends of jobs (time, size) that share `rate`, by steps of a millisecond."""
    left, ends, step = [size for _, size in joins], [0.0] * len(joins), 0.001
    now = 0.0
    while any(size > 0 for size in left):
        present = [i for i, (begin, _) in enumerate(joins) if begin <= now and left[i] > 0]
        for i in present:
            left[i] -= rate / len(present) * step
            ends[i] = now + step
        now += step
    return ends


def test_jobs_share_as_in_a_simulation_of_small_steps():
    for seed in range(5):
        draw = random.Random(seed)
        joins = sorted((draw.uniform(0, 5), draw.uniform(1, 20)) for _ in range(8))
        shared: ProcessorSharing[int] = ProcessorSharing(lambda n: 10 / n)
        ends, waiting = [0.0] * len(joins), list(enumerate(joins))
        while waiting or shared.n:
            if waiting and waiting[0][1][0] <= shared.next_end():
                number, (begin, size) = waiting.pop(0)
                shared.join(begin, number, size)
            else:
                at = shared.next_end()
                ends[shared.end_first(at)] = at
        assert ends == pytest.approx(shared_in_small_steps(joins, 10), abs=0.02)


def test_a_job_that_leaves_makes_the_others_faster():
    shared: ProcessorSharing[str] = ProcessorSharing(lambda n: 10 / n)
    shared.join(0, "a", 10)
    shared.join(0, "b", 10)
    assert shared.left(1, "a") == pytest.approx(5)
    assert shared.leave(1, "a") == pytest.approx(5)
    assert shared.next_end() == pytest.approx(1.5)


def test_a_stopped_capacity_ends_nothing():
    rate = 10.0
    shared: ProcessorSharing[str] = ProcessorSharing(lambda n: rate / n)
    shared.join(0, "a", 10)
    rate = 0.0
    shared.rate_changed(0.5)
    assert shared.next_end() == float("inf")
    rate = 1.0
    shared.rate_changed(2.5)
    assert shared.next_end() == pytest.approx(7.5)


def test_prefix_cache_finds_leading_blocks_alone():
    cache = PrefixCache(profile("any", 1.0), 100 * ROWS)
    cache.keep((1, 2, 3))
    assert cache.find((1, 2, 9)) == Cached(2 * BLOCK_TOKENS)
    assert cache.find((9, 2, 3)) == Cached(0)


def test_prefix_cache_is_bounded_and_evicts_the_last_blocks_of_the_oldest_prompt_first():
    cache = PrefixCache(profile("any", 1.0), 4.5 * ROWS)
    cache.keep((1, 2, 3))
    cache.keep((7, 8))
    assert cache.nbytes <= 4.5 * ROWS
    assert (cache.find((1, 2, 3)).tokens, cache.find((7, 8)).tokens) == (2 * BLOCK_TOKENS, 2 * BLOCK_TOKENS)


def test_blocks_that_were_used_stay_longer():
    cache = PrefixCache(profile("any", 1.0), 4 * ROWS)
    cache.keep((1, 2))
    cache.keep((7, 8))
    cache.touch((1, 2))
    cache.keep((9,))
    assert (cache.find((1, 2)).tokens, cache.find((7, 8)).tokens) == (2 * BLOCK_TOKENS, BLOCK_TOKENS)


def test_recurrent_states_are_kept_at_the_last_block_and_where_prompts_part():
    cache = PrefixCache(profile("any", 1.0, recurrent=True), 100 * ROWS)
    cache.keep((1, 2, 3, 4))
    parting = cache.find((1, 2, 9, 10))
    assert parting == Cached(2 * BLOCK_TOKENS)  # rows, but no state to go on from
    assert parting.usable(recurrent=True) == 0
    cache.keep((1, 2, 9, 10), branch=2)
    assert cache.find((1, 2, 11)) == Cached(2 * BLOCK_TOKENS, (2 * BLOCK_TOKENS,))
    assert cache.find((1, 2, 3, 4, 5)).usable(recurrent=True) == 4 * BLOCK_TOKENS
    assert cache.nbytes == pytest.approx(6 * ROWS + 3 * STATE)


def test_a_recurrent_state_is_evicted_with_its_block_and_stays_with_it():
    cache = PrefixCache(profile("any", 1.0, recurrent=True), 4 * ROWS + 2.5 * STATE)
    cache.keep((1, 2))
    cache.keep((7, 8))
    cache.touch((1, 2))
    cache.keep((9,))  # evicts 8 and its state
    assert cache.find((1, 2)).usable(recurrent=True) == 2 * BLOCK_TOKENS
    assert cache.find((7, 8)) == Cached(BLOCK_TOKENS)
    assert cache.nbytes == pytest.approx(4 * ROWS + 2 * STATE)


def test_a_cache_too_small_for_one_block_keeps_nothing():
    cache = PrefixCache(profile("any", 1.0), 0.5 * ROWS)
    cache.keep((1, 2, 3))
    assert cache.find((1,)) == Cached(0)
    assert cache.nbytes == 0


def test_reply_blocks_are_those_of_the_prompt_that_goes_on_from_it():
    first = Arrival(0, 1100, 1000, (1, 2, 3))
    other = Arrival(1, 2600, 10, (1, 5, 6, 7, 8))  # shares the first block alone
    short = Arrival(2, 2000, 10, (1, 2, 6, 7))  # has no room for the reply
    after = Arrival(3, 2600, 10, (1, 2, 9, 10, 11))
    again = Arrival(4, 2600, 10, (1, 2, 12, 13, 14))  # another question than the one after
    requests = [first, other, short, after, again]
    prompts = list(whole_blocks(requests))
    assert reply_blocks(requests, prompts) == [prompts[3][2:4], (), (), (), ()]


def test_equal_blocks_after_different_ones_are_different_prefixes_and_a_last_token_is_never_cached():
    requests = [Arrival(0, 1024, 1, (5, 6)), Arrival(0, 1025, 1, (5, 6)), Arrival(0, 1537, 1, (7, 6, 6))]
    first, second, third = whole_blocks(requests)
    assert (len(first), len(second), len(third)) == (1, 2, 3)
    assert first == second[:1]
    assert not set(second) & set(third)


def test_poisson_times_follow_the_rate():
    times = poisson(1000, lambda t: 10 if t < 100 else 1, 10, 7)
    early = sum(t < 100 for t in times)
    assert abs(early - 1000) < 4 * 1000**0.5
    assert abs(len(times) - early - 900) < 4 * 900**0.5
    assert times == sorted(times)


def test_drawn_lengths_are_the_papers():
    lengths = [a.input_tokens for a in drawn([0.0] * 20000, PAPER_LENGTHS, PAPER_OUTPUT_TOKENS, 1)]
    assert sum(lengths) / len(lengths) == pytest.approx(27486, rel=0.03)
    assert min(lengths) >= 128
    assert max(lengths) <= 131072


def test_lengths_are_drawn_at_once_from_limits_that_hold_little_of_the_distribution():
    rare = replace(PAPER_LENGTHS, least=9_990_000, most=10_000_000, mu=13.0)
    assert all(rare.least <= a.input_tokens <= rare.most for a in drawn([0.0] * 1000, rare, 1, 1))


def test_lengths_shift_with_time():
    draws = drawn([0.0] * 5000 + [1.0] * 5000, PAPER_LENGTHS, 1, 3, shift=lambda t: -t)
    means = [sum(math.log(a.input_tokens) for a in half) / 5000 for half in (draws[:5000], draws[5000:])]
    assert means[0] - means[1] == pytest.approx(1.0, abs=0.1)


def test_a_trace_at_another_rate_keeps_its_order_and_its_pattern():
    trace = [Arrival(t, 10, 1) for t in (0.0, 1.0, 4.0)]
    assert [a.seconds for a in at_rate(trace, 0.5)] == [0.0, 1.5, 6.0]


def test_copies_of_a_trace_share_no_prefix_and_keep_its_gaps():
    once = [Arrival(t, 1000, 1, (0, t + 1)) for t in (0, 1, 4)]
    twice = overlaid(once, 2, 3)
    assert [a.seconds for a in twice] == [0, 1, 3, 4, 4, 7]
    first, second = ([a for a in twice if (a.blocks[0] == 0) == own] for own in (True, False))
    assert [a.seconds - 3 for a in second] == [a.seconds for a in first]
    assert not {b for a in first for b in a.blocks} & {b for a in second for b in a.blocks}
