"""What the bound's linear program prices: resources in slots of time, and instances divided between two roles.

Sums over windows of slots and over sequences of roles are made from neighbours, so they take little memory and a time
about linear in the slots. Smooth ones are kept as logarithms, since prices differ by many orders of magnitude.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_STEP = 0.1  # of the first round, in units of the price at which a mean request costs 1
_FIRST, _SECOND = 0.9, 0.99  # share of the moments that each round keeps


@dataclass(slots=True, eq=False)
class Resource:
    """Seconds of instances or bytes of a link: what each slot has, its price, and the descent's slope and moments."""

    capacity: Array
    scale: float = 1.0  # price at which a mean request costs 1
    price: Array = field(init=False)
    slope: Array = field(init=False)
    _mean: Array = field(init=False)
    _square: Array = field(init=False)
    _kept: tuple[float, float] = (1.0, 1.0)  # of the moments at the start

    def __post_init__(self) -> None:
        self.price, self.slope, self._mean, self._square = (np.zeros_like(self.capacity) for _ in range(4))

    def step(self, done: float) -> None:
        """Adam's step (Kingma and Ba, arXiv 1412.6980), shorter with the share that is done; prices stay 0 or more."""
        slope = self.slope * self.scale
        self._mean = _FIRST * self._mean + (1 - _FIRST) * slope
        self._square = _SECOND * self._square + (1 - _SECOND) * slope**2
        first, second = self._kept = self._kept[0] * _FIRST, self._kept[1] * _SECOND
        size = np.sqrt(self._square / (1 - second)) + 1e-12
        length = _STEP * (1 - done) * self.scale
        self.price = np.maximum(0.0, self.price - length * self._mean / (1 - first) / size)


def windows(join: Callable[[Array, Array], Array], values: Array, width: int) -> Array:
    """`join` over each `width` neighbours, by their first: log2(width) joins of arrays."""
    n, size, offset = len(values) - width + 1, 1, 0
    found: Array | None = None
    while True:
        if width & size:
            part = values[offset : offset + n]
            found = part if found is None else join(found, part)
            offset += size
        if 2 * size > width:
            assert found is not None
            return found
        values, size = join(values[:-size], values[size:]), 2 * size


def spread(resource: Resource, bought: Array, width: int, warmth: float) -> Array:
    """What is bought of each slot: of `bought`, by the first slot of a window, the more the cheaper a slot is."""
    weights = -resource.price / (warmth * resource.scale)
    sums = windows(np.logaddexp, weights, width)
    with np.errstate(divide="ignore"):
        each = np.log(bought[: len(sums)]) - sums
    padded = np.full(len(weights) + width - 1, -np.inf)
    padded[width - 1 : width - 1 + len(each)] = each
    return np.exp(weights + windows(np.logaddexp, padded, width))


@dataclass(slots=True, eq=False)
class Division:
    """`n` instances that work in one of two roles, whose resources they are.

    One that works in a slot, and then converts for at least the time of `away` slots, works again `away` slots later at
    the earliest.
    """

    roles: tuple[Resource, Resource]
    n: int
    slot: float  # seconds
    away: int

    def most(self) -> float:
        """What the instances could earn at most at the present prices."""
        values = self.slot * self._prices()
        if self.away < 1:
            return self.n * float(values.max(axis=0).sum())
        return self.n * float(_sequences(np.maximum, values, self.away)[:, -1].max())

    def divide(self, warmth: float) -> None:
        """Adds the instances to the slopes of both roles, in either for the more of their time the more it earns."""
        values = self.slot * self._prices() / warmth
        if self.away < 1:
            logarithms = values - np.logaddexp.reduce(values)
        else:
            before = _sequences(np.logaddexp, values, self.away)
            after = _sequences(np.logaddexp, values[:, ::-1], self.away)[:, ::-1]
            logarithms = before + after - values - np.logaddexp.reduce(before[:, -1])
        for role, share in zip(self.roles, np.exp(logarithms), strict=True):
            role.slope += self.n * self.slot * share

    def _prices(self) -> Array:
        return np.stack([role.price for role in self.roles])


def _sequences(join: np.ufunc, values: Array, away: int) -> Array:
    """For each role and slot, `join` over all sequences of roles up to there of the sum of their `values`.

    A sequence stays in its role from slot to slot, or goes on in the other one `away` slots later. Slots are handled
    `away` at a time, since what comes from the other role is then known.
    """
    n = values.shape[1]
    sums = np.concatenate((np.zeros((2, 1)), np.cumsum(values, axis=1)), axis=1)
    found = np.empty_like(values)
    for begin in range(0, n, away):
        end = min(begin + away, n)
        chain = np.full((2, end - begin), -np.inf)
        if begin:
            chain[:] = found[::-1, begin - away : end - away] - sums[:, begin:end]
            chain[:, 0] = join(chain[:, 0], found[:, begin - 1] - sums[:, begin])
        else:
            chain[:, 0] = 0.0
        found[:, begin:end] = join.accumulate(chain, axis=1) + sums[:, begin + 1 : end + 1]
    return found
