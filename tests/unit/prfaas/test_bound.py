import random
from dataclasses import replace
from functools import partial

import pytest

from earthshine.loadgen.trace import Arrival
from earthshine.prfaas.control import Control
from earthshine.prfaas.decide import decide
from earthshine.prfaas.fleet import Cluster, Fleet, Link
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.simulator.baselines import all_remote, local_only, static_threshold
from earthshine.prfaas.simulator.bound import most_in_time
from earthshine.prfaas.simulator.conditions import Conditions, Failure, RateChange
from earthshine.prfaas.simulator.simulate import simulate

from .simulated import ENDS, STEP, at, profile, two_clusters


def alone(fleet: Fleet) -> Fleet:
    """Without the link, so that prompts are computed where they are decoded."""
    return Fleet({"near": fleet.clusters["near"]}, {})


class RandomRoles:
    """A controller that changes roles, and with them the threshold, without regard to anything."""

    period_seconds = 1.5

    def __init__(self, draw: random.Random, most: int) -> None:
        self.draw, self.most = draw, most

    def observe(self, now, uncached_tokens):
        pass

    def replied(self, output_tokens):
        pass

    def tick(self, now, state):
        n = self.draw.randint(0, self.most) if self.draw.random() < 0.4 else state.clusters["near"].n_prefill
        return Control(self.draw.uniform(500, 20000), {"near": n}, "random")


def failures(draw: random.Random) -> tuple[Failure, ...]:
    begins = sorted(draw.uniform(0, 60) for _ in range(draw.randint(0, 12)))
    places = (("far", "prefill"), ("near", "prefill"), ("near", "decode"), ("near", "decode"))
    return tuple(Failure(at, at + draw.uniform(0.1, 3), *draw.choice(places)) for at in begins)


@pytest.mark.parametrize("seed", range(8))
def test_no_policy_exceeds_the_bound(seed: int):
    """Fixed and random routers and roles, over links that change and instances that fail, with shared prefixes."""
    draw = random.Random(seed)
    fleet = two_clusters(draw.randint(1, 2), draw.randint(1, 2), draw.randint(1, 2), 10 ** draw.uniform(6, 8))
    times = sorted(draw.uniform(0, 60) for _ in range(60))
    blocks = (tuple(range(9)), tuple(range(20, 31)), ())
    longest = draw.choice((30, 300, 3000))
    arrivals = [Arrival(t, draw.randint(500, 20000), draw.randint(1, longest), draw.choice(blocks)) for t in times]
    conditions = Conditions(
        rates=(RateChange(20, ENDS, draw.choice((0.0, 1e6))), RateChange(40, ENDS, 1e8)),
        failures=failures(draw),
        convert_seconds=draw.choice((0.0, 1.0, 5.0)),
    )
    deadline = draw.uniform(1, 12)
    bound = most_in_time(fleet, arrivals, deadline, conditions)
    assert bound <= len(arrivals)

    def random_router(request, state):
        return draw.choice((local_only, all_remote))(request, state)

    for router in (local_only, all_remote, static_threshold(5000), random_router, partial(decide, policy=Policy())):
        for controller in (None, RandomRoles(draw, fleet.clusters["near"].n_instances)):
            found = simulate(
                fleet, arrivals, router, conditions=conditions, controller=controller, deadline_seconds=deadline
            )
            assert found.within(deadline) <= bound + 1e-6


def test_bound_counts_replies_that_a_failure_interrupts():
    """Each failure ends four replies of 50 s, so that four sequences are admitted."""
    fleet = alone(two_clusters(near=20, decode=1))
    arrivals = at(*[i / 10 for i in range(100)], tokens=500, output=2500)
    often = Conditions(failures=tuple(Failure(i + 0.5, i + 0.6, "near", "decode") for i in range(10)))
    found = simulate(_fixed(fleet), arrivals, local_only, conditions=often)
    bound = most_in_time(_fixed(fleet), arrivals, 2.0, often)
    assert most_in_time(_fixed(fleet), arrivals, 2.0) < 8 < 20 <= found.within(2.0) <= bound < 60


def _relay() -> Fleet:
    """x prefills fast and y slowly; replies are decoded by d, to which both send, and x sends to y."""
    fast, slow = profile("fast", 0.1), profile("slow", 3.0)
    x, y = (Cluster(n, replace(p, decode=None), 1, 0) for n, p in (("x", fast), ("y", slow)))
    ends = {("x", "d"): 1e6, ("x", "y"): 1e9, ("y", "d"): 1e9}
    return Fleet({"x": x, "y": y, "d": Cluster("d", slow, 0, 1)}, {way: Link(*way, rate) for way, rate in ends.items()})


