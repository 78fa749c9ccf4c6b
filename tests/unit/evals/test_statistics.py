"""Statistics: held against scipy and statsmodels, against worked figures for published claims, and at the edges."""

import json
import math
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from earthshine.errors import UsageError
from earthshine.evals.statistics import (
    answers_error,
    compare_paired,
    discordance,
    equivalence,
    f1_interval,
    fixed_set_error,
    holm,
    mcnemar,
    most_discordance,
    needed_like,
    needed_pairs,
    needed_questions,
    newcombe,
    power_of_pairs,
    power_of_questions,
    question_set_error,
    two_shares,
    wilson,
)
from earthshine.evals.statistics.distributions import t_cdf, t_quantile, two_sided_p

from . import statistics_values as asked

TOLD = json.loads(Path(__file__).with_name("statistics_values.json").read_text())
shares, counts = st.floats(0, 1), st.integers(1, 5000)


def _close(values):
    return pytest.approx(values, rel=1e-9, abs=1e-12)


def _pair(interval):
    return [interval.low, interval.high]


def test_saved_values_are_those_of_scipy_and_statsmodels():
    pytest.importorskip("scipy", reason="scipy is not installed; the saved values are used as they are")
    pytest.importorskip("statsmodels", reason="statsmodels is not installed; the saved values are used as they are")
    for name, values in asked.values().items():
        for now, saved in zip(values, TOLD[name], strict=True):
            assert now == _close(saved), name


def test_intervals_and_tests_of_shares_are_those_of_statsmodels():
    assert [_pair(wilson(k / n, n)) for k, n in asked.COUNTS] == [_close(each) for each in TOLD["wilson"]]
    pairs = [(k / n, n, m / o, o) for (k, n), (m, o) in asked.PAIRS]
    assert [_pair(newcombe(*pair)) for pair in pairs] == [_close(each) for each in TOLD["newcombe"]]
    assert [[(d := two_shares(*pair)).z, d.p] for pair in pairs] == [_close(each) for each in TOLD["ztest"]]


def test_mcnemar_t_holm_tost_and_power_are_those_of_scipy_and_statsmodels():
    assert [mcnemar(*each) for each in asked.DISCORDANT] == _close(TOLD["mcnemar"])
    assert [t_quantile(*each) for each in asked.T] == _close(TOLD["t"])
    assert holm(asked.PS) == _close(TOLD["holm"])
    assert [equivalence(*each).p for each in asked.TOST] == _close(TOLD["tost"])
    assert [power_of_questions(*each) for each in asked.POWER] == _close(TOLD["power"])


@pytest.mark.parametrize(
    ("other", "difference", "z", "p", "interval"),
    [
        (53.0, 1.0, 0.71, 0.48, (-1.8, 3.8)),
        (52.1, 1.9, 1.35, 0.18, (-0.9, 4.7)),
        (51.4, 2.6, 1.84, 0.066, (-0.2, 5.4)),
        (50.2, 3.8, 2.69, 0.007, (1.0, 6.6)),
    ],
)
def test_hle_with_tools_as_worked_by_hand(other, difference, z, p, interval):
    found = two_shares(0.54, 2500, other / 100, 2500)
    assert round(100 * found.difference, 1) == difference
    assert round(100 * found.error, 2) == 1.41
    assert round(found.z, 2) == z
    assert found.p == pytest.approx(p, abs=0.5 * 10 ** -(2 if p > 0.1 else 3))
    assert [round(100 * end, 1) for end in _pair(found.interval)] == list(interval)


@pytest.mark.parametrize(
    ("first", "second", "n", "error", "p"),
    [
        (34.7, 40.0, 2500, 1.37, "1e-04"),
        (34.7, 39.8, 2500, 1.37, "2e-04"),
        (90.5, 91.3, 198, 2.9, "8e-01"),
        (80.2, 80.8, 500, 2.5, "8e-01"),
        (96.4, 96.7, 30, 4.7, "9e-01"),
        (96.4, 99.2, 30, 3.8, "5e-01"),
    ],
)
def test_other_claims_as_worked_by_hand(first, second, n, error, p):
    found = two_shares(first / 100, n, second / 100, n)
    assert round(100 * found.error, 2 if n == 2500 else 1) == error
    assert f"{found.p:.0e}" == p


def test_scores_of_hle_have_the_intervals_worked_by_hand():
    for score, low, high in ((54.0, 52.0, 55.9), (53.0, 51.0, 55.0), (52.1, 50.1, 54.1)):
        assert [round(100 * end, 1) for end in _pair(wilson(score / 100, 2500))] == [low, high]
    assert [round(100 * end, 1) for end in _pair(wilson(0.964, 30))] == [82.9, 99.3]


def test_what_a_paired_comparison_would_show():
    """One point of 2,500 questions counts if at most 6.5% of them differ, 1.9 points if at most 23.5% do."""
    assert int(2500 * most_discordance(0.01, 2500)) == 162
    assert round(most_discordance(0.019, 2500), 3) == 0.235
    for correlation, p in ((0.5, 0.32), (0.7, 0.20), (0.8, 0.11), (0.9, 0.025)):
        spread = math.sqrt(discordance(0.54, 0.53, correlation) - 0.01**2)
        assert two_sided_p(0.01 * math.sqrt(2500) / spread) == pytest.approx(p, abs=0.005 if p > 0.1 else 0.0005)


