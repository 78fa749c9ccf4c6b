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
from itertools import pairwise, product

from earthshine.errors import UsageError
from earthshine.prfaas.expected import work_of
from earthshine.prfaas.fleet import Cluster, Fleet
from earthshine.prfaas.joint import joint_thresholds
from earthshine.prfaas.lengths import Lengths
from earthshine.prfaas.throughput import Model, Solution, check_output, model_of

_DOUBLINGS, _HALVINGS = 100, 16  # of the rate
_LEAST_RATE = 1e-9  # requests per second
_NEAR = 1e-3  # below the bound is as good as it
_FINER = 2.0  # times the rate: more than thresholds between the cuts can add
_MOST_DIVISIONS = 256  # of roles, all of which are tried; with two clusters that decode they took 0.8 s
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

    Of several convertible clusters with few instances, all roles are tried; with many, ever smaller changes of one
    cluster's roles.

    A fleet without a cluster that prefills, as when all its instances are down, has no stage and a rate of 0.

    Raises UsageError for output below a token, for more than MOST_PREFILL_CLUSTERS clusters that prefill, and for more
    than MOST_DECODE_CLUSTERS that decode.
    """
    check_output(output_tokens)
    best = _with_best_roles(fleet, lengths, output_tokens) if roles else fleet
    model = model_of(best, lengths, output_tokens)
    if not model.clusters:
        return model.solution([])
    return _Search(model).fine()


def _with_best_roles(fleet: Fleet, lengths: Lengths, output_tokens: float) -> Fleet:
    convertible = [c for c in fleet.clusters.values() if c.convertible]
    if not convertible:
        return fleet
    if len(convertible) == len(fleet.decoding) == 1:
        return _best_roles(fleet, convertible[0], lengths, output_tokens)
    if math.prod(c.n_instances + 1 for c in convertible) <= _MOST_DIVISIONS:
        return _best_division(fleet, lengths, output_tokens)
    return _climbed_roles(fleet, convertible, lengths, output_tokens)


def _climbed_roles(fleet: Fleet, convertible: Sequence[Cluster], lengths: Lengths, output_tokens: float) -> Fleet:
    """From the fleet's own roles on, ever smaller changes of one cluster's, while one is better. Those that can't be
    better than what was found are not searched for thresholds."""
    best, step = fleet, max(c.n_instances for c in convertible) // 2
    order = _order(_coarse(fleet, lengths, output_tokens))
    while step:
        improved = False
        for cluster, change in product(convertible, (step, -step)):
            now = best.clusters[cluster.name].n_prefill
            n = min(max(0, now + change), cluster.n_instances)
            search = _Search(model_of(with_roles(best, {cluster.name: n}), lengths, output_tokens))
            thresholds, bound = search.coarse()
            if n == now or search.most(bound) < order[0]:
                continue
            found = _order(search.joint(thresholds, bound))
            if found > order:
                best, order, improved = with_roles(best, {cluster.name: n}), found, True
        step = step if improved else step // 2
    return best


def _divisions(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet with every division of roles, its own first."""
    yield fleet
    convertible = [c for c in fleet.clusters.values() if c.convertible]
    for counts in product(*(range(c.n_instances + 1) for c in convertible)):
        yield with_roles(fleet, {c.name: n for c, n in zip(convertible, counts, strict=True)})


def _best_division(fleet: Fleet, lengths: Lengths, output_tokens: float) -> Fleet:
    """Of all; those that can't be better than one that was found are left out."""
    searches = [(found, _Search(model_of(found, lengths, output_tokens))) for found in _divisions(fleet)]
    bounded = [(search.coarse(), found, search) for found, search in searches]
    best, order = fleet, (0.0, 0.0)
    for (thresholds, bound), found, search in sorted(bounded, key=lambda each: -each[2].most(each[0][1])):
        if search.most(bound) < order[0]:
            break
        solution = search.joint(thresholds, bound)
        if _order(solution) > order:
            best, order = found, _order(solution)
    return best


def _coarse(fleet: Fleet, lengths: Lengths, output_tokens: float) -> Solution:
    """The best thresholds for the fleet's own roles, to a cut."""
    search = _Search(model_of(fleet, lengths, output_tokens))
    return search.joint(*search.coarse())


def _order(solution: Solution) -> tuple[float, float]:
    """A higher rate is better; at the same one, more prompts that could be prefilled."""
    return solution.rate, solution.production


def _best_roles(fleet: Fleet, cluster: Cluster, lengths: Lengths, output_tokens: float) -> Fleet:
    """`fleet`, or with better roles of `cluster`.

    As more of its instances prefill, its decoding begins to bind somewhere; the best roles are on either side of that.
    """

    @functools.cache
    def search(n: int) -> _Search:
        return _Search(model_of(with_roles(fleet, {cluster.name: n}), lengths, output_tokens))

    @functools.cache
    def trial(n: int) -> Solution:
        return search(n).fine()

    def decode_limits(n: int) -> bool:
        return f"decode of {cluster.name}" in search(n).joint(*search(n).coarse()).bottlenecks

    def is_better(n: int, than: int) -> bool:
        """Decoding alone may rule that out."""
        possible = 0 <= n <= cluster.n_instances and search(n).most(math.inf) >= trial(than).rate
        return possible and _order(trial(n)) > _order(trial(than))

    # Between two cuts, thresholds may move what binds by an instance or more: whole tokens decide.
    best = bisect.bisect_left(range(cluster.n_instances), True, key=decode_limits)
    step = -1 if trial(best).rate >= search(best).most(math.inf) * (1 - _NEAR) else 1
    while is_better(best + step, best):
        best += step
    own = cluster.n_prefill
    return fleet if best == own or not is_better(best, own) else with_roles(fleet, {cluster.name: best})


