"""The controller: what it follows, how fast, and what it leaves alone."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from earthshine.prfaas.control import Control, Controller
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.route import FleetState
from earthshine.prfaas.solve import solve
from earthshine.prfaas.workload import PAPER_LENGTHS, PAPER_OUTPUT_TOKENS

from .fleets import paper_fleet, shipped

POLICY = Policy()
FAST, SLOW = 100e9 / 8, 2e9 / 8
LINK = ("prfaas", "pd")


def paper_controller(policy: Policy = POLICY) -> tuple[Controller, FleetState]:
    controller = Controller(paper_fleet(), policy, PAPER_LENGTHS, PAPER_OUTPUT_TOKENS)
    return controller, FleetState.idle(paper_fleet(), controller.threshold)


def ticks(controller: Controller, state: FleetState, begin: int, n: int) -> list[Control]:
    """In periods `begin` to `begin + n`, with converted instances in their new roles at once."""
    found = []
    for period in range(begin, begin + n):
        found.append(controller.tick(period * controller.period_seconds, state))
        cluster = state.clusters["pd"]
        cluster.n_prefill = found[-1].n_prefill["pd"]
        cluster.n_decode = 8 - cluster.n_prefill
        state.threshold = found[-1].threshold
    return found


def log_normal(seed: int, n: int, mu: float) -> list[int]:
    source = random.Random(seed)
    return [min(131072, max(128, round(source.lognormvariate(mu, 1.0)))) for _ in range(n)]


def observe(controller: Controller, lengths: list[int], until: float, per_second: float) -> None:
    for i, tokens in enumerate(lengths):
        controller.observe(until - (len(lengths) - i) / per_second, tokens)
        controller.replied(PAPER_OUTPUT_TOKENS)


def test_begins_with_the_threshold_of_the_expected_lengths():
    controller, _ = paper_controller()
    assert controller.threshold == solve(paper_fleet(), PAPER_LENGTHS, PAPER_OUTPUT_TOKENS, roles=False).thresholds[0]


def test_nothing_changes_while_all_is_as_expected():
    controller, state = paper_controller()
    before = controller.threshold
    for control in ticks(controller, state, 1, 20):
        assert (control.threshold, control.n_prefill, control.why) == (before, {"pd": 3}, "no change worth making")


def test_slow_link_raises_the_threshold_at_once_and_a_fast_one_lowers_it():
    controller, state = paper_controller()
    before = controller.threshold
    state.links[LINK].bytes_per_second = SLOW
    slow = ticks(controller, state, 1, 1)[0]
    assert slow.threshold > 2 * before
    assert "threshold from" in slow.why
    assert "link from prfaas to pd" in slow.why
    state.links[LINK].bytes_per_second = FAST
    assert ticks(controller, state, 2, 1)[0].threshold == before


def test_retransmissions_raise_the_threshold():
    controller, state = paper_controller()
    state.links[LINK].bytes_per_second = 13e9 / 8
    assert ticks(controller, state, 1, 1)[0].threshold == controller.threshold
    before = controller.threshold
    state.links[LINK].retransmitted = 0.05
    assert ticks(controller, state, 2, 1)[0].threshold > before


def test_dead_link_leaves_every_prompt_local():
    controller, state = paper_controller()
    state.links[LINK].bytes_per_second = 0
    assert ticks(controller, state, 1, 1)[0].threshold >= PAPER_LENGTHS.longest


def test_short_outage_converts_nothing_and_a_long_one_does():
    controller, state = paper_controller()
    state.links[LINK].bytes_per_second = 0
    assert {control.n_prefill["pd"] for control in ticks(controller, state, 1, 3)} == {3}
    later = ticks(controller, state, 4, 60)
    assert (
        later[-1].n_prefill["pd"] == solve(paper_fleet(gbps=0), PAPER_LENGTHS, PAPER_OUTPUT_TOKENS).n_prefill["pd"] == 6
    )
    state.links[LINK].bytes_per_second = FAST
    assert ticks(controller, state, 64, 60)[-1].n_prefill["pd"] == 3


def test_instances_that_are_not_needed_convert_for_the_price_of_the_way_back():
    """Replies twice as long at 2.4 requests per second: decode serves 1.95, and prefill more than that. After a first
    period, which has too few requests, about 12 are lost in each, and the way back would lose 23.5. As many on the way
    there would double that."""
    controller, state = paper_controller()
    n_prefill = []
    for period in range(1, 5):
        for i, tokens in enumerate(log_normal(period, 72, mu=9.9)):
            controller.observe(30 * (period - 1) + i / 2.4, tokens)
            controller.replied(2 * PAPER_OUTPUT_TOKENS)
        n_prefill += [control.n_prefill["pd"] for control in ticks(controller, state, period, 1)]
    assert n_prefill == [3, 3, 3, 2]


def test_longer_prompts_than_expected_move_the_threshold():
    controller, state = paper_controller()
    before = controller.threshold
    observe(controller, log_normal(0, 1000, mu=10.9), until=1020, per_second=1)
    assert ticks(controller, state, 34, 1)[0].threshold > 1.2 * before


def test_a_few_requests_say_nothing_yet():
    controller, state = paper_controller()
    before = controller.threshold
    for i in range(50):
        controller.observe(i / 10, 500)
        controller.replied(1)
    assert ticks(controller, state, 1, 1)[0].threshold == before


def test_long_replies_take_instances_for_decoding_only_once_they_have_ended():
    """Requests alone say nothing of how long their replies will be."""
    found = []
    for ended in (False, True):
        controller, state = paper_controller()
        for period in range(1, 9):
            for i, tokens in enumerate(log_normal(period, 72, mu=9.9)):
                controller.observe(30 * (period - 1) + i / 2.4, tokens)
                if ended:
                    controller.replied(2 * PAPER_OUTPUT_TOKENS)
            control = ticks(controller, state, period, 1)[0]
        found.append(control.n_prefill["pd"])
    assert found == [3, 2]


def test_failed_instances_count_as_absent():
    controller, state = paper_controller()
    before = controller.threshold
    state.clusters["prfaas"].n_prefill = 1
    assert ticks(controller, state, 1, 1)[0].threshold > 1.2 * before


def test_fleet_without_any_instance_keeps_its_threshold_and_roles():
    controller, state = paper_controller()
    before = controller.threshold
    for cluster in state.clusters.values():
        cluster.n_prefill = cluster.n_decode = 0
    control = controller.tick(30, state)
    assert (control.threshold, control.n_prefill) == (before, {"pd": 3})


def test_fleet_that_only_decodes_keeps_its_threshold():
    """Without convertible clusters no cluster is left that could prefill."""
    fleet = shipped("paper-naive")
    controller = Controller(fleet, POLICY, PAPER_LENGTHS, PAPER_OUTPUT_TOKENS)
    state, before = FleetState.idle(fleet, controller.threshold), controller.threshold
    state.clusters["prfaas"].n_prefill = 0
    assert controller.tick(30, state).threshold == before


NOISE = st.floats(-0.03, 0.03)


@settings(max_examples=20)
@given(st.floats(20e9 / 8, FAST), st.floats(1, 6), st.lists(st.tuples(NOISE, NOISE, NOISE), min_size=2, max_size=6))
def test_noise_within_the_hysteresis_converts_at_most_once_and_changes_the_threshold_once_for_each_division(
    rate, per_second, noises
):
    """Lengths, loads and a link that vary by 3% around any rate at which the link does not bind. The fleet can serve
    3.1 requests per second."""
    controller, state = paper_controller()
    lengths, changes, roles = log_normal(0, 200, mu=9.9), 0, {3}
    for period, (longer, faster, more) in enumerate(noises, 1):
        before = controller.threshold
        lengths_now = [round(tokens * (1 + longer)) for tokens in lengths] * (POLICY.window_requests // 200)
        observe(controller, lengths_now, 30 * period, per_second * (1 + more))
        state.links[LINK].bytes_per_second = rate * (1 + faster)
        control = ticks(controller, state, period, 1)[0]
        changes += control.threshold != before
        roles.add(control.n_prefill["pd"])
    assert len(roles) <= 2
    assert changes <= len(roles)


@settings(max_examples=10)
@given(st.lists(st.floats(0, FAST), min_size=1, max_size=10))
def test_same_observations_give_the_same_controls(rates):
    found = []
    for _ in range(2):
        controller, state = paper_controller()
        controls = []
        for period, rate in enumerate(rates, 1):
            state.links[LINK].bytes_per_second = rate
            controls += ticks(controller, state, period, 1)
        found.append(controls)
    assert found[0] == found[1]
