"""The sender's side of one transfer: items with sequence numbers, sent under credit and kept until acknowledged.

A handler's thread puts items in (`begin`, `block`, `end`, `fail`), connection threads take them out and send them. A
block follows its piece's header only once that was acknowledged, because connections overtake each other. After a
connection is lost, what it carried is sent again, except what the receiver then says has arrived. Buffers are held
until their block is acknowledged; their bytes must not change before `end` returns or anything here raises. A handler
that ends for a reason of its own calls `fail` before it gives its buffers back.
Called with a session's lock held is only `take`, so nothing here calls `ready` under its own lock.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition
from typing import Any

from earthshine.errors import UsageError
from earthshine.prfaas.wire.fault import Reason, WireError
from earthshine.prfaas.wire.frames import MOST_BLOCK_BYTES, MOST_HEADER_BYTES
from earthshine.prfaas.wire.link import Link, byte_views
from earthshine.prfaas.wire.messages import Arrived, Begin, Block, End, Failure
from earthshine.storage.blob import DIGEST_BYTES, block_digest

MOST_SENT_AGAIN = 3  # a block that arrives damaged more often is damaged at the sender, or the network is
MOST_PIECES = 1 << 16
LATE_SECONDS = 10.0


@dataclass(slots=True, eq=False)
class Item:
    message: Begin | Block | End | Failure
    views: Sequence[memoryview] = ()
    connection: int | None = None  # that carries or carried it
    sending: bool = False
    unresolved: bool = False  # its connection was lost while it was being sent
    damaged: int = 0  # times


class PieceWriter:
    """What a handler writes a request's pieces to. All methods raise WireError once the transfer is over."""

    def __init__(self, transfer: int, credit: int, deadline_seconds: float, ready: Callable[[], None]) -> None:
        self.transfer, self.deadline_seconds = transfer, deadline_seconds
        self.user = ""  # the digest of the token that the request came with
        self.handle_id = b""  # of the request's handle, verified; b"" for a prompt to prefill
        self.sent_bytes = self.offered_bytes = 0  # of values: with what was sent again; once each
        self._credit, self._ready = credit, ready
        self._changed = Condition()
        self._unsent: deque[Item] = deque()
        self._unacked: dict[int, Item] = {}
        self._begun: set[int] = set()  # pieces whose header was acknowledged
        self._pieces = self._seq = self._outstanding_bytes = 0
        self._seed = b""
        self._over: WireError | None = None
        self._seconds = 0.0
        self._sending = 0  # items whose buffers are in use now
        self._closed = self._delivered = False

    def begin(self, header: bytes) -> int:
        """Begin the next piece, whose header ends with its digest. Returns its number."""
        if not DIGEST_BYTES <= len(header) <= MOST_HEADER_BYTES:
            raise UsageError(f"A piece's header has {DIGEST_BYTES} to {MOST_HEADER_BYTES} bytes, not {len(header)}.")
        with self._changed:
            self._require_open()
            if self._pieces >= MOST_PIECES:
                raise UsageError(f"A transfer has at most {MOST_PIECES} pieces.")
            piece, self._pieces, self._seed = self._pieces, self._pieces + 1, header[-DIGEST_BYTES:]
            self._put(Item(Begin(self.transfer, self._seq, piece, header)))
        self._ready()
        return piece

    def block(self, index: int, buffers: Sequence[Any], digest: bytes | None = None) -> None:
        """Send a block of the current piece once there is credit for it, which this waits for.

        buffers: its values, in order. digest: of the block as in a blob, where it is known already.
        """
        views = byte_views(buffers)
        nbytes = sum(map(len, views))
        if not self._pieces or nbytes > MOST_BLOCK_BYTES:
            raise UsageError(f"A block of {nbytes} bytes follows no header, or is larger than {MOST_BLOCK_BYTES}.")
        digest = block_digest(self._seed, index, views) if digest is None else digest
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._may_send(nbytes))
            self._require_open()
            block = Block(self.transfer, self._seq, self._pieces - 1, index, nbytes, digest)
            self.offered_bytes += nbytes
            self._outstanding_bytes += nbytes
            self._put(Item(block, views))
        self._ready()

    def end(self) -> None:
        """Returns once every item has arrived and was verified; then buffers may change."""
        with self._changed:
            self._require_open()
            self._put(Item(End(self.transfer, self._seq)))
            self._closed = True
        self._ready()
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._delivered)
            if not self._delivered:
                self._require_open()

    def fail(self, reason: Reason, message: str) -> None:
        """End the transfer with an error for the receiver, unless it is over. Buffers may change afterwards."""
        with self._changed:
            if self._over is None and not self._delivered:
                self._fail(WireError(reason, message))
            self._changed.wait_for(lambda: not self._sending)
        self._ready()

    def check(self) -> None:
        """Raises WireError if the receiver does not want the transfer any more, or is gone."""
        with self._changed:
            self._require_open()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to send or to wait for."""
        with self._changed:
            return not self._unacked and (self._over is not None or self._delivered)

    # What the session and its connections call.

    def take(self, connection: int) -> Item | None:
        """The next item for a connection, which sends it with `send`; None where nothing may be sent now."""
        with self._changed:
            for at, item in enumerate(self._unsent):
                message = item.message
                if isinstance(message, Block) and message.piece not in self._begun:
                    continue
                del self._unsent[at]
                item.connection, item.sending = connection, True
                self._sending += 1
                return item
        return None

    def send(self, item: Item, link: Link) -> None:
        """Send an item that was taken. Raises WireError (LOST)."""
        try:
            link.send(item.message.frame(), item.views)
            self.sent_bytes += item.message.nbytes if isinstance(item.message, Block) else 0
        finally:
            with self._changed:
                item.sending = False
                self._sending -= 1
                if item.unresolved:
                    self._again(item)
                self._changed.notify_all()
            self._ready()

    def acked(self, seqs: Sequence[int], credit: int) -> None:
        with self._changed:
            self._credit = max(self._credit, credit)
            begun = [self._arrived(seq) for seq in seqs]
            self._changed.notify_all()
        if any(begun):
            self._ready()

    def damaged(self, seq: int) -> None:
        """A block did not arrive as it was sent."""
        with self._changed:
            item = self._unacked.get(seq)
            if item is None:
                return
            item.damaged += 1
            if item.damaged > MOST_SENT_AGAIN:
                times = f"arrived damaged {item.damaged} times"
                self._fail(WireError(Reason.DAMAGED, f"A block {times}: the sender's memory or the network is faulty."))
            else:
                self._again(item)
        self._ready()

    def resume(self, connection: int, arrived: Arrived) -> None:
        """`connection` was lost: send what it carried again, except what has arrived."""
        with self._changed:
            self._credit = max(self._credit, arrived.credit)
            known = set(arrived.seqs)
            for seq, item in sorted(self._unacked.items(), reverse=True):
                if seq < arrived.floor or seq in known:
                    self._arrived(seq)
                elif item.connection == connection:
                    self._again(item)
            self._changed.notify_all()

    def tick(self, seconds: float) -> None:
        """Called after each `seconds`: like the receiver, the sender gives up at the deadline, but a little later."""
        self._seconds += seconds
        if self._seconds > self.deadline_seconds + LATE_SECONDS:
            self.abandon(Reason.DEADLINE, "The cache was not sent by the receiver's deadline.")

    def waits_for(self, connections: set[int]) -> bool:
        """Whether an item was sent over a connection that is none of `connections`."""
        with self._changed:
            carriers = {item.connection for item in self._unacked.values()}
            return bool(carriers - connections - {None})

    def forgotten(self) -> None:
        """The receiver does not know the transfer any more: it has everything, or cancelled it."""
        with self._changed:
            end = next((item for item in self._unacked.values() if isinstance(item.message, End)), None)
            if end is not None and end.connection is not None and self._over is None:
                self._delivered = True
                self._drop()
        self.abandon(Reason.CANCELLED, "The receiver cancelled the transfer.")

    def abandon(self, reason: Reason, message: str) -> None:
        """End the transfer without a word to the receiver, which is gone or does not want it."""
        with self._changed:
            if not self._delivered:
                self._over = self._over or WireError(reason, message)
                self._drop()

    def _require_open(self) -> None:
        if self._over is not None:
            self._changed.wait_for(lambda: not self._sending)
            raise WireError(self._over.reason, str(self._over))

    def _put(self, item: Item) -> None:
        self._unacked[self._seq] = item
        self._seq += 1
        self._unsent.append(item)

    def _again(self, item: Item) -> None:
        item.unresolved = item.sending
        if not item.sending and item not in self._unsent:
            item.connection = None
            self._unsent.appendleft(item)

    def _arrived(self, seq: int) -> bool:
        """Whether that lets more items be sent."""
        item = self._unacked.get(seq)
        if item is None or item.connection is None:  # nothing that was not sent can have arrived
            return False
        del self._unacked[seq]
        if isinstance(item.message, Begin):
            self._begun.add(item.message.piece)
        elif isinstance(item.message, Block):
            self._outstanding_bytes -= item.message.nbytes
        item.views = ()
        self._delivered |= self._closed and not self._unacked and self._over is None
        return isinstance(item.message, Begin)

    def _may_send(self, nbytes: int) -> bool:
        return self.offered_bytes + nbytes <= self._credit or not self._outstanding_bytes

    def _fail(self, error: WireError) -> None:
        self._over = error
        self._drop()
        self._put(Item(Failure(self.transfer, self._seq, error.reason, str(error))))

    def _drop(self) -> None:
        self._unsent.clear()
        self._unacked.clear()
        self._outstanding_bytes = 0
        self._changed.notify_all()
