"""The fleet as a server sees it: where prompts go as links, peers and this machine turn out to be."""

import json

import pytest

from earthshine.prfaas.announce import MOST_BYTES, announced, announcement
from earthshine.prfaas.curve import Curve
from earthshine.prfaas.live import HERE, LiveFleet
from earthshine.prfaas.profile import Profile

CACHE = Curve(((1.0, 1e4), (100_000.0, 1e9)))


def profile(seconds_per_token: float) -> Profile:
    curve = Curve(((1.0, seconds_per_token), (100_000.0, 1e5 * seconds_per_token)))
    return Profile("a place", "A test.", curve, CACHE, None, 0, False, 0.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fleet(clock) -> LiveFleet:
    """A peer that is ten times as fast, behind 1 Gb/s."""
    return LiveFleet(profile(1e-2), {"peer": profile(1e-3)}, {"peer": 125e6}, 100_000, clock=clock)


def where(fleet: LiveFleet, tokens: int = 10_000, known: int = 0, waiting: int = 0, **more) -> str:
    return fleet.route(tokens, known, waiting, {}, **more).prefill


def test_long_prompts_go_to_the_faster_peer_and_what_is_cached_stays(fleet):
    assert where(fleet) == "peer"
    assert where(fleet, known=9_990) == HERE


def test_slow_link_keeps_prompts_here_once_it_is_known(fleet):
    route = fleet.route(10_000, 0, 0, {})
    fleet.began(route)
    nbytes = int(route.send.nbytes)
    fleet.ended(route, 1000.0, nbytes, nbytes / 1000, True)
    assert fleet.figures()["peer"][0] == pytest.approx(nbytes / 1000)
    assert where(fleet) == HERE


def test_losses_count_beyond_those_that_the_measured_rate_shows(fleet):
    route = fleet.route(10_000, 0, 0, {"peer": (0.01, 0.05)})
    fleet.began(route)
    nbytes = int(route.send.nbytes)
    fleet.ended(route, 40.0, nbytes, nbytes / 40, True, retransmitted=0.05)
    steady = fleet.route(10_000, 0, 0, {"peer": (0.01, 0.05)})
    assert steady.prefill == "peer"
    assert steady.first_token.prefill + steady.first_token.transfer == pytest.approx(40, rel=0.01)
    assert fleet.route(10_000, 0, 0, {"peer": (0.01, 0.15)}).prefill == HERE


def test_peer_that_is_slower_than_it_says_gets_fewer_prompts(fleet):
    for _ in range(20):
        route = fleet.route(10_000, 0, 0, {}, away=True)
        fleet.began(route)
        fleet.ended(route, 500.0, int(route.send.nbytes), 125e6, True)
    assert where(fleet) == HERE


def test_machine_that_is_faster_than_forecast_keeps_its_prompts(fleet):
    for _ in range(20):
        fleet.computed_here(10_000, 0, 5.0)
    assert where(fleet) == HERE


def test_prompts_that_wait_here_make_the_peer_attractive(clock):
    fleet = LiveFleet(profile(1e-3), {"peer": profile(1.2e-3)}, {"peer": 125e6}, 100_000, clock=clock)
    assert where(fleet) == HERE
    assert where(fleet, waiting=20_000) == "peer"


def test_peer_that_fails_is_left_out_twice_as_long_each_time(fleet, clock):
    for seconds in (1.0, 2.0, 4.0):
        route = fleet.route(10_000, 0, 0, {})
        assert route.prefill == "peer"
        fleet.began(route)
        fleet.ended(route, 0.1, 0, 0.0, False)
        clock.now += seconds - 0.01
        assert where(fleet) == HERE
        assert where(fleet, away=True) == HERE, "there is no other peer"
        assert fleet.figures()["peer"][1] == 1
        clock.now += 0.02
    route = fleet.route(10_000, 0, 0, {})
    fleet.began(route)
    fleet.ended(route, 10.0, int(route.send.nbytes), 0.0, True)
    fleet.began(route)
    fleet.ended(route, 0.1, 0, 0.0, False)
    clock.now += 1.01
    assert where(fleet, away=True) == "peer", "a transfer that went well begins anew"


def test_transfers_under_way_count_as_a_queue(fleet):
    routes = [fleet.route(10_000, 0, 0, {})]
    while routes[-1].prefill == "peer":
        fleet.began(routes[-1])
        routes.append(fleet.route(10_000, 0, 0, {}))
        assert len(routes) < 100
    assert len(routes) > 2


def test_what_a_worker_announces_replaces_what_was_assumed(clock):
    fleet = LiveFleet(profile(1e-2), {"peer": profile(1e-2)}, {"peer": 125e6}, 100_000, clock=clock)
    assert where(fleet) == HERE
    raw = announcement(profile(1e-3))
    assert len(raw) <= MOST_BYTES
    fleet.announced("peer", announced(raw, profile(1e-2)))
    assert where(fleet) == "peer"


def test_announcement_of_many_points_keeps_its_ends():
    curve = Curve(tuple((float(n), n * 1.2345678e-3) for n in range(1, 1000)))
    raw = announcement(Profile("a place", "A test.", curve, CACHE, None, 0, False, 0.0))
    assert len(raw) <= MOST_BYTES
    found = announced(raw, profile(1.0)).prefill.points
    assert (found[0][0], found[-1][0]) == (1, 999)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        json.dumps({"format": "earthshine worker 2", "prefill": [[1, 1]]}).encode(),
        json.dumps({"format": "earthshine worker 1", "prefill": [[2, 1], [1, 1]]}).encode(),
        json.dumps({"format": "earthshine worker 1", "prefill": [[1, -1]]}).encode(),
        json.dumps({"format": "earthshine worker 1", "prefill": [[1, 1]] * 500}).encode(),
    ],
)
def test_announcement_that_makes_no_sense_is_ignored(raw):
    assert announced(raw, profile(1.0)) is None
