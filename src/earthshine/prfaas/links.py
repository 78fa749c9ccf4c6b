"""The simulator's links: transfers share one evenly, its rate changes; routers know a smoothed measurement of it."""

import math

from earthshine.prfaas.conditions import Conditions
from earthshine.prfaas.route import LinkState
from earthshine.prfaas.sharing import Sharing


class Wire:
    """The truth about one link. Transfers are named by their jobs' numbers.

    `committed`: bytes by job that were routed over it and have not all arrived, which is what a router has on its list.
    """

    __slots__ = ("_conditions", "_rate", "_seen", "committed", "committed_bytes", "shared", "state", "trip")

    def __init__(self, state: LinkState, trip_seconds: float, conditions: Conditions) -> None:
        self.state = state
        self.trip = trip_seconds / 2
        self._conditions = conditions
        self._rate = state.bytes_per_second
        self._seen = 0.0
        self.committed: dict[int, float] = {}
        self.committed_bytes = 0.0
        self.shared: Sharing[int] = Sharing(lambda n: self._rate / n)

    @property
    def down(self) -> bool:
        return self._rate <= 0

    def commit(self, job: int, nbytes: float) -> None:
        self.committed[job] = nbytes
        self.committed_bytes += nbytes

    def settle(self, job: int) -> None:
        """A job needs the link no more."""
        self.committed_bytes = max(0.0, self.committed_bytes - self.committed.pop(job, 0.0))
        if not self.committed:
            self.committed_bytes = 0.0

    def change(self, now: float, rate: float) -> None:
        self.measure(now)
        self._rate = rate
        self.shared.reset_rate(now, lambda n: self._rate / n)

    def detect(self) -> None:
        """The router learns that the link is down, or at which rate it is up again."""
        if self.down or self.state.bytes_per_second <= 0:
            self.state.bytes_per_second = self._rate

    def measure(self, now: float) -> None:
        """Brings the measured rate up to now, over a time in which the true one did not change."""
        gone, self._seen = now - self._seen, now
        known = self.state.bytes_per_second
        if known != self._rate and known > 0 and not self.down:
            constant = self._conditions.busy_seconds if self.shared.n else self._conditions.idle_seconds
            self.state.bytes_per_second = known + (self._rate - known) * -math.expm1(-gone / constant)

    def refresh(self, now: float) -> None:
        """Writes what a router knows now into the state."""
        self.measure(now)
        self.state.queued_bytes = self.committed_bytes
