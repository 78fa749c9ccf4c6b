"""Random fleets under random failures of instances and links, losses and changes of roles: nothing is lost."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import permutations

import pytest

from earthshine.errors import UnavailableError
from earthshine.loadgen.trace import Arrival
from earthshine.prfaas.control import Control
from earthshine.prfaas.curve import Curve
from earthshine.prfaas.decide import decide
from earthshine.prfaas.fleet import Cluster, Fleet, Link
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.route import FleetState, Route, Router, RouteRequest
from earthshine.prfaas.simulator.baselines import all_remote, local_only, paper, static_threshold
from earthshine.prfaas.simulator.conditions import Conditions, Failure, RateChange
from earthshine.prfaas.simulator.outcome import Outcome
from earthshine.prfaas.simulator.simulate import simulate

from .simulated import Roles, at, profile, two_clusters

SEEDS = range(60)
SECONDS = 100.0  # in which requests arrive and parts fail
LAST = 2000.0  # when a last request arrives, after everything works again


@dataclass
class Watched:
    """A router that notes what it returned, and the fleet as it was at the last call."""

    router: Router
    instances: dict[str, int] = field(default_factory=dict)
    sent_bytes: float = 0.0  # of all routes

    def __call__(self, request: RouteRequest, state: FleetState) -> Route:
        for name, live in state.clusters.items():
            self.instances[name] = live.n_prefill + live.n_decode
            assert live.n_prefill >= 0
            assert self.instances[name] <= state.fleet.clusters[name].n_instances
            assert live.prefill_wait_seconds >= 0
            assert live.decode_wait_seconds >= 0
        assert all(link.queued_bytes >= 0 and link.bytes_per_second >= 0 for link in state.links.values())
        assert all(link.n_queued >= (link.queued_bytes > 1) for link in state.links.values())
        route = self.router(request, state)
        self.sent_bytes += sum(move.nbytes for move in (route.pull, route.send) if move is not None)
        return route


class Restless(Roles):
    """Changes roles at random, until requests have arrived."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__(1, period_seconds=3.0)
        self._draw = draw

    def tick(self, now: float, state: FleetState) -> Control:
        self.n_prefill = self._draw.randint(0, 3) if now < 2 * SECONDS else 1
        return replace(super().tick(now, state), threshold=self._draw.choice((1.0, 5000.0)))


@dataclass
class Case:
    fleet: Fleet
    requests: list[Arrival]
    conditions: Conditions
    watched: Watched

    def run(self, draw: random.Random | None) -> Outcome:
        """draw: of changes of roles; None for no changes."""
        return simulate(
            self.fleet,
            self.requests,
            self.watched,
            conditions=self.conditions,
            controller=Restless(draw) if draw is not None else None,
            deadline_seconds=5.0,
        )


def case(seed: int) -> Case:
    draw = random.Random(seed)
    recurrent = draw.random() < 0.5
    clusters = {
        "near": Cluster("near", profile("slow", 0.3, recurrent), 1, draw.randint(1, 3), convertible=True),
        "far": Cluster("far", profile("fast", 0.1, recurrent), draw.randint(0, 2), 0),
    }
    if draw.random() < 0.5:
        clusters["both"] = Cluster("both", profile("slow", 0.2, recurrent), 1, 1)
    links = {
        ends: Link(*ends, 10 ** draw.uniform(6, 9), draw.choice((0.0, 0.05)))
        for ends in permutations(clusters, 2)
        if draw.random() < 0.8
    }
    requests = [_request(draw, t) for t in sorted(draw.uniform(0, SECONDS) for _ in range(60))]
    conditions = _conditions(draw, clusters, list(links))
    return Case(Fleet(clusters, links), [*requests, Arrival(LAST, 1000, 1)], conditions, Watched(_router(draw)))


def _request(draw: random.Random, t: float) -> Arrival:
    blocks = draw.choice(((), tuple(range(draw.randint(1, 12))), tuple(range(20, 31))))
    return Arrival(t, draw.randint(1, 9000), draw.randint(1, 600), blocks)