def test_needed_questions_as_worked_by_hand():
    table = [(0.01, (7847, 15696, 23545)), (0.03, (870, 1742, 2614)), (0.05, (312, 626, 940))]
    for difference, needed in table:
        assert tuple(needed_pairs(difference, share) for share in (0.1, 0.2, 0.3)) == needed


@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98), st.floats(0.05, 0.95))
def test_needed_questions_have_the_power_that_was_asked_for(first, second, power):
    needed = needed_questions(first, second, power)
    if needed is None:
        assert first == second
    elif 1 < needed < 10**9:  # the power counts both directions, the formula one
        assert power_of_questions(first, second, needed) >= power - 1e-9
        assert power_of_questions(first, second, needed - 1) <= power + 0.026


@given(st.floats(0.001, 0.5), st.floats(0, 1), st.floats(0.05, 0.95))
def test_needed_pairs_have_the_power_that_was_asked_for(difference, more, power):
    differing = difference + more * (1 - difference)
    needed = needed_pairs(difference, differing, power)
    assert needed == needed_pairs(-difference, differing, power)
    assert power_of_pairs(difference, differing, needed) >= power - 1e-9


@given(shares, counts)
def test_wilson_contains_the_score_and_mirrors(score, n):
    found, mirrored = wilson(score, n), wilson(1 - score, n)
    assert 0 <= found.low <= score + 1e-12
    assert score - 1e-12 <= found.high <= 1
    assert _pair(found) == pytest.approx([1 - mirrored.high, 1 - mirrored.low], abs=1e-9)


@given(shares, counts, shares, counts)
def test_swapped_models_have_the_negative_difference(first, n, second, m):
    one, other = two_shares(first, n, second, m), two_shares(second, m, first, n)
    assert (one.p, -one.difference) == (pytest.approx(other.p, abs=1e-9), other.difference)
    assert _pair(one.interval) == pytest.approx([-other.interval.high, -other.interval.low], abs=1e-9)
    assert -1 - 1e-9 <= one.interval.low <= one.difference + 1e-9


@given(st.lists(st.integers(0, 1), min_size=2, max_size=40), st.randoms(use_true_random=False))
def test_swapped_results_have_the_negative_paired_difference(first, random):
    second = [random.randint(0, 1) for _ in first]
    one = compare_paired(*(([[x] for x in each]) for each in (first, second)))
    other = compare_paired(*(([[x] for x in each]) for each in (second, first)))
    assert (one.p, one.error, one.better) == (other.p, other.error, other.worse)
    assert one.p == mcnemar(one.better, one.worse)
    assert _pair(one.interval) == pytest.approx([-other.interval.high, -other.interval.low], abs=1e-9)
    assert one.difference in one.interval


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(ps):
    adjusted = holm(ps)
    assert [adjusted[i] for i in sorted(range(len(ps)), key=ps.__getitem__)] == sorted(adjusted)
    assert all(p <= a <= min(1, len(ps) * p) + 1e-15 for p, a in zip(ps, adjusted, strict=True))


def test_no_question_one_question_none_right_and_all_right():
    assert _pair(wilson(0, 0)) == [0, 1]
    assert wilson(0, 1).low == 0
    assert wilson(1, 1).high == 1
    assert two_shares(1, 30, 1, 30).p == 1
    assert two_shares(0, 1, 0, 1).z == 0
    assert two_shares(1, 2500, 0, 2500).p < 1e-300
    one = compare_paired([[1]], [[0]])
    assert (one.difference, one.p) == (1, 1)
    assert math.isnan(one.error)
    same = compare_paired([[1, 1]] * 30, [[1, 1]] * 30, groups=range(30))
    assert (same.difference, same.p, same.error) == (0, 1, 0)
    assert same.interval.high == -same.interval.low == pytest.approx(1 - 0.025 ** (1 / 30))
    assert holm([]) == []
    assert needed_questions(0.5, 0.5) is None
    assert needed_pairs(0, 0.1) is None
    assert most_discordance(0, 100) == 0


def test_answers_count_for_the_same_model_and_questions_for_a_better_one():
    """Questions that are always right or always wrong say nothing about answers, and everything about questions."""
    certain = [[1, 1]] * 50 + [[0, 0]] * 50
    assert fixed_set_error(certain) == 0
    assert question_set_error(certain) == pytest.approx(math.sqrt(0.25 / 99))
    noisy = [[1, 0]] * 100
    assert fixed_set_error(noisy) == pytest.approx(math.sqrt(0.5 / 2 / 100))
    assert question_set_error(noisy) == 0


def test_fixed_set_error_is_that_of_answers_drawn_again():
    generator = numpy.random.default_rng(0)
    chances = generator.beta(2, 1, size=100)
    drawn = generator.random((2000, 100, 8)) < chances[:, None]
    estimates = [fixed_set_error(each.astype(int).tolist()) ** 2 for each in drawn[:50]]
    assert numpy.mean(estimates) == pytest.approx(drawn.mean(axis=(1, 2)).var(), rel=0.1)
    assert drawn.mean(axis=(1, 2)).var() == pytest.approx((chances * (1 - chances)).mean() / 800, rel=0.1)


