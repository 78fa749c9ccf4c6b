"""One machine that may borrow another's prefill: for a prompt, the first token here and over a link, and the costs.

Both machines are idle, so `decide` compares service times: seconds of prefill here with those of prefill there and of
sending the cache, which overlaps with it.
"""

import bisect
import math
from dataclasses import dataclass, replace

from earthshine.prfaas.decide import decide
from earthshine.prfaas.fleet import Cluster, Fleet, Link
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.predict import Option, options
from earthshine.prfaas.profile import Profile
from earthshine.prfaas.route import FleetState, RouteRequest

HERE, THERE = "here", "there"


@dataclass(frozen=True, slots=True)
class Borrowing:
    """One prompt over one link. Seconds until the first token, dollars for the prompt's computation.

    there_prefill, first_step: of the prefill there, and of the first decode step here.
    usd_here: of this machine while it prefills; None where its price is unknown.
    usd_there: of the other while it prefills.
    usd_held: of the other until the cache has arrived, as for a machine that is rented for this prompt alone.
    break_even: the shortest prompt, in tokens, from which on the first token is sooner with the other machine; None if
        that of the longest prompt is not.
    """

    tokens: int
    bytes_per_second: float
    here_seconds: float
    there_seconds: float
    there_prefill: float
    first_step: float
    nbytes: float
    usd_here: float | None
    usd_there: float
    usd_held: float
    remote: bool
    reason: str
    break_even: int | None

    @property
    def usd_per_hour_saved(self) -> float | None:
        """What an hour's shorter wait costs with a lender that is rented for this alone; None where none is saved."""
        saved = self.here_seconds - self.there_seconds
        return 3600 * self.usd_held / saved if saved > 0 else None

    @property
    def bound(self) -> str:
        """What takes most of the time of the way that was chosen."""
        if not self.remote:
            return "prefill here"
        link = self.nbytes / self.bytes_per_second
        parts = {"the link": link, "prefill there": self.there_prefill, "a decode step here": self.first_step}
        return max(parts, key=lambda part: parts[part])


def fleet_of(here: Profile, there: Profile, bytes_per_second: float) -> Fleet:
    """This machine, which prefills and decodes, the other, which prefills, and a link from there to here.

    Where both are the same machine at different prices, the lender's profile gets a name of its own.
    """
    if there.name == here.name and there != here:
        there = replace(there, name=f"{there.name} as lender")
    clusters = {HERE: Cluster(HERE, here, 1, 1), THERE: Cluster(THERE, there, 1, 0)}
    return Fleet(clusters, {(THERE, HERE): Link(THERE, HERE, bytes_per_second)})


def borrowing(here: Profile, there: Profile, bytes_per_second: float, tokens: int, longest: int) -> Borrowing:
    """What borrowing would do for a prompt of `tokens` tokens. `bytes_per_second` is above 0."""
    state = FleetState.idle(fleet_of(here, there, bytes_per_second), threshold=float(tokens))
    route = decide(RouteRequest(tokens), state, Policy())
    local, remote = _ways(state, tokens)
    held = remote.seconds + remote.transfer
    return Borrowing(
        tokens=tokens,
        bytes_per_second=bytes_per_second,
        here_seconds=local.total,
        there_seconds=remote.total,
        there_prefill=remote.seconds,
        first_step=remote.decode_seconds,
        nbytes=remote.send_bytes,
        usd_here=here.usd_per_hour / 3600 * local.seconds or None,
        usd_there=remote.usd,
        usd_held=there.usd_per_hour / 3600 * held,
        remote=route.prefill == THERE,
        reason=route.reason,
        break_even=_break_even(state, longest),
    )


def _ways(state: FleetState, tokens: int) -> tuple[Option, Option]:
    """Computed here and there."""
    found = {option.prefill: option for option in options(RouteRequest(tokens), state, Policy())}
    return found[HERE], found[THERE]


def _break_even(state: FleetState, longest: int) -> int | None:
    """The shortest prompt from which on the other machine is sooner.

    Between points of the curves the time here is linear in the prompt's length; the time there is convex, as the
    greater of prefill and transfer. So where the other machine is sooner at both ends of such a piece, it is sooner
    within, and where it is at the upper end alone, there is one length from which on it is.
    """

    def sooner_there(tokens: int) -> bool:
        local, remote = _ways(state, tokens)
        return remote.total < local.total

    if not sooner_there(longest):
        return None
    high = longest
    for low in _cuts(state, longest):
        if not sooner_there(low):
            return low + 1 + bisect.bisect_left(range(low + 1, high), True, key=sooner_there)
        high = low
    return high


def _cuts(state: FleetState, longest: int) -> list[int]:
    """Tokens below `longest` at which a curve may bend, and 1; descending."""
    here, there = (state.fleet.clusters[name].profile for name in (HERE, THERE))
    sizes = [size for curve in (here.prefill, there.prefill, there.cache) if curve for size, _ in curve.points]
    cuts = {1} | {round_(size) for size in sizes for round_ in (math.floor, math.ceil)}
    return sorted((cut for cut in cuts if 1 <= cut < longest), reverse=True)
