"""The receiver's side of one transfer: what was asked for, what has arrived and was verified, and where it goes."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from threading import Event, Lock
from time import monotonic
from typing import Any, Protocol

from earthshine.errors import EarthshineError
from earthshine.prfaas.wire.fault import Reason, WireError
from earthshine.prfaas.wire.link import byte_views
from earthshine.prfaas.wire.messages import Ack, Again, Arrived, Begin, Block, Request
from earthshine.prfaas.wire.request import PrefillRequest
from earthshine.prfaas.wire.writer import MOST_PIECES
from earthshine.storage.blob import DIGEST_BYTES, block_digest, header_digest

_UNKNOWN = (1 << 32) - 1


class PieceSink(Protocol):
    """Where a transfer's pieces go. Called from several threads at once, for different blocks; must return soon.

    An exception of `begin` or `buffers` ends the transfer, with its message as the reason. Nothing is called, and no
    buffer is written, after `ended`.
    """

    def begin(self, piece: int, header: bytes) -> None:
        """A piece's header (`kv.header`), whose digest was verified. Refuses one that does not fit by an exception."""
        ...

    def buffers(self, piece: int, index: int) -> Sequence[Any]:
        """Writable buffers, such as rows of pages, that have exactly the block's bytes in all."""
        ...

    def block(self, piece: int, index: int) -> None:
        """The block is in its buffers, and was verified."""
        ...

    def ended(self, error: WireError | None) -> None:
        """The transfer is over: complete, or as far as the verified blocks. Called once."""
        ...


