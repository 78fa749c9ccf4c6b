import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from earthshine.errors import UsageError
from earthshine.loadgen.trace import Arrival
from earthshine.prfaas.control import threshold_of
from earthshine.prfaas.curve import Curve
from earthshine.prfaas.decide import decide
from earthshine.prfaas.fleet import Fleet, Link
from earthshine.prfaas.lengths import Sample
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.predict import usable_rate
from earthshine.prfaas.route import FleetState, Route, Router, RouteRequest
from earthshine.prfaas.simulator.baselines import EXO_TOKENS, all_remote, local_only, paper, static_threshold
from earthshine.prfaas.simulator.conditions import Conditions, Failure, RateChange
from earthshine.prfaas.simulator.simulate import simulate
from earthshine.prfaas.solve import solve
from earthshine.prfaas.workload import PAPER_LENGTHS, PAPER_OUTPUT_TOKENS, drawn, evenly, poisson

from .fleets import fleet_of, made_up
from .simulated import BATCH, ENDS, STEP, Roles, at, two_clusters, waits

LAYERS = Conditions().layers


def far_bytes(tokens: int) -> int:
    """Bytes of a cache of `two_clusters`."""
    return tokens * 900 + 100000


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-9)


def test_first_token_of_a_lone_prompt_is_prefill_and_a_step():
    assert waits(simulate(two_clusters(), at(0, tokens=10000), local_only)) == [near(3.0 + STEP)]


def test_cache_arrives_a_piece_after_the_prefill_on_a_fast_link():
    outcome = simulate(two_clusters(rate=1e9, trip=0.1), at(0), all_remote)
    nbytes = 10000 * 900 + 100000
    assert waits(outcome) == [near(1.0 + nbytes / LAYERS / 1e9 + 0.05 + STEP)]
    assert outcome.sent_bytes == near(nbytes)


def test_cache_is_sent_from_the_first_layer_on_over_a_slow_link():
    outcome = simulate(two_clusters(rate=1e6), at(0), all_remote)
    assert waits(outcome) == [near(1.0 / LAYERS + 9.1 + STEP)]


def test_transfers_share_a_link_evenly():
    both = waits(simulate(two_clusters(far=2, rate=1e6), at(0, 0), all_remote))
    assert both == [near(1.0 / LAYERS + 18.2 + STEP)] * 2


def test_a_link_changes_its_rate_in_the_middle_of_a_transfer():
    slower = Conditions(rates=(RateChange(1.0 / LAYERS + 5, ENDS, 5e5),))
    outcome = simulate(two_clusters(rate=1e6), at(0), all_remote, conditions=slower)
    assert waits(outcome) == [near(1.0 / LAYERS + 5 + 2 * 4.1 + STEP)]


def test_prompts_queue_first_in_first_out_over_all_instances():
    found = waits(simulate(two_clusters(near=2), at(0, 0, 0, 0, 0), local_only))
    assert found == [near(3 * n + STEP) for n in (1, 1, 2, 2, 3)]


def test_a_full_batch_admits_when_a_reply_ends():
    requests = at(*[0] * (BATCH + 1), tokens=1000, output=50)
    found = waits(simulate(two_clusters(near=BATCH + 1), requests, local_only))
    assert found[-1] == near(0.3 + 50 * STEP + STEP)


def test_larger_batches_take_longer_steps():
    fleet = two_clusters(near=2)
    profile = replace(fleet.clusters["near"].profile, decode=Curve(((1.0, 0.02), (2.0, 0.03))))
    fleet.clusters["near"] = replace(fleet.clusters["near"], profile=profile)
    both = simulate(fleet, at(0, 0, output=100), local_only)
    assert [s.ended for s in both.served] == [near(3.0 + 100 * 0.03)] * 2


def test_equal_seeds_give_equal_results_and_others_do_not():
    def run(seed: int) -> list[float]:
        times = poisson(300, lambda _: 0.5, 0.5, seed)
        return waits(
            simulate(two_clusters(), drawn(times, PAPER_LENGTHS, PAPER_OUTPUT_TOKENS, seed), static_threshold(20000))
        )

    assert run(1) == run(1) != run(2)


def test_baselines_go_where_their_rules_say():
    fleet, lengths = two_clusters(far=4, near=4), (500, 1500, 30000)
    requests = [a for tokens in lengths for a in at(0, tokens=tokens)]

    def remote(router: Router, threshold: float = 0) -> list[bool]:
        found = simulate(fleet, requests, router, threshold=threshold)
        return [served.remote for served in found.served]

    assert remote(local_only) == [False] * 3
    assert remote(all_remote) == [True] * 3
    assert remote(static_threshold(EXO_TOKENS)) == [False, True, True]
    assert remote(paper(abundant=False), threshold=2000) == [False, False, True]


