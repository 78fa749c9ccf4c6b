import json
from dataclasses import replace
from pathlib import Path

import pytest

from earthshine.errors import UsageError
from earthshine.prfaas.fleet import Fleet, Link
from earthshine.prfaas.simulator.scenarios import Scenario, scenario
from earthshine.prfaas.solve import solve
from earthshine.prfaas.workload import PAPER_LENGTHS, PAPER_OUTPUT_TOKENS

from .fleets import shipped

RATE = solve(shipped("paper"), PAPER_LENGTHS, PAPER_OUTPUT_TOKENS).rate


def made(name: str, seconds: float = 1200, trace: Path | None = None) -> Scenario:
    return scenario(name, shipped("paper"), 3, seconds, trace)


def per_second(found: Scenario, begin: float, end: float) -> float:
    return sum(begin <= a.seconds < end for a in found.arrivals) / (end - begin)


def test_equal_seeds_make_equal_scenarios():
    assert made("steady").arrivals == made("steady").arrivals != scenario("steady", shipped("paper"), 4, 1200).arrivals


def test_deadline_is_three_times_the_papers_p90():
    assert made("steady", 7200).deadline_seconds == pytest.approx(3 * 3.51, rel=0.03)


def test_loads_are_the_stated_shares_of_the_models_rate():
    assert per_second(made("steady", 7200), 0, 7200) == pytest.approx(0.9 * RATE, rel=0.03)
    assert per_second(made("outage", 7200), 0, 7200) == pytest.approx(0.8 * RATE, rel=0.03)
    burst = made("burst", 7200)
    inside = [per_second(burst, at, at + 10) for at in range(100, 7200, 300)]
    assert sum(inside) / len(inside) == pytest.approx(5 * RATE, rel=0.1)
    assert per_second(burst, 120, 390) == pytest.approx(0.5 * RATE, rel=0.15)


def test_links_alternate_and_fail_both_ways():
    wave, outage = made("wave"), made("outage")
    forth = [(c.seconds, 8e-9 * c.bytes_per_second) for c in wave.conditions.rates if c.ends == ("prfaas", "pd")]
    assert forth == [(0, 10), (300, 1), (600, 10), (900, 1)]
    back = [(c.seconds, c.bytes_per_second > 0) for c in outage.conditions.rates if c.ends == ("pd", "prfaas")]
    assert back == [(300, False), (360, True), (900, False), (960, True)]


def test_after_an_outage_every_link_has_its_own_rate():
    paper = shipped("paper")
    third = replace(paper.clusters["prfaas"], name="third")
    links = {**paper.links, ("third", "pd"): Link("third", "pd", 1e9)}
    found = scenario("outage", Fleet({**paper.clusters, "third": third}, links), 0, 400)
    up = {c.ends: c.bytes_per_second for c in found.conditions.rates if c.seconds == 360}
    assert up == {ends: link.bytes_per_second for ends, link in found.fleet.links.items()}
    assert up["third", "pd"] == up["pd", "third"] == 1e9 < up["prfaas", "pd"]


def test_lengths_drift_up_and_down():
    found = made("drift", 14400)
    means = []
    for begin in (0, 7200):
        tokens = [a.input_tokens for a in found.arrivals if begin + 1800 <= a.seconds < begin + 5400]
        means.append(sum(tokens) / len(tokens))
    assert means[0] > 1.7 * means[1]


def test_a_recorded_trace_keeps_its_prefixes_and_gets_its_rate(tmp_path: Path):
    trace = tmp_path / "two.jsonl"
    lines = [
        {
            "timestamp": 1000 * i,
            "input_length": 5000,
            "output_length": 10,
            "hash_ids": [0, 1, 2, 3, 4, 5, 6, 7, 8, i + 9],
        }
        for i in range(400)
    ]
    trace.write_text("\n".join(map(json.dumps, lines)))
    found = scenario("prefix", shipped("paper"), 0, None, trace)
    copies = len(found.arrivals) // 400
    assert copies > 1
    assert len({a.blocks for a in found.arrivals}) == len(found.arrivals) == 400 * copies
    assert len({a.blocks[0] for a in found.arrivals}) == copies
    assert found.lengths.mean == pytest.approx(5000 - 9 * 512, rel=0.03)
    expected = 0.9 * solve(shipped("paper"), found.lengths, 10).rate
    assert len(found.arrivals) / found.arrivals[-1].seconds == pytest.approx(expected, rel=0.01)


def test_deadline_of_a_trace_counts_each_request(tmp_path: Path):
    """Nine of ten prompts are short, all of one length; the others differ."""
    tokens = [2000] * 180 + [60000 + i for i in range(20)]
    lines = [{"timestamp": i, "input_length": n, "output_length": 10, "hash_ids": []} for i, n in enumerate(tokens)]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join(map(json.dumps, lines)))
    found = scenario("prefix", shipped("paper"), 0, 10, trace)
    fast = shipped("paper").clusters["prfaas"].profile
    assert found.deadline_seconds == pytest.approx(3 * fast.prefill_seconds(2000))


@pytest.mark.parametrize(
    ("name", "seconds", "problem"), [("moon", 10, "steady"), ("prefix", 10, "--trace"), ("steady", 0.1, "lasts")]
)
def test_what_is_no_scenario_is_refused(name: str, seconds: float, problem: str):
    with pytest.raises(UsageError, match=problem):
        made(name, seconds)
