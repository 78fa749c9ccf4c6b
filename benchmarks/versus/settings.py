"""The peer at its best: of the settings that it offers, the fastest one for a measurement, each tried once.

Either a list of sides, all tried, or knobs: starting from the first value of each, one knob after the other is varied
and left at its fastest value. What was tried and what each took is kept for the table, failures too.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from earthshine.errors import UsageError

from .alternation import Measurement, Run, Side, run


@dataclass(frozen=True, slots=True)
class Knobs:
    """`make` gives the side of a choice; `values` names, for a measurement, what may be chosen, the likeliest first."""

    make: Callable[[Mapping[str, Any]], Side]
    values: Callable[[Measurement], Mapping[str, Sequence[Any]]]


def fastest(
    sides: Iterable[Side] | Knobs, measurement: Measurement, once: Callable[[Side, Measurement], Run] = run
) -> tuple[Side, dict[str, float | None]]:
    """The side of the best figure for this measurement, and what each setting took in seconds (None: it failed).

    A list of one is not tried. Raises UsageError with the reasons where every one fails.
    """
    trials = _Trials(measurement, once)
    if isinstance(sides, Knobs):
        return _turned(sides, trials), trials.tried
    listed = list(sides)
    if len(listed) == 1:
        return listed[0], {}
    best = min(listed, key=trials.figure)
    return trials.checked(best), trials.tried


class _Trials:
    def __init__(self, measurement: Measurement, once: Callable[[Side, Measurement], Run]) -> None:
        self._measurement, self._once = measurement, once
        self.tried: dict[str, float | None] = {}
        self._reasons: list[str] = []

    def figure(self, side: Side) -> float:
        answer = self._once(side, self._measurement)
        self.tried[side.setting] = None if answer.failed else answer.figure
        text = answer.failed or f"{answer.figure:.4g} s"
        self._reasons.append(f"{side.setting}: {text}")
        print(f"  tried {side.name}, {side.setting}: {text}", file=sys.stderr, flush=True)
        return answer.figure

    def checked(self, side: Side) -> Side:
        if self.tried[side.setting] is None:
            raise UsageError(f"{self._measurement.name}: no setting ran. " + "; ".join(self._reasons))
        return side


def _turned(knobs: Knobs, trials: _Trials) -> Side:
    values = knobs.values(trials._measurement)
    chosen = {name: options[0] for name, options in values.items()}
    best, least = knobs.make(chosen), float("inf")
    if all(len(options) == 1 for options in values.values()):
        return best
    least = trials.figure(best)
    for name, options in values.items():
        for option in options[1:]:
            side = knobs.make({**chosen, name: option})
            figure = trials.figure(side)
            if figure < least:
                best, least, kept = side, figure, option
                chosen = {**chosen, name: kept}
    return trials.checked(best)
