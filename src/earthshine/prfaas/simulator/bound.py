"""A bound that no policy can exceed: how many requests can have their first token within the deadline.

It holds for policies that prefill a prompt whole, alone and in one cluster, and never preempt a reply.

Even a policy that knows all arrivals, lengths, failures and rates in advance, and serves requests in any order, must
obey the following, for each request that it serves in time, by a cluster p that computes the prompt and a cluster d
that decodes it:

1. Instances of p spend T_prefill seconds on it between its arrival and its deadline. Only what another request had too,
   in its prompt or its reply, may be in a cache already, and only if that one arrived before this one's deadline.
2. If p and d differ, the link from p to d carries the cache, without that prefix, in the same time.
3. Instances of d spend on it at least the replied tokens times the least of step seconds / batch over all batches. It
   is admitted by its deadline and then goes on, so this ends within the longest steps that it can have. A failure of
   an instance of d interrupts at most as many replies as a batch holds. What they lack is counted as spent at that
   moment, by instances that are given in addition.
4. No more seconds of instances or bytes of a link are spent in any interval than there are.
5. An instance has one role at a time, and serves nothing for `convert_seconds` between two roles.

A prompt that is routed again may find in caches what was computed of it before. So where failures, links that go down
or conversions allow that, one with whole blocks need only obey rule 1, for the p that computed it first, and rule 3.

Dropped are all other rules: that an instance computes one prompt at a time, that a request is served whole and by one
cluster, that roles are divided into whole instances, that failed instances do nothing, that requests too late must be
served as well. What remains is a linear program over slots of time; a slot that an interval touches counts as inside.
By weak duality any prices, 0 or more per second of instance and per byte in each slot, give a bound:

    sum over slots of capacity x price + sum over requests of max(0, 1 - the least that it costs),

where a request buys each resource in the cheapest slot of its interval. What an instance that converts could earn at
most, over all sequences of roles, takes the place of its capacity x price. Proof: served requests pay at least their
costs, all payments together are at most the first sum, and a request counts 1 = cost + (1 - cost). The prices are found
by descent; they need not be optimal for the bound to hold.
"""

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from earthshine.loadgen.trace import BLOCK_TOKENS, Arrival
from earthshine.prfaas.fleet import Cluster, Fleet, Link
from earthshine.prfaas.route import LEAST_RATE
from earthshine.prfaas.simulator.bound_prices import Array, Division, Resource, spread, windows
from earthshine.prfaas.simulator.conditions import Conditions, Role
from earthshine.prfaas.workload import reply_blocks, whole_blocks

_SLOTS = 32  # in a deadline
_MOST_SLOTS = 1_000_000
_ROUNDS = 300  # of descent
_WARMEST, _COLDEST = 0.2, 0.0005  # requests: costs that differ by less are about equal in a round


@dataclass(slots=True)
class _Need:
    """What each request takes of one resource, within `width` slots from its arrival on."""

    resource: Resource
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
    return _Problem(fleet, arrivals, deadline_seconds, conditions or Conditions()).solve()


