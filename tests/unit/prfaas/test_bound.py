import random
from dataclasses import replace

import pytest

from earthshine.loadgen.trace import Arrival
from earthshine.prfaas.baselines import all_remote, local_only, static_threshold
from earthshine.prfaas.bound import most_in_time
from earthshine.prfaas.conditions import Conditions, RateChange
from earthshine.prfaas.fleet import Fleet
from earthshine.prfaas.simulate import simulate

from .simulated import ENDS, STEP, at, two_clusters


def alone(fleet: Fleet) -> Fleet:
    """Without the link, so that prompts are computed where they are decoded."""
    return Fleet({"near": fleet.clusters["near"]}, {})


def test_no_policy_exceeds_the_bound():
    for seed in range(12):
        draw = random.Random(seed)
        fleet = two_clusters(draw.randint(1, 2), draw.randint(1, 2), draw.randint(1, 2), 10 ** draw.uniform(6, 8))
        times = sorted(draw.uniform(0, 60) for _ in range(60))
        blocks = (tuple(range(9)), tuple(range(20, 31)), ())
        arrivals = [Arrival(t, draw.randint(500, 20000), draw.randint(1, 300), draw.choice(blocks)) for t in times]
        changed = Conditions(rates=(RateChange(20, ENDS, draw.choice((0.0, 1e6))), RateChange(40, ENDS, 1e8)))
        deadline = draw.uniform(1, 12)
        bound = most_in_time(fleet, arrivals, deadline, changed)
        assert bound <= len(arrivals)
        for router in (local_only, all_remote, static_threshold(5000)):
            found = simulate(fleet, arrivals, router, conditions=changed)
            assert found.within(deadline) <= bound + 1e-6


def test_bound_of_equal_prompts_is_what_fits_before_the_deadline():
    fleet = alone(two_clusters(near=1, decode=5))
    deadline = 4 * 3.0 + STEP
    bound = most_in_time(fleet, at(*[0.0] * 100, output=1), deadline)
    fits = 6 * (deadline * 17 / 16) / 3.0  # all instances may prefill, and touched slots count as a whole
    assert fits * 0.97 <= bound <= fits * 1.02


def test_bound_counts_no_prompt_that_takes_longer_than_the_deadline():
    fleet = alone(two_clusters(near=10, decode=10))
    mixed = at(0, 0, tokens=40000) + at(0, 0, 0, tokens=1000)
    assert most_in_time(fleet, mixed, 5.0) == pytest.approx(3, abs=0.01)


def test_bound_obeys_a_narrow_link_and_its_outage():
    near = two_clusters(far=50, near=0, decode=50, rate=1e7)
    arrivals = at(*[0.0] * 100)  # 9.1 MB each
    deadline = 8.0
    bound = most_in_time(_fixed(near), arrivals, deadline)
    assert bound == pytest.approx(deadline * 17 / 16 * 1e7 / 9.1e6, rel=0.03)
    half = Conditions(rates=(RateChange(4.0, ENDS, 0.0),))
    assert most_in_time(_fixed(near), arrivals, deadline, half) == pytest.approx(4.0 * 1e7 / 9.1e6, rel=0.03)


def _fixed(fleet: Fleet) -> Fleet:
    """Without conversion, so that what decodes never prefills."""
    return Fleet({n: replace(c, convertible=False) for n, c in fleet.clusters.items()}, fleet.links)


def test_bound_obeys_the_decoding_of_long_replies():
    fleet = _fixed(alone(two_clusters(near=50, decode=1)))
    arrivals = at(*[0.0] * 100, tokens=1000, output=1000)  # 20 s each, four at a time
    assert most_in_time(fleet, arrivals, 2.0) < 8
