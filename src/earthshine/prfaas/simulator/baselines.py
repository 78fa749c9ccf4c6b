"""Policies to compare `decide` with, each as its authors describe it, and with what every real router has: a place that
does not work, or whose link is down, is not used. Queues are first in, first out, except with `late_last`, which tells
what the order of service alone brings.

- local only: no disaggregation across clusters.
- all remote: the paper's naive heterogeneous system; every prompt goes to a cluster that does not decode.
- static threshold: llm-d's decider by uncached tokens, and what of Dynamo's conditional disaggregation is a constant. A
  prompt goes to a remote prefill worker if the tokens that the decoding side has not cached exceed one. Dynamo's also
  asks for a least share of the prompt (0.6 in its example), and may look at the load; neither is modelled.
- exo: the same with its constant of 1,000 tokens.
- the paper's: its threshold and roles from the grid search, frozen at the start, with its rules for prefixes (PrfaaS,
  arXiv 2604.15039, section 3.4.3).
"""

from collections.abc import Callable

from earthshine.errors import UnavailableError
from earthshine.prfaas.predict import held_tokens, pull_from, reusable
from earthshine.prfaas.route import LATE, LEAST_RATE, FirstToken, FleetState, Move, Route, Router, RouteRequest

EXO_TOKENS = 1000
_Places = list[str | None]  # clusters that prefill; None for a kind of which none can


def local_only(request: RouteRequest, state: FleetState) -> Route:
    """Every prompt is computed where it is decoded; raises UnavailableError where nothing can do so now."""
    decode, places = _decoding(request, state, lambda decode: [_local(state, decode)])
    return _first(request, state, decode, places, "local only")


def all_remote(request: RouteRequest, state: FleetState) -> Route:
    """Every prompt is computed remotely while that works; raises UnavailableError where nothing can do so now."""
    decode, places = _decoding(request, state, lambda decode: [_remote(state, decode), _local(state, decode)])
    return _first(request, state, decode, places, "all remote")


def static_threshold(tokens: float) -> Router:
    """More than `tokens` uncached where it is decoded: remotely."""

    def route(request: RouteRequest, state: FleetState) -> Route:
        def uncached(decode: str) -> int:
            return request.tokens - reusable(request, state.fleet.clusters[decode])

        def places_of(decode: str) -> _Places:
            places = [_local(state, decode), _remote(state, decode)]
            return places[::-1] if uncached(decode) > tokens else places

        decode, places = _decoding(request, state, places_of)
        return _first(request, state, decode, places, f"{uncached(decode)} uncached tokens, threshold {tokens:g}")

    return route


def paper(abundant: bool) -> Router:
    """The paper's rule with the state's threshold. Scarce bandwidth: each cluster's cache alone counts. Abundant: the
    longest one does, and is moved to where the prompt is computed."""

    def route(request: RouteRequest, state: FleetState) -> Route:
        if not abundant:
            return static_threshold(state.threshold)(request, state)

        def found_in(places: _Places) -> dict[str, int]:
            return {name: reusable(request, state.fleet.clusters[name]) for name in places if name is not None}

        def places_of(decode: str) -> _Places:
            places = [_local(state, decode), _remote(state, decode)]
            longest = max(found_in(places).values(), default=0)
            return places[::-1] if request.tokens - longest > state.threshold else places

        decode, places = _decoding(request, state, places_of)
        found_tokens = found_in(places)
        longest = max(found_tokens.values(), default=0)
        found = next((name for name in places if name is not None), None)
        source = next((name for name, tokens in found_tokens.items() if tokens == longest), None)
        pulls = found is not None and source is not None and longest > found_tokens[found]
        return _first(request, state, decode, places, "paper, abundant", source if pulls else None)

    return route


def late_last(router: Router) -> Router:
    """The places of `router`, in the order in which `decide` has prompts served: what is predicted to miss its deadline
    waits behind what can be in time."""

    def route(request: RouteRequest, state: FleetState) -> Route:
        found, deadline = router(request, state), request.deadline_seconds
        if deadline is None:
            return found
        first = found.first_token
        if first.total > deadline:
            return found._replace(priority=LATE)
        begin = first.queue + first.pull
        return found._replace(begin_within=begin + deadline - first.total, admit_within=deadline)

    return route


def _decoding(request: RouteRequest, state: FleetState, places_of: Callable[[str], _Places]) -> tuple[str, _Places]:
    """The cluster that decodes it, and the places where it may be computed for that, the one that the rule prefers
    first. Of the clusters that can be served, or the one demanded: that with the shortest wait, then one that has the
    preferred place."""
    demanded = request.decode
    names = [name for name, live in state.clusters.items() if live.n_decode]
    if demanded is not None:
        names = [name for name in names if name == demanded]
    if not names:
        raise UnavailableError("No cluster decodes now.")
    places = {name: places_of(name) for name in names}
    served = [name for name in names if any(places[name])]
    if not served:
        raise UnavailableError("No cluster prefills now.")
    best = min(served, key=lambda name: (state.clusters[name].decode_wait_seconds, places[name][0] is None, name))
    return best, places[best]


def _local(state: FleetState, decode: str) -> str | None:
    return decode if state.clusters[decode].n_prefill else None


def _remote(state: FleetState, decode: str) -> str | None:
    """The cluster with the shortest queue among those with a link that is up."""
    names = [
        source
        for (source, target), link in state.links.items()
        if target == decode and link.bytes_per_second >= LEAST_RATE and state.clusters[source].n_prefill
    ]
    if len(names) < 2:
        return names[0] if names else None
    return min(names, key=lambda name: (state.clusters[name].prefill_wait_seconds, name))


def _first(
    request: RouteRequest,
    state: FleetState,
    decode: str,
    places: _Places,
    reason: str,
    source: str | None = None,
) -> Route:
    """The route to the first place that works, with the prefix of `source` moved there if that has a link. Its first
    token is predicted as `decide` does."""
    prefill = next(name for name in places if name is not None)
    profile, cluster = state.fleet.clusters[prefill].profile, state.clusters[prefill]
    reused, pull, pull_seconds = reusable(request, state.fleet.clusters[prefill]), None, 0.0
    way = state.links.get((source, prefill)) if source is not None and source != prefill else None
    if source is not None and way is not None and way.bytes_per_second >= LEAST_RATE:
        tokens = reusable(request, state.fleet.clusters[source])
        pulled = pull_from(source, prefill, tokens, request, state, way.bytes_per_second)
        pull, reused, pull_seconds = Move(source, prefill, tokens, pulled.nbytes), tokens, pulled.seconds
    seconds = profile.prefill_seconds(request.tokens, reused)
    begin = cluster.prefill_wait_seconds + pull_seconds
    send, transfer, usd = None, 0.0, 0.0
    if prefill != decode:
        nbytes = profile.cache_bytes(request.tokens, held_tokens(request, decode))
        send, usd = Move(prefill, decode, request.tokens, nbytes), profile.usd_per_hour * seconds / 3600
        link, trip = state.links[prefill, decode], state.fleet.links[prefill, decode].round_trip_seconds
        sent = max(begin, link.queued_bytes / link.bytes_per_second) + nbytes / link.bytes_per_second
        transfer = max(0.0, sent - begin - seconds) + trip / 2
    step = state.fleet.clusters[decode].profile.decode
    wait = max(0.0, state.clusters[decode].decode_wait_seconds - begin - seconds - transfer)
    first = FirstToken(
        cluster.prefill_wait_seconds, pull_seconds, seconds, transfer, wait + (step(1) if step is not None else 0.0)
    )
    return Route(prefill, decode, reused, pull, send, first, usd, reason)
