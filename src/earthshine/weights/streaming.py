"""Units of the trunk that stream through two buffers: leased while a forward pass uses them, and read ahead.

Invariant: a leased buffer is not written to. So a pass may be paused anywhere while another one runs through any units;
that one uses the other buffer, without reading ahead. Refuses a third pass.
"""

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from weakref import WeakSet

from torch import Tensor

from earthshine.errors import UsageError
from earthshine.kernels import Weight
from earthshine.weights.reading import Priority, Reader, Ticket
from earthshine.weights.slots import Arena

UnitWeights = Mapping[str, Weight]
_BUFFERS = 2


class _Buffer:
    def __init__(self, view: memoryview, tensor: Tensor) -> None:
        self.view, self.tensor = view, tensor
        self.unit: str | None = None  # whose reads are all queued, or have ended
        self.tickets: list[Ticket] = []  # that may still write here; noted before they can begin
        self.weights: UnitWeights | None = None  # once they have ended
        # Weak, so that a lease also ends where an interrupt keeps its `with` from ending it.
        self.leases: WeakSet[Lease] = WeakSet()

    def settle(self) -> None:
        """Takes the buffer back from reads that nobody will use."""
        self.unit = self.weights = None
        for ticket in self.tickets:
            if not ticket.cancel():
                ticket.settle()
        self.tickets = []


class Lease:
    """A context manager, within which the unit's weights stay in place."""

    __slots__ = ("__weakref__", "_buffer", "_weights")

    def __init__(self, buffer: _Buffer, weights: UnitWeights) -> None:
        self._buffer, self._weights = buffer, weights
        buffer.leases.add(self)

    def __enter__(self) -> UnitWeights:
        return self._weights

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._buffer.leases.discard(self)


class StreamedUnits:
    """`names`: in the order of a forward pass, each of at most `nbytes` in memory. `tickets` makes the reads of a unit
    into a buffer; `weights` makes its tensors once the reads have ended."""

    def __init__(
        self,
        names: Sequence[str],
        nbytes: int,
        reader: Reader,
        tickets: Callable[[str, memoryview], list[Ticket]],
        weights: Callable[[str, Tensor], UnitWeights],
    ) -> None:
        self._names, self._reader, self._tickets, self._weights = list(names), reader, tickets, weights
        memory = Arena(nbytes, _BUFFERS)
        memory.touch()
        self._buffers = [_Buffer(memory.view(at), memory.tensor(at)) for at in range(_BUFFERS)]
        self._read(self._names[0], self._buffers[0], Priority.PREFETCH)

    def lease(self, name: str) -> Lease:
        """The unit's weights, once they are read. Raises CheckpointError where they can't be read, and UsageError where
        every buffer is leased to another unit."""
        buffer = next((each for each in self._buffers if each.unit == name), None)
        if buffer is None:
            buffer = self._unleased(name)
            if buffer is None:
                raise UsageError(f"{_BUFFERS} passes hold all buffers of streamed weights; no third one can run.")
            self._read(name, buffer, Priority.DEMAND)
        if buffer.weights is None:
            try:
                finish(buffer.tickets)
            except Exception:
                buffer.unit = None  # so that it is read again
                raise
            buffer.weights = self._weights(name, buffer.tensor)
        lease = Lease(buffer, buffer.weights)
        self._read_ahead(name)
        return lease

    def _read_ahead(self, name: str) -> None:
        follower = self._names[(self._names.index(name) + 1) % len(self._names)]
        if any(buffer.unit == follower for buffer in self._buffers):
            return
        buffer = self._unleased(name)
        if buffer is not None:
            self._read(follower, buffer, Priority.PREFETCH)

    def _unleased(self, name: str) -> _Buffer | None:
        """The buffer whose unit a pass that is at `name` needs last."""
        free = [buffer for buffer in self._buffers if not buffer.leases]
        return max(free, key=lambda buffer: self._steps(name, buffer.unit), default=None)

    def _steps(self, name: str, unit: str | None) -> int:
        n_names = len(self._names)
        return n_names if unit is None else (self._names.index(unit) - self._names.index(name)) % n_names

    def _read(self, name: str, buffer: _Buffer, priority: Priority) -> None:
        buffer.settle()
        buffer.tickets = self._tickets(name, buffer.view)
        for ticket in buffer.tickets:
            self._reader.queue(ticket, priority)
        buffer.unit = name


def finish(tickets: Sequence[Ticket]) -> None:
    """Waits for all, so that the buffers are free whatever happens; raises the first error."""
    for ticket in tickets:
        ticket.hasten()
    for ticket in tickets:
        ticket.settle()
    for ticket in tickets:
        ticket.wait()
