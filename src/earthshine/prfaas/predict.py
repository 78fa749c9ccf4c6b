"""What each place would cost a prompt: the predicted first token by its parts, and what its work costs others."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from earthshine.prfaas.fleet import Cluster
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.route import Cached, ClusterState, FleetState, LinkState, RouteRequest

_NOTHING = Cached(0)
LONGEST = 1e9  # tokens; a threshold may be infinite


@dataclass(slots=True)
class Place:
    """A cluster that can prefill for the one that decodes."""

    cluster: Cluster
    live: ClusterState
    rate: float  # bytes per second of the link; 0 in the cluster that decodes, which needs none
    late: float  # seconds that it takes for what late prompts have queued
    drained: float  # seconds until the link has sent what it has queued
    round_trip: float
    price: float  # of a second of its prefill, in seconds of the decoding cluster's

    def rate_at(self, tokens: float) -> float:
        """Prompts of `tokens` tokens per second: of its instances or of the link."""
        profile = self.cluster.profile
        compute = self.live.n_prefill / max(profile.prefill(tokens) if profile.prefill else math.inf, 1e-9)
        return min(compute, self.rate / max(profile.cache(tokens), 1e-9)) if self.rate else compute


@dataclass(slots=True)
class Option:
    """A place for a prompt. Times are predicted seconds, as `route.FirstToken` divides them."""

    place: Place
    prefill: str
    decode: str
    reused: int  # tokens
    pulled_from: str | None
    pull_bytes: float
    send_bytes: float
    queue: float
    late: float  # seconds that its late prompts take, or their caches on the link
    pull: float
    seconds: float  # of the prefill
    transfer: float
    decode_seconds: float
    total: float
    usd: float
    others: float  # seconds that all other requests together wait longer


def options(request: RouteRequest, state: FleetState, policy: Policy) -> list[Option]:
    """Every place where the prompt can be prefilled and decoded now: instances of both work, and links are up."""
    found = []
    held = {name: reusable(request, cluster) for name in request.cached if (cluster := state.fleet.clusters.get(name))}
    for target in decode_places(request, state):
        places = _places(target, state, policy)
        capacity = sum([place.price * place.live.n_prefill for place in places])
        waiting = sum([max(0, place.live.prefill_depth - place.live.n_prefill) for place in places])
        decode = target.profile.decode
        admitted = state.clusters[target.name].decode_wait_seconds
        step = decode(1) if decode else 0.0
        for place in places:
            others = waiting * place.price / capacity
            own = _option(request, target, place, held.get(place.cluster.name, 0), (admitted, step), others)
            found.append(own)
            pull = _pull(request, place, held, state, policy) if held and policy.rule != "scarce" else None
            if pull:
                pulled = _option(request, target, place, pull[1], (admitted, step), others, pull)
                if policy.rule == "abundant" or pull[3] < own.seconds - pulled.seconds:
                    found.append(pulled)
    return found


def decode_places(request: RouteRequest, state: FleetState) -> list[Cluster]:
    """Clusters with instances that decode: the one that the request demands, if that has some, or all."""
    up = [cluster for name, cluster in state.fleet.clusters.items() if state.clusters[name].n_decode > 0]
    return [cluster for cluster in up if cluster.name == request.decode] or up


def reusable(request: RouteRequest, cluster: Cluster) -> int:
    """Tokens from which a prefill in `cluster` goes on; the last token is always computed, for the first logits."""
    cached = request.cached.get(cluster.name)
    if cached is None:
        return 0
    most = min(cached.tokens, request.tokens - 1)
    if not cluster.profile.recurrent:
        return most
    return max([length for length in cached.states if length <= most], default=0)


def usable_rate(link: LinkState, policy: Policy) -> float:
    """Bytes per second to count on: retransmissions say that the measured rate is about to fall."""
    return link.bytes_per_second / (1 + link.retransmitted / policy.halving_retransmission)


def _places(target: Cluster, state: FleetState, policy: Policy) -> list[Place]:
    found = []
    local = target.profile.prefill
    threshold = min(state.threshold, LONGEST)
    exchange = local(threshold) if local else 0.0
    for name, live in state.clusters.items():
        cluster = state.fleet.clusters[name]
        prefill = cluster.profile.prefill
        if live.n_prefill <= 0 or prefill is None:
            continue
        if cluster is target:
            found.append(Place(cluster, live, 0.0, 0.0, 0.0, 0.0, 1.0))
            continue
        link = state.links.get((name, target.name))
        rate = usable_rate(link, policy) if link else 0.0
        if link and rate > 0:
            seconds = prefill(threshold)
            price = exchange / seconds if exchange and seconds else 1.0
            trip = state.fleet.links[name, target.name].round_trip_seconds
            found.append(Place(cluster, live, rate, link.late_bytes / rate, link.queued_bytes / rate, trip, price))
    return found


_Pull = tuple[str, int, float, float]  # source, tokens, bytes, seconds


def _pull(
    request: RouteRequest, place: Place, held: Mapping[str, int], state: FleetState, policy: Policy
) -> _Pull | None:
    """The longest prefix of another cluster that has a link to `place`, if it is longer than the own one."""
    into, best = place.cluster.name, None
    most = held.get(into, 0)
    for name, tokens in held.items():
        link = state.links.get((name, into)) if tokens > most else None
        rate = usable_rate(link, policy) if link else 0.0
        if link and rate > 0:
            most, rows = tokens, request.cached.get(into, _NOTHING).tokens
            nbytes = state.fleet.clusters[name].profile.cache_bytes(tokens, min(rows, tokens))
            seconds = (link.queued_bytes + nbytes) / rate + state.fleet.links[name, into].round_trip_seconds
            best = (name, tokens, nbytes, seconds)
    return best


def _option(
    request: RouteRequest,
    target: Cluster,
    place: Place,
    reused: int,
    batch: tuple[float, float],
    others: float,
    pulled: _Pull | None = None,
) -> Option:
    profile, queue = place.cluster.profile, place.live.prefill_wait_seconds
    pull = max(0.0, pulled[3] - queue) if pulled else 0.0
    seconds = profile.prefill_seconds(request.tokens, reused)
    nbytes = transfer = usd = 0.0
    others *= seconds
    late = place.live.late_seconds / place.live.n_prefill
    if place.cluster is not target:
        held = request.cached.get(target.name)
        nbytes = profile.cache_bytes(request.tokens, min(held.tokens, request.tokens) if held else 0)
        # The cache is sent while it is computed, after what the link has queued.
        begin = queue + pull
        sent = max(begin, place.drained) + nbytes / place.rate
        transfer = max(0.0, sent - begin - seconds) + place.round_trip
        others += place.drained  # as many transfers will queue behind this one as queue before it
        late = max(late, place.late)
        usd = profile.usd_per_hour / 3600 * seconds
    decode_seconds = max(0.0, batch[0] - queue - pull - seconds - transfer) + batch[1]
    return Option(
        place,
        place.cluster.name,
        target.name,
        reused,
        pulled[0] if pulled else None,
        pulled[2] if pulled else 0.0,
        nbytes,
        queue,
        late,
        pull,
        seconds,
        transfer,
        decode_seconds,
        queue + pull + seconds + transfer + decode_seconds,
        usd,
        others,
    )
