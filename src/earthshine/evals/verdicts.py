"""What published scores show: each claim against each rival, with the error that chance over questions alone leaves.

Only scores are published, not results question by question, so the comparison is that of two independent shares. Its
error is too large where both models find the same questions hard; `needed_paired` says what a comparison question by
question would need. How the scores were made (harness, tools, prompts, judge) is no part of any error here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from earthshine.evals.claims import F1, Benchmark, Claims, Score
from earthshine.evals.statistics import (
    Difference,
    Interval,
    discordance,
    holm,
    most_discordance,
    needed_pairs,
    needed_questions,
    two_shares,
    wilson,
)

ALPHA = 0.05  # and intervals of 95%
CORRELATION = 0.5  # assumed between two models' results, question by question


class Verdict(StrEnum):
    """AHEAD and BEHIND hold among all comparisons of a file together. UNCLEAR would hold if it were the only one."""

    AHEAD = "ahead"
    BEHIND = "behind"
    UNCLEAR = "unclear"
    NOT_DISTINGUISHABLE = "not distinguishable"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A claim against one rival. All but `points` are None where they can't be computed.

    `points`: the difference as published. `found`: in shares; `adjusted_p` by Holm over the file. `needed`: questions
    that would show a true difference of this size in 80% of tests, `needed_paired` if both models' results on the same
    questions, correlated by `CORRELATION`, were compared. `most_differing`: the largest share of this benchmark's
    questions on which both may differ for the difference to count then.
    """

    benchmark: Benchmark
    rival: Score
    points: float
    found: Difference | None
    adjusted_p: float | None
    verdict: Verdict
    needed: int | None
    needed_paired: int | None
    most_differing: float | None


def interval_of(score: Score, benchmark: Benchmark) -> Interval | None:
    """The 95% interval of one score, as shares; None without a number of questions, and for F1."""
    if benchmark.questions is None or benchmark.measure == F1:
        return None
    return wilson(score.points / 100, benchmark.questions)


def judge(claims: Claims) -> list[Comparison]:
    """Every claim against every rival, in the file's order."""
    found = list(_compared(claims))
    tested = [each for each in found if each.found is not None]
    adjusted = dict(zip(map(id, tested), holm([each.found.p for each in tested if each.found]), strict=True))
    return [_decided(each, adjusted.get(id(each))) for each in found]


def _compared(claims: Claims) -> Iterator[Comparison]:
    for benchmark in claims.benchmarks:
        for rival in benchmark.rivals:
            yield _compare(benchmark, rival)


def _compare(benchmark: Benchmark, rival: Score) -> Comparison:
    first, second, n = benchmark.claimed.points / 100, rival.points / 100, benchmark.questions
    points = round(benchmark.claimed.points - rival.points, 6)
    if benchmark.measure == F1:
        return Comparison(benchmark, rival, points, None, None, Verdict.NOT_JUDGED, None, None, None)
    paired = needed_pairs(points / 100, discordance(first, second, CORRELATION))
    found = None if n is None else two_shares(first, n, second, n)
    differing = None if n is None else most_discordance(points / 100, n)
    needed = needed_questions(first, second) if points else None
    return Comparison(benchmark, rival, points, found, None, Verdict.NOT_JUDGED, needed, paired, differing)


def _decided(comparison: Comparison, adjusted: float | None) -> Comparison:
    if comparison.found is None or adjusted is None:
        return comparison
    verdict = verdict_of(comparison.points, comparison.found.p, adjusted)
    return replace(comparison, adjusted_p=adjusted, verdict=verdict)


def verdict_of(difference: float, p: float, adjusted_p: float) -> Verdict:
    """Of a test with its p alone and among all."""
    if adjusted_p <= ALPHA:
        return Verdict.AHEAD if difference > 0 else Verdict.BEHIND
    return Verdict.UNCLEAR if p <= ALPHA else Verdict.NOT_DISTINGUISHABLE