def test_error_between_two_sets_of_answers_is_that_of_one_model_asked_twice():
    generator = numpy.random.default_rng(1)
    chances = generator.beta(2, 1, size=200)
    for runs in (1, 4):
        pairs = (generator.random((400, 2, 200, runs)) < chances[:, None]).astype(int)
        found = numpy.mean([answers_error(*pair.tolist()) for pair in pairs])
        assert found == pytest.approx((pairs[:, 0].mean((1, 2)) - pairs[:, 1].mean((1, 2))).std(), rel=0.1)
    assert answers_error([[1]] * 100, [[1]] * 100) == pytest.approx(math.sqrt(3) / 100)
    assert answers_error([[1, 1]] * 100, [[1, 1]] * 100) == pytest.approx(math.sqrt(3) / 200)


@given(st.floats(0.3, 0.7), st.integers(10, 3000))
def test_questions_like_these_agree_with_those_of_the_scores(score, n):
    found = two_shares(score, n, 0.8, n)
    assert needed_like(found.difference, found.error, n) == pytest.approx(needed_questions(score, 0.8), abs=1)


def test_questions_of_a_group_count_as_one():
    results, groups = [[1]] * 40 + [[0]] * 40, [at // 10 for at in range(80)]
    alone = question_set_error([[1]] * 4 + [[0]] * 4)
    assert question_set_error(results, groups) == pytest.approx(alone)
    first, second = [[1]] * 80, [[0]] * 40 + [[1]] * 40
    assert compare_paired(first, second).p < 1e-10
    assert compare_paired(first, second, groups).p == mcnemar(4, 0)


def test_equivalence_says_consistent_lower_higher_or_inconclusive():
    assert equivalence(0.001, 0.005).verdict == "consistent"
    assert equivalence(-0.05, 0.005).verdict == "lower"
    assert equivalence(0.05, 0.005).verdict == "higher"
    assert equivalence(-0.01, 0.01).verdict == "inconclusive"
    assert equivalence(-0.01, 0.01, margin=0.05).verdict == "consistent"
    assert equivalence(0.02, 0).verdict == "inconclusive"  # on the margin


def test_f1_and_its_error():
    found = f1_interval(270, 50, 52, 628)
    assert found.score == pytest.approx(2 * 270 / (2 * 270 + 102))
    assert found.score in found.interval
    assert round(100 * found.error, 1) == 1.6  # points, at 1,000 requests
    assert round(100 * f1_interval(54, 10, 10, 126).error, 1) == pytest.approx(3.4, abs=0.2)
    perfect = f1_interval(100, 0, 0, 100)
    assert perfect.interval.high == 1
    assert 0.97 < perfect.interval.low < 0.99
    assert f1_interval(0, 3, 0, 0).interval.low == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(54.0, 2500), r"score must be a number from 0 to 1, not 54\.0\."),
        (lambda: wilson(math.nan, 10), "score must be a number from 0 to 1, not nan"),
        (lambda: wilson(0.5, -1), "n must be a whole number from 0 up, not -1"),
        (lambda: wilson(0.5, 1.5), "n must be a whole number from 0 up"),
        (lambda: wilson(0.5, 10, 95), "confidence must lie between 0 and 1, such as 0.95, not 95"),
        (lambda: two_shares(0.5, 10, 0.5, 0), "n must be a whole number from 1 up, not 0"),
        (lambda: mcnemar(-1, 3), "only_first must be a whole number from 0 up"),
        (lambda: compare_paired([[1]], [[1], [0]]), "first has 1 questions and second 2"),
        (lambda: compare_paired([[1], [0]], [[1], [0]], groups=["a"]), "groups names 1 questions; there are 2"),
        (lambda: compare_paired([], []), "results must have at least one question"),
        (lambda: compare_paired([[2]], [[0]]), "a score of question 1 must be a number from 0 to 1, not 2"),
        (lambda: fixed_set_error([[1, 0], [1]]), "question 2 has 1 answers; it needs at least 2"),
        (lambda: question_set_error([[1, 0]]), "an error needs at least two questions"),
        (lambda: equivalence(0.1, 0.1, margin=0), "margin must be above 0, not 0"),
        (lambda: holm([1.5]), "p must be a number from 0 to 1"),
        (lambda: needed_pairs(0.3, 0.2), "differing is 0.2; a difference of 0.3 needs at least that share"),
        (lambda: f1_interval(0, 0, 0, 10), "F1 needs at least one request with a true or predicted positive decision"),
    ],
)
def test_values_without_meaning_are_refused_by_name(call, message):
    with pytest.raises(UsageError, match=message):
        call()


@given(st.floats(-40, 40), st.integers(1, 60))
def test_t_is_symmetric(t, df):
    assert t_cdf(t, df) + t_cdf(-t, df) == pytest.approx(1, abs=1e-12)
