"""Thresholds of fleets with several clusters that decode, where what one stage sends takes room from the others.

Then the rate may have several peaks, and ridges on which no threshold can be moved alone. So it is climbed from more
than one start, in random steps of every size that are the same each time.
"""

import math
import random
from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement

from earthshine.prfaas.throughput import Model

_STARTS = 500  # thresholds of a grid, the best of which is one start
_LARGEST_STEP, _SMALLEST_STEP = 0.5, 3e-5  # times the threshold
_STEPS, _FINE_STEPS = 60, 400  # of a climb, for each threshold
_NEAR = 1e-4  # below the bound is as good as it
_BLOCKED = 0.3  # of the thresholds stay in a step


def joint_thresholds(
    model: Model, start: Sequence[float], cuts: Sequence[float], bound: float, *, fine: bool
) -> list[float]:
    """Whole thresholds with the highest rate that is found from `start` and from a grid of `cuts`.

    bound: a rate that ends a climb when it is reached. fine: with more steps.
    """
    starts = [list(start), max(_grid(len(start), cuts), key=model.limit)]
    steps = _FINE_STEPS if fine else _STEPS
    return max((_climbed(model, each, bound, steps) for each in starts), key=model.limit)


def _grid(n: int, cuts: Sequence[float]) -> Iterator[list[float]]:
    """Ascending `n` of as many cuts as give at most _STARTS of them, or of two."""
    size = next((k for k in range(len(cuts), 2, -1) if _combinations(k, n) <= _STARTS), 2)
    chosen = [cuts[round(i * (len(cuts) - 1) / (size - 1))] for i in range(size)]
    return (list(found) for found in combinations_with_replacement(chosen, n))


def _combinations(k: int, n: int) -> int:
    return math.comb(k + n - 1, n)


def _climbed(model: Model, best: list[float], bound: float, steps: int) -> list[float]:
    draw, rate = random.Random(0), model.limit(best)
    for _ in range(steps * len(best)):
        if rate >= bound * (1 - _NEAR):
            break
        size = _LARGEST_STEP * (_SMALLEST_STEP / _LARGEST_STEP) ** draw.random()
        moved = [t if draw.random() < _BLOCKED else float(round(t * (1 + draw.gauss(0, size)))) for t in best]
        moved = sorted(min(model.lengths.longest, max(0.0, tokens)) for tokens in moved)
        found = model.limit(moved)
        if found > rate:
            best, rate = moved, found
    return best
