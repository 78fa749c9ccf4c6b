"""How many questions a difference needs to show, and how likely it shows with those at hand.

All are for two-sided tests by the normal approximation, which the counts at stake (hundreds and more) justify.
"""

import math

from earthshine.errors import UsageError
from earthshine.evals.statistics.distributions import (
    between,
    counted_from,
    normal_cdf,
    normal_quantile,
    strictly_inside,
)
from earthshine.untrusted import shown

_POWER, _ALPHA = 0.8, 0.05


def needed_questions(first: float, second: float, power: float = _POWER, alpha: float = _ALPHA) -> int | None:
    """Questions for each of two models with true scores `first` and `second`, each answering its own or compared by
    scores alone, for the difference to be significant with probability `power`. None for equal scores.

    Source: (z_alpha + z_power)^2 (p1 q1 + p2 q2) / d^2, rounded up.
    """
    difference = between("first", first, 0, 1) - between("second", second, 0, 1)
    if not difference:
        return None
    variance = first * (1 - first) + second * (1 - second)
    return max(1, math.ceil(_quantiles(power, alpha) ** 2 * variance / difference**2))


def needed_pairs(difference: float, differing: float, power: float = _POWER, alpha: float = _ALPHA) -> int | None:
    """Questions that both models answer, for McNemar's test to find a true `difference` with probability `power`.

    `differing`: the share of questions that exactly one of them answers right, at least abs(difference). None without a
    difference. Source: Connor 1987, Biometrics 43:207.
    """
    _check_pairs(difference, differing)
    if not difference:
        return None
    beyond, found = _critical(alpha), normal_quantile(strictly_inside("power", power))
    spread = math.sqrt(max(0.0, differing - difference**2))
    return max(1, math.ceil((beyond * math.sqrt(differing) + found * spread) ** 2 / difference**2))


def needed_like(difference: float, error: float, n: int, power: float = _POWER, alpha: float = _ALPHA) -> int | None:
    """Questions like the `n` that gave a `difference` this standard error, for it to be significant with probability
    `power`. None without a difference. Source: the error falls with the square root of n."""
    between("error", error, 0, math.inf)
    counted_from("n", n, 1)
    if not difference:
        return None
    return max(1, math.ceil(n * (_quantiles(power, alpha) * error / difference) ** 2))


def power_of_questions(first: float, second: float, n: int, alpha: float = _ALPHA) -> float:
    """The probability that `n` questions for each show the difference of the true scores: `needed_questions` undone."""
    difference = abs(between("first", first, 0, 1) - between("second", second, 0, 1))
    error = math.sqrt((first * (1 - first) + second * (1 - second)) / counted_from("n", n, 1))
    if not error:
        return 1.0 if difference else 0.0
    return _either_side(difference / error, _critical(alpha))


def power_of_pairs(difference: float, differing: float, n: int, alpha: float = _ALPHA) -> float:
    """The probability that `n` questions answered by both show the difference: `needed_pairs` undone."""
    _check_pairs(difference, differing)
    counted_from("n", n, 1)
    spread = math.sqrt(max(0.0, differing - difference**2))
    effect, beyond = abs(difference) * math.sqrt(n), _critical(alpha) * math.sqrt(differing)
    if not spread:  # every difference has the same sign, or there is none
        return 1.0 if difference and effect >= beyond else 0.0
    return _either_side(effect / spread, beyond / spread)


def discordance(first: float, second: float, correlation: float) -> float:
    """The share of questions that exactly one of two models answers right, from their scores and the `correlation`
    between their results, question by question: at least what the scores' difference demands."""
    difference = between("first", first, 0, 1) - between("second", second, 0, 1)
    own = first * (1 - first), second * (1 - second)
    shared = 2 * between("correlation", correlation, -1, 1) * math.sqrt(own[0] * own[1])
    return min(1.0, max(abs(difference), sum(own) - shared + difference**2))


def most_discordance(difference: float, n: int, alpha: float = _ALPHA) -> float:
    """The largest share of `n` questions on which two models may differ for `difference` to be significant, if results
    are compared question by question: n d^2 / z^2, at most 1; 0 without a difference."""
    between("difference", difference, -1, 1)
    return min(1.0, counted_from("n", n, 1) * difference**2 / _critical(alpha) ** 2)


def _either_side(effect: float, beyond: float) -> float:
    return normal_cdf(effect - beyond) + normal_cdf(-effect - beyond)


def _critical(alpha: float) -> float:
    return normal_quantile(1 - strictly_inside("alpha", alpha) / 2)


def _quantiles(power: float, alpha: float) -> float:
    return _critical(alpha) + normal_quantile(strictly_inside("power", power))


def _check_pairs(difference: float, differing: float) -> None:
    between("difference", difference, -1, 1)
    between("differing", differing, 0, 1)
    if differing < abs(difference) * (1 - 1e-12):
        raise UsageError(
            f"differing is {shown(differing)}; a difference of {shown(difference)} needs at least that share.",
            "differing",
        )
