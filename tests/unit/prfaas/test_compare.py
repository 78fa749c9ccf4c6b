import pytest

from earthshine.prfaas import compare as compare_module
from earthshine.prfaas.baselines import all_remote
from earthshine.prfaas.compare import BOUND, LOCAL, OURS, REMOTE, STATIC, Row, best_static, compare
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.scenarios import Scenario, scenario
from earthshine.prfaas.simulate import simulate

from .fleets import shipped

SECONDS = 60


@pytest.fixture(scope="module")
def burst() -> Scenario:
    return scenario("burst", shipped("paper"), 1, 2 * SECONDS)


@pytest.fixture(scope="module")
def rows(burst: Scenario) -> list[Row]:
    return list(compare(burst, Policy()))


def test_every_policy_serves_all_and_none_exceeds_the_bound(burst: Scenario, rows: list[Row]):
    assert {row.policy for row in rows} >= {OURS, STATIC, REMOTE, LOCAL}
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
