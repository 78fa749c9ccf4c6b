"""The two standard errors of a score that comes from single results, question by question.

`results` has a row for each question, and in it the score of each run's answer, from 0 to 1.
"""

import math
from collections.abc import Hashable, Sequence

from earthshine.errors import UsageError
from earthshine.evals.statistics.distributions import between

Results = Sequence[Sequence[float]]


def fixed_set_error(results: Results) -> float:
    """The standard error of the mean score if the same questions were answered again: only the answers are drawn again.

    sqrt(sum_i s_i^2 / K_i) / n, with the unbiased variance s_i^2 of the K_i answers to question i: what counts for "is
    this the same model?". Raises UsageError for a question with fewer than two answers, whose variance is unknown;
    `share_error` of the score is then an upper limit. Source: Miller 2024, section 3.
    """
    _check(results, 2)
    variances = []
    for row in results:
        mean = math.fsum(row) / len(row)
        variances.append(math.fsum((score - mean) ** 2 for score in row) / (len(row) - 1) / len(row))
    return math.sqrt(math.fsum(variances)) / len(results)


def answers_error(first: Results, second: Results) -> float:
    """The standard error of the difference of two mean scores on the same questions if both came from one model: only
    the answers are drawn again.

    From `fixed_set_error` of both; with a single answer to any question from the differences themselves, which is too
    much where the models differ. What none of N answers shows, up to 3 of N may (the rule of three), so it is at least
    sqrt(3) / N. Raises UsageError for rows that do not match.
    """
    require_same_questions(first, second)
    ones, others = question_means(first), question_means(second)
    if min(map(len, (*first, *second))) > 1:
        error = math.hypot(fixed_set_error(first), fixed_set_error(second))
    else:
        error = math.sqrt(math.fsum((one - other) ** 2 for one, other in zip(ones, others, strict=True))) / len(ones)
    return max(error, math.sqrt(3) / min(sum(map(len, first)), sum(map(len, second))))


def require_same_questions(first: Results, second: Results) -> None:
    """Raises UsageError where the rows are not as many."""
    if len(first) != len(second):
        raise UsageError(f"first has {len(first)} questions and second {len(second)}; they must be the same ones.")


def question_set_error(results: Results, groups: Sequence[Hashable] | None = None) -> float:
    """The standard error of the mean score if other questions of the same kind were asked, however many the runs.

    `groups` names each question's group, such as the text that several questions are about; questions of a group are
    not independent. Raises UsageError with fewer than two questions, or groups. Source: Miller 2024, sections 2.1, 2.2.
    """
    return cluster_error(question_means(results), groups)


def question_means(results: Results) -> list[float]:
    """The mean score of each question."""
    _check(results, 1)
    return [math.fsum(row) / len(row) for row in results]


def cluster_error(values: Sequence[float], groups: Sequence[Hashable] | None) -> float:
    """The standard error of the mean of `values`, of which those of one group belong together."""
    n, mean = len(values), math.fsum(values) / len(values)
    sums = group_sums([value - mean for value in values], groups)
    if len(sums) < 2:
        raise UsageError(f"an error needs at least two {'questions' if groups is None else 'groups'}.")
    return math.sqrt(math.fsum(total**2 for total, _ in sums) * len(sums) / (len(sums) - 1)) / n


def group_sums(values: Sequence[float], groups: Sequence[Hashable] | None) -> list[tuple[float, int]]:
    """The sum and the number of the values of each group; without groups, each value by itself."""
    if groups is None:
        return [(value, 1) for value in values]
    if len(groups) != len(values):
        raise UsageError(f"groups names {len(groups)} questions; there are {len(values)}.", "groups")
    found: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        found.setdefault(group, []).append(value)
    return [(math.fsum(each), len(each)) for each in found.values()]


def _check(results: Results, runs: int) -> None:
    if not results:
        raise UsageError("results must have at least one question.", "results")
    for number, row in enumerate(results, 1):
        if len(row) < runs:
            raise UsageError(f"question {number} has {len(row)} answers; it needs at least {runs}.", "results")
        for score in row:
            between(f"a score of question {number}", score, 0, 1)
