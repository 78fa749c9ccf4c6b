"""The lengths of a workload's prompts, after prefix hits: a truncated log-normal, or those of a trace.

A distribution gives, for any band of lengths, the share of requests in it and their tokens; from these alone
`throughput` computes the expected value of any curve.
"""

import bisect
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import NormalDist
from typing import NamedTuple, Protocol

from earthshine.errors import UsageError
from earthshine.loadgen.trace import MOST_TOKENS, Arrival, Shape

_SQRT_2 = math.sqrt(2)
_STANDARD = NormalDist()


class Band(NamedTuple):
    """Requests with lengths in a band: their share of all requests, and their tokens per request of all."""

    share: float
    tokens: float

    @property
    def mean(self) -> float:
        """Tokens of a request in the band; 0 for an empty one."""
        return self.tokens / self.share if self.share > 0 else 0.0


class Lengths(Protocol):
    """A distribution of prompt lengths in tokens. Values are hashable and never change."""

    def __hash__(self) -> int: ...

    @property
    def shortest(self) -> float: ...

    @property
    def longest(self) -> float: ...

    @property
    def mean(self) -> float: ...

    def upto(self, tokens: float) -> Band:
        """Requests of at most `tokens` tokens."""
        ...

    def cuts(self, most: int) -> Sequence[float]:
        """At most `most` lengths, ascending and ending with `longest`, between which a threshold may be looked for."""
        ...


def between(lengths: Lengths, low: float, high: float) -> Band:
    """Requests of more than `low` and at most `high` tokens."""
    below, all_ = lengths.upto(low), lengths.upto(high)
    return Band(max(0.0, all_.share - below.share), max(0.0, all_.tokens - below.tokens))


@dataclass(frozen=True, slots=True)
class LogNormal:
    """exp of a normal of mean `mu` and deviation `sigma`, truncated to lengths from `least` to `most` tokens.

    Raises UsageError for a parameter out of range, and for limits that hold next to none of the distribution.
    """

    mu: float
    sigma: float
    least: float = 128
    most: float = 131072
    _limits: tuple[float, float, float, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, value, low, high in (("mu", self.mu, 0, 20), ("sigma", self.sigma, 0.01, 5)):
            if not low <= value <= high:
                raise UsageError(f"{name} of the lengths must be between {low} and {high}, not {value:g}.", name)
        if not 1 <= self.least < self.most <= MOST_TOKENS:
            raise UsageError(
                f"Lengths must lie between two numbers of tokens from 1 to {MOST_TOKENS}, the smaller one first, not "
                f"{self.least:g} and {self.most:g}."
            )
        begin, end = ((math.log(tokens) - self.mu) / self.sigma for tokens in (self.least, self.most))
        below, mass = _normal(begin), _normal(end) - _normal(begin)
        limits = (below, _normal(begin - self.sigma), mass, math.exp(self.mu + self.sigma**2 / 2))
        object.__setattr__(self, "_limits", limits)
        if mass < 1e-6:
            raise UsageError(
                f"Of the log-normal of mu {self.mu:g} and sigma {self.sigma:g}, next to nothing lies between "
                f"{self.least:g} and {self.most:g} tokens; its median is {math.exp(self.mu):.0f}."
            )

    @property
    def shortest(self) -> float:
        return self.least

    @property
    def longest(self) -> float:
        return self.most

    @property
    def mean(self) -> float:
        return self.upto(self.most).tokens

    def upto(self, tokens: float) -> Band:
        """Requests of at most `tokens` tokens."""
        end = (math.log(min(max(tokens, self.least), self.most)) - self.mu) / self.sigma
        below, tilted_below, mass, mean = self._limits
        return Band((_normal(end) - below) / mass, mean * (_normal(end - self.sigma) - tilted_below) / mass)

    def draw(self, source: random.Random) -> int:
        """One length, in whole tokens."""
        return round(self._quantile(source.random()))

    def cuts(self, most: int) -> Sequence[float]:
        """Half of them at equal ratios, half at equal shares of the requests: a narrow distribution lies between two
        of the former."""
        ratio, half = self.most / self.least, most // 2
        spread = (self.least * ratio ** (i / (most - half)) for i in range(1, most - half))
        return [
            *sorted({*spread, *(self._quantile(i / (half + 1)) for i in range(1, half + 1))} - {self.most}),
            self.most,
        ]

    def _quantile(self, share: float) -> float:
        below, mass = self._limits[0], self._limits[2]
        share = min(max(below + mass * share, 1e-16), 1 - 1e-16)
        return min(max(math.exp(self.mu + self.sigma * _STANDARD.inv_cdf(share)), self.least), self.most)


def _normal(x: float) -> float:
    return math.erfc(-x / _SQRT_2) / 2


def percentile(ranked: Sequence[float], share: float) -> float:
    """Of ascending values: the least that at least this share of them does not exceed."""
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


class Sample:
    """Observed lengths. Raises UsageError for none, and for one that is not a number of tokens from 1 on."""

    def __init__(self, tokens: Iterable[float]) -> None:
        self._sorted = sorted(tokens)
        if not self._sorted:
            raise UsageError("There are no lengths; give those of one request at least.")
        if not all(1 <= length <= MOST_TOKENS for length in self._sorted):  # nan fails too
            raise UsageError(f"A prompt's length must be between 1 and {MOST_TOKENS} tokens.")
        self._sums = list(accumulate(self._sorted, initial=0.0))

    @property
    def shortest(self) -> float:
        return self._sorted[0]

    @property
    def longest(self) -> float:
        return self._sorted[-1]

    @property
    def mean(self) -> float:
        return self._sums[-1] / len(self._sorted)

    def upto(self, tokens: float) -> Band:
        """Requests of at most `tokens` tokens."""
        n = bisect.bisect_right(self._sorted, tokens)
        return Band(n / len(self._sorted), self._sums[n] / len(self._sorted))

    def percentile(self, share: float) -> float:
        """The least length that at least this share of the requests does not exceed."""
        return percentile(self._sorted, share)

    def shorter(self, share: float) -> "Sample":
        """The shortest ones, one at least."""
        return Sample(self._sorted[: max(1, round(share * len(self._sorted)))])

    def cuts(self, most: int) -> Sequence[float]:
        """Lengths that occur, at equal shares of the requests where there are more than `most`."""
        n, step = len(self._sorted), max(1, math.ceil(len(self._sorted) / most))
        return list(dict.fromkeys(self._sorted[min(n, end) - 1] for end in range(step, n + step, step)))


def trace_lengths(arrivals: Sequence[Arrival]) -> Sample:
    """What of a trace's prompts is left to compute when one unlimited prefix cache keeps every block.

    At least one token of each prompt is computed, since it yields the first logits.
    """
    shape = Shape.of_tokens(0, 1.0)
    shared = shape.shared_units(arrivals)
    return Sample(max(1, a.input_tokens - found) for a, found in zip(arrivals, shared, strict=True))
