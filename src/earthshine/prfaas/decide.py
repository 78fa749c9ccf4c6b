"""Where one prompt is computed and decoded: a pure function of the request, the fleet's state and the policy.

A place's cost is the predicted time to the first token, plus what the prompt's work costs the requests behind it: as
many will wait behind a prompt as wait now, each longer by the share of the fleet's capacity that the work takes. The
threshold says what a second of one cluster's work is worth in seconds of another's: at a prompt of just that length
both cost the same. So an idle fleet minimises the first token, and a saturated one divides prompts at the threshold,
which keeps all producers busy (paper equation 7).

That holds for two clusters that prefill. With more, `solve` has a threshold between each two, and `decide` the lowest
one above which prompts are prefilled remotely: it prices all clusters by their times at that length. Between equal
queues a cluster may then get none of the band that `solve` gives it. Its queue gets shorter, until it draws prompts, so
the fleet still serves nearly as many requests.

With a deadline, only places that meet it count. A prompt that can meet it nowhere is late: its priority is behind all
that can be in time, at the queue, on the link and for a place in a batch, so that it delays none of them.
It goes where it would be served soonest among late prompts. A prompt that is in time says until when it may begin and
still be so.
"""

import math

from earthshine.errors import UnavailableError, UsageError
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.predict import Option, decode_places, options
from earthshine.prfaas.route import LATE, ORDINARY, FirstToken, FleetState, Move, Route, RouteRequest
from earthshine.untrusted import shown

_SHOWN = 0.005  # seconds: less is 0.00 in a reason


def decide(request: RouteRequest, state: FleetState, policy: Policy) -> Route:
    """The route for `request`, through instances and links that work.

    Raises UnavailableError where no cluster can decode or none can prefill at the moment, and where no place is within
    the request's ceiling; UsageError for a cluster to decode that the fleet does not have.
    """
    if request.decode is not None and request.decode not in state.fleet.clusters:
        names = ", ".join(map(shown, state.fleet.clusters))
        raise UsageError(f"decode is {shown(request.decode)}; it must be one of {names}.", "decode")
    found = options(request, state, policy)
    ceiling, deadline = request.usd_ceiling, request.deadline_seconds
    within = found if ceiling is None else [option for option in found if option.usd <= ceiling]
    if not within:
        raise _unavailable(found, request, state)
    per_usd = 1 / policy.usd_per_second_saved
    timely = within if deadline is None else [option for option in within if option.total <= deadline]
    if timely:
        chosen = _cheapest(timely, per_usd)
        return _route(request, chosen, _why(chosen, timely, within, found, per_usd))
    return _late(request, within, per_usd)


def _late(request: RouteRequest, within: list[Option], per_usd: float) -> Route:
    """For a prompt that meets its deadline nowhere: where it would be served soonest among late prompts."""
    chosen = min(within, key=lambda option: option.total + option.late_backlog_seconds + option.usd * per_usd)
    return _route(request, chosen, "late everywhere, least so here, behind all that can be in time", LATE)


def _unavailable(found: list[Option], request: RouteRequest, state: FleetState) -> UnavailableError:
    if found:
        least, ceiling = min([option.usd for option in found]), request.usd_ceiling
        return UnavailableError(
            f"The prompt would cost ${least:.4g} of borrowed compute; its ceiling is ${ceiling:.4g}."
        )
    missing = "prefills and is connected to one that decodes" if decode_places(request, state) else "decodes"
    return UnavailableError(f"No cluster has an instance that {missing} now; the request may be sent again later.")


def _cheapest(found: list[Option], per_usd: float) -> Option:
    best, least = found[0], math.inf
    for option in found:
        cost = option.total + option.delay_to_others_seconds + option.usd * per_usd
        if cost < least:
            best, least = option, cost
    return best


def _why(chosen: Option, timely: list[Option], within: list[Option], found: list[Option], per_usd: float) -> str:
    """Why `chosen` is the best of `timely`, those that meet the deadline of `within`, the ceiling, of all `found`: what
    it has before the next best."""
    if len(timely) == 1:
        if len(within) > 1:
            return "all others miss the deadline"
        return "all others exceed the ceiling" if len(found) > 1 else "nothing else works or is connected"
    other = _cheapest([option for option in timely if option is not chosen], per_usd)
    place = other.prefill if other.prefill != chosen.prefill else f"with {other.reused} tokens reused"
    sooner = other.total - chosen.total
    spared = other.delay_to_others_seconds - chosen.delay_to_others_seconds
    if sooner >= _SHOWN:
        return f"{sooner:.2f} s sooner than {place}"
    when = f"as soon as {place}" if sooner > -_SHOWN else f"{-sooner:.2f} s later than {place}"
    saved = other.usd - chosen.usd
    if saved * per_usd > spared:
        return f"{when}, but ${saved:.4g} cheaper"
    return f"{when}, which saves all other requests {spared:.2f} s" if spared >= _SHOWN else when


def _route(request: RouteRequest, chosen: Option, why: str, priority: int = ORDINARY) -> Route:
    """`chosen` as a route, with `why` after what it does."""
    pull = send = None
    does = f"{chosen.prefill} prefills {request.tokens - chosen.reused} of {request.tokens} tokens"
    begin = chosen.queue
    if chosen.pull is not None:
        source, tokens, nbytes, seconds, _ = chosen.pull
        pull = Move(source, chosen.prefill, tokens, nbytes)
        begin += seconds
        does += f" after a pull of {nbytes:.3g} bytes from {source}"
    if chosen.prefill != chosen.decode:
        send = Move(chosen.prefill, chosen.decode, request.tokens, chosen.send_bytes)
        does += f" for {chosen.decode}"
    if request.decode is not None and chosen.decode != request.decode:
        why += f"; {request.decode} has no instance that decodes"
    parts = FirstToken(chosen.queue, begin - chosen.queue, chosen.seconds, chosen.transfer, chosen.decode_seconds)
    reason = f"{does}, first token in {chosen.total:.2f} s: {why}."
    within = math.inf if request.deadline_seconds is None else request.deadline_seconds
    return Route(
        chosen.prefill,
        chosen.decode,
        chosen.reused,
        pull,
        send,
        parts,
        chosen.usd,
        reason,
        priority,
        begin_within=begin + within - chosen.total,
        admit_within=within,
    )
