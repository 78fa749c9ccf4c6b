"""How many seconds a place takes for a prompt, learned from first tokens: a + b times its uncached tokens.

The two are fitted by least squares over recent observations. Until there are some, and again when the last ones are
old, a guess stands in for them, so that a place that was slow once is tried again.
"""

import math

from earthshine.prfaas.curve import Curve

GUESS = (0.05, 1e-3)  # seconds, and seconds per token: the same for every place, so that load is divided evenly
_GUESS_TOKENS = (0.0, 4096.0)  # where the guess counts as observed
_GUESS_WEIGHT = 0.01  # of an observation: one is believed at once
_KEPT = 0.95  # of the weight of what is known, at each observation: about the last twenty count
_FORGET_SECONDS = 600.0  # the weight of an observation falls to 1/e in this time
_LONG = 1 << 20  # tokens


class LearnedSeconds:
    """Seconds of prefill over tokens."""

    def __init__(self) -> None:
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)  # weight, tokens, seconds, tokens squared, tokens x seconds
        self._last = 0.0
        self.observations = 0

    def observe(self, now: float, tokens: float, seconds: float) -> None:
        """A prompt of `tokens` uncached tokens took `seconds`, without what it waited for others."""
        kept = _KEPT * self._age(now)
        new = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        self._sums = tuple(kept * old + each for old, each in zip(self._sums, new, strict=True))  # type: ignore[assignment]
        self._last = now
        self.observations += 1

    def _age(self, now: float) -> float:
        return math.exp(-max(0.0, now - self._last) / _FORGET_SECONDS)

    def line(self, now: float) -> tuple[float, float]:
        """Seconds for no tokens, and seconds per token."""
        age = self._age(now)
        weight, x, y, xx, xy = (age * each for each in self._sums)
        for tokens in _GUESS_TOKENS:
            seconds = GUESS[0] + GUESS[1] * tokens
            weight += _GUESS_WEIGHT
            x += _GUESS_WEIGHT * tokens
            y += _GUESS_WEIGHT * seconds
            xx += _GUESS_WEIGHT * tokens * tokens
            xy += _GUESS_WEIGHT * tokens * seconds
        slope = max(0.0, (weight * xy - x * y) / max(weight * xx - x * x, 1e-9))
        base = (y - slope * x) / weight
        if base < 0:  # then through the origin
            base, slope = 0.0, xy / xx
        return base, slope

    def curve(self, now: float) -> Curve:
        """The line as a curve, never of no seconds at all."""
        base, slope = self.line(now)
        base = max(base, 1e-6)
        return Curve(((0.0, base), (float(_LONG), base + max(slope, 1e-9) * _LONG)))
