"""Two models' saved results compared: the right questions, verdicts, intervals that hold, and what is refused."""

import numpy
import pytest

from earthshine.errors import UsageError
from earthshine.evals.compare import compare
from earthshine.evals.results import BenchmarkResults
from earthshine.evals.statistics import mcnemar, wilson
from earthshine.evals.verdicts import Verdict


def _results(rows, groups=None):
    """Results of a benchmark from rows of scores, a row for each question."""
    scores = {str(at): dict(enumerate(row, 1)) for at, row in enumerate(rows)}
    return BenchmarkResults(scores, dict(zip(scores, groups or [None] * len(rows), strict=True)))


def _one(first, second, margin=0.02, **options):
    (found,) = compare({"Quiz": first}, {"Quiz": second}, margin, **options)
    return found


def test_single_answers_are_compared_by_mcnemar():
    first, second = _results([[1]] * 90 + [[0]] * 10), _results([[1]] * 70 + [[0]] * 30)
    found = _one(first, second)
    assert (found.paired.better, found.paired.worse, found.verdict) == (20, 0, Verdict.AHEAD)
    assert found.paired.p == found.adjusted_p == mcnemar(20, 0)
    assert (found.first.score, found.first.interval) == (0.9, wilson(0.9, 100))
    assert _one(second, first).verdict is Verdict.BEHIND


def test_questions_are_matched_by_name_in_any_order():
    first = _results([[1], [0], [1], [0]])
    second = BenchmarkResults(dict(reversed(first.scores.items())), dict(reversed(first.groups.items())))
    assert _one(first, second).paired.better == _one(first, second).paired.worse == 0


def test_each_benchmark_counts_among_all():
    """p = 0.03 alone is unclear beside three benchmarks without a difference."""
    clear, flat = (_results([[1]] * 12 + [[0]] * 88), _results([[0]] * 10 + [[1]] * 2 + [[0]] * 88)), _results([[1]])
    first = {"a": clear[0]} | dict.fromkeys("bcd", flat)
    second = {"a": _results([[0]] * 6 + [[1]] * 6 + [[0]] * 88)} | dict.fromkeys("bcd", flat)
    found = compare(first, second, 0.02)
    assert found[0].paired.p == mcnemar(6, 0) < 0.05
    assert found[0].adjusted_p == pytest.approx(4 * mcnemar(6, 0))
    assert found[0].verdict is Verdict.UNCLEAR
    assert _one(first["a"], second["a"]).verdict is Verdict.AHEAD


def test_the_same_model_is_judged_by_answers_and_not_by_questions():
    """Two runs of a model that always answers alike: consistent, however few of the questions it can answer."""
    certain = _results([[1, 1]] * 100 + [[0, 0]] * 100)
    found = _one(certain, certain)
    assert (found.same.verdict, found.verdict) == ("consistent", Verdict.NOT_DISTINGUISHABLE)
    broken = _results([[1, 1]] * 80 + [[0, 0]] * 120)
    assert _one(broken, certain).same.verdict == "lower"
    few = _results([[1]] * 30)
    assert _one(few, few).same.verdict == "inconclusive"  # 30 answers can't show 2 points
    assert _one(few, few, margin=0.1).same.verdict == "consistent"
    assert (few.scores, _one(_results([[1]]), _results([[0]])).same.interval.high) == (few.scores, 1)


def test_groups_are_compared_as_wholes():
    first, second, groups = [[1]] * 40, [[0]] * 20 + [[1]] * 20, [str(at // 10) for at in range(40)]
    found = _one(_results(first, groups), _results(second, groups))
    assert (found.paired.groups, found.paired.p) == (4, mcnemar(2, 0))
    with pytest.raises(UsageError, match="'Quiz': a question has another group in the second results"):
        _one(_results(first, groups), _results(second))


def test_other_questions_are_refused_or_left_out_when_asked():
    first, second = _results([[1], [1], [0]]), _results([[1], [0]])
    with pytest.raises(UsageError, match="the second results lack 1 question, such as '2'; --common compares the 2"):
        _one(first, second)
    with pytest.raises(UsageError, match="the first results lack 1 question"):
        _one(second, first)
    first.errors["2"] = 1
    found = _one(first, second, common=True)
    assert (found.paired.questions, found.first.answers, found.first.errors) == (2, 2, 0)


def test_questions_with_fewer_answers_are_counted():
    found = _one(_results([[1, 1], [1], [0, 1]]), _results([[1, 1]] * 3))
    assert (found.first.uneven, found.second.uneven) == (1, 0)
    assert found.first.score == pytest.approx(2.5 / 3)


def test_nothing_in_common_is_refused():
    with pytest.raises(UsageError, match="no benchmark in both: the first has 'a', the second 'b'"):
        compare({"a": _results([[1]])}, {"b": _results([[1]])}, 0.02)
    other = _results([[1]])
    other.scores = {"x": other.scores["0"]}
    with pytest.raises(UsageError, match="no question is in both results; their ids must be the same"):
        _one(_results([[1]]), other, common=True)


@pytest.mark.parametrize(("runs", "difference"), [(1, 0.0), (1, 0.05), (1, -0.2), (4, 0.05)])
def test_intervals_contain_a_known_difference(runs, difference):
    """200 pairs of models on 150 questions of their own difficulty; the second has this much less chance at each."""
    generator, covered, wrong, accused = numpy.random.default_rng(7), 0, 0, 0
    for _ in range(200):
        chances = generator.uniform(0.25, 0.75, 150)
        rows = [(generator.random((150, runs)) < (chances - shift)[:, None]).astype(float) for shift in (0, difference)]
        found = _one(*(_results(each.tolist()) for each in rows), margin=0.05)
        covered += difference in found.paired.interval
        wrong += found.verdict is (Verdict.BEHIND if difference >= 0 else Verdict.AHEAD)
        accused += found.same.verdict in ("lower", "higher")
    assert covered >= 182  # of 200, at 95%
    assert wrong <= 10
    assert accused <= 15 if abs(difference) <= 0.05 else accused >= 150
