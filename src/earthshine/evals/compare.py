"""Two sets of saved results on the same questions, benchmark by benchmark: which is better, and are both one model?

Both questions are asked of the same difference with different errors: the better model by the choice of questions, the
same model by the answers alone. Raises UsageError where the questions or their groups are not the same.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy

from earthshine.errors import UsageError
from earthshine.evals.results import BenchmarkResults
from earthshine.evals.statistics import (
    Equivalence,
    Interval,
    Paired,
    answers_error,
    compare_paired,
    equivalence,
    holm,
    needed_like,
    wilson,
)
from earthshine.evals.statistics.errors import group_sums, question_means
from earthshine.evals.statistics.paired import DRAWS, bootstrap_interval
from earthshine.evals.verdicts import Verdict, verdict_of
from earthshine.units import counted
from earthshine.untrusted import shown

Rows = list[list[float]]
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Side:
    """One model on a benchmark: its mean score and interval as shares, and of all `answers` those that failed, which
    count as wrong, and those that a limit of tokens cut off. `uneven`: questions with fewer answers than others."""

    score: float
    interval: Interval
    answers: int
    errors: int
    truncated: int
    uneven: int


@dataclass(frozen=True, slots=True)
class Compared:
    """`first - second` on one benchmark. `needed`: questions like these that would show the difference in 80% of tests,
    None without a difference or error. `same`: within the margin, if only the answers are drawn again."""

    benchmark: str
    first: Side
    second: Side
    paired: Paired
    adjusted_p: float
    verdict: Verdict
    needed: int | None
    same: Equivalence


def compare(
    first: dict[str, BenchmarkResults],
    second: dict[str, BenchmarkResults],
    margin: float,
    common: bool = False,
) -> list[Compared]:
    """Each benchmark that both have, in the first's order, p adjusted by Holm over all of them.

    `margin`: a share within which two scores count as the same. `common`: compare the questions that both have,
    instead of refusing others.
    """
    names = [name for name in first if name in second]
    if not names:
        known = (", ".join(map(shown, list(each)[:4])) for each in (first, second))
        raise UsageError(f"There is no benchmark in both: the first has {next(known)}, the second {next(known)}.")
    found = [_compare(name, first[name], second[name], margin, common) for name in names]
    adjusted = holm([each.paired.p for each in found])
    return [
        replace(each, adjusted_p=p, verdict=verdict_of(each.paired.difference, each.paired.p, p))
        for each, p in zip(found, adjusted, strict=True)
    ]


def _compare(name: str, first: BenchmarkResults, second: BenchmarkResults, margin: float, common: bool) -> Compared:
    questions = _same_questions(name, first, second, common)
    rows = [[list(side.scores[question].values()) for question in questions] for side in (first, second)]
    groups = [first.groups[question] for question in questions]
    if groups != [second.groups[question] for question in questions]:
        raise UsageError(f"{shown(name)}: a question has another group in the second results than in the first.")
    named = any(group is not None for group in groups)
    grouped: list[Hashable] | None = [group or ("alone", at) for at, group in enumerate(groups)] if named else None
    paired = compare_paired(rows[0], rows[1], grouped)
    one, other = (_side(each, questions, row, grouped) for each, row in zip((first, second), rows, strict=True))
    needed = needed_like(paired.difference, paired.error, paired.questions) if paired.error > 0 else None
    same = _within_scale(equivalence(paired.difference, answers_error(rows[0], rows[1]), margin))
    return Compared(name, one, other, paired, paired.p, Verdict.NOT_JUDGED, needed, same)


def _within_scale(found: Equivalence) -> Equivalence:
    """No difference of two shares is beyond 1, whatever a normal interval says."""
    return replace(found, interval=Interval(max(-1.0, found.interval.low), min(1.0, found.interval.high)))


def _same_questions(name: str, first: BenchmarkResults, second: BenchmarkResults, common: bool) -> list[str]:
    both = [question for question in first.scores if question in second.scores]
    if not both:
        raise UsageError(f"{shown(name)}: no question is in both results; their ids must be the same.")
    for one, other, which in ((first, second, "second"), (second, first, "first")):
        missing = [question for question in one.scores if question not in other.scores]
        if missing and not common:
            raise UsageError(
                f"{shown(name)}: the {which} results lack {counted(len(missing), 'question')}, such as "
                f"{shown(missing[0])}; --common compares the {len(both)} that both have."
            )
    return both


def _side(results: BenchmarkResults, questions: Sequence[str], rows: Rows, groups: Sequence[Hashable] | None) -> Side:
    means = question_means(rows)
    if groups is None and all(value in (0, 1) for value in means):
        interval = wilson(sum(means) / len(means), len(means))
    else:
        interval = bootstrap_interval(group_sums(means, groups), CONFIDENCE, DRAWS, numpy.random.default_rng(0))
    failed, cut = (sum(count[question] for question in questions) for count in (results.errors, results.truncated))
    runs = [len(row) for row in rows]
    uneven = sum(count < max(runs) for count in runs)
    return Side(sum(means) / len(means), interval, sum(runs), failed, cut, uneven)
