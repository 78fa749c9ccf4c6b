import pytest

from earthshine.prfaas.compare import BOUND, LOCAL, OURS, REMOTE, STATIC, Row, compare
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.scenarios import Scenario, scenario

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


def test_equal_scenarios_give_equal_rows_and_other_seeds_others(rows: list[Row]):
    again, other = (scenario("burst", shipped("paper"), seed, 2 * SECONDS) for seed in (1, 2))
    assert next(compare(again, Policy())) == rows[0] != next(compare(other, Policy()))


def test_a_fleet_without_links_is_compared_without_remote_prefill():
    noted: list[str] = []
    found = list(compare(scenario("steady", shipped("paper-homogeneous"), 1, 20), Policy(), note=noted.append))
    assert [row.policy for row in found] == noted
    assert REMOTE not in noted
    assert all(row.remote_share == 0 for row in found)
