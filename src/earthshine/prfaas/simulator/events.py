"""The simulator's events: a heap by time. Equal times are handled in the order of their being pushed."""

import heapq
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

    def run_before(self, seconds: float) -> None:
        """Handles the events before a time."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] < seconds:
            now, _, action, argument = pop(heap)
            action(now, argument)

    def run_next(self) -> float:
        """Handles the next event; returns its time."""
        now, _, action, argument = heapq.heappop(self._heap)
        action(now, argument)
        return now