def test_paper_moves_the_longest_prefix_only_where_bandwidth_is_abundant():
    requests = at(0, tokens=4097, blocks=tuple(range(8))) + at(30, tokens=12289, blocks=tuple(range(24)))
    fleet = two_clusters()
    fleet.links[ENDS[::-1]] = Link(*ENDS[::-1], 1e9)
    for abundant, reused in ((True, 4096), (False, 0)):
        found = simulate(fleet, requests, paper(abundant), threshold=4097)
        assert [s.remote for s in found.served] == [False, True]
        assert [s.reused_tokens for s in found.served] == [0, reused]
        assert waits(found)[1] > (12289 - reused) * 1e-4


def test_pull_takes_as_long_as_predicted():
    """An idle fleet, and a prefix that only the other cluster has."""
    fleet = two_clusters(near=2, rate=2e7, trip=0.2)
    back = Link("near", "far", 2e7, 0.2)
    fleet, routes = Fleet(fleet.clusters, fleet.links | {("near", "far"): back}), []

    def router(request: RouteRequest, state: FleetState) -> Route:
        routes.append(local_only(request, state) if not routes else decide(request, state, Policy("abundant")))
        return routes[-1]

    blocks = tuple(range(40))
    arrivals = [*at(0, tokens=20480, blocks=blocks), *at(60, tokens=30000, blocks=blocks)]
    found = waits(simulate(fleet, arrivals, router))
    assert routes[1].pull is not None
    assert found[1] == pytest.approx(routes[1].first_token.total, abs=0.05)


def test_requests_are_routed_again_when_the_link_goes_down():
    down = Conditions(rates=(RateChange(0.5, ENDS, 0.0), RateChange(60.5, ENDS, 1e9)))
    outcome = simulate(two_clusters(), at(0, 5, 70), all_remote, conditions=down)
    assert [s.remote for s in outcome.served] == [False, False, True]
    assert [s.routes for s in outcome.served] == [2, 1, 1]
    assert waits(outcome)[0] == near(0.5 + down.detect_seconds + 3.0 + STEP)


def test_bytes_of_a_transfer_that_was_given_up_count_as_far_as_they_crossed():
    down = Conditions(rates=(RateChange(1.0 / LAYERS + 2.5, ENDS, 0.0),))
    outcome = simulate(two_clusters(rate=1e6), at(0), all_remote, conditions=down)
    assert outcome.served[0].routes == 2
    assert outcome.sent_bytes == near(2.5e6)


def test_bytes_that_crossed_are_those_of_the_caches():
    requests = [a for i in range(20) for a in at(0.1 * i, tokens=1000 * (i + 1))]
    outcome = simulate(two_clusters(far=3, rate=3e7), requests, all_remote)
    assert outcome.sent_bytes == near(sum(far_bytes(1000 * (i + 1)) for i in range(20)))


def test_instances_wait_when_caches_that_are_not_sent_fill_their_memory():
    """Over a slow link two caches fit, so that the third prompt begins when one of them is sent."""
    small = Conditions(cache_bytes=1.5 * far_bytes(10000))
    requests, seen = at(0, 0, 0, 0), []

    def router(request: RouteRequest, state: FleetState) -> Route:
        seen.append(state.clusters["far"].prefill_depth)
        return all_remote(request, state)

    later = simulate(two_clusters(rate=1e6), requests + at(10), router, conditions=small)
    assert seen == [0, 1, 2, 3, 2]  # after 10 s in which four could be prefilled, two are
    assert later.unserved == 0
    assert simulate(two_clusters(rate=1e6), requests, all_remote, conditions=small).unserved == 0


def test_router_knows_what_a_link_has_yet_to_send():
    seen = []

    def router(request: RouteRequest, state: FleetState) -> Route:
        seen.append(state.links[ENDS].queued_bytes)
        return all_remote(request, state)

    simulate(two_clusters(rate=1e6), at(0, 0.5, 1.0 / LAYERS + 4, 60), router)
    whole = far_bytes(10000)
    assert seen == [0.0, near(whole - 1e6 * (0.5 - 1 / LAYERS)), near(2 * whole - 4e6), 0.0]


