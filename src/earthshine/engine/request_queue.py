"""Requests that wait and requests that run, ordered by priority and arrival.

Invariant: every added request is in exactly one of `waiting` and `running` until it ends.
"""

from collections import Counter
from collections.abc import Container

from earthshine.engine.request import Finished
from earthshine.engine.sequence import TokenSequence


class RequestQueue:
    """`max_running`: the most sequences that are computed at once."""

    def __init__(self, max_running: int) -> None:
        self.max_running = max_running
        self.waiting: list[TokenSequence] = []  # in order
        self.running: list[TokenSequence] = []
        self.finished: Counter[str] = Counter()  # by reason

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def is_full(self) -> bool:
        return len(self.running) >= self.max_running

    def add(self, sequence: TokenSequence) -> None:
        self.waiting.append(sequence)
        self.waiting.sort(key=in_order)

    def start(self, sequence: TokenSequence) -> None:
        self.waiting.remove(sequence)
        self.running.append(sequence)

    def stop(self, sequence: TokenSequence) -> None:
        """Move a running request back to those that wait, at its place in the order."""
        self.running.remove(sequence)
        self.add(sequence)

    def last(self, besides: Container[TokenSequence]) -> TokenSequence | None:
        """The last running request in the order, except those in `besides`."""
        return max((each for each in self.running if each not in besides), key=in_order, default=None)

    def remove_ended(self, besides: Container[TokenSequence]) -> list[TokenSequence]:
        """End cancelled requests. Remove and return those that have ended, except `besides`."""
        removed = []
        for sequence in [*self.running, *self.waiting]:
            if sequence.cancelled:
                sequence.finish(Finished("cancelled"))
            if sequence.ended and sequence not in besides:
                (self.running if sequence in self.running else self.waiting).remove(sequence)
                self.finished[sequence.reason] += 1
                removed.append(sequence)
        return removed


def in_order(sequence: TokenSequence) -> tuple[int, int]:
    """A sort key: the lowest is computed first, the highest is preempted first."""
    return sequence.order
