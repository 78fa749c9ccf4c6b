"""Streamed replies that outlast their connection, so that a client that lost it, or a page loaded again, comes back.

The form is llama.cpp's: a streamed request with the header X-Conversation-Id is computed whether or not anyone reads
it, `GET /v1/stream/ID` sends all of its events from the first on, and `DELETE /v1/stream/ID` ends it. An id belongs to
the API key that it came with; a second request with it replaces the first.

Limits, of body.Limits: `kept_replies` are kept, and the events of each take at most `kept_bytes`. A reply that nobody
has read for `kept_seconds` ends and is forgotten. One that has ended is forgotten as long after it ended or was read
last, or when a new one needs its place.
"""

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from earthshine.server.api import Refused
from earthshine.server.http.body import ClientGone, Limits
from earthshine.server.http.context import CLIENT_GONE, RequestContext
from earthshine.server.http.events import PING, EventStream
from earthshine.units import format_bytes, format_duration
from earthshine.untrusted import shown

HEADER = "x-conversation-id"
PATH = "/v1/stream/{stream_id}"
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_BLOCK_BYTES = 64 << 10  # compressed at once; events of a chat shrink to a tenth or less
_RETRY_SECONDS = 10

Refusal = Callable[[Exception], Refused]


class _Events:
    """The bytes of a stream of events. All but the last ones are compressed."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._last = bytearray()
        self._compressed = 0

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return self._compressed + len(self._last)

    def append(self, events: bytes) -> None:
        self._last += events
        while len(self._last) >= _BLOCK_BYTES:
            self._blocks.append(zlib.compress(self._last[:_BLOCK_BYTES], 1))
            self._compressed += len(self._blocks[-1])
            del self._last[:_BLOCK_BYTES]

    def after(self, at: int) -> bytes:
        """Some of the bytes from `at` on; b"" if there are none yet."""
        block, begin = divmod(at, _BLOCK_BYTES)
        if block < len(self._blocks):
            return zlib.decompress(self._blocks[block])[begin:]
        return bytes(self._last[begin:])


class KeptReply:
    """One reply and its events so far. `context` is that of the request that asked for it; it is closed with the reply,
    not with the connection."""

    def __init__(
        self, events: AsyncGenerator[bytes], context: RequestContext, limits: Limits, refusal: Refusal
    ) -> None:
        self._context, self._limits, self._refusal = context, limits, refusal
        self._events = _Events()
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # more events, or the end
        self._readers = 0
        self._expiry: asyncio.TimerHandle | None = None
        self._expired: Callable[[], None] = lambda: None
        self._failure: Refused | None = None  # before the first event
        self.over = False
        context.computing = asyncio.get_running_loop().create_task(self._compute(events))

    @property
    def spare(self) -> bool:
        """Whether it may be forgotten for another one."""
        return self.over and not self._readers

    def expire_by(self, forget: Callable[[], None]) -> None:
        """`forget` is called once nobody has read the reply for too long."""
        self._expired = forget
        self._wait_for_readers()

    def end(self) -> None:
        """End it, if it has not ended."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._context.end(ClientGone())

    async def read(self, gone: asyncio.Future[ClientGone | Refused]) -> AsyncGenerator[bytes]:
        """All events, each as it comes, with pings in between.

        Raises ClientGone once `gone` is done, and the Refused of a reply that failed before its first event.
        """
        at, silence = 0, self._limits.first_seconds
        self._readers += 1
        self._wait_for_readers()
        try:
            while True:
                if part := self._events.after(at):
                    at += len(part)
                    yield part
                elif self.over:
                    break
                elif not await self._next(gone, silence):
                    yield PING
                silence = self._limits.ping_seconds
            if self._failure is not None:
                raise self._failure
        finally:
            self._readers -= 1
            self._wait_for_readers()

    async def _next(self, gone: asyncio.Future[ClientGone | Refused], seconds: float) -> bool:
        waited: set[asyncio.Future[object]] = {self._news, gone}  # type: ignore[arg-type]  # of two kinds
        done, _ = await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            raise ClientGone
        return bool(done)

    def _wait_for_readers(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if not self._readers:
            self._expiry = asyncio.get_running_loop().call_later(self._limits.kept_seconds, self._expired)

    async def _compute(self, events: AsyncGenerator[bytes]) -> None:
        context = self._context
        try:
            async with aclosing(events):
                async for part in events:
                    if part != PING:
                        self._keep(part)
        except ClientGone:
            context.status = CLIENT_GONE
        except Exception as error:
            self._failure = context.refused = self._refusal(error)
            context.status = self._failure.status
        finally:
            self.over = True
            self._notify()

    def _keep(self, part: bytes) -> None:
        self._events.append(part)
        self._notify()
        if self._events.nbytes > self._limits.kept_bytes:
            most = format_bytes(self._limits.kept_bytes)
            self._context.end(Refused(f"The reply's events take more than {most}, the most that this server keeps of a "
                                      "reply; ask without X-Conversation-Id.", "unavailable"))  # fmt: skip

    def _notify(self) -> None:
        news, self._news = self._news, asyncio.get_running_loop().create_future()
        news.set_result(None)


class KeptReplies:
    """The replies that are kept. One per server."""

    def __init__(self, limits: Limits, refusal: Refusal) -> None:
        self._limits, self._refusal = limits, refusal
        self._replies: dict[tuple[str, str], KeptReply] = {}  # by user and id, the oldest first

    async def begin(
        self, name: str, user: str, request: Request, events: AsyncGenerator[bytes], context: RequestContext
    ) -> Response:
        """The answer of a request with the header. Raises Refused, also for an error before the first event."""
        key = (user, self._place(name, user))
        self._replies[key] = reply = KeptReply(events, context, self._limits, self._refusal)
        reply.expire_by(lambda: self._forget(key, reply))
        return await self._send(reply, request, context, None)

    async def read(self, request: Request, user: str, context: RequestContext) -> Response:
        """The answer of GET. Raises Refused."""
        name = request.path_params["stream_id"]
        reply = self._replies.get((user, name))
        if reply is None:
            kept = format_duration(self._limits.kept_seconds)
            raise Refused(f"No reply is kept under {shown(name)}: none began, or it was ended by DELETE, replaced by a "
                          f"newer one, or not read for {kept}.", "not_found")  # fmt: skip
        return await self._send(reply, request, context, context)

    async def end(self, request: Request, user: str, context: RequestContext) -> Response:
        """The answer of DELETE, the same whether or not there was a reply: a client may send it twice."""
        name = request.path_params["stream_id"]
        reply = self._replies.pop((user, name), None)
        if reply is not None:
            reply.end()
        return JSONResponse({"id": name, "deleted": reply is not None})

    async def _send(
        self, reply: KeptReply, request: Request, context: RequestContext, reader: RequestContext | None
    ) -> Response:
        events = reply.read(context.watch(request.receive, outlasts=True))
        try:
            first = await anext(events, PING)
        except ClientGone:
            return Response(status_code=CLIENT_GONE)
        return EventStream(first, events, reader, self._limits)

    def _place(self, name: str, user: str) -> str:
        """Makes room for a reply of this name."""
        if not _ID.fullmatch(name):
            raise Refused(f"The header X-Conversation-Id must be 1 to 128 letters, digits, and . _ : or -, and is "
                          f"{shown(name)}.")  # fmt: skip
        replaced = self._replies.pop((user, name), None)
        if replaced is not None:
            replaced.end()
        if len(self._replies) >= self._limits.kept_replies:
            spare = next((key for key, reply in self._replies.items() if reply.spare), None)
            if spare is None:
                most = self._limits.kept_replies
                raise Refused(f"This server keeps {most} replies at once, and all of them are being written or read; "
                              "try again later, or without X-Conversation-Id.", "rate", None,
                              _RETRY_SECONDS)  # fmt: skip
            self._replies.pop(spare).end()
        return name

    def _forget(self, key: tuple[str, str], reply: KeptReply) -> None:
        if self._replies.get(key) is reply:
            del self._replies[key]
        reply.end()
