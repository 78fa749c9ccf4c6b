"""What each place would cost a prompt: the predicted first token by its parts, and what its work costs others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from earthshine.prfaas.fleet import Cluster
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.profile import Profile
from earthshine.prfaas.route import LEAST_RATE, ClusterState, FleetState, LinkState, RouteRequest


class Pull(NamedTuple):
    """A prefix that is moved to where a prompt is computed."""

    source: str
    tokens: int
    nbytes: float
    seconds: float  # with what the link has queued
    delay_to_others_seconds: float  # of all transfers together that will wait behind it


class _Prefill(NamedTuple):
    """How a cluster can compute a prompt."""

    reused: int  # tokens
    pull: Pull | None
    seconds: float
    usd: float


class _Source(NamedTuple):
    """A cluster that prefills."""

    cluster: Cluster
    live: ClusterState
    ways: list[_Prefill]
    price: float  # of a second of its prefill
    late_backlog_seconds: float  # that its late prompts take


@dataclass(slots=True)
class Option:
    """A place for a prompt. Times are predicted seconds, as `route.FirstToken` divides them."""

    prefill: str
    decode: str
    reused: int  # tokens
    pull: Pull | None
    send_bytes: float
    queue: float
    seconds: float  # of the prefill
    transfer: float
    decode_seconds: float
    total: float
    usd: float
    delay_to_others_seconds: float  # that all other requests together wait longer
    late_backlog_seconds: float  # that late prompts take in its cluster, or their caches on its link


def options(request: RouteRequest, state: FleetState, policy: Policy) -> list[Option]:
    """Every place where the prompt can be prefilled and decoded now: instances of both work, and links are up."""
    found: list[Option] = []
    sources = _sources(request, state, policy)
    for target in decode_places(request, state):
        links = [_link(source, target, state, policy) for source in sources]
        capacity = waiting = 0.0
        for source, link in zip(sources, links, strict=True):
            if link is not None:
                live = source.live
                capacity += source.price * live.n_prefill
                waiting += max(0, live.prefill_depth - live.n_prefill)
        decode, live = target.profile.decode, state.clusters[target.name]
        step = decode(1) if decode else 0.0
        for source, link in zip(sources, links, strict=True):
            if link is not None:
                n_behind = waiting * source.price / capacity
                found += _options(request, target, source, link, n_behind, (live.decode_wait_seconds, step))
    return found


def decode_places(request: RouteRequest, state: FleetState) -> list[Cluster]:
    """Clusters with instances that decode: the one that the request demands, if that has some, or all."""
    up = [cluster for name, cluster in state.fleet.clusters.items() if state.clusters[name].n_decode > 0]
    return [cluster for cluster in up if cluster.name == request.decode] or up


def reusable(request: RouteRequest, cluster: Cluster) -> int:
    """Tokens from which a prefill in `cluster` goes on; the last token is always computed, for the first logits."""
    cached = request.cached.get(cluster.name)
    return 0 if cached is None else cached.usable(cluster.profile.recurrent, request.tokens - 1)


def held_tokens(request: RouteRequest, name: str) -> int:
    """Tokens of which a cluster has the rows, so that these need not be sent to it."""
    cached = request.cached.get(name)
    return 0 if cached is None else min(cached.tokens, request.tokens)


def usable_rate(link: LinkState, policy: Policy) -> float:
    """Bytes per second to count on: retransmissions say that the measured rate is about to fall. 0: it is down."""
    rate = link.bytes_per_second / (1 + link.retransmitted / policy.halving_retransmission)
    return rate if rate >= LEAST_RATE else 0.0


def pull_from(source: str, into: str, tokens: int, request: RouteRequest, state: FleetState, rate: float) -> Pull:
    """Moving the first `tokens` tokens' cache at `rate` bytes per second: it is asked for, then sent after what the
    link has queued, and only then the prompt joins the queue of prompts."""
    nbytes = state.fleet.clusters[source].profile.cache_bytes(tokens, min(held_tokens(request, into), tokens))
    link, sent = state.links[source, into], nbytes / rate
    seconds = link.queued_bytes / rate + sent + state.fleet.links[source, into].round_trip_seconds
    return Pull(source, tokens, nbytes, seconds, link.n_queued * sent)


def _sources(request: RouteRequest, state: FleetState, policy: Policy) -> list[_Source]:
    found = []
    clusters = state.fleet.clusters
    held = {name: reusable(request, clusters[name]) for name in request.cached if name in clusters}
    at_threshold = state.at_threshold()
    known: dict[tuple[int, int], float] = {}
    for name, live in state.clusters.items():
        cluster = clusters[name]
        prefill = cluster.profile.prefill
        if live.n_prefill <= 0 or prefill is None:
            continue
        ways = _ways(request, cluster, held, state, policy, known)
        found.append(_Source(cluster, live, ways, 1 / at_threshold[name], live.late_seconds / live.n_prefill))
    return found


def _seconds(request: RouteRequest, profile: Profile, reused: int, known: dict[tuple[int, int], float]) -> float:
    """Of the prefill; `known` has those of clusters with the same profile."""
    key = (id(profile), reused)
    if key not in known:
        known[key] = profile.prefill_seconds(request.tokens, reused)
    return known[key]


def _ways(
    request: RouteRequest,
    cluster: Cluster,
    held: Mapping[str, int],
    state: FleetState,
    policy: Policy,
    known: dict[tuple[int, int], float],
) -> list[_Prefill]:
    """With its own cache, and with the longest prefix of another cluster that has a link to it, if that is longer."""
    into, profile = cluster.name, cluster.profile
    reused = held.get(into, 0) if held else 0
    usd = profile.usd_per_hour / 3600
    seconds = _seconds(request, profile, reused, known)
    found = [_Prefill(reused, None, seconds, usd * seconds)]
    if not held or policy.rule == "scarce":
        return found
    best, most, rate = "", reused, 0.0
    for name, tokens in held.items():
        link = state.links.get((name, into)) if tokens > most else None
        if link is not None and (usable := usable_rate(link, policy)) > 0:
            best, most, rate = name, tokens, usable
    if best:
        pull, after = pull_from(best, into, most, request, state, rate), _seconds(request, profile, most, known)
        if policy.rule == "abundant" or pull.seconds < seconds - after:
            found.append(_Prefill(most, pull, after, usd * after))
    return found


class _Link(NamedTuple):
    rate: float  # bytes per second; 0 within a cluster, which needs none
    drained: float  # seconds until it has sent what it has queued
    n_queued: int  # transfers
    late_backlog_seconds: float  # that it takes for what late prompts have queued
    one_way: float  # seconds


_WITHIN = _Link(0.0, 0.0, 0, 0.0, 0.0)


def _link(source: _Source, target: Cluster, state: FleetState, policy: Policy) -> _Link | None:
    """From a source to where it is decoded; None where that is down."""
    if source.cluster is target:
        return _WITHIN
    ends = (source.cluster.name, target.name)
    live = state.links.get(ends)
    rate = usable_rate(live, policy) if live is not None else 0.0
    if live is None or rate <= 0:
        return None
    trip = state.fleet.links[ends].round_trip_seconds
    return _Link(rate, live.queued_bytes / rate, live.n_queued, live.late_bytes / rate, trip / 2)


def _options(
    request: RouteRequest,
    target: Cluster,
    source: _Source,
    link: _Link,
    n_behind: float,
    batch: tuple[float, float],
) -> list[Option]:
    """n_behind: how many prompts each second of this source's work delays. batch: seconds until one has room, and of
    its step."""
    found = []
    profile, queue, late = source.cluster.profile, source.live.prefill_wait_seconds, source.late_backlog_seconds
    nbytes = delay = 0.0
    if link.rate:
        late = max(late, link.late_backlog_seconds)
        nbytes = profile.cache_bytes(request.tokens, held_tokens(request, target.name))
        # Behind this transfer as many will wait as are now before it, each for as long as this one takes.
        delay = link.n_queued * nbytes / link.rate
    for reused, pull, seconds, usd in source.ways:
        begin, slower = queue, n_behind * seconds + delay
        if pull is not None:
            begin += pull.seconds
            slower += pull.delay_to_others_seconds
        transfer = 0.0
        if link.rate:
            # The cache is sent while it is computed, after what the link has queued.
            sent = max(begin, link.drained) + nbytes / link.rate
            transfer = max(0.0, sent - begin - seconds) + link.one_way
        arrived = begin + seconds + transfer
        admitted = max(0.0, batch[0] - arrived) + batch[1]
        found.append(
            Option(
                prefill=source.cluster.name,
                decode=target.name,
                reused=reused,
                pull=pull,
                send_bytes=nbytes,
                queue=queue,
                seconds=seconds,
                transfer=transfer,
                decode_seconds=admitted,
                total=arrived + admitted,
                usd=usd if link.rate else 0.0,
                delay_to_others_seconds=slower,
                late_backlog_seconds=late,
            )
        )
    return found
