"""Processor sharing: jobs that share a capacity evenly, such as transfers on a link or sequences in a decode batch.

While n jobs are under way each advances at the same rate, so one virtual clock serves all: it advances at that rate, a
job ends where the clock reaches its begin plus its size, and a change costs O(log n).
"""

import heapq
import math
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class ProcessorSharing(Generic[T]):
    """`rate(n)`: units per second that each of n jobs advances by. Times must not run backwards."""

    __slots__ = ("_clock", "_ends", "_jobs", "_order", "_rate", "_speed", "n", "now", "version")

    def __init__(self, rate: Callable[[int], float]) -> None:
        self._rate = rate
        self._clock = 0.0  # units that a job present from the start has advanced by
        self._speed = 0.0
        self._jobs: dict[T, float] = {}  # to the clock's value at its end
        self._ends: list[tuple[float, int, T]] = []  # a heap; entries of jobs that left are skipped
        self._order = 0  # equal ends: first in, first out
        self.now = 0.0
        self.n = 0  # jobs under way
        self.version = 0  # changes whenever `next_end` may

    def __contains__(self, job: T) -> bool:
        return job in self._jobs

    @property
    def jobs(self) -> list[T]:
        """In the order of joining."""
        return list(self._jobs)

    def join(self, now: float, job: T, size: float) -> None:
        """A job of `size` units begins."""
        self._clock += (now - self.now) * self._speed
        self.now = now
        self._order += 1
        self._jobs[job] = end = self._clock + size
        heapq.heappush(self._ends, (end, self._order, job))
        self.n += 1
        self._speed = self._rate(self.n)
        self.version += 1

    def leave(self, now: float, job: T) -> float:
        """A job stops before its end; returns the units that it had left."""
        self.advance(now)
        left = max(0.0, self._jobs.pop(job) - self._clock)
        self._changed()
        return left

    def left(self, now: float, job: T) -> float:
        """Units that a job has left."""
        return max(0.0, self._jobs[job] - self._clock - (now - self.now) * self._speed)

    def rate_changed(self, now: float) -> None:
        """From now on `rate` returns other values."""
        self.advance(now)
        self._changed()

    def advance(self, now: float) -> None:
        self._clock += (now - self.now) * self._speed
        self.now = now

    def next_end(self) -> float:
        """When the first job ends if nothing changes; infinite without jobs and at a rate of 0."""
        ends, jobs = self._ends, self._jobs
        while ends:
            end, _, job = ends[0]
            if jobs.get(job) == end:
                left = end - self._clock
                return self.now + (left / self._speed if left > 0 else 0.0) if self._speed > 0 else math.inf
            heapq.heappop(ends)
        return math.inf

    def end_first(self, now: float) -> T:
        """The job that `next_end` announced for `now` ends."""
        end, _, job = heapq.heappop(self._ends)
        clock = self._clock + (now - self.now) * self._speed
        self._clock = clock if clock > end else end  # rounding must not leave it a little short
        self.now = now
        del self._jobs[job]
        self._changed()
        return job

    def _changed(self) -> None:
        self.n = n = len(self._jobs)
        self._speed = self._rate(n) if n else 0.0
        if not n:
            self._clock = 0.0  # keeps its digits over a long run
            self._ends.clear()
        self.version += 1
