"""Two models' results on the same questions, compared question by question.

The test flips signs: were both models alike, a question's difference might as well have been the other way round. With
one right or wrong answer to each question that is McNemar's exact test. Questions of a group flip together.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy

from earthshine.evals.statistics.distributions import (
    counted_from,
    fair_coin_p,
    normal_cdf,
    strictly_inside,
    t_quantile,
)
from earthshine.evals.statistics.errors import (
    Results,
    cluster_error,
    group_sums,
    question_means,
    require_same_questions,
)
from earthshine.evals.statistics.shares import Interval, wilson

_CELLS = 1 << 20  # random numbers held at a time
DRAWS = 20_000


@dataclass(frozen=True, slots=True)
class Paired:
    """`first - second` of the mean scores, as shares. `better`, `worse`: questions on which the first has the higher or
    lower mean. `error`: the standard error over groups, which without groups are the questions; nan for one group."""

    questions: int
    groups: int
    difference: float
    error: float
    p: float
    interval: Interval
    better: int
    worse: int


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p that two models are equal, of the questions that only one of them answered right.

    Source: McNemar 1947, Psychometrika 12:153, with the binomial distribution.
    """
    counted_from("only_first", only_first, 0)
    counted_from("only_second", only_second, 0)
    return fair_coin_p(only_first, only_first + only_second)


def compare_paired(
    first: Results,
    second: Results,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Paired:
    """The difference of two models on the same questions, a row of results for each question and model in one order.

    Rows may have several runs. The interval is Newcombe's for paired shares where each question has one right or wrong
    answer of each and no group, and else the bootstrap's over groups. Raises UsageError for rows that do not match.
    """
    require_same_questions(first, second)
    strictly_inside("confidence", confidence)
    ones, others = question_means(first), question_means(second)
    differences = [round(one - other, 12) for one, other in zip(ones, others, strict=True)]
    sums = group_sums(differences, groups)
    n = len(differences)
    generator = numpy.random.default_rng(seed)
    if groups is None and all(value in (0, 1) for value in (*ones, *others)):
        interval = paired_newcombe(ones, others, confidence)
    else:
        interval = bootstrap_interval(sums, confidence, counted_from("draws", draws, 100), generator)
    return Paired(
        n,
        len(sums),
        math.fsum(differences) / n,
        cluster_error(differences, groups) if len(sums) > 1 else math.nan,
        sign_flip_p([total for total, _ in sums], draws, generator),
        interval,
        sum(difference > 0 for difference in differences),
        sum(difference < 0 for difference in differences),
    )


def paired_newcombe(first: Sequence[float], second: Sequence[float], confidence: float) -> Interval:
    """The interval of the difference of two shares of the same questions, results 0 or 1.

    Source: Newcombe 1998, Statistics in Medicine 17:2635, method 10.
    """
    n = len(first)
    both = sum(one == other == 1 for one, other in zip(first, second, strict=True))
    neither = sum(one == other == 0 for one, other in zip(first, second, strict=True))
    right = int(sum(first)), int(sum(second))
    spread = math.prod((*right, n - right[0], n - right[1]))
    product: float = both * neither - (right[0] - both) * (right[1] - both)
    if product > 0:  # the continuity correction of a positive correlation
        product = max(product - n / 2, 0)
    correlation = product / math.sqrt(spread) if spread else 0.0
    one, other = (wilson(count / n, n, confidence) for count in right)
    difference = (right[0] - right[1]) / n

    def reach(down: float, up: float) -> float:
        return math.sqrt(max(0.0, down**2 - 2 * correlation * down * up + up**2))

    return Interval(
        difference - reach(right[0] / n - one.low, other.high - right[1] / n),
        difference + reach(one.high - right[0] / n, right[1] / n - other.low),
    )


def bootstrap_interval(
    sums: Sequence[tuple[float, int]], confidence: float, draws: int, generator: numpy.random.Generator
) -> Interval:
    """Of the mean, by drawing groups, given as sum and number of values, with replacement.

    The percentiles are those of Hesterberg 2015 (The American Statistician 69:371), widened for few groups. Groups that
    are all alike have no spread to draw from; what none of G groups shows, a share 1 - (alpha / 2)^(1 / G) of all may.
    """
    n_groups, mean = len(sums), math.fsum(total for total, _ in sums) / sum(size for _, size in sums)
    kinds, counts = numpy.unique(numpy.array(sums, dtype=float), axis=0, return_counts=True)
    outside = (1 - confidence) / 2
    if len({round(total / size, 12) for total, size in sums}) == 1:
        unseen = 1 - outside ** (1 / n_groups)
        return Interval(max(-1.0, mean - unseen), min(1.0, mean + unseen))
    tail = normal_cdf(-math.sqrt(n_groups / (n_groups - 1)) * t_quantile(1 - outside, n_groups - 1))
    means = []
    for some in _portions(draws, len(kinds)):
        drawn = generator.multinomial(n_groups, counts / n_groups, size=some)
        means.append((drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1]))
    low, high = numpy.quantile(numpy.concatenate(means), [tail, 1 - tail])
    return Interval(float(low), float(high))


def sign_flip_p(totals: Sequence[float], draws: int, generator: numpy.random.Generator) -> float:
    """The two-sided p of a sum of groups' differences if each could have had the other sign.

    Exact where all that are not 0 have one size, else of `draws` random signs, and then at least 1 / (draws + 1).
    """
    moved = numpy.array([total for total in totals if total])
    sizes, counts = numpy.unique(numpy.abs(moved).round(12), return_counts=True)
    if len(sizes) <= 1:
        return fair_coin_p(int((moved > 0).sum()), len(moved))
    seen = abs(moved.sum()) * (1 - 1e-9)
    beyond = 0
    for some in _portions(draws, len(sizes)):
        positive = generator.binomial(counts, 0.5, size=(some, len(sizes)))
        beyond += int((numpy.abs((2 * positive - counts) @ sizes) >= seen).sum())
    return (beyond + 1) / (draws + 1)


def _portions(draws: int, width: int) -> Iterator[int]:
    """Parts of `draws`, each of which takes at most `_CELLS` numbers."""
    most = max(1, _CELLS // width)
    while draws > 0:
        yield min(draws, most)
        draws -= most
