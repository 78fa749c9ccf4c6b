"""A bound that no policy can exceed: how many requests can have their first token within the deadline.

Even a policy that knows all arrivals, lengths, failures and rates in advance must obey the following, for each request
that it serves in time, by a cluster p that computes the prompt and a cluster d that decodes it:

1. Instances of p spend T_prefill seconds on it between its arrival and its deadline, less a decode step. What an
   earlier request had of its prefix may be in every cache, so only the rest is computed.
2. If p and d differ, the link from p to d carries the cache, without that prefix, in the same time.
3. Instances of d spend on it at least the replied tokens times the least of step seconds / batch over all batches. It
   is admitted by its deadline and is not interrupted, so this ends within the longest steps that it can have.
4. No more seconds of instances or bytes of a link are spent in any interval than there are. Where instances change
   their roles, prefill and decode share them, at no cost.

Dropped are all other rules: that an instance computes one prompt at a time, that a request is served whole and by one
cluster, that queues are first in first out, that instances fail, that requests too late must be served as well. What
remains is a linear program over slots of time. By weak duality any prices, 0 or more per second of instance and per
byte in each slot, give a bound:

    sum over slots of capacity x price + sum over requests of max(0, 1 - the least that it costs),

where a request buys each resource in the cheapest slot of its interval. Proof: served requests pay at least their
costs, all payments together are at most the first sum, and a request counts 1 = cost + (1 - cost). The prices are
found by descent; they need not be optimal for the bound to hold. On 400 requests of the paper's lengths the bound was
0.2% (a burst) and 0.4% (steady overload) above the linear program's optimum. A slot that an interval touches counts as
inside.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from earthshine.loadgen.trace import BLOCK_TOKENS, Arrival
from earthshine.prfaas.conditions import Conditions
from earthshine.prfaas.fleet import Cluster, Fleet, Link
from earthshine.prfaas.workload import whole_blocks

Array = npt.NDArray[np.float64]
_SLOTS = 16  # in a deadline
_ROUNDS = 300  # of descent
_STEP = 0.1  # of the first round, in units of the price at which a mean request costs 1


@dataclass(slots=True)
class _Resource:
    """Instances of a cluster or bytes of a link: what each slot has, its price, and the descent's two moments."""

    capacity: Array
    price: Array
    scale: float = 1.0
    slope: Array | None = None
    square: Array | None = None


@dataclass(slots=True)
class _Need:
    """What each request takes of one resource, within `width` slots from its arrival on."""

    resource: _Resource
    amounts: Array
    width: int


@dataclass(slots=True)
class _Way:
    """A cluster that computes and one that decodes; `possible`: for each request, whether it could ever be in time."""

    needs: list[_Need]
    possible: npt.NDArray[np.bool_]


def most_in_time(
    fleet: Fleet, arrivals: Sequence[Arrival], deadline_seconds: float, conditions: Conditions | None = None
) -> float:
    """At least as many requests as any policy can serve with a first token within the deadline."""
    problem = _Problem(fleet, arrivals, deadline_seconds, conditions or Conditions())
    return problem.solve()