class _Search:
    """Bisects the rate. At a rate, each stage in turn takes prompts up to the longest that it keeps up with.

    That is exact for one cluster that decodes. With several, stages compete for their room, so the rate found for each
    stage alone is only an upper bound. Where no thresholds found so far reach it, all are searched for together.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._work = work_of(model.lengths, model.curves)
        self._upto = functools.cache(self._work.upto)

    def coarse(self) -> tuple[list[float], float]:
        """Among the cuts, the thresholds of the highest rate at which each stage alone keeps up, and that rate."""
        if not self._model.clusters:
            return [], 0.0
        low = self._slowest()
        for _ in range(_DOUBLINGS):
            if not self._last_keeps_up(self._thresholds(2 * low), 2 * low):
                break
            low *= 2
        return self._bisected(low, 2 * low, whole=False)

    def fine(self) -> Solution:
        """The best thresholds of whole tokens."""
        found, bound = self.coarse()
        whole, bound = self._bisected(bound, bound * _FINER, whole=True)
        return self._together(self._model.solution(whole), found, self.most(bound), fine=True)

    def most(self, bound: float) -> float:
        """The rate that each stage alone and all decoding together allow."""
        return min(bound, sum(self._model.decode.values()))

    def joint(self, found: list[float], bound: float) -> Solution:
        """Thresholds that are about the best, given what `coarse` returned."""
        return self._together(self._model.solution(found), found, self.most(bound), fine=False)

    def _together(self, solution: Solution, found: list[float], bound: float, *, fine: bool) -> Solution:
        """`solution`, or a better one where it does not reach the bound."""
        if len(self._model.decode) < 2 or solution.rate >= bound * (1 - _NEAR):
            return solution
        other = joint_thresholds(self._model, found, self._distinct(), bound, fine=fine)
        return max(solution, self._model.solution(other), key=_order)

    def _distinct(self) -> list[float]:
        """The cuts between which there are prompts."""
        shares = [-1.0, *self._work.shares]
        return [cut for cut, (before, share) in zip(self._work.cuts, pairwise(shares), strict=True) if share > before]

    def _bisected(self, low: float, high: float, *, whole: bool) -> tuple[list[float], float]:
        found = self._thresholds(low, whole=whole)
        for _ in range(_HALVINGS):
            rate = (low + high) / 2
            thresholds = self._thresholds(rate, whole=whole)
            low, high, found = (rate, high, thresholds) if self._last_keeps_up(thresholds, rate) else (low, rate, found)
        return found, low

    def _slowest(self) -> float:
        """Of the best cluster that takes every prompt: a rate that is reached, if any is."""
        return max(_LEAST_RATE, *(self._alone(stage) for stage in range(len(self._model.clusters))))

    def _alone(self, stage: int) -> float:
        _, seconds, nbytes = self._upto(stage, self._model.lengths.longest)
        compute = self._model.clusters[stage].n_prefill / max(seconds, 1e-12)
        return min(compute, self._model.outflow(stage, nbytes))

    def _last_keeps_up(self, thresholds: list[float], rate: float) -> bool:
        begin = thresholds[-1] if thresholds else 0.0
        return self._keeps_up(len(thresholds), begin, self._model.lengths.longest, rate)

    def _thresholds(self, rate: float, *, whole: bool = False) -> list[float]:
        found, begin = list[float](), 0.0
        for stage in range(len(self._model.clusters) - 1):
            begin = self._reach(stage, begin, rate, whole)
            found.append(begin)
        return found

    def _reach(self, stage: int, begin: float, rate: float, whole: bool) -> float:
        """The last cut, or with `whole` the last token, up to which a stage keeps up."""
        cuts = self._work.cuts
        later = range(bisect.bisect_right(cuts, begin), len(cuts))
        n = bisect.bisect_left(later, True, key=lambda at: not self._keeps_up(stage, begin, cuts[at], rate))
        reached = cuts[later[n - 1]] if n else begin
        if not whole or n == len(later):
            return reached
        tokens = range(math.floor(reached) + 1, math.ceil(cuts[later[n]]))
        n = bisect.bisect_left(tokens, True, key=lambda end: not self._keeps_up(stage, begin, float(end), rate))
        return float(tokens[n - 1]) if n else reached

    def _keeps_up(self, stage: int, begin: float, end: float, rate: float) -> bool:
        below, upto = self._upto(stage, begin), self._upto(stage, end)
        share, seconds, nbytes = (after - before for before, after in zip(below, upto, strict=True))
        if share <= 0:
            return True
        n = self._model.clusters[stage].n_prefill
        return rate * seconds <= n and rate * share <= self._model.outflow(stage, nbytes / share)


def paper_grid(lengths: Lengths) -> list[float]:
    """Thresholds for `grid_search`, tokens: steps of 200, and both ends, which leave everything to one cluster."""
    return [0.0, *map(float, range(1000, 120001, 200)), float(lengths.longest)]


def can_grid_search(fleet: Fleet, thresholds: Sequence[float]) -> bool:
    """Whether `grid_search` takes them."""
    n_divisions = math.prod(c.n_instances + 1 for c in fleet.clusters.values() if c.convertible)
    return len(fleet.prefilling) <= 2 and len(thresholds) * n_divisions <= _MOST_TRIALS


def grid_search(fleet: Fleet, lengths: Lengths, output_tokens: float, thresholds: Sequence[float]) -> Solution:
    """The paper's own search: every threshold with every division of roles, requests at their bands' mean lengths.

    Raises UsageError for more than two clusters that prefill, and for more than a million trials.
    """
    if not can_grid_search(fleet, thresholds):
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
            if role == "n_prefill" if c.convertible else getattr(c, role):
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
