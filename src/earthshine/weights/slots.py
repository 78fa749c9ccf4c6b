"""Which published experts stay in memory, within a number of bytes that is never exceeded.

Owns the budget and the rule of eviction; knows nothing of what an expert is. The rule is least recently used for
now. A better one replaces this class and keeps its three methods: look, make room before a read, keep after it.
"""

from collections import OrderedDict
from typing import Generic, TypeVar

Key = tuple[int, int]  # layer, expert
T = TypeVar("T")


class LruSlots(Generic[T]):
    """At most `budget_bytes` of values, the least recently looked-up one leaving first."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.resident_bytes = 0
        self._kept: OrderedDict[Key, tuple[T, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def look(self, key: Key) -> T | None:
        """The value, now the most recently used, or None."""
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def make_room(self, nbytes: int) -> None:
        """Evicts until `nbytes` more fit, so that even while they are being read the budget holds."""
        while self._kept and self.resident_bytes + nbytes > self.budget_bytes:
            _, (_, released) = self._kept.popitem(last=False)
            self.resident_bytes -= released

    def keep(self, key: Key, value: T, nbytes: int) -> None:
        """Stores a value that `look` did not find and that `make_room` made room for."""
        self._kept[key] = value, nbytes
        self.resident_bytes += nbytes
