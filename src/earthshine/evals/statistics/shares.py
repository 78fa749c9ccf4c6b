"""Intervals and tests of shares when only the scores are known: one score, and the difference of two.

A score of `n` questions counts as `score * n` right answers, whole or not: a published score is rounded, or a mean over
several runs. That one run's error is used for such a mean makes the interval wider than it need be, never too narrow:
runs lessen the noise of answers, not that of the choice of questions, and the split is known only question by question.
The same holds for scores between right and wrong, whose variance is at most p (1 - p).
"""

import math
from dataclasses import dataclass

from earthshine.evals.statistics.distributions import between, counted_from, two_sided_p, z_of, z_value


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`, in the unit of what it is of."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Difference:
    """`first - second` of two scores of different questions, or of the same ones without the single results.

    `difference` and `error`, its standard error sqrt(p1 q1 / n1 + p2 q2 / n2), are shares. `z` and `p` are of the
    pooled two-sided test that both are equal. `interval` is Newcombe's.
    """

    difference: float
    error: float
    z: float
    p: float
    interval: Interval


def share_error(score: float, n: int) -> float:
    """The standard error sqrt(p q / n) of a share of `n` questions."""
    return math.sqrt(between("score", score, 0, 1) * (1 - score) / counted_from("n", n, 1))


def wilson(score: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a share of `n` independent questions; 0 to 1 without questions.

    Its coverage oscillates around `confidence` with `score` and `n`, as that of any interval of a count.
    Source: Wilson 1927, JASA 22:209.
    """
    between("score", score, 0, 1)
    z = z_of(confidence)
    if counted_from("n", n, 0) == 0:
        return Interval(0.0, 1.0)
    shrink = 1 + z * z / n
    middle = (score + z * z / (2 * n)) / shrink
    half = z * math.sqrt(score * (1 - score) / n + z * z / (4 * n * n)) / shrink
    return Interval(max(0.0, middle - half) if score else 0.0, min(1.0, middle + half) if score < 1 else 1.0)


def newcombe(first: float, n_first: int, second: float, n_second: int, confidence: float = 0.95) -> Interval:
    """The interval of `first - second`, two independent shares, from their Wilson intervals.

    Source: Newcombe 1998, Statistics in Medicine 17:873, method 10.
    """
    one, other = wilson(first, n_first, confidence), wilson(second, n_second, confidence)
    difference = first - second
    return Interval(
        difference - math.hypot(first - one.low, other.high - second),
        difference + math.hypot(one.high - first, second - other.low),
    )


def two_shares(first: float, n_first: int, second: float, n_second: int, confidence: float = 0.95) -> Difference:
    """The difference of two independent shares with its error, test and interval; both of at least one question."""
    difference = first - second
    error = math.hypot(share_error(first, n_first), share_error(second, n_second))
    both = (first * n_first + second * n_second) / (n_first + n_second)
    z = z_value(difference, math.sqrt(max(0.0, both * (1 - both)) * (1 / n_first + 1 / n_second)))
    return Difference(difference, error, z, two_sided_p(z), newcombe(first, n_first, second, n_second, confidence))