class Transfer:
    """One request on its way. `done` is set once it is over; `error` then says why, None if it is complete."""

    def __init__(
        self,
        number: int,
        request: PrefillRequest,
        sink: PieceSink,
        deadline_seconds: float,
        window_bytes: int,
        over: "Callable[[Transfer], None]",
    ) -> None:
        self.number, self.request, self.deadline = number, request, monotonic() + deadline_seconds
        self.done, self.error = Event(), None
        self.received_bytes = self.dropped_bytes = 0  # of blocks: verified; that came again or damaged
        self.accepted = False
        self.asked_on: int | None = None  # the connection that carries the request
        self._sink, self._window_bytes, self._notify = sink, window_bytes, over
        self._lock = Lock()
        self._seeds: dict[int, bytes] = {}  # by piece: its header's digest
        self._claimed: set[tuple[int, int]] = set()  # blocks that arrive or have arrived
        self._verified: set[int] = set()  # sequence numbers from `_floor` on
        self._floor, self._last = 0, _UNKNOWN
        self._busy = 0  # threads in the sink or its buffers
        self._over = False

    error: WireError | None

    def cancel(self) -> None:
        """End the transfer. What was verified stays with the sink."""
        self.finish(WireError(Reason.CANCELLED, "The transfer was cancelled."))

    def wait(self, seconds: float | None = None) -> bool:
        """Whether the transfer was over within `seconds`."""
        return self.done.wait(seconds)

    def result(self) -> None:
        """Waits for the end. Raises WireError unless the transfer is complete."""
        self.done.wait()
        if self.error is not None:
            raise self.error

    # What the peer's connections call.

    def over(self) -> bool:
        return self._over

    def finish(self, error: WireError | None) -> None:
        """End the transfer; `ended` is called once no thread uses the sink's buffers."""
        with self._lock:
            if self._over:
                return
            self._over, self.error = True, error
            free = not self._busy
        self._notify(self)
        if free:
            self._end()

    def message(self) -> Request:
        left = max(0.0, self.deadline - monotonic())
        return Request(self.number, self._credit(), int(1000 * left), self.request)

    def arrived(self) -> Arrived:
        with self._lock:
            return Arrived(self.number, self._credit(), self._floor, sorted(self._verified))

    def begin(self, message: Begin) -> Ack | None:
        """Take a piece's header. Returns what to answer; raises WireError where the peer breaks the protocol."""
        header = message.header
        seed = header[-DIGEST_BYTES:]
        if header_digest(header[:-DIGEST_BYTES]) != seed:  # not on its way, as the frame's CRC-32 shows
            self.finish(WireError(Reason.DAMAGED, "A piece's header was damaged at the sender: its digest is wrong."))
            return None
        with self._lock:
            known = self._seeds.get(message.piece)
            if message.piece >= MOST_PIECES or (known is not None and not self._has(message.seq)):
                raise WireError(Reason.PROTOCOL, f"Piece {message.piece} has two headers, or is beyond the limit.")
            if self._over or known is not None:
                return None if self._over else self._ack(message.seq)
            self._busy += 1
        if self._called(lambda: self._sink.begin(message.piece, header)):
            with self._lock:
                self._seeds[message.piece] = seed
                return self._ack(message.seq)
        return None

    def claim(self, block: Block) -> list[memoryview] | None:
        """The bytes to receive a block into, after which `settle` is called; None where it is not wanted (again)."""
        with self._lock:
            if self._over or self._has(block.seq):
                return None
            if block.piece not in self._seeds or (block.piece, block.index) in self._claimed:
                raise WireError(Reason.PROTOCOL, f"Block {block.index} of piece {block.piece} was not to come now.")
            self._claimed.add((block.piece, block.index))
            self._busy += 1
        views: list[memoryview] = []
        if not self._called(lambda: views.extend(_writable(self._sink.buffers(block.piece, block.index))), stays=True):
            return None
        nbytes = sum(map(len, views))
        if nbytes != block.nbytes:
            why = f"Block {block.index} has {nbytes} bytes; the sender announces {block.nbytes}."
            self.finish(WireError(Reason.LENGTH, why))
            self._leave()
            return None
        return views

    def settle(self, block: Block, views: Sequence[memoryview], whole: bool) -> Ack | Again | None:
        """After a claimed block has arrived, or not: verifies it. Returns what to answer."""
        sound = whole and block_digest(self._seeds[block.piece], block.index, views) == block.digest
        if sound and self._called(lambda: self._sink.block(block.piece, block.index)):
            with self._lock:
                self.received_bytes += block.nbytes
                return self._ack(block.seq)
        if not sound:
            with self._lock:
                self._claimed.discard((block.piece, block.index))
                self.dropped_bytes += block.nbytes if whole else 0
            self._leave()
        return Again(self.number, block.seq) if whole and not self._over else None

    def known(self, block: Block) -> Ack:
        """What to answer to a block that came again although it had been verified."""
        with self._lock:
            self.dropped_bytes += block.nbytes
            return self._ack(block.seq)

    def end(self, seq: int) -> Ack | None:
        with self._lock:
            if self._last not in (_UNKNOWN, seq):
                raise WireError(Reason.PROTOCOL, "A transfer ends twice.")
            self._last = seq
            return None if self._over else self._ack(seq)

    @property
    def complete(self) -> bool:
        with self._lock:
            return self._floor > self._last

    def _credit(self) -> int:
        return self.received_bytes + self._window_bytes

    def _has(self, seq: int) -> bool:
        return seq < self._floor or seq in self._verified

    def _ack(self, seq: int) -> Ack:
        if seq >= self._floor:
            self._verified.add(seq)
        while self._floor in self._verified:
            self._verified.remove(self._floor)
            self._floor += 1
        return Ack(self.number, self._credit(), [seq])

    def _called(self, call: Callable[[], object], stays: bool = False) -> bool:
        """Whether a call of the sink went well; if not, the transfer ends. `stays`: the thread goes on in it then."""
        try:
            call()
        except Exception as error:
            said = str(error) if isinstance(error, EarthshineError) else f"{type(error).__name__}: {error}"
            self.finish(WireError(Reason.REFUSED, f"The receiver does not take the piece: {said}"))
            stays = False
            return False
        finally:
            if not stays:
                self._leave()
        return True

    def _leave(self) -> None:
        with self._lock:
            self._busy -= 1
            free = self._over and not self._busy
        if free:
            self._end()

    def _end(self) -> None:
        try:
            self._sink.ended(self.error)
        finally:
            self.done.set()


def _writable(buffers: Sequence[Any]) -> list[memoryview]:
    """Views of the buffers' bytes. Raises TypeError for what has none or is read-only."""
    views = byte_views(buffers)
    if any(map(attrgetter("readonly"), views)):
        raise TypeError("a buffer is read-only")
    return views
