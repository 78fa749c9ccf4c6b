"""What scipy and statsmodels say, for test_statistics.py where they are not installed:

python tests/unit/evals/statistics_values.py > tests/unit/evals/statistics_values.json
"""

import json

COUNTS = [(0, 1), (1, 1), (0, 30), (29, 30), (30, 30), (82, 164), (161, 164), (180, 198), (1350, 2500), (2500, 2500)]
PAIRS = [
    ((1350, 2500), (1325, 2500)),
    ((29, 30), (30, 30)),
    ((0, 30), (30, 30)),
    ((5, 10), (150, 164)),
    ((1, 1), (0, 1)),
]
DISCORDANT = [(0, 0), (1, 0), (5, 0), (0, 6), (3, 3), (93, 68), (94, 69), (600, 500), (5200, 5000)]
T = [(share, df) for share in (0.6, 0.9, 0.975, 0.9995) for df in (1, 2, 3, 4, 29, 163, 199, 200, 2499)]
PS = [0.01, 0.04, 0.03, 0.005, 0.5, 0.04]
TOST = [(0.001, 0.005, 0.02), (-0.03, 0.005, 0.02), (0.015, 0.01, 0.02)]
POWER = [(0.54, 0.53, 2500), (0.9, 0.8, 164), (0.347, 0.4, 2500)]


def values():
    """Raises ImportError without scipy or statsmodels."""
    from scipy import stats
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.power import normal_power_het
    from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint, proportions_ztest

    def newcombe(one, other):
        return confint_proportions_2indep(*one, *other, method="newcomb")

    def ztest(one, other):
        return proportions_ztest([one[0], other[0]], [one[1], other[1]])

    def power(first, second, n):
        error = (first * (1 - first) + second * (1 - second)) ** 0.5
        return normal_power_het(abs(first - second), n, 0.05, std_null=error, std_alternative=error)

    def tost(difference, error, margin):
        return max(stats.norm.sf((difference + margin) / error), stats.norm.cdf((difference - margin) / error))

    return {
        "wilson": [list(map(float, proportion_confint(*each, method="wilson"))) for each in COUNTS],
        "newcombe": [list(map(float, newcombe(*pair))) for pair in PAIRS],
        "ztest": [list(map(float, ztest(*pair))) for pair in PAIRS],
        "mcnemar": [float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0 for b, c in DISCORDANT],
        "t": [float(stats.t.ppf(*each)) for each in T],
        "holm": list(map(float, multipletests(PS, method="holm")[1])),
        "tost": [float(tost(*each)) for each in TOST],
        "power": [float(power(*each)) for each in POWER],
    }


if __name__ == "__main__":
    print(json.dumps(values(), indent=1))