def test_bound_counts_what_a_request_computed_before_it_was_routed_again():
    """The link of each prompt goes down, and what x computed reaches d by y."""
    arrivals = [Arrival(30.0 * i, 20100, 10, tuple(range(100 * i + 1, 100 * i + 40))) for i in range(10)]
    rates = [(30 * i + after, rate) for i in range(10) for after, rate in ((3.0, 0.0), (25.0, 1e6))]
    cut = Conditions(tuple(RateChange(at, ("x", "d"), rate) for at, rate in rates))
    found = simulate(_relay(), arrivals, partial(decide, policy=Policy()), conditions=cut, deadline_seconds=10.0)
    assert 2 < found.within(10.0) <= most_in_time(_relay(), arrivals, 10.0, cut)
    assert most_in_time(_relay(), arrivals, 1.9, cut) == 0  # x alone takes longer
    without = [replace(arrival, blocks=()) for arrival in arrivals]
    assert most_in_time(_relay(), without, 10.0, cut) < 2


def test_prefix_that_a_later_prompt_brings_may_be_known():
    """Where the later one is computed first, as for a policy that puts late prompts last."""
    fleet = alone(two_clusters(near=1, decode=5))
    shared = at(0, 0, tokens=20480, blocks=tuple(range(40)))
    other = [replace(arrival, blocks=tuple(range(100, 140))) for arrival in shared[1:]]
    assert most_in_time(_fixed(fleet), shared[:1] + other, 7.0) == pytest.approx(7 * 33 / 32 / 6.144, rel=0.02)
    assert most_in_time(_fixed(fleet), shared, 7.0) == pytest.approx(2, abs=0.01)


def test_prefix_that_a_reply_brings_is_known():
    """The second prompt is the first one, its reply of as many tokens, and a short question."""
    fleet = _fixed(alone(two_clusters(near=1, decode=5)))
    first = Arrival(0, 20480, 20480, tuple(range(40)))
    second = Arrival(1000, 41000, 1, tuple(range(80)))
    assert most_in_time(fleet, [first, second], 7.0) == pytest.approx(2, abs=0.01)
    other = replace(second, blocks=tuple(range(100, 180)))
    assert most_in_time(fleet, [first, other], 7.0) == pytest.approx(1, abs=0.01)


def test_instance_that_converts_serves_nothing_meanwhile():
    """Two prompts take 19.2 s. Their replies take half as long and may follow, unless the conversion lasts longer."""
    fleet = alone(two_clusters(near=1, decode=0))
    arrivals = at(0, 0, tokens=32000, output=2000)
    soon, never = (most_in_time(fleet, arrivals, 20.0, Conditions(convert_seconds=s)) for s in (15.0, 100.0))
    assert soon == pytest.approx(2, abs=0.02)
    assert never == pytest.approx(1.6, abs=0.1), "a third of the instance decodes for 60 s, the rest prefills for 20 s"


def test_bound_of_equal_prompts_is_what_fits_before_the_deadline():
    fleet = alone(two_clusters(near=1, decode=5))
    deadline = 4 * 3.0 + STEP
    bound = most_in_time(fleet, at(*[0.0] * 100, output=1), deadline)
    fits = 6 * (deadline * 33 / 32) / 3.0  # all instances may prefill, and touched slots count as a whole
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
    assert bound == pytest.approx(deadline * 33 / 32 * 1e7 / 9.1e6, rel=0.03)
    half = Conditions(rates=(RateChange(4.0, ENDS, 0.0),))
    assert most_in_time(_fixed(near), arrivals, deadline, half) == pytest.approx(4.0 * 1e7 / 9.1e6, rel=0.03)


def _fixed(fleet: Fleet) -> Fleet:
    """Without conversion, so that what decodes never prefills."""
    return Fleet({n: replace(c, convertible=False) for n, c in fleet.clusters.items()}, fleet.links)


def test_bound_obeys_the_decoding_of_long_replies():
    fleet = _fixed(alone(two_clusters(near=50, decode=1)))
    arrivals = at(*[0.0] * 100, tokens=1000, output=1000)  # 20 s each, four at a time
    assert most_in_time(fleet, arrivals, 2.0) < 8
