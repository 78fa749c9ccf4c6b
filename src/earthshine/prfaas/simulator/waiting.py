"""The order in which a simulated cluster or link serves what waits for it: by priority, then first in, first out.

A late prompt is served when none waits that can be in time. So that none waits for ever, late ones are also served
while others wait, with at most 5% of the work that those get.
"""

from collections.abc import Iterator
from itertools import chain

from earthshine.prfaas.simulator.requests import SimulatedRequest

# Of the work done for others while late prompts wait. In an overload that lasts, each percent costs about as many
# percent of the requests that could be in time.
LATE_SHARE = 0.05


class LateShare:
    """Work that late prompts may have while others wait: at most 5% of what those have had since the last one."""

    __slots__ = ("_earned",)

    def __init__(self) -> None:
        self._earned = 0.0

    def earn(self, work: float) -> None:
        """Others were served `work` while late prompts waited."""
        self._earned += LATE_SHARE * work

    def spend(self, work: float) -> bool:
        """Whether a late prompt of `work` may be served now, before others; what was earned beyond that is lost."""
        if self._earned < work:
            return False
        self._earned = 0.0
        return True


class WaitingRequests:
    """Requests that wait, with the work that each one is, in any unit."""

    __slots__ = ("_share", "late", "late_work", "timely")

    def __init__(self) -> None:
        self.timely: dict[SimulatedRequest, float] = {}  # in the order of arrival
        self.late: dict[SimulatedRequest, float] = {}
        self.late_work = 0.0
        self._share = LateShare()

    def __bool__(self) -> bool:
        return bool(self.timely or self.late)

    def __iter__(self) -> Iterator[SimulatedRequest]:
        return chain(self.timely, self.late)

    def add(self, request: SimulatedRequest, work: float) -> None:
        if request.late:
            self.late[request] = work
            self.late_work += work
        else:
            self.timely[request] = work

    def pop(self) -> tuple[SimulatedRequest, float]:
        """The next request and its work; there must be one."""
        first = next(iter(self.late), None)
        if first is not None and (not self.timely or self._share.spend(self.late[first])):
            return first, self._pop_late(first)
        request = next(iter(self.timely))
        work = self.timely.pop(request)
        if first is not None:
            self._share.earn(work)
        return request, work

    def remove(self, request: SimulatedRequest) -> None:
        """A request leaves if it waits here."""
        if request in self.late:
            self._pop_late(request)
        else:
            self.timely.pop(request, None)

    def _pop_late(self, request: SimulatedRequest) -> float:
        work = self.late.pop(request)
        self.late_work = self.late_work - work if self.late else 0.0
        return work
