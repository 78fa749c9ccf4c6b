"""A measured quantity over a size, such as seconds of prefill over tokens: linear between its points."""

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, pairwise

from earthshine.errors import UsageError
from earthshine.untrusted import shown

_MOST_POINTS = 1000
# What a file may say: from a decode step of the fastest accelerators to a prefill of three years.
_LIMITS = {"tokens": (1, 1e9), "sequences": (1, 1e6), "bytes": (1, 1e15), "seconds": (1e-5, 1e8)}


@dataclass(frozen=True, slots=True)
class Curve:
    """Points (size, value), both ascending; sizes strictly. Calling it interpolates between them.

    Beyond the last point the last slope goes on, and below the first one the first slope, down to 0 at least. One point
    alone is a constant. Raises UsageError for other points.
    """

    points: tuple[tuple[float, float], ...]
    _sizes: tuple[float, ...] = field(init=False, repr=False, compare=False)
    _slopes: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pairs = list(pairwise(self.points))
        finite = all(map(math.isfinite, chain.from_iterable(self.points)))
        if not self.points or not finite or not all(a[0] < b[0] and a[1] <= b[1] for a, b in pairs):
            raise UsageError(f"A curve needs points of finite, ascending sizes and values, not {shown(self.points)}.")
        slopes = tuple((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs) or (0.0,)
        object.__setattr__(self, "_sizes", tuple(size for size, _ in self.points[1:-1]))
        object.__setattr__(self, "_slopes", slopes)

    def __call__(self, size: float) -> float:
        at = bisect.bisect_right(self._sizes, size)
        origin, value = self.points[at]
        return max(0.0, value + (size - origin) * self._slopes[at])

    def between(self, begin: float, end: float) -> float:
        """The value for a size of `end` of which the part up to `begin` exists already.

        What does not grow with the size (a pass over the weights, a recurrent state) is paid again, so this is
        f(end) - f(begin) + f(0), and f(end) for `begin` 0.
        """
        return self(end) - self(begin) + self(0) if begin else self(end)


def read_curve(field_name: str, value: object, unit: str, value_unit: str) -> Curve:
    """A curve from a file's list of pairs; raises UsageError that names the field, the pair and what would be right.

    unit, value_unit: tokens, sequences, bytes or seconds.
    """
    if not isinstance(value, list) or not 1 <= len(value) <= _MOST_POINTS:
        raise UsageError(f"{field_name} must be a list of 1 to {_MOST_POINTS} pairs [{unit}, {value_unit}].")
    return Curve(tuple(_ascending(field_name, value, unit, value_unit)))


def _ascending(field_name: str, value: list[object], unit: str, value_unit: str) -> Iterable[tuple[float, float]]:
    before = (0.0, 0.0)
    for number, pair in enumerate(value, 1):
        where = f"{field_name}: pair {number}, {shown(pair)},"
        if not isinstance(pair, list) or len(pair) != 2:
            raise UsageError(f"{where} must be two numbers, {unit} and {value_unit}.")
        for part, name in zip(pair, (unit, value_unit), strict=True):
            least, most = _LIMITS[name]
            if type(part) not in (int, float) or not least <= part <= most:
                raise UsageError(f"{where} must have {name} from {least:g} to {most:g}.")
        if pair[0] <= before[0]:
            raise UsageError(f"{where} must have more {unit} than the pair before it.")
        if pair[1] < before[1]:
            raise UsageError(f"{where} must have at least the {value_unit} of the pair before it.")
        before = (float(pair[0]), float(pair[1]))
        yield before