def test_router_knows_what_a_link_has_to_send_after_transfers_were_given_up():
    seen = []

    def router(request: RouteRequest, state: FleetState) -> Route:
        link = state.links[ENDS]
        seen.append(link.queued_bytes)
        return local_only(request, state) if link.bytes_per_second <= 0 else all_remote(request, state)

    outage = Conditions(rates=(RateChange(1.0 / LAYERS + 4, ENDS, 0.0), RateChange(60, ENDS, 1e6)))
    simulate(two_clusters(rate=1e6), at(0, 70, 70 + 1.0 / LAYERS + 2), router, conditions=outage)
    assert seen == [0.0, 0.0, 0.0, near(far_bytes(10000) - 2e6)]


def test_a_reply_that_a_failure_interrupts_has_no_deadline_for_a_first_token_that_came():
    """One that fails before the first token keeps what is left of its deadline."""
    for failed_at, deadlines in ((3.0 + 50 * STEP, [5.0, None]), (3.0 + 0.5 * STEP, [5.0, near(2.0 - 0.5 * STEP)])):
        seen = []

        def router(request: RouteRequest, state: FleetState, seen: list[float | None] = seen) -> Route:
            seen.append(request.deadline_seconds)
            return local_only(request, state)

        failed = Conditions(failures=(Failure(failed_at, 99, "near", "decode"),))
        arrivals = at(0.0, output=100)
        outcome = simulate(two_clusters(decode=2), arrivals, router, conditions=failed, deadline_seconds=5.0)
        assert seen == deadlines
        assert outcome.unserved == 0


def test_loss_is_known_before_the_measured_rate_follows_it():
    """The true rate falls at 10 s. Right after, the rate that `decide` counts on falls too, as far as its own law says,
    which is too little here; later retransmissions add nothing to what the measured rate says."""
    lossy = Conditions(rates=(RateChange(10, ENDS, 9e6, loss=0.005),))
    true = 4 * 1448 * 1.5**0.5 / (0.05 * 0.005**0.5)
    seen = []

    def router(request: RouteRequest, state: FleetState) -> Route:
        link = state.links[ENDS]
        seen.append((link.bytes_per_second, usable_rate(link, Policy())))
        return local_only(request, state)

    simulate(two_clusters(rate=9e6, trip=0.05), at(9, 10.001, 300), router, conditions=lossy)
    assert seen[0] == (near(9e6), near(9e6))
    assert seen[1] == (pytest.approx(9e6, rel=1e-3), pytest.approx(6e6, rel=1e-3))
    assert seen[2] == (pytest.approx(true, rel=1e-3), pytest.approx(true, rel=1e-3))


def test_loss_slows_transfers():
    """Four times the loss or twice the round trip halve the rate; a link is no faster than its rate."""
    for trip, loss, rate in ((0.1, 0.01, 709375), (0.1, 0.04, 354688), (0.2, 0.01, 354688), (0.01, 0.01, 1e6)):
        lossy = Conditions(rates=(RateChange(0, ENDS, 1e6, loss),))
        outcome = simulate(two_clusters(trip=trip), at(0.0), all_remote, conditions=lossy)
        assert waits(outcome) == [pytest.approx(1.0 / LAYERS + 9.1e6 / rate + trip / 2 + STEP, rel=1e-5)]


def test_decide_leaves_a_link_that_loses_segments_before_its_rate_is_measured():
    def remote(loss: float) -> bool:
        lossy = Conditions(rates=(RateChange(10, ENDS, 1e7, loss),))
        outcome = simulate(
            two_clusters(rate=1e7, trip=0.05), at(10.001), partial(decide, policy=Policy()), conditions=lossy
        )
        return outcome.served[0].remote

    assert remote(0.0)
    assert not remote(0.05)


def test_next_turn_of_a_conversation_reuses_the_reply_before_it():
    """A prompt of 2 blocks and a reply of 2 more, then a prompt of 5 blocks that goes on from both."""
    first = Arrival(0, 1100, 1000, (1, 2, 3))
    for blocks, reused in (((1, 2, 4, 5, 6, 7), 4), ((1, 9, 4, 5, 6, 7), 1)):
        outcome = simulate(two_clusters(), [first, Arrival(100, 2600, 10, blocks)], local_only)
        assert outcome.served[1].reused_tokens == reused * 512
    early = simulate(two_clusters(), [first, Arrival(10, 2600, 10, (1, 2, 4, 5, 6, 7))], local_only)
    assert early.served[1].reused_tokens == 2 * 512  # the reply takes 20 s


