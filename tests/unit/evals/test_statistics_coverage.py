"""How often intervals contain the truth and tests err, by simulation with fixed seeds. Bands allow for its noise."""

import numpy
import pytest

from earthshine.evals.statistics import compare_paired, f1_interval, newcombe, wilson

DRAWS = 10_000
NS, PS = (30, 164, 198, 500, 2500), (0.5, 0.9, 0.98)


def _coverage(contained, drawn):
    """The share of `drawn` outcomes for which `contained(outcome)` holds, each distinct one computed once."""
    kinds, counts = numpy.unique(drawn, axis=0, return_counts=True)
    return sum(int(count) for kind, count in zip(kinds, counts, strict=True) if contained(kind)) / len(drawn)


# Wilson's coverage oscillates: three of these 15 pairs of n and p lie outside 94 to 97%, exactly computed at 97.4,
# 97.8 and 93.5%.
OSCILLATION = {(30, 0.9): (0.969, 0.979), (30, 0.98): (0.973, 0.983), (198, 0.98): (0.927, 0.943)}


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize("n", NS)
def test_wilson_contains_the_truth_in_95_percent(n, p):
    drawn = numpy.random.default_rng(n).binomial(n, p, DRAWS)
    low, high = OSCILLATION.get((n, p), (0.94, 0.97))
    assert low <= _coverage(lambda k: p in wilson(int(k) / n, n), drawn) <= high


@pytest.mark.parametrize(("p", "q"), [(0.5, 0.5), (0.5, 0.6), (0.9, 0.9), (0.9, 0.98)])
@pytest.mark.parametrize("n", [164, 2500])
def test_newcombe_contains_the_truth_in_95_percent(n, p, q):
    drawn = numpy.random.default_rng(n).binomial(n, [p, q], (2000, 2))
    covered = _coverage(lambda k: p - q in newcombe(int(k[0]) / n, n, int(k[1]) / n, n), drawn)
    assert 0.935 <= covered <= 0.975


def _correlated(generator, n, p, q, correlation):
    """Results of two models on n questions; for p = q their correlation is as given."""
    first, second, same = generator.random((3, n))
    second = numpy.where(same < correlation, first, second)
    return [[[int(score)] for score in row] for row in (first < p, second < q)]


@pytest.mark.parametrize("correlation", [0, 0.5, 0.9])
@pytest.mark.parametrize(("n", "p"), [(30, 0.5), (164, 0.9)])
def test_paired_test_of_equal_models_errs_in_at_most_5_percent(n, p, correlation):
    generator = numpy.random.default_rng(3)
    found = [compare_paired(*_correlated(generator, n, p, p, correlation)) for _ in range(500)]
    assert sum(each.p <= 0.05 for each in found) / 500 <= 0.06
    assert sum(0 in each.interval for each in found) / 500 >= 0.92


@pytest.mark.parametrize("correlation", [0, 0.7])
@pytest.mark.parametrize(("n", "p", "q"), [(30, 0.96, 0.99), (164, 0.9, 0.8)])
def test_paired_interval_contains_a_true_difference(n, p, q, correlation):
    generator = numpy.random.default_rng(4)
    found = [compare_paired(*_correlated(generator, n, p, q, correlation)) for _ in range(500)]
    assert sum(p - q in each.interval for each in found) / 500 >= 0.925


@pytest.mark.parametrize(("groups", "size", "runs"), [(30, 1, 4), (40, 5, 1), (15, 4, 2)])
@pytest.mark.parametrize("correlation", [0, 0.5, 0.9])
def test_grouped_test_and_bootstrap_of_equal_models_err_in_about_5_percent(groups, size, runs, correlation):
    """Questions of a group share their difficulty, and each model's luck with the group to `correlation`."""
    generator, wrong, missed, tries = numpy.random.default_rng(5), 0, 0, 250
    names = [at // size for at in range(groups * size)]
    for _ in range(tries):
        base = generator.beta(1, 1, groups)
        luck = generator.normal(0, 0.2, (3, groups))
        share = numpy.sqrt(correlation)
        chances = [base + share * luck[2] + numpy.sqrt(1 - correlation) * luck[model] for model in (0, 1)]
        rows = [(generator.random((groups * size, runs)) < c.repeat(size)[:, None]).astype(int) for c in chances]
        found = compare_paired(*(each.tolist() for each in rows), names, draws=1000)
        wrong += found.p <= 0.05
        missed += 0 not in found.interval
    assert wrong / tries <= 0.08
    assert missed / tries <= 0.09


@pytest.mark.parametrize("n", [60, 200, 1000])
@pytest.mark.parametrize("f1", [0.84, 0.97])
def test_f1_interval_contains_the_truth_in_95_percent(n, f1):
    right, wrong = 0.32 * f1, 0.32 * (1 - f1)
    shares = [right, wrong, wrong, 1 - right - 2 * wrong]
    drawn = numpy.random.default_rng(6).multinomial(n, shares, 1000)
    kept = drawn[drawn[:, :3].sum(axis=1) > 0]
    hits = [f1 in f1_interval(*map(int, each), draws=100).interval for each in kept]
    assert 0.925 <= numpy.mean(hits) <= 0.98
