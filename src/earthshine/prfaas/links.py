"""The simulator's links: transfers share one evenly, its rate changes; routers know a smoothed measurement of it."""

import math

from earthshine.prfaas.conditions import Conditions
from earthshine.prfaas.requests import SimulatedRequest
from earthshine.prfaas.route import LinkState
from earthshine.prfaas.sharing import ProcessorSharing


class SimulatedLink:
    """`state` is what routers see, the rest is the truth.

    `assigned`: bytes by request that were routed over it and have not all arrived.
    """

    __slots__ = ("_assigned_bytes", "_conditions", "_measured", "_rate", "assigned", "one_way_seconds", "state",
                 "transfers")  # fmt: skip

    def __init__(self, state: LinkState, round_trip_seconds: float, conditions: Conditions) -> None:
        self.state = state
        self.one_way_seconds = round_trip_seconds / 2
        self._conditions = conditions
        self._rate = state.bytes_per_second
        self._measured = 0.0  # time up to which the measurement is
        self.assigned: dict[SimulatedRequest, float] = {}
        self._assigned_bytes = 0.0
        self.transfers: ProcessorSharing[SimulatedRequest] = ProcessorSharing(lambda n: self._rate / n)

    @property
    def is_down(self) -> bool:
        return self._rate <= 0

    def assign(self, request: SimulatedRequest, nbytes: float) -> None:
        """A request is routed over the link."""
        self.assigned[request] = nbytes
        self._assigned_bytes += nbytes

    def release(self, now: float, request: SimulatedRequest) -> bool:
        """A request needs the link no more; whether that stopped a transfer of it."""
        nbytes = self.assigned.pop(request, None)
        if nbytes is None:
            return False
        self._assigned_bytes = max(0.0, self._assigned_bytes - nbytes) if self.assigned else 0.0
        if request not in self.transfers:
            return False
        self.transfers.leave(now, request)
        return True

    def change(self, now: float, rate: float) -> None:
        """From now on the link has another rate."""
        self.measure(now)
        self._rate = rate
        self.transfers.rate_changed(now)

    def detect(self) -> None:
        """The router learns that the link is down, or at which rate it is up again."""
        if self.is_down or self.state.bytes_per_second <= 0:
            self.state.bytes_per_second = self._rate

    def measure(self, now: float) -> None:
        """Brings the measured rate up to now, over a time in which the true one did not change."""
        elapsed, self._measured = now - self._measured, now
        known = self.state.bytes_per_second
        if known != self._rate and known > 0 and not self.is_down:
            constant = self._conditions.busy_seconds if self.transfers.n else self._conditions.idle_seconds
            self.state.bytes_per_second = known + (self._rate - known) * -math.expm1(-elapsed / constant)

    def refresh(self, now: float) -> None:
        """Writes what a router knows now into the state."""
        self.measure(now)
        self.state.queued_bytes = self._assigned_bytes
