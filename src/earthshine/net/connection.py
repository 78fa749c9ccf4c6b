"""One HTTP/1.1 connection: uvicorn's, with a time limit for request heads and a limit for the number of connections.

A connection is closed if a request's head does not arrive in time, or if the client does not read its answer. Beyond
`MOST_OPEN` connections each new one closes an idle one: first one that never sent anything, then one between two
requests, then one with an incomplete head, the oldest of its kind. If every connection has a running request, requests
are refused, and beyond twice as many, connections. The cost of a new connection does not depend on their number. The
application finds `abort` and `crowded` in its state.
"""

import asyncio
import json
import select
import sys
from collections import OrderedDict
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_OPEN = 384  # of the 1,024 open files that a process commonly may have
MAX_HEAD_BYTES = 32 << 10
HEAD_SECONDS = 30.0
_MOST_SHOWN = 120  # characters of h11's message
UNREAD_SECONDS = 120.0  # after the connection would have been closed as idle
_MOST_LOOKS = 8  # idle connections that are examined for each new one
_SILENT, _BETWEEN, _IN_HEAD = range(3)  # never sent anything; between two requests; the head is incomplete


class Waiting:
    """A server's idle connections by kind, in each kind the longest idle first.

    The first of the first kind is closed first.
    """

    def __init__(self) -> None:
        self._kinds: tuple[OrderedDict[Connection, None], ...] = (OrderedDict(), OrderedDict(), OrderedDict())

    def put(self, connection: "Connection", kind: int) -> None:
        """The connection becomes idle now."""
        self.drop(connection)
        self._kinds[kind][connection] = None

    def drop(self, connection: "Connection") -> None:
        for kind in self._kinds:
            kind.pop(connection, None)

    def first(self) -> "Connection | None":
        return next((next(iter(kind)) for kind in self._kinds if kind), None)

    def asks_nothing(self) -> "Connection | None":
        """The first connection without unread bytes; those before it move to the end of their kind.

        None if there is none among the first few, since each look is a system call.
        """
        for _ in range(_MOST_LOOKS):
            kind = next(filter(None, self._kinds), None)
            if kind is None:
                return None
            connection = next(iter(kind))
            if not connection.has_more():
                return connection
            kind.move_to_end(connection)
        return None


class Connection(H11Protocol):
    """uvicorn makes one for each connection; all connections of a server share one `waiting`."""

    _head_timer: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, waiting: Waiting, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._waiting = waiting

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_OPEN:
            self._make_room()
        if len(self.connections) > 2 * MOST_OPEN:
            transport.abort()
            return
        self.app_state = {**self.app_state, "abort": transport.abort, "crowded": len(self.connections) > MOST_OPEN}
        self._waiting.put(self, _SILENT)
        self._await_head()

    def _make_room(self) -> None:
        found = self._waiting.asks_nothing()
        if len(self.connections) > 2 * MOST_OPEN:  # rather an idle one with unread bytes than the new one
            found = found or self._waiting.first()
        if found is not None:
            self._waiting.drop(found)
            self.connections.discard(found)  # now, since connection_lost is called later
            found.transport.abort()

    def has_more(self) -> bool:
        """Whether bytes have arrived that the event loop has not read yet, as in a burst of requests."""
        ready = select.poll()
        ready.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(ready.poll(0))

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.drop(self)
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._answering:
            self._waiting.drop(self)
            self._head_came()
            return
        if self._head_timer is None:  # the beginning of the next head, or the rest of a refused body
            self._await_head()
        self._wait(_IN_HEAD)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._answering:  # the next request may have begun already
            self._wait(_BETWEEN if self._head_timer is None else _IN_HEAD)

    def _wait(self, kind: int) -> None:
        if self in self.connections:  # neither lost nor closed for another
            self._waiting.put(self, kind)

    def timeout_keep_alive_handler(self) -> None:
        """uvicorn closes once everything is sent, which never happens if the client does not read."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def send_400_response(self, msg: str) -> None:
        """The answer to what is not HTTP or has too long a head, as JSON with the reason; uvicorn's is plain text.

        uvicorn calls this while it handles h11's error.
        """
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        status, message = _problem(sys.exception())
        error: dict[str, Any] = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        body = json.dumps({"error": error}).encode("ascii")
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (
            h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode("ascii")),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _problem(error: BaseException | None) -> tuple[int, str]:
    """The status and the message for an error of h11."""
    if not isinstance(error, h11.RemoteProtocolError):
        return 400, "This is not an HTTP/1.1 request."
    if error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
        return error.error_status_hint, f"The head, or a line within the body, has more than {MAX_HEAD_BYTES} bytes."
    return error.error_status_hint, f"This is not an HTTP/1.1 request: {str(error)[:_MOST_SHOWN]}."
