"""One client at the server: its connections and transfers, which outlive a connection that is lost.

A session whose connections are all gone, or that does not say what arrived over one that was lost, keeps its transfers
for `RESUME_TICKS`; then they end.
"""

import secrets
from collections.abc import Callable
from threading import Lock

from earthshine.prfaas.wire.fault import Reason, WireError
from earthshine.prfaas.wire.frames import Kind
from earthshine.prfaas.wire.link import Link
from earthshine.prfaas.wire.messages import (
    SESSION_BYTES,
    Ack,
    Again,
    Arrived,
    Failure,
    Message,
    Ping,
    Plain,
    Request,
    Resume,
)
from earthshine.prfaas.wire.tcp_info import figures
from earthshine.prfaas.wire.writer import Item, PieceWriter

RESUME_TICKS = 20  # the receiver notices a silent connection after DEAD_TICKS, and then needs some to connect


_MOST_KNOWN = 1 << 12


class Once:
    """Numbers that ascend, nearly: which of them are new."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._floor = 0  # every number below it counts as known

    def first(self, number: int) -> bool:
        """Whether the number comes for the first time."""
        if number < self._floor or number in self._known:
            return False
        self._known.add(number)
        if len(self._known) > _MOST_KNOWN:
            self._known = set(sorted(self._known)[_MOST_KNOWN // 2 :])
            self._floor = min(self._known)
        return True

    def forget(self, number: int) -> None:
        self._known.discard(number)


class Session:
    """`user`: the digest of the token that began it. `accept`: called with each new request; whether it began."""

    def __init__(self, user: str, accept: "Callable[[Session, Request], bool]") -> None:
        self.user, self.instance = user, secrets.token_bytes(SESSION_BYTES)
        self._accept = accept
        self._lock = Lock()
        self._links: dict[int, Link] = {}
        self._connected, self._asked = Once(), Once()
        self._idle: set[int] = set()  # connections whose threads wait for something to send
        self._writers: dict[int, PieceWriter] = {}
        self._waited: dict[int, int] = {}  # by transfer: ticks for the receiver's word about a lost connection
        self._alone_ticks = 0

    def join(self, number: int, link: Link, most: int) -> None:
        """Add a connection. Raises WireError: BUSY beyond `most` of them, PROTOCOL for a number that is in use."""
        with self._lock:
            if len(self._links) >= most:
                raise WireError(Reason.BUSY, f"A session has at most {most} connections.")
            if not self._connected.first(number):
                raise WireError(Reason.PROTOCOL, f"Connection {number} of this session was made before.")
            self._links[number], self._alone_ticks = link, 0

    def leave(self, number: int) -> None:
        with self._lock:
            self._links.pop(number, None)
            self._idle.discard(number)

    def serve(self, number: int, link: Link) -> None:
        """What a connection's thread does until the connection ends, which raises WireError."""
        while True:
            taken = self._take(number)
            if taken is not None:
                taken[0].send(taken[1], link)
            link.flush()
            if link.ping_due():
                link.send(figures(link.sock).frame())
            if link.wait(block=taken is None):
                self._read(link.receive(), link)

    def open(self, writer: PieceWriter) -> None:
        with self._lock:
            self._writers[writer.transfer] = writer

    @property
    def unused(self) -> bool:
        with self._lock:
            return not self._links and not self._writers

    def post(self, frame: bytes) -> None:
        """Send a frame over any connection."""
        with self._lock:
            links = list(self._links.values())
        any(link.post(frame) for link in links)

    def ready(self) -> None:
        """An item may be taken: wake one connection that waits."""
        with self._lock:
            link = self._links.get(self._idle.pop()) if self._idle else None
        if link is not None:
            link.wake()

    def tick(self, seconds: float) -> bool:
        """Called after each tick, of `seconds`; whether the session still lives."""
        with self._lock:
            writers, open_now = list(self._writers.values()), set(self._links)
            self._alone_ticks = 0 if open_now else self._alone_ticks + 1
            alone = self._alone_ticks
        for writer in writers:
            writer.tick(seconds)
            if writer.finished:
                with self._lock:
                    self._writers.pop(writer.transfer, None)
                    self._waited.pop(writer.transfer, None)
                continue
            waited = self._waited.get(writer.transfer, 0) + 1 if writer.waits_for(open_now) else 0
            self._waited[writer.transfer] = waited
            if max(waited, alone) > RESUME_TICKS:
                writer.abandon(Reason.LOST, "The receiver was lost and did not come back.")
        return not self.unused

    def end(self, reason: Reason, message: str) -> None:
        """End all transfers and connections."""
        with self._lock:
            writers, links = list(self._writers.values()), list(self._links.values())
        for writer in writers:
            writer.abandon(reason, message)
        for link in links:
            link.cut()

    def _take(self, number: int) -> tuple[PieceWriter, Item] | None:
        """The next item for a connection, which otherwise counts as idle. None is taken once RESUME said that it is
        lost: who would send it again?"""
        with self._lock:
            if number not in self._links:
                raise WireError(Reason.LOST, "The receiver lost this connection.")
            for writer in list(self._writers.values()):
                self._writers[writer.transfer] = self._writers.pop(writer.transfer)  # asked last the next time
                item = writer.take(number)
                if item is not None:
                    self._idle.discard(number)
                    return writer, item
            self._idle.add(number)  # under the lock that `ready` takes after an item was put
        return None

    def _read(self, message: Message, link: Link) -> None:
        if isinstance(message, Request):
            self._request(message)
        elif isinstance(message, Ack):
            self._with(message.transfer, lambda writer: writer.acked(message.seqs, message.credit))
        elif isinstance(message, Again):
            self._with(message.transfer, lambda writer: writer.damaged(message.seq))
        elif isinstance(message, Resume):
            self._resume(message)
            link.post(Plain(Kind.RESUMED, message.connection).frame())
        elif isinstance(message, Plain) and message.kind is Kind.CANCEL:
            self._with(message.transfer, PieceWriter.forgotten)
        elif not isinstance(message, Ping):
            raise WireError(Reason.PROTOCOL, f"A receiver does not send {type(message).__name__}.")

    def _request(self, message: Request) -> None:
        with self._lock:
            known = message.transfer in self._writers
            first = self._asked.first(message.transfer)
        if known:  # asked again, because a connection was lost
            self.post(Plain(Kind.ACCEPTED, message.transfer).frame())
        elif first:
            if not self._accept(self, message):
                with self._lock:
                    self._asked.forget(message.transfer)
        else:
            why = f"Transfer {message.transfer} of this session was asked for before."
            self.post(Failure(message.transfer, 0, Reason.PROTOCOL, why).frame())

    def _with(self, transfer: int, call: Callable[[PieceWriter], None]) -> None:
        with self._lock:
            writer = self._writers.get(transfer)
        if writer is not None:
            call(writer)

    def _resume(self, message: Resume) -> None:
        with self._lock:
            link = self._links.pop(message.connection, None)
            writers = list(self._writers.values())
        if link is not None:
            link.cut()
        named = {one.transfer: one for one in message.transfers}
        for writer in writers:
            arrived: Arrived | None = named.get(writer.transfer)
            if arrived is not None:
                writer.resume(message.connection, arrived)
            elif writer.transfer <= message.newest:
                writer.forgotten()
        self.ready()
