"""The fleet as one decoding server sees it: itself and its peers, with figures that follow what it measures.

Curves begin as forecasts and are scaled by what prompts took here and at each peer; a link's rate is what transfers
reached. A peer that failed is left out for a while, twice as long each time. Not thread-safe.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from earthshine.prfaas.curve import Curve
from earthshine.prfaas.decide import decide
from earthshine.prfaas.fleet import Cluster, Fleet, Link
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.profile import Profile
from earthshine.prfaas.route import Cached, FleetState, Route, RouteRequest

HERE = "here"
_NEW = 0.3  # the share of a measurement in a curve's scale
_BACKOFF_SECONDS = (1.0, 60.0)
_MOST_FAILURES = 16  # that are counted


@dataclass(slots=True)
class _Place:
    """A place's forecast, and what is known beyond it."""

    profile: Profile
    scale: float = 1.0
    rate: float = 0.0  # bytes per second to here
    retransmitted: float = 0.0  # share of the segments while the rate was measured
    waiting_seconds: float = 0.0  # of prompts under way there
    depth: int = 0
    queued_bytes: float = 0.0
    failures: int = 0  # in a row
    until: float = 0.0  # left out

    def scaled(self) -> Profile:
        curve = self.profile.prefill
        assert curve is not None
        return replace(self.profile, prefill=Curve(tuple((n, self.scale * seconds) for n, seconds in curve.points)))

    def measure(self, forecast: float, seconds: float) -> None:
        if forecast > 0 and seconds > 0:
            self.scale *= (seconds / forecast) ** _NEW


class LiveFleet:
    """`here`: this server's profile; `peers`: those of its peers; `rates`: of their links, until they are measured.

    All profiles must have prefill curves. `longest`: tokens of the context.
    """

    def __init__(
        self,
        here: Profile,
        peers: Mapping[str, Profile],
        rates: Mapping[str, float],
        longest: int,
        policy: Policy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = {HERE: _Place(here)} | {name: _Place(peers[name], rate=rates[name]) for name in peers}
        self._longest, self._policy, self._clock = longest, policy or Policy(), clock

    def announced(self, peer: str, profile: Profile) -> None:
        """What a peer says of itself replaces what was assumed."""
        if self._places[peer].profile != profile:
            self._places[peer].profile, self._places[peer].scale = profile, 1.0

    def route(
        self,
        tokens: int,
        known: int,
        waiting_tokens: int,
        trips: Mapping[str, tuple[float, float]],
        *,
        away: bool = False,
    ) -> Route:
        """Where to prefill a prompt, of which `known` tokens are cached here; `waiting_tokens` are to be computed here
        first. `trips`: by peer, the link's round trip in seconds and its share of retransmitted segments. `away`: at a
        peer, whatever the forecast, if there is one that is not left out."""
        clusters, links, now = {}, {}, self._clock()
        any_up = any(place.until <= now for name, place in self._places.items() if name != HERE)
        for name, place in self._places.items():
            n_prefill = int(not (away and any_up) if name == HERE else place.until <= now)
            clusters[name] = Cluster(name, place.scaled(), n_prefill, int(name == HERE))
            if name != HERE:
                links[name, HERE] = Link(name, HERE, place.rate, trips.get(name, (0.0, 0.0))[0])
        state = FleetState.idle(Fleet(clusters, links), float(self._longest))
        here = state.clusters[HERE]
        here.prefill_wait_seconds = clusters[HERE].profile.prefill_seconds(waiting_tokens) if waiting_tokens else 0.0
        here.prefill_depth = int(waiting_tokens > 0)
        for ends, link in state.links.items():
            place, peer = self._places[ends[0]], state.clusters[ends[0]]
            peer.prefill_wait_seconds, peer.prefill_depth = place.waiting_seconds, place.depth
            link.queued_bytes, link.n_queued = place.queued_bytes, place.depth
            link.retransmitted = max(0.0, trips.get(ends[0], (0.0, 0.0))[1] - place.retransmitted)
        cached = {HERE: Cached(known, (known,))} if known else {}
        return decide(RouteRequest(tokens, cached, decode=HERE), state, self._policy)

    def seconds_here(self, tokens: int, known: int) -> float:
        """Of a prefill here, alone."""
        return self._places[HERE].scaled().prefill_seconds(tokens, known)

    def began(self, route: Route) -> None:
        """A remote prefill as routed is under way."""
        place = self._places[route.prefill]
        place.depth += 1
        place.waiting_seconds += route.first_token.prefill
        place.queued_bytes += route.send.nbytes if route.send else 0.0

    def ended(
        self, route: Route, seconds: float, nbytes: int, delivery: float, well: bool, *, retransmitted: float = 0.0
    ) -> None:
        """It ended after `seconds`, `nbytes` having arrived; `delivery`: bytes per second that the transport measured,
        0 where it has not. `well`: all has arrived, or it was not the peer's fault that it has not. `retransmitted`:
        the share of segments, as in `route`."""
        place = self._places[route.prefill]
        place.depth -= 1
        place.waiting_seconds = max(0.0, place.waiting_seconds - route.first_token.prefill) if place.depth else 0.0
        place.queued_bytes = max(0.0, place.queued_bytes - route.send.nbytes) if place.depth and route.send else 0.0
        if not well:
            least, most = _BACKOFF_SECONDS
            place.until = self._clock() + min(most, least * 2**place.failures)
            place.failures = min(place.failures + 1, _MOST_FAILURES)
            return
        place.failures = 0
        if not nbytes or seconds <= 0 or route.send is None or nbytes < route.send.nbytes / 2:
            return
        rate = max(delivery, nbytes / seconds)
        mostly = nbytes / rate > seconds / 2  # it was mostly the link that took the time
        if mostly or rate > place.rate:
            place.rate, place.retransmitted = rate, retransmitted
        if not mostly:
            place.measure(route.first_token.queue + route.first_token.prefill, seconds)

    def computed_here(self, tokens: int, known: int, seconds: float) -> None:
        """A prompt that ran here, from its admission to its first token."""
        self._places[HERE].measure(self.seconds_here(tokens, known), seconds)

    def figures(self) -> Mapping[str, tuple[float, float]]:
        """By peer: the link's rate in bytes per second, and 1 while it is left out, else 0."""
        now = self._clock()
        peers = {name: place for name, place in self._places.items() if name != HERE}
        return {name: (place.rate, float(place.until > now)) for name, place in peers.items()}