class _Problem:
    def __init__(self, fleet: Fleet, arrivals: Sequence[Arrival], deadline: float, conditions: Conditions) -> None:
        self._conditions, self._deadline = conditions, deadline
        self._tokens = [a.input_tokens for a in arrivals]
        self._replies = np.array([a.output_tokens for a in arrivals], dtype=np.float64)
        self._known = _known_tokens(arrivals, deadline)
        again = _may_route_again(fleet, conditions)
        self._again = np.array([again and bool(blocks) for blocks in whole_blocks(arrivals)])
        slowest = max(c.profile.decode(c.profile.batch) for c in fleet.decoding if c.profile.decode is not None)
        reply_seconds = float(self._replies.max()) * slowest
        self._slot = max(deadline / _SLOTS, (arrivals[-1].seconds + deadline + reply_seconds) / _MOST_SLOTS)
        self._begins = np.array([int(a.seconds / self._slot) for a in arrivals])
        self._width = math.ceil(deadline / self._slot) + 1
        self._decode_width = self._width + 1 + math.ceil(reply_seconds / self._slot)
        self._n_slots = int(self._begins[-1]) + self._decode_width + 1
        self._resources: dict[tuple[str, str], Resource] = {}
        self._divisions: dict[str, Division] = {}
        self._ways = [
            self._way(source, target, fleet.links.get((source.name, target.name)))
            for target in fleet.decoding
            for source in fleet.prefilling
            if source is target or (source.name, target.name) in fleet.links or self._again.any()
        ]

    def solve(self) -> float:
        for need in (need for way in self._ways for need in way.needs):
            mean = float(need.amounts.mean())
            need.resource.scale = min(need.resource.scale, 1 / mean) if mean > 0 else need.resource.scale
        found = min((self._round(number / _ROUNDS) for number in range(_ROUNDS)), default=math.inf)
        return min(found, float(len(self._tokens)))

    def _way(self, source: Cluster, target: Cluster, link: Link | None) -> _Way:
        decode = target.profile.decode
        assert decode is not None, "clusters of fleet.decoding have it"
        sizes = list(zip(self._tokens, self._known, strict=True))
        seconds = np.array([source.profile.prefill_seconds(tokens, known) for tokens, known in sizes])
        needs = [
            _Need(self._instances(source, "prefill"), seconds, self._width),
            _Need(self._instances(target, "decode"), self._replies * _least_step(target), self._decode_width),
        ]
        alone = seconds + decode(1)
        if link is not None and source is not target:
            nbytes = np.array([source.profile.cache_bytes(tokens, known) for tokens, known in sizes])
            nbytes = np.where(self._again, 0.0, nbytes)
            needs.append(_Need(self._link(link), nbytes, self._width))
            fastest = max(link.bytes_per_second, *(c.bytes_per_second for c in self._conditions.rates), 1e-9)
            trip = np.where(self._again, 0.0, link.round_trip_seconds / 2)
            alone = alone + nbytes / self._conditions.layers / fastest + trip
        joined = self._again | (source is target or link is not None)
        return _Way(needs, joined & (alone <= self._deadline))

    def _instances(self, cluster: Cluster, role: Role) -> Resource:
        key = (cluster.name, role)
        if key in self._resources:
            return self._resources[key]
        n = 0 if cluster.convertible else cluster.n_prefill if role == "prefill" else cluster.n_decode
        found = self._resources[key] = Resource(np.full(self._n_slots, n * self._slot))
        if role == "decode":
            interrupted = cluster.profile.batch * float(self._replies.max()) * _least_step(cluster)
            for failure in self._conditions.failures:
                at = int(failure.seconds / self._slot)
                if failure.cluster == cluster.name and failure.role == role and at < self._n_slots:
                    found.capacity[at] += interrupted
        if cluster.convertible:
            away = int(self._conditions.convert_seconds / self._slot)
            pair = self._instances(cluster, "prefill"), self._instances(cluster, "decode")
            self._divisions[cluster.name] = Division(pair, cluster.n_instances, self._slot, away)
        return found

    def _link(self, link: Link) -> Resource:
        ends = (link.source, link.target)
        changes = [(c.seconds, c.bytes_per_second) for c in self._conditions.rates if c.ends == ends]
        capacity, rate, since = np.zeros(self._n_slots), link.bytes_per_second, 0.0
        edges = np.arange(self._n_slots + 1) * self._slot
        for at, following in [*changes, (float(edges[-1]), 0.0)]:
            capacity += rate * np.clip(np.minimum(edges[1:], at) - np.maximum(edges[:-1], since), 0.0, None)
            rate, since = following, at
        return self._resources.setdefault(ends, Resource(capacity))

    def _round(self, done: float) -> float:
        """The bound by the present prices; then a step downhill. The slope is that of a smooth function nearby, in
        which a request spreads its purchase over slots and ways of nearly equal price."""
        costs = []
        for way in self._ways:
            cost = np.where(way.possible, 0.0, np.inf)
            for need in way.needs:
                cost += need.amounts * windows(np.minimum, need.resource.price, need.width)[self._begins]
            costs.append(cost)
        least = np.min(costs, axis=0)
        bound = float(np.maximum(0.0, 1.0 - least).sum())
        bound += sum(float(r.capacity @ r.price) for r in self._resources.values())
        bound += sum(division.most() for division in self._divisions.values())
        self._descend(done, costs, least)
        return bound

    def _descend(self, done: float, costs: list[Array], least: Array) -> None:
        warmth = _WARMEST * (_COLDEST / _WARMEST) ** done
        with np.errstate(over="ignore", invalid="ignore"):
            wanted = 1 / (1 + np.exp((np.where(np.isfinite(least), least, 1e9) - 1) / warmth))
            by_way = [np.where(np.isfinite(cost), np.exp(-(cost - least) / warmth), 0.0) for cost in costs]
        total = np.maximum(sum(by_way), 1e-300)
        for resource in self._resources.values():
            resource.slope = resource.capacity.copy()
        for division in self._divisions.values():
            division.divide(warmth)
        for way, chosen in zip(self._ways, by_way, strict=True):
            served = wanted * chosen / total
            for need in way.needs:
                bought = np.bincount(self._begins, served * need.amounts, minlength=self._n_slots).astype(np.float64)
                need.resource.slope -= spread(need.resource, bought, need.width, warmth)
        for resource in self._resources.values():
            resource.step(done)


def _may_route_again(fleet: Fleet, conditions: Conditions) -> bool:
    """Whether a request may be routed more than once: what fails, goes down or converts gives up what it has."""
    trips = {ends: link.round_trip_seconds for ends, link in fleet.links.items()}
    slowed = (conditions.carried(c.bytes_per_second, c.loss, trips[c.ends]) for c in conditions.rates)
    down = any(rate < LEAST_RATE for rate in slowed)
    return down or bool(conditions.failures) or any(c.convertible for c in fleet.clusters.values())


def _least_step(cluster: Cluster) -> float:
    """Seconds of an instance for one token of a reply, at best."""
    decode, batch = cluster.profile.decode, cluster.profile.batch
    assert decode is not None, "clusters of fleet.decoding have it"
    return min(decode(n) / n for n in range(1, batch + 1))


def _known_tokens(arrivals: Sequence[Arrival], deadline: float) -> list[int]:
    """Tokens of each prompt's longest prefix that another request had which arrived before this one's deadline."""
    had: Counter[int] = Counter()
    waiting, found = deque[tuple[float, tuple[int, ...]]](), list[int]()

    def ended(before: float) -> None:
        while waiting and waiting[0][0] <= before:
            blocks = waiting.popleft()[1]
            n = next((i for i, block in enumerate(blocks) if had[block] < 2), len(blocks))
            found.append(n * BLOCK_TOKENS)

    prompts = list(whole_blocks(arrivals))
    for arrival, blocks, reply in zip(arrivals, prompts, reply_blocks(arrivals, prompts), strict=True):
        ended(arrival.seconds - deadline)
        had.update(blocks + reply)
        waiting.append((arrival.seconds, blocks))
    ended(math.inf)
    return found
