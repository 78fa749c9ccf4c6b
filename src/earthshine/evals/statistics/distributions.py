"""Tails and quantiles of the normal, Student's t and the binomial distribution, and the arguments' bounds.

The standard library has the normal distribution; the others are short enough not to need scipy.
"""

import math
from statistics import NormalDist

from earthshine.errors import UsageError
from earthshine.untrusted import shown

_NORMAL = NormalDist()
_LARGE_DF = 200  # from which the expansion of Student's t is exact to 1e-9


def between(name: str, value: float, least: float, most: float) -> float:
    """`value`; raises UsageError, also for nan, where it is not from `least` to `most`."""
    if not least <= value <= most:
        raise UsageError(f"{name} must be a number from {least:.10g} to {most:.10g}, not {shown(value)}.", name)
    return value


def counted_from(name: str, value: int, least: int) -> int:
    """`value`; raises UsageError where it is no whole number from `least` up."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} must be a whole number from {least} up, not {shown(value)}.", name)
    return value


def z_of(confidence: float) -> float:
    """The two-sided normal quantile: 1.96 for 0.95."""
    return normal_quantile((1 + strictly_inside("confidence", confidence)) / 2)


def strictly_inside(name: str, value: float) -> float:
    """`value`; raises UsageError where it is not between 0 and 1, both excluded."""
    if not 0 < value < 1:
        raise UsageError(f"{name} must lie between 0 and 1, such as 0.95, not {shown(value)}.", name)
    return value


def normal_quantile(share: float) -> float:
    return _NORMAL.inv_cdf(share)


def normal_cdf(z: float) -> float:
    """Accurate in both tails, which NormalDist.cdf is not."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


def two_sided_p(z: float) -> float:
    """The probability of a deviation of `z` standard errors or more in either direction."""
    return math.erfc(abs(z) / math.sqrt(2))


def z_value(difference: float, error: float) -> float:
    """The difference in standard errors. Without error, 0 for no difference and else infinite."""
    if error:
        return difference / error
    return math.copysign(math.inf, difference) if difference else 0.0


def t_cdf(t: float, df: int) -> float:
    """Student's t with `df` degrees of freedom; Abramowitz and Stegun 26.7.3 and 26.7.4, finite sums."""
    theta = math.atan2(t, math.sqrt(df))
    cosine = math.cos(theta)
    odd = df % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1, (df + 1) // 2 if odd else df // 2 + 1):
        total += term
        term *= cosine * cosine * (2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
    within = math.sin(theta) * total
    return 0.5 + ((theta + within) / math.pi if odd else within / 2)


def t_quantile(share: float, df: int) -> float:
    """The value that Student's t with `df` degrees of freedom stays below with probability `share`."""
    z = normal_quantile(share)
    if df >= _LARGE_DF:  # Abramowitz and Stegun 26.7.5
        terms: tuple[float, ...] = (
            (z**3 + z) / 4,
            (5 * z**5 + 16 * z**3 + 3 * z) / 96,
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
            (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
        )
        return z + sum(term / float(df) ** power for power, term in enumerate(terms, 1))
    low, high = -1.0, 1.0
    while t_cdf(low, df) > share:
        low *= 2
    while t_cdf(high, df) < share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < share else (low, middle)
    return (low + high) / 2


def fair_coin_p(heads: int, tosses: int) -> float:
    """The exact two-sided p of `heads` in `tosses` of a fair coin; 1 without tosses."""
    fewer = min(heads, tosses - heads)
    scale = math.lgamma(tosses + 1) - tosses * math.log(2)
    tail = math.fsum(math.exp(scale - math.lgamma(k + 1) - math.lgamma(tosses - k + 1)) for k in range(fewer, -1, -1))
    return min(1.0, 2 * tail)
