"""The search for thresholds and roles: `solve` for any fleet, and the paper's grid search.

At the best thresholds all stages that prefill saturate together (equation 7), and at the best roles prefill and decode
do (equation 8), as far as whole instances allow. Both are found by bisection, since more of one means less of the
other.
"""

import bisect
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from earthshine.errors import UsageError
from earthshine.prfaas.expected import work_of
from earthshine.prfaas.fleet import Cluster, Fleet
from earthshine.prfaas.lengths import Lengths
from earthshine.prfaas.throughput import Model, Solution, check_output, model_of

_DOUBLINGS, _HALVINGS = 100, 16  # of the rate
_LEAST_RATE = 1e-9  # requests per second
_GOLDEN = (math.sqrt(5) - 1) / 2
_REFINEMENTS = 12  # of a threshold between two of the lengths that are tried
_ROUNDS = 4  # over clusters whose roles depend on each other's
_MOST_DIVISIONS = 256  # of roles, all of which are tried; one takes about 0.5 ms
_MOST_TRIALS = 1_000_000


def with_roles(fleet: Fleet, n_prefill: Mapping[str, int]) -> Fleet:
    """The fleet with `n_prefill` instances of each named cluster for prefill, and its others for decode."""
    changed = {
        name: replace(c, n_prefill=n_prefill[name], n_decode=c.n_instances - n_prefill[name])
        for name, c in fleet.clusters.items()
        if name in n_prefill
    }
    return Fleet(fleet.clusters | changed, fleet.links)


def solve(fleet: Fleet, lengths: Lengths, output_tokens: float, *, roles: bool = True) -> Solution:
    """The thresholds with the highest rate, and with `roles` also the roles of convertible clusters.

    Of several convertible clusters with many instances, each one's roles are the best for the others' roles; of those
    with few, all are tried.

    Raises UsageError for output below a token, and for more than MOST_PREFILL_CLUSTERS clusters that prefill.
    """
    check_output(output_tokens)
    best = _with_best_roles(fleet, lengths, output_tokens) if roles else fleet
    model = model_of(best, lengths, output_tokens)
    return _refined(model, _Search(model).thresholds())


def _with_best_roles(fleet: Fleet, lengths: Lengths, output_tokens: float) -> Fleet:
    convertible = [c for c in fleet.clusters.values() if c.convertible]
    if len(convertible) > 1 and math.prod(c.n_instances + 1 for c in convertible) <= _MOST_DIVISIONS:
        return max(_divisions(fleet), key=lambda found: _order(_coarse(found, lengths, output_tokens)))
    best = fleet
    for _ in range(_ROUNDS if len(convertible) > 1 else 1):
        before = best
        for cluster in convertible:
            best = _best_roles(best, cluster, lengths, output_tokens)
        if best is before:
            break
    return best