def _conditions(draw: random.Random, clusters: dict[str, Cluster], links: list[tuple[str, str]]) -> Conditions:
    instants = sorted(draw.uniform(0, SECONDS) for _ in range(12))
    rates = [
        RateChange(t, ends, draw.choice((0.0, 1e6, 1e8)), draw.choice((0.0, 0.03)))
        for t in instants
        for ends in draw.sample(links, len(links) // 2)
    ]
    parts = [(name, role) for name, c in clusters.items() for role in ("prefill", "decode") if c.n_instances]
    failures = tuple(Failure(t, t + draw.uniform(1, 60), *draw.choice(parts)) for t in instants[::-1])
    return Conditions(tuple(rates), failures, layers=draw.choice((1, 2, 60)), cache_bytes=10 ** draw.uniform(6, 9))


def _router(draw: random.Random) -> Router:
    fixed: list[Callable[[RouteRequest, FleetState], Route]] = [
        partial(decide, policy=Policy()),
        local_only,
        all_remote,
        static_threshold(3000),
        paper(abundant=True),
    ]

    def fickle(request: RouteRequest, state: FleetState) -> Route:
        """Any route that works, or none."""
        if draw.random() < 0.1:
            raise UnavailableError("Not now.")
        return draw.choice(fixed)(request, state)

    return draw.choice((fixed[0], *fixed, fickle))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_request_is_served_and_every_instance_comes_back(seed: int):
    one = case(seed)
    found = one.run(random.Random(seed))
    assert found.unserved == 0
    assert all(s.arrived < s.first_token <= s.ended + 1e-9 for s in found.served)
    assert all(s.routes >= 1 for s in found.served)
    assert one.watched.instances == {name: c.n_instances for name, c in one.fleet.clusters.items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_no_more_bytes_cross_than_routes_send(seed: int):
    one = case(seed)
    assert 0 <= one.run(random.Random(seed)).sent_bytes <= one.watched.sent_bytes * (1 + 1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_without_failures_exactly_what_routes_send_crosses(seed: int):
    one = case(seed)
    one.conditions = replace(one.conditions, rates=(), failures=())
    found = one.run(None)
    assert all(s.routes <= 1 for s in found.served)
    assert found.sent_bytes == pytest.approx(one.watched.sent_bytes, rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS[:20])
def test_equal_seeds_give_equal_results(seed: int):
    first, second = (case(seed).run(random.Random(seed)) for _ in range(2))
    assert first == second


def test_prompts_without_a_cache_to_send_become_late_as_others_do():
    """All that waits is late once one of two instances fails; caches below 50,000 tokens have no bytes."""
    fleet = two_clusters(far=2, near=0)
    empty = replace(fleet.clusters["far"].profile, cache=Curve(((50000.0, 0.0), (101000.0, 91e6))))
    fleet = Fleet(fleet.clusters | {"far": replace(fleet.clusters["far"], profile=empty)}, fleet.links)
    failed = Conditions(failures=(Failure(0.5, 5.0, "far", "prefill"),))
    ours = partial(decide, policy=Policy())
    outcome = simulate(fleet, at(*[0.0] * 4), ours, conditions=failed, deadline_seconds=2.5)
    assert outcome.unserved == 0
    assert outcome.sent_bytes == 0


def test_refused_request_is_routed_again_when_another_ends():
    refused = [True]

    def router(request: RouteRequest, state: FleetState) -> Route:
        """Unavailable for its first request."""
        if refused.pop() if refused else False:
            raise UnavailableError("Starting.")
        return local_only(request, state)

    outcome = simulate(two_clusters(), at(0, 1), router)
    assert outcome.unserved == 0
    assert outcome.served[0].first_token > outcome.served[1].first_token


def test_first_token_is_never_after_the_end():
    """Steps of full batches are long; replies of one token end in smaller ones."""
    fleet = two_clusters(near=20)
    slow = replace(fleet.clusters["near"].profile, decode=Curve(((1.0, 0.1), (4.0, 2.0))))
    fleet = Fleet(fleet.clusters | {"near": replace(fleet.clusters["near"], profile=slow)}, fleet.links)
    requests = [Arrival(i / 100, 1000, 1) for i in range(20)]
    outcome = simulate(fleet, requests, local_only)
    assert outcome.unserved == 0
    assert all(served.first_token <= served.ended for served in outcome.served)


@pytest.mark.parametrize("listed", list(permutations(("other", "home", "away"))))
def test_baselines_decode_where_a_prompt_can_be_computed(listed):
    """`other` decodes only, and is as idle as `home`; only `home` computes prompts itself."""
    slow, fast = profile("slow", 0.3), replace(profile("fast", 0.1), decode=None)
    clusters = {
        "other": Cluster("other", slow, 0, 5),
        "home": Cluster("home", slow, 3, 5),
        "away": Cluster("away", fast, 4, 0),
    }
    ways = [("away", "home"), ("away", "other")]
    fleet = Fleet({name: clusters[name] for name in listed}, {ends: Link(*ends, 1e9) for ends in ways})
    requests = [Arrival(float(i), tokens, 10) for i, tokens in enumerate((500, 20000, 700, 30000))]
    down = Conditions(rates=tuple(RateChange(0.0, ends, 0.0) for ends in ways))
    for router in (local_only, all_remote, static_threshold(1000), paper(abundant=True), paper(abundant=False)):
        for conditions in (Conditions(), down):
            assert simulate(fleet, requests, router, conditions=conditions, threshold=1000).unserved == 0
    served = simulate(fleet, requests, static_threshold(1000)).served
    assert [each.prefill for each in served] == ["home", "away"] * 2
