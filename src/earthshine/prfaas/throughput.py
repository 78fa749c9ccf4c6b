"""The throughput model of the PrfaaS paper (arXiv 2604.15039, equations 1 to 8), for any number of clusters.

Prompts are divided by length into bands, one for each cluster that prefills: those that decode too come first, then
those that send their caches over a link; among either, those whose time grows fastest with the length get the shortest
prompts. The thresholds are the bands' bounds. A stage's rate is that of its instances or of its link, whichever is
lower, since a cache is sent while it is computed.

The paper puts every request of a band at the band's mean length (`at_means`). Curves bend, so by default the expected
value over the band is used instead; for curves that are linear between points it is exact.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import add

from earthshine.errors import UsageError
from earthshine.prfaas.curve import Curve
from earthshine.prfaas.expected import work_of
from earthshine.prfaas.fleet import Cluster, Fleet
from earthshine.prfaas.lengths import Lengths, between

MOST_PREFILL_CLUSTERS = MOST_DECODE_CLUSTERS = 8  # every subset of the former is a possible limit
_GROWTH = 8.0  # the ratio of two lengths by which growth is compared
_TIE = 1e-3  # limits that are this close bind together
_ROLES = ("n_prefill", "n_decode")


@dataclass(frozen=True, slots=True)
class Stage:
    """A cluster's part in prefill: prompts above `low` and up to `high` tokens. Rates are in requests per second.

    compute: of its instances, N / T_prefill. egress: of its links, B / S_kv; infinite where it decodes them itself.
    """

    cluster: str
    low: float
    high: float
    share: float
    mean_tokens: float
    seconds: float  # of one prefill
    nbytes: float  # of one cache
    compute: float
    egress: float

    @property
    def rate(self) -> float:
        """Theta of the stage, paper equations (3) and (4)."""
        return min(self.compute, self.egress)


@dataclass(frozen=True, slots=True)
class Solution:
    """A division of prompts and instances, and the rate that it sustains."""

    thresholds: tuple[float, ...]  # tokens; between the stages, so one fewer than these
    n_prefill: Mapping[str, int]  # instances, by cluster
    n_decode: Mapping[str, int]
    stages: tuple[Stage, ...]  # by length
    decode: Mapping[str, float]  # requests per second, by cluster
    rate: float  # Lambda, requests per second
    bottlenecks: tuple[str, ...]  # what limits it: "prefill of X", "link from X to Y", "decode of Y"

    @property
    def remote_share(self) -> float:
        """p: of the requests that are prefilled in a cluster that does not decode."""
        return sum((stage.share for stage in self.stages if stage.egress < math.inf), 0.0)

    @property
    def egress_bytes_per_second(self) -> float:
        """Of all caches that cross a link."""
        return sum((self.rate * s.share * s.nbytes for s in self.stages if s.egress < math.inf), 0.0)

    @property
    def production(self) -> float:
        """Requests per second that all stages together could prefill; decoding may take fewer."""
        return min((s.rate / s.share for s in self.stages if s.share > 0), default=0.0)


def stage_order(fleet: Fleet, lengths: Lengths) -> list[Cluster]:
    """The clusters that prefill or could, in the order of the lengths that they get, the shortest first.

    Raises UsageError for more than MOST_PREFILL_CLUSTERS.
    """
    clusters = fleet.prefilling
    if len(clusters) > MOST_PREFILL_CLUSTERS:
        raise UsageError(
            f"{len(clusters)} clusters prefill; lengths can be divided among at most {MOST_PREFILL_CLUSTERS}. Describe "
            "clusters of like instances that share a link as one."
        )
    at_home = {cluster.name for cluster in fleet.decoding}

    def rank(cluster: Cluster) -> tuple[bool, float]:
        seconds = _prefill(cluster)
        long = max(lengths.mean, lengths.longest / _GROWTH)
        return cluster.name not in at_home, -seconds(long) / max(seconds(long / _GROWTH), 1e-12)

    return sorted(clusters, key=rank)


def evaluate(
    fleet: Fleet, lengths: Lengths, output_tokens: float, thresholds: Sequence[float], *, at_means: bool = False
) -> Solution:
    """What the fleet sustains with its own roles and these thresholds, which ascend: equations (3) to (6).

    Raises UsageError for a number of thresholds that does not fit the clusters, and for output below a token.
    """
    check_output(output_tokens)
    model = model_of(fleet, lengths, output_tokens, at_means=at_means)
    n = max(0, len(model.clusters) - 1)
    if len(thresholds) != n or any(a > b for a, b in pairwise(thresholds)):
        raise UsageError(
            f"{len(model.clusters)} clusters prefill, so there must be {n} ascending thresholds, not {len(thresholds)}."
        )
    return model.solution(thresholds)


def check_output(output_tokens: float) -> None:
    """Raises UsageError unless output_tokens is from 1 to 1e9."""
    if not 1 <= output_tokens <= 1e9:
        raise UsageError(f"output_tokens must be from 1 to 1e9, not {output_tokens:g}.", "output_tokens")


def model_of(fleet: Fleet, lengths: Lengths, output_tokens: float, *, at_means: bool = False) -> "Model":
    """The equations for a fleet with its own roles.

    Raises UsageError as `stage_order` does, and for more than MOST_DECODE_CLUSTERS clusters that decode.
    """
    if len(fleet.decoding) > MOST_DECODE_CLUSTERS:
        raise UsageError(
            f"{len(fleet.decoding)} clusters decode; throughput is computed for at most {MOST_DECODE_CLUSTERS}. "
            "Describe clusters of like instances that share a link as one."
        )
    decode = {c.name: c.n_decode * c.profile.requests_per_second(output_tokens) for c in fleet.decoding if c.n_decode}
    clusters = tuple(stage_order(fleet, lengths))
    curves = tuple((_prefill(c), c.profile.cache) for c in clusters)
    return Model(fleet, clusters, curves, lengths, decode, at_means)


def _prefill(cluster: Cluster) -> Curve:
    assert cluster.profile.prefill is not None, "clusters of fleet.prefilling have it"
    return cluster.profile.prefill


class Model:
    """The equations for one fleet and one workload. `decode`: requests per second of each cluster that decodes."""

    def __init__(
        self,
        fleet: Fleet,
        clusters: tuple[Cluster, ...],
        curves: tuple[tuple[Curve, Curve], ...],
        lengths: Lengths,
        decode: Mapping[str, float],
        at_means: bool,
    ) -> None:
        self.fleet, self.clusters, self.curves, self.lengths, self.decode = fleet, clusters, curves, lengths, decode
        self._work = None if at_means else work_of(lengths, curves)
        self._ports = [self._targets(cluster.name) for cluster in clusters]

    def _targets(self, source: str) -> dict[str, float]:
        """Bytes per second to each cluster that decodes."""
        rates = {t: link.bytes_per_second for (s, t), link in self.fleet.links.items() if s == source}
        return {t: math.inf if t == source else rates[t] for t in self.decode if t == source or rates.get(t)}

    def outflow(self, index: int, nbytes: float) -> float:
        """Requests per second that a stage could pass on to decoding, of caches of `nbytes` bytes."""
        ports = self._ports[index]
        return sum(min(self.decode[target], rate / max(nbytes, 1e-12)) for target, rate in ports.items())

    def stage(self, index: int, low: float, high: float) -> Stage:
        cluster, ports = self.clusters[index], self._ports[index]
        share, tokens = between(self.lengths, low, high)
        if share <= 0:
            return Stage(cluster.name, low, high, 0.0, 0.0, 0.0, 0.0, 0.0, math.inf if cluster.name in ports else 0.0)
        if self._work is None:
            seconds, nbytes = (curve(tokens / share) for curve in self.curves[index])
        else:
            seconds, nbytes = (part / share for part in self._work.between(index, low, high))
        compute = cluster.n_prefill / max(seconds, 1e-12)
        egress = sum(ports.values()) / max(nbytes, 1e-12)
        return Stage(cluster.name, low, high, share, tokens / share, seconds, nbytes, compute, egress)

    def solution(self, thresholds: Sequence[float]) -> Solution:
        """What these thresholds give; without a cluster that prefills, a rate of 0."""
        stages = self._stages(thresholds)
        limits = self._limits(stages)
        rate = min((limit for limit, _ in limits), default=0.0)
        close = [chosen for limit, chosen in limits if limit <= rate * (1 + _TIE)]
        bottlenecks = dict.fromkeys(name for chosen in close for name in self._names(stages, chosen))
        if not stages:
            bottlenecks = {"no cluster prefills": None}
        n_prefill, n_decode = ({c.name: getattr(c, n) for c in self.fleet.clusters.values()} for n in _ROLES)
        return Solution(tuple(thresholds), n_prefill, n_decode, stages, dict(self.decode), rate, tuple(bottlenecks))

    def limit(self, thresholds: Sequence[float]) -> float:
        """The rate of `solution`."""
        return min((limit for limit, _ in self._limits(self._stages(thresholds))), default=0.0)

    def _stages(self, thresholds: Sequence[float]) -> tuple[Stage, ...]:
        edges = [0.0, *thresholds, self.lengths.longest] if self.clusters else []
        return tuple(self.stage(i, low, max(low, high)) for i, (low, high) in enumerate(pairwise(edges)))

    def _limits(self, stages: Sequence[Stage]) -> list[tuple[float, int | tuple[int, ...]]]:
        """Limits of the rate, each with the stage whose instances, or the stages whose caches, cause it.

        Of every set of stages together, since caches flow to the clusters that decode as through a network whose
        narrowest cut bounds the flow.
        """
        used = [(index, stage) for index, stage in enumerate(stages) if stage.share > 0]
        found: list[tuple[float, int | tuple[int, ...]]] = [(s.compute / s.share, index) for index, s in used]
        most = list(self.decode.values())
        sets: list[tuple[tuple[int, ...], float, list[float]]] = [((), 0.0, [0.0] * len(most))]
        for index, stage in used:
            arcs = self._arcs(index, stage)
            sets += [
                ((*chosen, index), share + stage.share, list(map(add, arriving, arcs)))
                for chosen, share, arriving in sets
            ]
        found += [(sum(map(min, most, arriving)) / share, chosen) for chosen, share, arriving in sets[1:]]
        return found

    def _arcs(self, index: int, stage: Stage) -> list[float]:
        """Requests per second that a stage's links could carry to each cluster that decodes."""
        nbytes, ports = max(stage.nbytes, 1e-12), self._ports[index]
        return [ports.get(target, 0.0) / nbytes for target in self.decode]

    def _names(self, stages: Sequence[Stage], chosen: int | tuple[int, ...]) -> list[str]:
        """What causes a limit."""
        if isinstance(chosen, int):
            return [f"prefill of {stages[chosen].cluster}"]
        arcs = {stages[index].cluster: self._arcs(index, stages[index]) for index in chosen}
        names, missing = list[str](), list[str]()
        for at, (target, most) in enumerate(self.decode.items()):
            arriving = {source: each[at] for source, each in arcs.items()}
            if most <= sum(arriving.values()):
                names.append(f"decode of {target}")
            elif any(arriving.values()):
                names += [f"link from {source} to {target}" for source, arc in arriving.items() if arc]
            else:
                missing.append(f"no link from {' or '.join(arcs)} to {target}")
        return names or missing or ["no cluster decodes"]
