"""The F1 score of a decision, such as "does this request lead to a tool call?", with its error and interval."""

from dataclasses import dataclass

import numpy

from earthshine.errors import UsageError
from earthshine.evals.statistics.distributions import counted_from
from earthshine.evals.statistics.shares import Interval, wilson


@dataclass(frozen=True, slots=True)
class F1:
    """`score` = 2 TP / (2 TP + FP + FN), its standard error and interval, all as shares."""

    score: float
    error: float
    interval: Interval


def f1_interval(
    true_positives: int,
    false_positives: int,
    false_negatives: int,
    true_negatives: int,
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> F1:
    """F1 of requests whose decision is compared with a reference's. The error is that of `draws` bootstrap samples.

    F1 = 2 J / (1 + J), where J = TP / (TP + FP + FN) is a share of requests: the interval is Wilson's of J, and holds
    where few decisions are wrong or none is. The bootstrap's percentiles do not (docs/log.md). Raises UsageError
    without any request that the reference or the observed decision calls positive.
    """
    counts = {
        "true_positives": true_positives,
        "false_positives": false_positives,
        "false_negatives": false_negatives,
        "true_negatives": true_negatives,
    }
    for name, count in counts.items():
        counted_from(name, count, 0)
    positive = true_positives + false_positives + false_negatives
    if not positive:
        raise UsageError("F1 needs at least one request with a true or predicted positive decision.")
    n = positive + true_negatives
    shares = [count / n for count in counts.values()]
    drawn = numpy.random.default_rng(seed).multinomial(n, shares, size=counted_from("draws", draws, 100))
    twice, wrong = 2 * drawn[:, 0], drawn[:, 1] + drawn[:, 2]
    known = twice + wrong > 0
    found = twice[known] / (twice[known] + wrong[known])
    score = 2 * true_positives / (positive + true_positives)
    jaccard = wilson(true_positives / positive, positive, confidence)
    interval = Interval(2 * jaccard.low / (1 + jaccard.low), 2 * jaccard.high / (1 + jaccard.high))
    return F1(score, float(found.std()), interval)
