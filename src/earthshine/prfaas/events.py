"""The simulator's events: a heap by time. Equal times are handled in the order of their being pushed."""

import heapq
import math
from collections.abc import Callable
from typing import Any

Action = Callable[[float, Any], None]  # of the time and the event's argument


class EventQueue:
    """Events to come."""

    __slots__ = ("_heap", "_pushed")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Action, Any]] = []
        self._pushed = 0

    def __bool__(self) -> bool:
        return bool(self._heap)

    def push(self, seconds: float, action: Action, argument: Any) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (seconds, self._pushed, action, argument))

    def next_seconds(self) -> float:
        """When the next event happens; infinite where there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def run_next(self) -> float:
        """Handles the next event; returns its time."""
        seconds, _, action, argument = heapq.heappop(self._heap)
        action(seconds, argument)
        return seconds
