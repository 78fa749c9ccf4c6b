import math

import pytest

from earthshine.prfaas.decide import decide
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.route import LATE, ORDINARY, FleetState, RouteRequest
from earthshine.prfaas.simulator import compare as compare_module
from earthshine.prfaas.simulator.baselines import all_remote, late_last, local_only, static_threshold
from earthshine.prfaas.simulator.compare import (
    BOUND,
    LOCAL,
    LOCAL_LATE,
    OURS,
    PAPER,
    REMOTE,
    STATIC,
    STATIC_LATE,
    Row,
    best_static,
    compare,
)
from earthshine.prfaas.simulator.scenarios import Scenario, scenario
from earthshine.prfaas.simulator.simulate import simulate
from earthshine.prfaas.solve import grid_search, paper_grid
from earthshine.prfaas.workload import PAPER_LENGTHS, PAPER_OUTPUT_TOKENS

from .fleets import fleet_of, made_up, paper_fleet, shipped
from .simulated import ENDS, two_clusters

SECONDS = 60


@pytest.fixture(scope="module")
def burst() -> Scenario:
    return scenario("burst", shipped("paper"), 1, 2 * SECONDS)


@pytest.fixture(scope="module")
def rows(burst: Scenario) -> list[Row]:
    return list(compare(burst, Policy()))


def test_every_policy_serves_all_and_none_exceeds_the_bound(burst: Scenario, rows: list[Row]):
    assert {row.policy for row in rows} >= {OURS, STATIC, STATIC_LATE, REMOTE, LOCAL, LOCAL_LATE, PAPER}
    assert rows[-1].policy == BOUND
    bound = rows[-1].in_time
    for row in rows[:-1]:
        assert row.unserved == 0
        assert len(row.waits) == len(burst.arrivals)
        assert row.in_time == sum(wait <= burst.deadline_seconds for wait in row.waits) <= bound
    assert bound <= len(burst.arrivals)


def test_best_static_threshold_is_better_than_local_prefill_alone(rows: list[Row]):
    found = {row.policy: row.in_time for row in rows}
    assert found[STATIC] > found[LOCAL]
    assert found[STATIC] >= found["exo's constant"]


def test_late_prompts_last_bring_more_first_tokens_in_time_to_the_same_places(rows: list[Row]):
    found = {row.policy: row.in_time for row in rows}
    assert found[STATIC_LATE] > found[STATIC]
    assert found[LOCAL_LATE] > found[LOCAL]


@pytest.mark.parametrize("deadline", [None, 2.0, 4.0, 6.0, 30.0])
@pytest.mark.parametrize(
    ("router", "place"), [(local_only, "near"), (all_remote, "far"), (static_threshold(5e3), "far")]
)
def test_late_last_routes_to_the_same_place_with_the_order_that_decide_gives_there(router, place, deadline):
    fleet = two_clusters()
    state = FleetState.idle(fleet, 1e4)
    for live in state.clusters.values():
        live.prefill_wait_seconds = 2.0
    state.clusters["near"].decode_wait_seconds = 3.5
    state.links[ENDS].queued_bytes = 3.1e9
    found, ordered = (each(RouteRequest(10000, {}, deadline), state) for each in (router, late_last(router)))
    assert ordered._replace(priority=found.priority, begin_within=math.inf, admit_within=math.inf) == found
    state.clusters["far" if place == "near" else "near"].n_prefill = 0
    ours = decide(RouteRequest(10000, {}, deadline), state, Policy())
    assert ours.prefill == ordered.prefill == place
    assert ordered.priority == ours.priority == (LATE if deadline and ours.first_token.total > deadline else ORDINARY)
    if ours.priority == ORDINARY:
        assert ordered.first_token == ours.first_token
        assert ordered.begin_within == pytest.approx(ours.begin_within)
        assert ordered.admit_within == ours.admit_within


@pytest.mark.parametrize(("gbps", "rule"), [(100, "abundant"), (30, "abundant"), (20, "scarce"), (2, "scarce")])
def test_the_papers_row_is_its_grid_search_and_bandwidth_is_abundant_with_a_link_half_free(gbps: float, rule: str):
    """The prompts' caches are 11.94 Gb/s."""
    found = scenario("steady", paper_fleet(gbps), 1, 20)
    row = next(row for row in compare(found, Policy()) if row.policy == PAPER)
    solution = grid_search(found.fleet, PAPER_LENGTHS, PAPER_OUTPUT_TOKENS, paper_grid(PAPER_LENGTHS))
    assert row.about.startswith(f"{solution.thresholds[0]:,.0f} tokens, pd {solution.n_prefill['pd']}/")
    assert row.about.endswith(f"bandwidth {rule}")


def test_a_fleet_of_three_clusters_is_compared_without_the_papers_policy():
    clusters = [made_up(name, (0.1, 1, 20), 2, 2) for name in "abc"]
    found = scenario("steady", fleet_of(*clusters), 1, 20)
    assert PAPER not in {row.policy for row in compare(found, Policy())}


def test_best_static_threshold_is_that_of_whole_runs(monkeypatch):
    found = scenario("burst", shipped("paper"), 2, 200)
    begun = []

    def counted(*arguments, most_late, **options):
        begun.append(most_late)
        return simulate(*arguments, most_late=most_late, **options)

    def whole(*arguments, most_late, **options):
        return simulate(*arguments, **options)

    rows = []
    for run in (counted, whole):
        monkeypatch.setattr(compare_module, "simulate", run)
        rows.append(best_static(found))
    assert rows[0] == rows[1]
    assert begun.count(None) < len(begun) / 10


def test_a_run_ends_early_only_if_more_are_late():
    found = scenario("burst", shipped("paper"), 2, 600)
    options = {"conditions": found.conditions, "deadline_seconds": found.deadline_seconds}
    whole = simulate(found.fleet, found.arrivals, all_remote, **options)
    late = len(found.arrivals) - whole.within(found.deadline_seconds)
    assert late > 100
    same = simulate(found.fleet, found.arrivals, all_remote, most_late=late, **options)
    assert same.waits == whole.waits
    ended = simulate(found.fleet, found.arrivals, all_remote, most_late=late // 2, **options)
    assert ended.seconds < whole.seconds
    assert late // 2 < sum(served.wait > found.deadline_seconds for served in ended.served)


def test_equal_scenarios_give_equal_rows_and_other_seeds_others(rows: list[Row]):
    again, other = (scenario("burst", shipped("paper"), seed, 2 * SECONDS) for seed in (1, 2))
    assert next(compare(again, Policy())) == rows[0] != next(compare(other, Policy()))


def test_a_fleet_without_links_is_compared_without_remote_prefill():
    noted: list[str] = []
    found = list(compare(scenario("steady", shipped("paper-homogeneous"), 1, 20), Policy(), note=noted.append))
    assert [row.policy for row in found] == noted
    assert REMOTE not in noted
    assert all(row.remote_share == 0 for row in found)