class _Problem:
    def __init__(self, fleet: Fleet, arrivals: Sequence[Arrival], deadline: float, conditions: Conditions) -> None:
        self._conditions, self._deadline = conditions, deadline
        self._slot = deadline / _SLOTS
        self._tokens = [a.input_tokens for a in arrivals]
        self._replies = np.array([a.output_tokens for a in arrivals], dtype=np.float64)
        self._known = _known_tokens(arrivals)
        self._begins = np.array([int(a.seconds / self._slot) for a in arrivals])
        slowest = max(c.profile.decode(c.profile.batch) for c in fleet.decoding if c.profile.decode is not None)
        self._decode_width = _SLOTS + 2 + math.ceil(float(self._replies.max()) * slowest / self._slot)
        self._n_slots = int(self._begins.max()) + self._decode_width + 1
        self._resources: dict[object, _Resource] = {}
        self._ways = [
            self._way(source, target, fleet.links.get((source.name, target.name)))
            for target in fleet.decoding
            for source in fleet.prefilling
            if source is target or (source.name, target.name) in fleet.links
        ]

    def solve(self) -> float:
        for way in self._ways:
            for need in way.needs:
                mean = float(need.amounts.mean())
                need.resource.scale = min(need.resource.scale, 1 / mean) if mean > 0 else need.resource.scale
        best = math.inf
        for number in range(_ROUNDS):
            best = min(best, self._round(number))
        return min(best, float(len(self._tokens)))

    def _way(self, source: Cluster, target: Cluster, link: Link | None) -> _Way:
        decode = target.profile.decode
        assert decode is not None
        sizes = list(zip(self._tokens, self._known, strict=True))
        seconds = np.array([source.profile.prefill_seconds(tokens, known) for tokens, known in sizes])
        best = min(decode(n) / n for n in range(1, target.profile.batch + 1))
        needs = [
            _Need(self._instances(source, "prefill"), seconds, _SLOTS + 1),
            _Need(self._instances(target, "decode"), self._replies * best, self._decode_width),
        ]
        alone = seconds + decode(1)
        if link is not None and source is not target:
            nbytes = np.array([source.profile.cache_bytes(tokens, known) for tokens, known in sizes])
            needs.append(_Need(self._link(link), nbytes, _SLOTS + 1))
            fastest = max(link.bytes_per_second, *(c.bytes_per_second for c in self._conditions.rates), 1e-9)
            alone = alone + nbytes / self._conditions.layers / fastest + link.round_trip_seconds / 2
        return _Way(needs, alone <= self._deadline)

    def _instances(self, cluster: Cluster, role: str) -> _Resource:
        """Of a cluster that converts, one resource for both roles."""
        shared = cluster.convertible
        key = (cluster.name, "both" if shared else role)
        if key not in self._resources:
            n = cluster.n_instances if shared else cluster.n_prefill if role == "prefill" else cluster.n_decode
            self._resources[key] = _Resource(np.full(self._n_slots, n * self._slot), np.zeros(self._n_slots))
        return self._resources[key]

    def _link(self, link: Link) -> _Resource:
        ends = (link.source, link.target)
        if ends not in self._resources:
            changes = [(c.seconds, c.bytes_per_second) for c in self._conditions.rates if c.ends == ends]
            capacity, rate, since = np.zeros(self._n_slots), link.bytes_per_second, 0.0
            for at, following in [*changes, (self._n_slots * self._slot, 0.0)]:
                _spread(capacity, since, at, rate, self._slot)
                rate, since = following, at
            self._resources[ends] = _Resource(capacity, np.zeros(self._n_slots))
        return self._resources[ends]

    def _round(self, number: int) -> float:
        """The bound by the present prices; then a step downhill. The slope is that of a smooth function nearby, in
        which a request spreads its purchase over slots and ways of nearly equal price."""
        warmth = 0.2 * (1 - number / _ROUNDS) + 0.002
        costs, shares = [], []
        for way in self._ways:
            cost = np.where(way.possible, 0.0, np.inf)
            spread = []
            for need in way.needs:
                prices = np.lib.stride_tricks.sliding_window_view(need.resource.price, need.width)[self._begins]
                least = prices.min(axis=1)
                weight = np.exp((least[:, None] - prices) / (warmth * need.resource.scale))
                spread.append(weight / weight.sum(axis=1)[:, None])
                cost = cost + need.amounts * least
            costs.append(cost)
            shares.append(spread)
        least = np.min(costs, axis=0)
        bound = float(np.maximum(0.0, 1.0 - least).sum())
        bound += sum(float(r.capacity @ r.price) for r in self._resources.values())
        self._descend(number, warmth, costs, least, shares)
        return bound

    def _descend(self, number: int, warmth: float, costs: list[Array], least: Array, shares: list[list[Array]]) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            wanted = 1 / (1 + np.exp((np.where(np.isfinite(least), least, 1e9) - 1) / warmth))
            by_way = [np.where(np.isfinite(cost), np.exp(-(cost - least) / warmth), 0.0) for cost in costs]
        total = np.maximum(sum(by_way), 1e-300)
        slopes = {id(r): r.capacity.copy() for r in self._resources.values()}
        for way, spread, chosen in zip(self._ways, shares, by_way, strict=True):
            served = wanted * chosen / total
            for need, share in zip(way.needs, spread, strict=True):
                bought = (served * need.amounts)[:, None] * share
                slots = self._begins[:, None] + np.arange(need.width)
                used = np.bincount(slots.ravel(), bought.ravel(), minlength=self._n_slots)
                slopes[id(need.resource)] -= used
        for resource in self._resources.values():
            _step(resource, slopes[id(resource)] * resource.scale, number)


def _step(resource: _Resource, slope: Array, number: int) -> None:
    """Adam's step (Kingma and Ba, arXiv 1412.6980), ever shorter; prices stay 0 or more."""
    first, second = 0.9, 0.99
    before = resource.slope if resource.slope is not None else np.zeros_like(slope)
    squares = resource.square if resource.square is not None else np.zeros_like(slope)
    resource.slope = first * before + (1 - first) * slope
    resource.square = second * squares + (1 - second) * slope**2
    mean = resource.slope / (1 - first ** (number + 1))
    size = np.sqrt(resource.square / (1 - second ** (number + 1))) + 1e-12
    length = _STEP * (1 - number / _ROUNDS) * resource.scale
    resource.price = np.maximum(0.0, resource.price - length * mean / size)


def _spread(capacity: Array, begin: float, end: float, rate: float, slot: float) -> None:
    """Adds `rate` per second between two times to the slots there."""
    edges = np.arange(len(capacity) + 1) * slot
    inside = np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], begin), 0.0, None)
    capacity += rate * inside


def _known_tokens(arrivals: Sequence[Arrival]) -> list[int]:
    """Tokens of each prompt's longest prefix that an earlier request had."""
    seen: set[int] = set()
    found = []
    for blocks in whole_blocks(arrivals):
        n = next((i for i, block in enumerate(blocks) if block not in seen), len(blocks))
        seen.update(blocks)
        found.append(n * BLOCK_TOKENS)
    return found