def _divisions(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet with every division of roles, its own first."""
    yield fleet
    convertible = [c for c in fleet.clusters.values() if c.convertible]
    for counts in product(*(range(c.n_instances + 1) for c in convertible)):
        yield with_roles(fleet, {c.name: n for c, n in zip(convertible, counts, strict=True)})


def _coarse(fleet: Fleet, lengths: Lengths, output_tokens: float) -> Solution:
    """The best thresholds for the fleet's own roles, to a cut."""
    model = model_of(fleet, lengths, output_tokens)
    return model.solution(_Search(model).thresholds())


def _order(solution: Solution) -> tuple[float, float]:
    """A higher rate is better; at the same one, more prompts that could be prefilled."""
    return solution.rate, solution.production


def _best_roles(fleet: Fleet, cluster: Cluster, lengths: Lengths, output_tokens: float) -> Fleet:
    """`fleet`, or with better roles of `cluster`.

    As more of its instances prefill, its decoding begins to bind somewhere; the best roles are on either side of that.
    """

    @functools.cache
    def trial(n: int) -> tuple[Fleet, Solution]:
        found = with_roles(fleet, {cluster.name: n})
        return found, _coarse(found, lengths, output_tokens)

    def decode_binds(n: int) -> bool:
        return f"decode of {cluster.name}" in trial(n)[1].binds

    first = bisect.bisect_left(range(cluster.n_instances), True, key=decode_binds)
    tried = [trial(n) for n in (first, max(0, first - 1))]
    best, solution = max(tried, key=lambda found: _order(found[1]))
    now = trial(fleet.clusters[cluster.name].n_prefill)[1]
    return best if _order(solution) > _order(now) else fleet


class _Search:
    """Bisects the rate. At a rate, each stage in turn takes prompts up to the longest that it keeps up with."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._work = work_of(model.lengths, model.curves)
        self._last = len(self._work.cuts) - 1

    def thresholds(self) -> list[float]:
        """Among the cuts, those of the highest rate at which every stage keeps up."""
        rate, found = self._slowest(), self._ends(0.0)
        for _ in range(_DOUBLINGS):
            ends = self._ends(rate)
            if not self._last_keeps_up(ends, rate):
                break
            rate, found = 2 * rate, ends
        low, high = rate / 2, rate
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            ends = self._ends(middle)
            low, high, found = (middle, high, ends) if self._last_keeps_up(ends, middle) else (low, middle, found)
        return [self._work.cuts[end] for end in found]

    def _slowest(self) -> float:
        """Of the best cluster that takes every prompt: a rate that is reached, if any is."""
        return max(_LEAST_RATE, *(self._alone(stage) for stage in range(len(self._model.clusters))))

    def _alone(self, stage: int) -> float:
        seconds, nbytes = (sums[-1] for sums in self._work.sums[stage])
        compute = self._model.clusters[stage].n_prefill / max(seconds, 1e-12)
        return min(compute, self._model.outflow(stage, nbytes))

    def _last_keeps_up(self, ends: list[int], rate: float) -> bool:
        return self._keeps_up(len(ends), ends[-1] if ends else 0, self._last, rate)

    def _ends(self, rate: float) -> list[int]:
        ends, begin = list[int](), 0
        for stage in range(len(self._model.clusters) - 1):
            begin = self._reach(stage, begin, rate)
            ends.append(begin)
        return ends

    def _reach(self, stage: int, begin: int, rate: float) -> int:
        ends = range(begin + 1, self._last + 1)
        return begin + bisect.bisect_left(ends, True, key=lambda end: not self._keeps_up(stage, begin, end, rate))

    def _keeps_up(self, stage: int, begin: int, end: int, rate: float) -> bool:
        share = self._work.shares[end] - self._work.shares[begin]
        if share <= 0:
            return True
        seconds, nbytes = (sums[end] - sums[begin] for sums in self._work.sums[stage])
        n = self._model.clusters[stage].n_prefill
        return rate * seconds <= n and rate * share <= self._model.outflow(stage, nbytes / share)


def _refined(model: Model, thresholds: list[float]) -> Solution:
    """The best whole thresholds within a cut of those given, one after the other."""
    best = model.solution(thresholds)
    for index in range(len(thresholds)):
        best = max([best, *_nearby(model, list(best.thresholds), index)], key=_order)
    return best


def _nearby(model: Model, thresholds: list[float], index: int) -> Iterator[Solution]:
    """A golden-section search for the most production between the cuts on either side of one threshold."""
    cuts = work_of(model.lengths, model.curves).cuts
    at = bisect.bisect_right(cuts, thresholds[index]) - 1
    low = max([cuts[max(0, at - 1)], *thresholds[:index]])
    high = min([cuts[min(at + 1, len(cuts) - 1)], *thresholds[index + 1 :]])
    for _ in range(_REFINEMENTS):
        step = _GOLDEN * (high - low)
        left, right = (
            model.solution([*thresholds[:index], float(round(tokens)), *thresholds[index + 1 :]])
            for tokens in (high - step, low + step)
        )
        yield from (left, right)
        low, high = (low, low + step) if left.production >= right.production else (high - step, high)


def grid_search(fleet: Fleet, lengths: Lengths, output_tokens: float, thresholds: Sequence[float]) -> Solution:
    """The paper's own search: every threshold with every division of roles, requests at their bands' mean lengths.

    Raises UsageError for more than two clusters that prefill, and for more than a million trials.
    """
    n_divisions = math.prod(c.n_instances + 1 for c in fleet.clusters.values() if c.convertible)
    if len(fleet.prefilling) > 2 or len(thresholds) * n_divisions > _MOST_TRIALS:
        raise UsageError(
            f"A grid search takes two clusters that prefill and at most {_MOST_TRIALS} trials; leave out --at-means."
        )
    tried: list[tuple[float, ...]] = [(t,) for t in thresholds] if len(fleet.prefilling) == 2 else [()]
    models = (model_of(found, lengths, output_tokens, at_means=True) for found in _divisions(fleet))
    return max((model.solution(cuts) for model in models for cuts in tried), key=lambda found: found.rate)


@dataclass(frozen=True, slots=True)
class Change:
    """What would change, in words, and the rate after solving again."""

    name: str
    rate: float


def what_if(fleet: Fleet, lengths: Lengths, output_tokens: float) -> list[Change]:
    """What one more instance of each cluster would buy, and each link at twice its rate."""
    found = list[Change]()
    for c in fleet.clusters.values():
        for role in ("n_prefill", "n_decode"):
            if getattr(c, role) and not (c.convertible and role == "n_decode"):
                more = replace(c, **{role: getattr(c, role) + 1})
                name = f"one more instance of {c.name}" + ("" if c.convertible else f" that {role[2:]}s")
                found.append(
                    Change(
                        name, solve(Fleet(fleet.clusters | {c.name: more}, fleet.links), lengths, output_tokens).rate
                    )
                )
    for ends, link in fleet.links.items():
        faster = replace(link, bytes_per_second=2 * link.bytes_per_second)
        found.append(
            Change(
                f"twice the rate from {link.source} to {link.target}",
                solve(Fleet(fleet.clusters, fleet.links | {ends: faster}), lengths, output_tokens).rate,
            )
        )
    return found
