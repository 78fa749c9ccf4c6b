"""The simulator's links: transfers share one evenly, its rate changes, it loses segments; routers know smoothed
measurements of it."""

import math

from earthshine.prfaas.conditions import Conditions
from earthshine.prfaas.requests import SimulatedRequest
from earthshine.prfaas.route import LinkState
from earthshine.prfaas.transfers import Transfers


class SimulatedLink:
    """`state` is what routers see, the rest is the truth.

    `assigned`: requests that were routed over it and have not all arrived.
    """

    __slots__ = ("_assigned_bytes", "_conditions", "_known_loss", "_loss", "_measured", "_rate", "_transfers",
                 "assigned", "one_way_seconds", "state")  # fmt: skip

    def __init__(self, state: LinkState, round_trip_seconds: float, conditions: Conditions) -> None:
        self.state = state
        self.one_way_seconds = round_trip_seconds / 2
        self._conditions = conditions
        self._rate = state.bytes_per_second
        self._loss = self._known_loss = 0.0
        self._measured = 0.0  # time up to which the measurements are
        self.assigned: dict[SimulatedRequest, float] = {}  # to bytes to send; 0 when all are sent
        self._assigned_bytes = 0.0  # so far, without those given up
        self._transfers: Transfers[SimulatedRequest] = Transfers(self._rate)

    @property
    def is_down(self) -> bool:
        return self._rate <= 0

    @property
    def version(self) -> int:
        """Changes whenever `next_change` may."""
        return self._transfers.version

    def assign(self, request: SimulatedRequest, nbytes: float) -> None:
        """A request is routed over the link."""
        self.assigned[request] = nbytes
        self._assigned_bytes += nbytes

    def release(self, now: float, request: SimulatedRequest) -> bool:
        """A request needs the link no more; whether it did before."""
        left = self.assigned.pop(request, None)
        if left is None:
            return False
        if request in self._transfers:
            self.measure(now)
            left = self._transfers.remove(now, request)
        self._assigned_bytes -= left
        return True

    def start(self, now: float, request: SimulatedRequest, prefill_seconds: float = 0.0) -> None:
        """Begins to send what was assigned. prefill_seconds: a layer of its prompt is computed and the others come at
        this pace; 0: all bytes exist."""
        self.measure(now)
        nbytes = self.assigned[request]
        if prefill_seconds > 0:
            self._transfers.add_growing(now, request, nbytes, nbytes / prefill_seconds)
        else:
            self._transfers.add(now, request, nbytes)

    def prefilled(self, now: float, request: SimulatedRequest) -> None:
        """All of a request's cache is computed."""
        if request in self._transfers:
            self._transfers.complete(now, request)
        else:
            self.start(now, request)

    def next_change(self) -> float:
        """When a transfer ends or the shares of all change by themselves; infinite if never."""
        return self._transfers.next_change()

    def pop_ended(self, now: float) -> SimulatedRequest | None:
        """At the time of `next_change`: the request of which all bytes are sent, if one is."""
        self.measure(now)
        ended = self._transfers.pop_ended(now)
        if ended is not None:
            self.assigned[ended] = 0.0
        return ended

    def sent_bytes(self, now: float) -> float:
        return self._transfers.sent_bytes(now)

    def change(self, now: float, bytes_per_second: float, loss: float) -> None:
        """From now on the link has another rate and loses another share of the segments."""
        self.measure(now)
        self._rate = bytes_per_second / (1 + loss / self._conditions.halving_loss)
        self._loss = loss
        self._transfers.set_rate(now, self._rate)

    def detect(self) -> None:
        """The router learns that the link is down, or at which rate it is up again."""
        if self.is_down or self.state.bytes_per_second <= 0:
            self.state.bytes_per_second, self._known_loss = self._rate, self._loss

    def measure(self, now: float) -> None:
        """Brings the measurements up to now, over a time in which the true values did not change."""
        elapsed, self._measured = now - self._measured, now
        state = self.state
        if self.is_down or state.bytes_per_second <= 0:
            return
        if state.bytes_per_second != self._rate or self._known_loss != self._loss:
            constant = self._conditions.busy_seconds if len(self._transfers) else self._conditions.idle_seconds
            followed = -math.expm1(-elapsed / constant)
            state.bytes_per_second += (self._rate - state.bytes_per_second) * followed
            self._known_loss += (self._loss - self._known_loss) * followed

    def refresh(self, now: float) -> None:
        """Writes what a router knows now into the state. Retransmissions are counted, so they are known at once."""
        self.measure(now)
        unsent = self._assigned_bytes - self._transfers.sent_bytes(now)
        self.state.queued_bytes = max(0.0, unsent) if self.assigned else 0.0
        self.state.retransmitted = max(0.0, self._loss - self._known_loss)