def test_prompt_of_a_failed_instance_is_computed_elsewhere():
    failed = Conditions(failures=(Failure(0.6, 99, "far", "prefill"),))
    outcome = simulate(two_clusters(), at(0), all_remote, conditions=failed)
    assert (outcome.served[0].routes, outcome.served[0].remote) == (2, False)
    assert waits(outcome) == [near(0.6 + 3.0 + STEP)]


def test_sequences_of_a_failed_instance_are_prefilled_with_what_they_had_generated():
    failed = Conditions(failures=(Failure(3.0 + 50 * STEP, 99, "near", "decode"),))
    outcome = simulate(two_clusters(decode=2), at(0, output=100), local_only, conditions=failed)
    assert outcome.served[0].first_token == near(3.0 + STEP)
    assert outcome.served[0].ended == near(3.0 + 50 * STEP + 10050 * 0.0003 + 50 * STEP)


def test_request_waits_for_an_instance_when_none_works():
    failed = Conditions(failures=(Failure(1, 50, "near", "prefill"),))
    outcome = simulate(two_clusters(), at(0, 10, 11), local_only, conditions=failed)
    assert [s.first_token for s in outcome.served] == [near(50 + 3 * n + STEP) for n in (1, 2, 3)]


def test_request_that_nothing_will_ever_serve_is_reported():
    fleet = two_clusters(near=0)
    outcome = simulate(fleet, at(0, 1), local_only)
    assert outcome.unserved == 2


def test_a_decoding_instance_ends_its_replies_before_it_converts():
    fleet = two_clusters(near=1, decode=2)
    requests = at(0, 0, tokens=1000, output=1000) + at(12, 12.0, 12.0)
    outcome = simulate(fleet, requests, local_only, controller=Roles(2))
    assert outcome.conversions == 1
    drained = outcome.served[0].ended
    assert drained == near(0.3 + 1000 * STEP)
    third = outcome.served[4]
    assert third.first_token == near(12 + 9 + STEP)  # before the conversion ended, at 35.3 s
    assert all(s.ended < float("inf") for s in outcome.served)


def test_an_instance_that_converts_shortens_the_queue_once_it_works():
    requests = at(*range(20))
    fixed = simulate(two_clusters(near=1, decode=2), requests, local_only)
    converted = simulate(two_clusters(near=1, decode=2), requests, local_only, controller=Roles(2))
    begins = 10 + Conditions().convert_seconds
    assert fixed.waits[-1] == near(60 + STEP - 19)
    assert waits(converted)[:8] == waits(fixed)[:8]
    late = max(s.first_token for s in converted.served)
    assert begins + (60 - begins) / 2 < late < begins + (60 - begins) / 2 + 4


def rate_sustained(fleet: Fleet, requests_at: Callable[[float], list[Arrival]], router: Router) -> float:
    """The highest rate of evenly spaced requests at which the last ones wait no longer than the service itself."""
    low, high = 0.1, 20.0
    for _ in range(11):
        rate = (low + high) / 2
        found = waits(simulate(fleet, requests_at(rate), router))
        tenth = len(found) // 10
        grows = sum(found[-tenth:]) / tenth - sum(found[tenth : 2 * tenth]) / tenth
        low, high = (low, rate) if grows > 0.5 else (rate, high)
    return low


def test_rate_without_queueing_is_the_models():
    """Equations (3) to (6) of the paper, with its own simplification of two lengths and even arrivals."""
    long, short, share = 40000, 8000, 0.4
    fleet = two_clusters(far=3, near=4, decode=30, rate=1e10)
    model = min(3 / (long * 1e-4) / share, 4 / (short * 3e-4) / (1 - share), 30 * BATCH / (STEP * 500))

    def requests(rate: float) -> list[Arrival]:
        kinds = [long if i % 5 in (1, 3) else short for i in range(1000)]
        times = evenly(1000, rate)
        return [a for second, tokens in zip(times, kinds, strict=True) for a in at(second, tokens=tokens, output=500)]

    assert rate_sustained(fleet, requests, static_threshold(20000)) == pytest.approx(model, rel=0.02)


