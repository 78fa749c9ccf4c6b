"""Decisions: whether two scores are equal within a margin, and which of several tests hold together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from earthshine.errors import UsageError
from earthshine.evals.statistics.distributions import between, normal_cdf, strictly_inside, z_of, z_value
from earthshine.evals.statistics.shares import Interval
from earthshine.untrusted import shown


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Two one-sided tests. `p`: of equivalence, the larger of the two; `interval`: of the difference, at confidence
    1 - 2 alpha, which lies within the margin exactly where the verdict is "consistent"."""

    verdict: Literal["consistent", "lower", "higher", "inconclusive"]
    p: float
    interval: Interval


def equivalence(difference: float, error: float, margin: float = 0.02, alpha: float = 0.05) -> Equivalence:
    """Whether a difference with a standard error is within `margin` of 0; all in one unit.

    "consistent": within the margin. "lower" and "higher": beyond it by more than chance explains. Else "inconclusive".
    For "the same model?" give `fixed_set_error`, for "as good?" `question_set_error` or an error of a difference.
    Source: Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15:657.
    """
    between("error", error, 0, math.inf)
    strictly_inside("alpha", alpha)
    if not 0 < margin < math.inf:
        raise UsageError(f"margin must be above 0, not {shown(margin)}.", "margin")
    above, below = z_value(difference + margin, error), z_value(margin - difference, error)
    p = max(normal_cdf(-above), normal_cdf(-below))
    half = z_of(1 - 2 * alpha) * error if alpha < 0.5 else 0.0
    interval = Interval(difference - half, difference + half)
    if p <= alpha:
        return Equivalence("consistent", p, interval)
    if interval.high < -margin:
        return Equivalence("lower", p, interval)
    return Equivalence("higher" if interval.low > margin else "inconclusive", p, interval)


def holm(ps: Sequence[float]) -> list[float]:
    """The p values of several tests adjusted together, in the given order: those at most alpha hold with at most alpha
    of risk that any of them is chance. Source: Holm 1979, Scandinavian J. Statistics 6:65."""
    for p in ps:
        between("p", p, 0, 1)
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    return adjusted
