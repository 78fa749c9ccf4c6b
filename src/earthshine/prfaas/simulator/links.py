"""The simulator's links: transfers share one evenly, its rate changes, it loses segments; routers know smoothed
measurements of it."""

import math

from earthshine.prfaas.route import LEAST_RATE, LinkState
from earthshine.prfaas.simulator.conditions import Conditions
from earthshine.prfaas.simulator.requests import SimulatedRequest
from earthshine.prfaas.simulator.transfers import Transfers
from earthshine.prfaas.simulator.waiting import LateShare


class SimulatedLink:
    """`state` is what routers see, the rest is the truth.

    `assigned`: requests that were routed over it and have not all arrived. What late prompts have to send is sent once
    it all exists, one prompt's after another, while half of the link or more is not used by others.
    """

    __slots__ = ("_assigned_bytes", "_conditions", "_known_loss", "_late", "_late_bytes", "_late_sending",
                 "_late_waiting", "_loss", "_measured", "_n_sent", "_rate", "_share", "_transfers", "assigned",
                 "one_way_seconds", "scheduled", "state")  # fmt: skip

    def __init__(self, state: LinkState, round_trip_seconds: float, conditions: Conditions) -> None:
        self.state = state
        self.one_way_seconds = round_trip_seconds / 2
        self._conditions = conditions
        self._rate = state.bytes_per_second
        self._loss = self._known_loss = 0.0
        self._measured = 0.0  # time up to which the measurements are
        self.assigned: dict[SimulatedRequest, float] = {}  # to bytes to send; 0 when all are sent
        self._assigned_bytes = 0.0  # so far, without those given up
        self._n_sent = 0  # of `assigned`
        self._transfers: Transfers[SimulatedRequest] = Transfers(self._rate)
        self._late: dict[SimulatedRequest, float] = {}  # of `assigned`, to bytes left when last sent
        self._late_bytes = 0.0  # all of these
        self._late_waiting: dict[SimulatedRequest, None] = {}  # in the order in which they may be sent
        self._late_sending: SimulatedRequest | None = None
        self._share = LateShare()
        self.scheduled = -1  # the version for whose next change there is an event

    @property
    def is_down(self) -> bool:
        return self._rate < LEAST_RATE

    @property
    def version(self) -> int:
        """Changes whenever `next_change` may."""
        return self._transfers.version

    def assign(self, request: SimulatedRequest, nbytes: float) -> None:
        """A request is routed over the link."""
        self.assigned[request] = nbytes
        self._assigned_bytes += nbytes
        self._n_sent += not nbytes
        if request.late and nbytes:
            self._set_late(request, nbytes)

    def became_late(self, request: SimulatedRequest) -> None:
        """A request of which nothing is sent yet is late now."""
        if nbytes := self.assigned.get(request, 0.0):
            self._set_late(request, nbytes)

    def _set_late(self, request: SimulatedRequest, left: float) -> None:
        self._late_bytes += left - self._late.get(request, 0.0)
        self._late[request] = left

    def _forget_late(self, request: SimulatedRequest) -> None:
        self._late_bytes -= self._late.pop(request, 0.0)
        if not self._late:
            self._late_bytes = 0.0
        self._late_waiting.pop(request, None)
        if request is self._late_sending:
            self._late_sending = None

    def release(self, now: float, request: SimulatedRequest) -> bool:
        """A request needs the link no more; whether it did before."""
        left = self.assigned.pop(request, None)
        if left is None:
            return False
        self._n_sent -= not left
        if request in self._transfers:
            self.measure(now)
            left = self._transfers.remove(now, request)
        elif request in self._late_waiting:
            left = self._late[request]
        self._forget_late(request)
        self._assigned_bytes -= left
        self._send_late(now)
        return True

    def start(self, now: float, request: SimulatedRequest, prefill_seconds: float = 0.0) -> None:
        """Begins to send what was assigned. prefill_seconds: a layer of its prompt is computed and the others come at
        this pace; 0: all bytes exist."""
        self.measure(now)
        nbytes = self.assigned[request]
        if request.late and nbytes:  # an empty cache delays no other
            if prefill_seconds <= 0:
                self._late_waiting[request] = None
                self._send_late(now)
            return
        if prefill_seconds > 0:
            self._transfers.add_growing(now, request, nbytes, nbytes / prefill_seconds)
        else:
            self._transfers.add(now, request, nbytes)
        self._send_late(now)

    def _send_late(self, now: float) -> None:
        """A late prompt's transfer begins, goes on or pauses, as others leave room."""
        sending = self._late_sending
        if sending is None and not self._late_waiting:
            return
        if sending is not None and not self._transfers.has_spare(1):
            self._late_sending = None
            self._set_late(sending, self._transfers.remove(now, sending))
            self._late_waiting = {sending: None} | self._late_waiting
        first = next(iter(self._late_waiting), None)
        if first is None or self._late_sending is not None:
            return
        idle = self._transfers.has_spare(0)
        if idle or self._share.spend(self._late[first]):
            del self._late_waiting[first]
            self._transfers.add(now, first, self._late[first])
            self._late_sending = first if idle else None

    def prefilled(self, now: float, request: SimulatedRequest) -> None:
        """All of a request's cache is computed."""
        if request in self._transfers:
            self._transfers.complete(now, request)
            self._send_late(now)
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
            if self._late_waiting:
                self._share.earn(self.assigned[ended])
            self._forget_late(ended)
            self._n_sent += self.assigned[ended] > 0
            self.assigned[ended] = 0.0
        self._send_late(now)
        return ended

    def sent_bytes(self, now: float) -> float:
        return self._transfers.sent_bytes(now)

    def change(self, now: float, bytes_per_second: float, loss: float) -> None:
        """From now on the link has another rate and loses another share of the segments."""
        self.measure(now)
        self._rate = self._conditions.carried(bytes_per_second, loss, 2 * self.one_way_seconds)
        self._loss = loss
        self._transfers.set_rate(now, self._rate)
        self._send_late(now)

    def detect(self) -> None:
        """The router learns that the link is down, or at which rate it is up again."""
        if self.is_down or self.state.bytes_per_second < LEAST_RATE:
            self.state.bytes_per_second, self._known_loss = self._rate, self._loss

    def measure(self, now: float) -> None:
        """Brings the measurements up to now, over a time in which the true values did not change."""
        elapsed, self._measured = now - self._measured, now
        state = self.state
        if state.bytes_per_second == self._rate and self._known_loss == self._loss:
            return
        if self._rate > 0 and state.bytes_per_second > 0:
            constant = self._conditions.busy_seconds if len(self._transfers) else self._conditions.idle_seconds
            followed = -math.expm1(-elapsed / constant)
            state.bytes_per_second += (self._rate - state.bytes_per_second) * followed
            self._known_loss += (self._loss - self._known_loss) * followed

    def refresh(self, now: float) -> None:
        """Writes what a router knows now into the state. Retransmissions are counted, so they are known at once."""
        self.measure(now)
        unsent = self._assigned_bytes - self._transfers.sent_bytes(now)
        if self._late_sending is not None:
            self._set_late(self._late_sending, self._transfers.left(now, self._late_sending))
        self.state.queued_bytes = max(0.0, unsent - self._late_bytes) if self.assigned else 0.0
        self.state.late_bytes = self._late_bytes
        self.state.n_queued = len(self.assigned) - self._n_sent - len(self._late)
        self.state.retransmitted = max(0.0, self._loss - self._known_loss)
