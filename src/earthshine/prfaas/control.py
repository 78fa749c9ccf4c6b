"""Adapts the threshold and the roles of instances to what a fleet observes; `decide` routes single requests by it.

Each period the throughput model is solved for recent prompts, the measured links and the instances that work. The
threshold follows at once beyond its hysteresis. Roles follow more slowly, because an instance that converts serves
nothing meanwhile: the requests that the present roles fail to serve are added up from period to period, and instances
convert once these exceed what converting there and back loses. So a change that does not last costs at most about twice
what knowing its length in advance would have cost.

Capacity beyond what arrives is worth nothing. So roles are compared by the requests that they would serve of those that
arrive, and where these are too many, by the most that they could serve: the shortest, since `decide` makes longer ones
late first.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from earthshine.prfaas.fleet import Fleet
from earthshine.prfaas.lengths import Lengths, Sample
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.predict import usable_rate
from earthshine.prfaas.route import FleetState
from earthshine.prfaas.solve import solve, with_roles
from earthshine.prfaas.throughput import Solution

# Fewer requests say less about the lengths than what was expected of them.
_LEAST_SEEN = 100
_SHARE = 1 / 32  # of the requests: how finely those that can be served are searched for


@dataclass(frozen=True, slots=True)
class Control:
    """The threshold in tokens, and the number of prefill instances of each convertible cluster."""

    threshold: float
    n_prefill: Mapping[str, int]
    why: str  # in words, for a log


class Controller:
    """Starts with the fleet's own roles and `lengths`. It has state (the window of requests, the roles, what has been
    lost), but no clock and no randomness: equal calls in the same order give equal results. Times never run backwards.

    `output_tokens`: mean of the replies until some are observed.
    """

    def __init__(self, fleet: Fleet, policy: Policy, lengths: Lengths, output_tokens: float) -> None:
        self._fleet, self._policy, self._expected = fleet, policy, (lengths, output_tokens)
        self._least_seen = min(_LEAST_SEEN, policy.window_requests)
        self._seen: deque[tuple[float, int]] = deque(maxlen=policy.window_requests)  # when, uncached tokens
        self._replies: deque[int] = deque(maxlen=policy.window_requests)  # tokens
        self._roles = {name: c.n_prefill for name, c in fleet.clusters.items() if c.convertible}
        self._changed = -math.inf  # when roles last did
        self._ticked = 0.0
        self._lost = 0.0  # requests that other roles would have served
        solution = solve(fleet, lengths, output_tokens, roles=False)
        self._usual = solution.rate  # requests per second while the roles were right
        self.threshold = threshold_of(solution)

    @property
    def period_seconds(self) -> float:
        return self._policy.period_seconds

    def observe(self, now: float, uncached_tokens: int) -> None:
        """A request arrived, with `uncached_tokens` to compute where most of its prompt is cached."""
        self._seen.append((now, uncached_tokens))

    def replied(self, output_tokens: int) -> None:
        """A reply ended. Its length is not known before."""
        self._replies.append(output_tokens)

    def tick(self, now: float, state: FleetState) -> Control:
        """The threshold and roles for the next period; raises nothing for a fleet of which parts are down."""
        fleet, demand = self._working(now, state), self._demand(now)
        present = _most_served(fleet, demand)
        best = present if present.rate >= demand.rate else _with_best_roles(fleet, demand, present)
        why = self._convert(now, fleet, demand, present, best)
        solution = (best if why else present).solution
        solved, near = threshold_of(solution), self._policy.threshold_hysteresis
        if solution.rate and not self.threshold * (1 - near) <= solved <= self.threshold * (1 + near):
            why += (
                f"threshold from {self.threshold:.0f} to {solved:.0f} tokens, {', '.join(solution.bottlenecks)} limits"
            )
            self.threshold = solved
        return Control(self.threshold, dict(self._roles), why or "no change worth making")

    def _demand(self, now: float) -> "_Demand":
        seen, replies = self._seen, self._replies
        lengths, output_tokens = self._expected
        if len(replies) >= self._least_seen:
            output_tokens = max(1.0, sum(replies) / len(replies))
        if len(seen) < self._least_seen:
            return _Demand(lengths, output_tokens, math.inf)
        rate = len(seen) / max(now - seen[0][0], self._policy.period_seconds)
        return _Demand(Sample(max(1, uncached) for _, uncached in seen), output_tokens, rate)

    def _working(self, now: float, state: FleetState) -> Fleet:
        """The fleet of the instances that work, in their planned roles, and of links as fast as they are."""
        clusters = {}
        for name, cluster in self._fleet.clusters.items():
            live = state.clusters[name]
            if name not in self._roles:
                clusters[name] = replace(cluster, n_prefill=live.n_prefill, n_decode=live.n_decode)
                continue
            n = cluster.n_instances if self._converting(now) else live.n_prefill + live.n_decode
            n_prefill = min(self._roles[name], n)
            clusters[name] = replace(cluster, n_prefill=n_prefill, n_decode=n - n_prefill)
        links = {
            ends: replace(link, bytes_per_second=usable_rate(state.links[ends], self._policy))
            for ends, link in self._fleet.links.items()
        }
        return Fleet(clusters, links)

    def _converting(self, now: float) -> bool:
        return now - self._changed < self._policy.conversion_seconds

    def _convert(self, now: float, fleet: Fleet, demand: "_Demand", present: "_Served", best: "_Served") -> str:
        """Takes the best roles where that repays; returns why, or nothing."""
        seconds, self._ticked = now - self._ticked, now
        if best.rate <= present.rate * (1 + self._policy.role_hysteresis) or self._converting(now):
            self._lost, self._usual = 0.0, present.rate
            return ""
        self._lost += (best.rate - present.rate) * seconds
        roles = {name: best.solution.n_prefill[name] for name in self._roles}
        if self._lost <= self._conversion_cost(fleet, demand, present, roles):
            return ""
        self._lost, self._usual, self._changed, self._roles = 0.0, best.rate, now, roles
        named = ", ".join(f"{n} of {name}" for name, n in roles.items())
        return f"{named} prefill, {best.rate:.3g} instead of {present.rate:.3g} requests per second; "

    def _conversion_cost(self, fleet: Fleet, demand: "_Demand", present: "_Served", roles: Mapping[str, int]) -> float:
        """Requests lost while instances convert: there, what is not served of the present demand without them; and
        back, when no more is known than what is usual, their share of the usual rate."""
        clusters, back = dict(fleet.clusters), 0.0
        for name, n_prefill in roles.items():
            one = clusters[name]
            n_decode = one.n_instances - n_prefill
            back += self._usual * abs(n_prefill - one.n_prefill) / max(1, one.n_instances)
            clusters[name] = replace(one, n_prefill=min(n_prefill, one.n_prefill), n_decode=min(n_decode, one.n_decode))
        there = present.rate - _most_served(Fleet(clusters, fleet.links), demand).rate
        return (max(0.0, there) + back) * self._policy.conversion_seconds


@dataclass(frozen=True, slots=True)
class _Demand:
    """What arrives. rate: requests per second; infinite where it is not known."""

    lengths: Lengths
    output_tokens: float
    rate: float


@dataclass(frozen=True, slots=True)
class _Served:
    """What a fleet serves of a demand."""

    solution: Solution  # for the whole demand
    rate: float  # requests per second
    lengths: Lengths  # of these


def _most_served(fleet: Fleet, demand: _Demand) -> _Served:
    """What a fleet serves in its roles: all of the demand, or of one that is too high the shortest requests."""
    lengths = demand.lengths
    solution = solve(fleet, lengths, demand.output_tokens, roles=False)
    best = _Served(solution, min(solution.rate, demand.rate), lengths)
    if solution.rate >= demand.rate or not solution.rate or not isinstance(lengths, Sample):
        return best
    low, high = 0.0, 1.0
    while high - low > _SHARE:
        middle = (low + high) / 2
        kept = lengths.shorter(middle)
        rate = solve(fleet, kept, demand.output_tokens, roles=False).rate
        asked = demand.rate * middle
        low, high = (middle, high) if rate >= asked else (low, middle)
        if min(asked, rate) > best.rate:
            best = _Served(solution, min(asked, rate), kept)
    return best


def _with_best_roles(fleet: Fleet, demand: _Demand, present: _Served) -> _Served:
    """What a fleet would serve in the roles that are best for what it serves now."""
    solution = solve(fleet, present.lengths, demand.output_tokens)
    roles = {c.name: solution.n_prefill[c.name] for c in fleet.clusters.values() if c.convertible}
    found = _most_served(with_roles(fleet, roles), demand)
    return found if found.rate > present.rate else present


def threshold_of(solution: Solution) -> float:
    """Above it prompts are prefilled in clusters that don't decode; infinite where none are."""
    return min(
        (stage.low for stage in solution.stages if stage.egress < math.inf and stage.share > 0), default=math.inf
    )
