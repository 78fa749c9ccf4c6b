"""One connection: a socket that one thread alone reads and writes, and an outbox that other threads put frames into.

Blocking calls wait `TICK_SECONDS` at most. The peer is dead after `DEAD_TICKS` of them in a row without a byte from it,
or without one that it took: ticks are counted, not seconds, so that a process which was itself stopped for an hour does
not blame its peer. Both ends send a PING each tick. Without TLS, one system call may fill or send many buffers; with
TLS, OpenSSL takes one at a time.
"""

import contextlib
import os
import select
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from time import monotonic
from typing import Any

from earthshine.prfaas.wire.fault import Reason, WireError
from earthshine.prfaas.wire.frames import HEAD, Head, Kind, read_head
from earthshine.prfaas.wire.messages import Message, read_message

TICK_SECONDS = 1.0
DEAD_TICKS = 5
_STEP_BYTES = 1 << 22  # received by one system call, so that a receiver that gives up is noticed soon
_MOST_BUFFERS = 256  # in one system call; Linux takes 1,024
_BODY_STEP_BYTES = 1 << 16  # memory for a frame's body grows with what arrives
_SCRATCH_BYTES = 1 << 16


class Link:
    """`sock`: connected, with TLS or without. `peer`: its name in messages. Closes the socket with `close`."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.sock, self.peer = sock, peer
        self.tls = isinstance(sock, ssl.SSLSocket)
        self.received_bytes = self.sent_bytes = 0
        self._lock = Lock()
        self._outbox: deque[bytes] = deque()
        self._wake: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._silent_ticks = self._stalled_ticks = 0
        self._ticked = self._pinged = monotonic()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            sock.settimeout(TICK_SECONDS)
        else:
            sock.settimeout(None)
            tick = struct.pack("@ll", int(TICK_SECONDS), int(TICK_SECONDS % 1 * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)

    def post(self, frame: bytes) -> bool:
        """Leave a frame for the connection's thread to send, from any thread. False: the connection is closed."""
        with self._lock:
            if self._wake is None:
                return False
            self._outbox.append(frame)
            os.eventfd_write(self._wake, 1)
            return True

    def queue(self, frame: bytes) -> None:
        """Leave a frame for the next `flush`. Only by the connection's thread."""
        self._outbox.append(frame)

    def wake(self) -> None:
        """End the wait of the connection's thread, from any thread."""
        with self._lock:
            if self._wake is not None:
                os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Close the socket. Only by the connection's thread; others call `cut`."""
        with self._lock:
            wake, self._wake = self._wake, None
            self._outbox.clear()
        if wake is not None:
            os.close(wake)
            self.sock.close()

    def cut(self) -> None:
        """End the connection from another thread: its thread finds it closed."""
        with self._lock:
            if self._wake is not None:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self.sock, socket.SHUT_RDWR)  # SSLSocket's would end TLS too

    def wait(self, block: bool = True) -> bool:
        """Whether something can be read now, or with `block` within a tick, unless woken. Raises WireError if the peer
        is dead."""
        if isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
            return True
        ready = [descriptor for descriptor, _ in self._poll.poll(1000 * TICK_SECONDS if block else 0)]
        readable = self.sock.fileno() in ready
        if len(ready) > readable:
            with self._lock:
                if self._wake is not None:
                    os.eventfd_read(self._wake)
        if not readable and monotonic() - self._ticked >= TICK_SECONDS:
            self._silent()
        return readable

    def ping_due(self) -> bool:
        """Whether a PING is to be sent now."""
        now = monotonic()
        due = now - self._pinged >= TICK_SECONDS
        if due:
            self._pinged = now
        return due

    def flush(self) -> bool:
        """Send what the outbox holds. Returns whether there was anything."""
        sent = False
        while self._outbox:
            self.send(self._outbox.popleft())
            sent = True
        return sent

    def send(self, frame: bytes, views: Sequence[memoryview] = ()) -> None:
        """Send a frame, and `views` of bytes after it. Raises WireError: LOST."""
        left = [memoryview(frame), *views]
        while left:
            self._moved(left, self._send_some)

    def receive(self) -> Message:
        """The next frame's message. Raises WireError for a malformed one, and LOST at the end of the connection."""
        head = read_head(self._exactly(HEAD.size))
        return self.body(head)

    def first(self, kind: Kind) -> Message:
        """The next frame, which must be of `kind` or REFUSED: nothing larger is read from a stranger."""
        head = read_head(self._exactly(HEAD.size))
        if head.kind not in (kind, Kind.REFUSED):
            raise WireError(Reason.PROTOCOL, f"{kind.name} comes first, not {head.kind.name}.")
        return self.body(head)

    def body(self, head: Head) -> Message:
        return read_message(head, self._exactly(head.body_bytes))

    def _exactly(self, count: int) -> bytearray:
        found = bytearray()
        while len(found) < count:
            part = bytearray(min(_BODY_STEP_BYTES, count - len(found)))
            self.fill([memoryview(part)])
            found += part
        return found

    def fill(self, views: Sequence[memoryview], unwanted: Callable[[], bool] = lambda: False) -> bool:
        """Receive into all of `views`, writable and of bytes. Raises WireError: LOST.

        Once `unwanted()`, they are not written any more, the rest is read and dropped, and False is returned.
        """
        left = list(views)
        while left:
            if unwanted():
                self.drop(sum(map(len, left)))
                return False
            self._moved(left, self._receive_some)
        return True

    def drop(self, count: int) -> None:
        """Read and forget `count` bytes."""
        scratch = memoryview(bytearray(min(count, _SCRATCH_BYTES)))
        while count:
            views = [scratch[:count]]
            before = len(views[0])
            self._moved(views, self._receive_some)
            count -= before - sum(map(len, views))

    def _moved(self, views: list[memoryview], call: Callable[[list[memoryview]], int]) -> None:
        """Lets `call` move some of `views`, and takes what moved off their front."""
        try:
            count = call(views)
        except (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except (OSError, ValueError) as error:  # ValueError: the socket is closed
            raise WireError(Reason.LOST, f"The connection to {self.peer} was lost: {_why(error)}.") from None
        if count == sum(map(len, views)):
            views.clear()
            return
        whole = 0
        for view in views:
            if count < len(view):
                break
            count -= len(view)
            whole += 1
        del views[:whole]
        if count:
            views[0] = views[0][count:]

    def _send_some(self, views: list[memoryview]) -> int:
        try:
            sent = self._all_of(views[0], self.sock.send) if self.tls else self.sock.sendmsg(views[:_MOST_BUFFERS])
        except (BlockingIOError, TimeoutError):
            self._stalled_ticks += 1
            if self._stalled_ticks >= DEAD_TICKS:
                raise self._dead("has read nothing") from None
            raise
        self._stalled_ticks = 0
        self.sent_bytes += sent
        return sent

    def _receive_some(self, views: list[memoryview]) -> int:
        try:
            if self.tls:
                count = self._all_of(views[0], self.sock.recv_into)
            else:
                count = self.sock.recvmsg_into(_portion(views), 0, socket.MSG_WAITALL)[0]
        except (BlockingIOError, TimeoutError):
            self._silent()
            raise
        if count == 0:
            raise WireError(Reason.LOST, f"{self.peer} closed the connection.")
        self._silent_ticks = 0
        self.received_bytes += count
        return count

    @staticmethod
    def _all_of(view: memoryview, call: Callable[[memoryview], int]) -> int:
        """As much of `view` as `call` moves without waiting a tick; with TLS, one call moves a record of 16 KiB."""
        size, done = len(view), 0
        try:
            while done < size:
                moved = call(view[done:])
                if moved == 0:
                    break
                done += moved
        except TimeoutError:
            if done == 0:
                raise
        return done

    def _silent(self) -> None:
        self._ticked = monotonic()
        self._silent_ticks += 1
        if self._silent_ticks >= DEAD_TICKS:
            raise self._dead("has been silent")

    def _dead(self, what: str) -> WireError:
        return WireError(Reason.LOST, f"{self.peer} {what} for {DEAD_TICKS * TICK_SECONDS:.0f} s.")


def byte_views(buffers: Iterable[Any]) -> list[memoryview]:
    """Views of the bytes of contiguous `buffers`, without empty ones. Raises TypeError for what is none."""
    return [view for view in map(_byte_view, buffers) if len(view)]


def _byte_view(buffer: Any) -> memoryview:
    view = memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 and view.contiguous else view.cast("B")


def _portion(views: list[memoryview]) -> list[memoryview]:
    """The first _STEP_BYTES of `views`, and _MOST_BUFFERS."""
    first = views[:_MOST_BUFFERS]
    over = sum(map(len, first)) - _STEP_BYTES
    while over > 0:
        last = first.pop()
        if len(last) > over:
            first.append(last[:-over])
        over -= len(last)
    return first


def _why(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
