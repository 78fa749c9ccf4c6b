"""What the router knows: blocks of prompts, prefixes of places, learned speeds, circuits."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from earthshine.prfaas.route import Cached
from earthshine.prfaas.router.blocks import block_ends, blocks_of
from earthshine.prfaas.router.circuit import Circuit
from earthshine.prfaas.router.learned import GUESS, LearnedSeconds
from earthshine.prfaas.router.prefix_index import PrefixIndex

TEXT = bytes(range(256)) * 400


@given(some.integers(0, len(TEXT)), some.integers(0, 2000))
def test_texts_share_the_blocks_of_what_they_have_in_common(common, more):
    one, other = TEXT[:common] + b"1" * more, TEXT[:common] + b"2" * more
    first, second = blocks_of(one, b"t"), blocks_of(other, b"t")
    n = sum(end <= common for end in first.ends)
    assert first.digests[:n] == second.digests[:n]
    assert not set(first.digests[n:]) & set(second.digests[n:])
    assert len(set(first.digests)) == len(first.digests)


def test_blocks_of_another_tenant_are_others():
    assert not set(blocks_of(TEXT, b"a").digests) & set(blocks_of(TEXT, b"b").digests)


def test_a_megabyte_of_text_has_some_hundred_blocks_and_a_short_one_a_block_each_256_bytes():
    assert len(blocks_of(b"x" * (1 << 20), b"").digests) < 400
    assert blocks_of(b"x" * 1000, b"").ends == [256, 512, 768]
    ends = [end for end, _ in zip(block_ends(), range(2000), strict=False)]
    assert ends == sorted(set(ends))


def test_a_place_holds_the_common_beginning_of_what_it_served():
    index, served = PrefixIndex(), blocks_of(TEXT[:10_000], b"")
    index.keep("a", served, 0.0)
    asked = blocks_of(TEXT[:5000] + b"else" * 1000, b"")
    n = max(end for end in served.ends if end <= 5000)
    assert index.find("a", asked, 1.0, 1.0) == Cached(n)
    assert index.find("b", asked, 1.0, 1.0) == Cached(0)
    assert index.find("a", asked, 1.0, 0.25).tokens == n // 4


def test_a_recurrent_state_is_where_a_prompt_ended():
    index, served = PrefixIndex(), blocks_of(TEXT[:4096], b"")
    index.keep("a", served, 0.0)
    found = index.find("a", blocks_of(TEXT[:9000], b""), 1.0, 1.0)
    assert (found.tokens, found.states) == (4096, (4096,))


def test_what_is_known_of_a_place_is_forgotten_after_a_while_and_with_the_place():
    index, served = PrefixIndex(seconds=10.0), blocks_of(TEXT, b"")
    index.keep("a", served, 0.0)
    assert index.find("a", served, 10.0, 1.0).tokens
    assert not index.find("a", served, 10.1, 1.0).tokens
    index.keep("a", blocks_of(b"y" * 300, b""), 20.0)
    assert len(index) == 2
    index.forget("a")
    assert len(index) == 0


@given(some.lists(some.integers(0, 50), min_size=1, max_size=60))
def test_an_index_is_bounded_and_forgets_ends_before_beginnings(numbers):
    index = PrefixIndex(capacity=64)
    for now, number in enumerate(numbers):
        text = b"%03d" % number * 4000
        index.keep("a", blocks_of(text, b""), float(now))
        assert len(index) <= 64
        assert index.find("a", blocks_of(text, b""), float(now), 1.0).tokens > 0


def test_a_learned_line_follows_what_was_observed():
    learned = LearnedSeconds()
    assert learned.line(0.0) == pytest.approx(GUESS)
    for tokens in (100, 1000, 5000, 20_000):
        learned.observe(1.0, tokens, 0.5 + 2e-3 * tokens)
    base, slope = learned.line(1.0)
    assert slope == pytest.approx(2e-3, rel=0.05)
    assert base == pytest.approx(0.5, abs=0.3)
    assert learned.curve(1.0)(10_000) == pytest.approx(20.5, rel=0.05)


def test_one_observation_is_believed_and_an_old_one_is_forgotten():
    learned = LearnedSeconds()
    learned.observe(0.0, 1000, 500.0)
    assert learned.curve(0.0)(1000) > 400
    assert learned.curve(1e5)(1000) == pytest.approx(GUESS[0] + 1000 * GUESS[1], rel=0.01)


@given(some.lists(some.tuples(some.floats(1, 1e6), some.floats(0, 1e5)), max_size=30))
def test_a_learned_curve_is_one_whatever_was_observed(observed):
    learned = LearnedSeconds()
    for now, (tokens, seconds) in enumerate(observed):
        learned.observe(float(now), tokens, seconds)
    curve = learned.curve(float(len(observed)))
    assert 0 < curve(1) <= curve(1e6) < float("inf")


def test_a_circuit_opens_after_several_failures_and_tries_one_request_at_a_time():
    circuit = Circuit()
    for _ in range(3):
        assert circuit.allows(0.0)
        circuit.begun()
        circuit.failed(0.0, "reset")
    assert not circuit.allows(0.9)
    assert circuit.allows(1.1)
    circuit.begun()
    assert not circuit.allows(1.1), "one trial at a time"
    circuit.failed(1.1, "reset")
    assert not circuit.allows(3.0)
    assert circuit.allows(3.2), "the time doubled"
    circuit.begun()
    circuit.succeeded()
    assert circuit.allows(3.2)
    assert circuit.sentence(3.2) == ""


def test_a_circuit_stays_open_for_half_a_minute_at_most():
    circuit, now = Circuit(), 0.0
    for _ in range(30):
        circuit.failed(now, "reset")
        now += 30.0
        assert circuit.allows(now) or not circuit.open


def test_a_trial_that_its_client_ended_makes_room_for_another():
    circuit = Circuit()
    for _ in range(3):
        circuit.failed(0.0, "reset")
    circuit.begun()
    circuit.ended()
    assert circuit.allows(2.0)


def test_one_lost_probe_says_nothing_and_two_say_that_a_place_is_down():
    circuit = Circuit()
    circuit.probed("late")
    assert circuit.allows(0.0)
    circuit.probed("late")
    assert not circuit.allows(0.0)
    assert circuit.sentence(0.0) == "late"
    circuit.probed("")
    assert circuit.allows(0.0)
    circuit.probed("is draining", certain=True)
    assert not circuit.allows(0.0)


@pytest.mark.parametrize(("seconds", "left"), [(3.0, 3.0), (1e9, 10.0), (-5.0, 0.0)])
def test_a_place_without_room_is_left_for_a_bounded_time(seconds, left):
    circuit = Circuit()
    circuit.busy(100.0, seconds)
    assert circuit.allows(100.0 + left)
    assert left == 0 or not circuit.allows(100.0 + left - 0.1)