@pytest.mark.parametrize("n", [(4, 3, 2), (2, 2, 2)])
def test_one_threshold_for_three_clusters_serves_nearly_the_models_rate(n: tuple[int, ...]):
    """Offered 5% more; all replies are counted, until the last one ends."""
    seconds = {"slow": (0.5, 10.0, 80.0), "middle": (0.3, 4.0, 24.0), "fast": (0.2, 2.0, 9.0)}
    decode = {"slow": 60}
    clusters = [made_up(name, seconds[name], k, decode.get(name, 0), 5.0) for name, k in zip(seconds, n, strict=True)]
    fleet = fleet_of(*clusters, links={("middle", "slow"): 1e10, ("fast", "slow"): 1e10})
    draw = random.Random(1)
    tokens = [PAPER_LENGTHS.draw(draw) for _ in range(2000)]
    model = solve(fleet, Sample(tokens), 100)
    assert len([stage for stage in model.stages if stage.share > 0]) == 3
    times = evenly(len(tokens), 1.05 * model.rate)
    arrivals = [a for t, length in zip(times, tokens, strict=True) for a in at(t, tokens=length, output=100)]
    found = simulate(fleet, arrivals, partial(decide, policy=Policy()), threshold=threshold_of(model))
    assert 0.97 * model.rate < len(tokens) / found.seconds < 1.01 * model.rate


def test_rate_over_a_narrow_link_is_the_links():
    fleet = two_clusters(far=8, near=1, decode=10, rate=5e7)
    model = 5e7 / (40000 * 900 + 1e5)
    found = rate_sustained(fleet, lambda rate: at(*evenly(1000, rate), tokens=40000), all_remote)
    assert found == pytest.approx(model, rel=0.02)


@pytest.mark.parametrize(
    ("conditions", "problem"),
    [
        (Conditions(rates=(RateChange(5, ENDS, 1), RateChange(4, ENDS, 1))), "0 or more, sorted"),
        (Conditions(rates=(RateChange(5, ("near", "moon"), 1),)), "moon"),
        (Conditions(rates=(RateChange(5, ENDS, -1),)), "0 or more bytes per second"),
        (Conditions(rates=(RateChange(math.nan, ENDS, 1),)), "0 or more, sorted"),
        (Conditions(rates=(RateChange(-1, ENDS, 1),)), "0 or more, sorted"),
        (Conditions(rates=(RateChange(5, ENDS, math.nan),)), "0 or more bytes per second"),
        (Conditions(rates=(RateChange(5, ENDS, 1, loss=1.0),)), "share from 0 to below 1"),
        (Conditions(failures=(Failure(math.nan, 4, "far", "prefill"),)), "end after that"),
        (Conditions(failures=(Failure(1, math.inf, "far", "prefill"),)), "end after that"),
        (Conditions(failures=(Failure(1, 2, "far", "route"),)), "prefill or decode"),
        (Conditions(layers=0), "layers must be 1"),
        (Conditions(segment_bytes=0), "segment_bytes must be above 0"),
        (Conditions(connections=0), "connections must be at least 1"),
        (Conditions(busy_seconds=math.nan), "busy_seconds must be above 0"),
        (Conditions(idle_seconds=-1), "idle_seconds must be above 0"),
        (Conditions(cache_bytes=0), "cache_bytes must be above 0"),
        (Conditions(detect_seconds=-1), "detect_seconds must be 0 or more"),
        (Conditions(convert_seconds=math.inf), "convert_seconds must be 0 or more"),
        (Conditions(failures=(Failure(5, 4, "far", "prefill"),)), "end after that"),
        (Conditions(failures=(Failure(4, 5, "moon", "prefill"),)), "moon"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(conditions: Conditions, problem: str):
    with pytest.raises(UsageError, match=problem):
        simulate(two_clusters(), at(0), local_only, conditions=conditions)


@pytest.mark.parametrize(
    ("requests", "problem"),
    [
        ([], "1 to 10,000,000 requests, not 0"),
        (at(1, 0), "Request 2 arrives at 0 s, the one before it at 1 s"),
        (at(-1), "Request 1 arrives at -1 s"),
        (at(math.nan), "Request 1 arrives at nan s"),
        (at(math.inf), "Request 1 arrives at inf s"),
        (at(0, tokens=0), "Request 1 has 0 input"),
        (at(0, output=0), "0 output tokens"),
    ],
)
def test_requests_that_make_no_sense_are_refused(requests: list[Arrival], problem: str):
    with pytest.raises(UsageError, match=problem):
        simulate(two_clusters(), requests, local_only)


def test_a_rate_or_number_of_requests_out_of_range_is_refused():
    with pytest.raises(UsageError, match="above 0"):
        evenly(10, 0.0)
    with pytest.raises(UsageError, match="requests"):
        evenly(0, 1.0)
