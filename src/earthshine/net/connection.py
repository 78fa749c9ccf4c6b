"""One HTTP/1.1 connection: uvicorn's, with time limits on heads, a limit on how many there are, and a way to cut it.

A head that does not come in time ends the connection, and so does an answer that nobody takes. Beyond `MOST_OPEN`
connections each new one closes another that waits for nothing: first of those that never sent anything, then of those
between two requests, then of those whose head is incomplete, the oldest of its kind. Where every connection has a
request under way, requests are refused, and beyond twice as many, connections. The application finds `abort` and
`crowded` in its state.
"""

import asyncio
import json
import select
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_OPEN = 384  # of the 1,024 open files that a process commonly may have
MAX_HEAD_BYTES = 32 << 10
HEAD_SECONDS = 30.0
UNREAD_SECONDS = 120.0  # after the connection would have been closed for idleness


class Connection(H11Protocol):
    """What uvicorn makes for each socket that connects."""

    _head_timer: asyncio.TimerHandle | None = None
    _received = False  # any byte at all
    _last_data = 0.0  # the loop's time; at first that of the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._last_data = self.loop.time()
        if len(self.connections) > MOST_OPEN:
            self._make_room()
        if len(self.connections) > 2 * MOST_OPEN:
            transport.abort()
            return
        self.app_state = {**self.app_state, "abort": transport.abort, "crowded": len(self.connections) > MOST_OPEN}
        self._await_head()

    def _make_room(self) -> None:
        others = (other for other in self.connections if isinstance(other, Connection) and other is not self)
        idle = sorted((other for other in others if not other._answering), key=Connection._worth)
        found = next((other for other in idle if not other._has_more()), None)
        if len(self.connections) > 2 * MOST_OPEN and idle:  # better one of them than who comes now
            found = found or idle[0]
        if found is not None:
            self.connections.discard(found)  # now, since connection_lost comes later
            found.transport.abort()

    def _has_more(self) -> bool:
        """Whether bytes have come that the loop has not read yet, as in a burst of requests."""
        ready = select.poll()
        ready.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(ready.poll(0))

    def _worth(self) -> tuple[int, float]:
        """The least is closed first."""
        kind = 0 if not self._received else 1 if self._head_timer is None else 2
        return kind, self._last_data

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received, self._last_data = True, self.loop.time()
        super().data_received(data)
        if self._answering:
            self._head_came()
        elif self._head_timer is None:  # the beginning of a next head, or the rest of a body that was refused
            self._await_head()

    def timeout_keep_alive_handler(self) -> None:
        """uvicorn closes once all is sent, which never is where the client does not read."""
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
        """To what is not HTTP, or has too long a head; uvicorn's own answer is plain text."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        message = f"This is no HTTP/1.1 request, or its head has more than {MAX_HEAD_BYTES} bytes."
        error: dict[str, Any] = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        body = json.dumps({"error": error}).encode("ascii")
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
