"""Resumable streams: a client that lost its connection, or a page loaded again, comes back to its reply.

The form is llama.cpp's: a streamed request with the header X-Conversation-Id is computed whether or not a client reads
it, `GET /v1/stream/ID` sends all of its events from the first on, and `DELETE /v1/stream/ID` ends it. An id belongs to
the API key that it came with; a second request with it replaces the first.

Limits, of body.Limits, for a client that never comes back: a reply that no client has read for `unread_seconds` is
computed no further. `streams` are held in all, and `owner_streams` are computed for one owner: an API key, or an
address where there are no keys. At a limit an unread stream makes room for a new one: one that has ended, otherwise the
one that has been unread for longest. The events of each take at most `stream_bytes`. One that has ended is forgotten
`ended_seconds` after it ended or was read last.
"""

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from earthshine.server.http.body import ClientGone, Limits
from earthshine.server.http.context import CLIENT_GONE, RequestContext
from earthshine.server.http.events import PING, EventStream, encode_events
from earthshine.server.refusals import Refused
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


class ResumableStream:
    """One reply and its events so far. `context` is that of the request that asked for it; it is closed with the reply,
    not with the connection. `owner`: whose limit it counts for."""

    def __init__(
        self, owner: str, events: AsyncGenerator[bytes], context: RequestContext, limits: Limits, refusal: Refusal
    ) -> None:
        self.owner = owner
        self._context, self._limits, self._refusal = context, limits, refusal
        self._events = _Events()
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # more events, or the end
        self._readers = 0
        self._unread_since = 0.0
        self._expiry: asyncio.TimerHandle | None = None
        self._forget: Callable[[], None] = lambda: None
        self._failure: Refused | None = None  # before the first event
        self._abandoned = False  # ended because no client read it
        self._dropped = False
        self.over = False
        context.computing = asyncio.get_running_loop().create_task(self._compute(events))

    @property
    def unread(self) -> tuple[bool, float] | None:
        """None while a client reads it. Otherwise the order in which streams make room: ended ones, then the longest
        unread."""
        return None if self._readers else (not self.over, self._unread_since)

    def forget_by(self, forget: Callable[[], None]) -> None:
        """`forget` is called once it has ended and no client has read it for too long."""
        self._forget = forget
        self._wait_for_readers()

    def end(self) -> None:
        """End it, if it has not ended, and call `forget` no more. What has ended is still read to its end."""
        self._dropped = True
        self._wait_for_readers()
        if not self.over:
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
        if not self._readers and not self._dropped:
            loop = asyncio.get_running_loop()
            self._unread_since = loop.time()
            seconds = self._limits.ended_seconds if self.over else self._limits.unread_seconds
            self._expiry = loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        if self.over:
            self._forget()
        else:
            self._abandoned = True
            self._context.end(ClientGone())

    async def _compute(self, events: AsyncGenerator[bytes]) -> None:
        context = self._context
        try:
            async with aclosing(events):
                async for part in events:
                    if part != PING:
                        self._append(part)
        except ClientGone:
            context.status = CLIENT_GONE
            if self._abandoned and context.exchange is not None:
                self._append(encode_events(context.exchange.failed(self._unread_refusal())))
        except Exception as error:
            self._failure = context.refused = self._refusal(error)
            context.status = self._failure.status
        finally:
            self.over = True
            self._wait_for_readers()
            self._notify()

    def _unread_refusal(self) -> Refused:
        seconds = format_duration(self._limits.unread_seconds)
        return Refused(f"The reply was ended because no client read it for {seconds}.", "unavailable")

    def _append(self, part: bytes) -> None:
        self._events.append(part)
        self._notify()
        if self._events.nbytes > self._limits.stream_bytes:
            most = format_bytes(self._limits.stream_bytes)
            self._context.end(Refused(f"The reply's events take more than {most}, the most that this server holds of a "
                                      "reply; ask without X-Conversation-Id.", "unavailable"))  # fmt: skip

    def _notify(self) -> None:
        news, self._news = self._news, asyncio.get_running_loop().create_future()
        news.set_result(None)


class ResumableStreams:
    """The streams that can be read again. One per server."""

    def __init__(self, limits: Limits, refusal: Refusal) -> None:
        self._limits, self._refusal = limits, refusal
        self._streams: dict[tuple[str, str], ResumableStream] = {}  # by user and id

    async def begin(
        self, name: str, user: str, request: Request, events: AsyncGenerator[bytes], context: RequestContext
    ) -> Response:
        """The answer of a request with the header. Raises Refused, also for an error before the first event."""
        if not _ID.fullmatch(name):
            raise Refused(f"The header X-Conversation-Id must be 1 to 128 letters, digits, and . _ : or -, and is "
                          f"{shown(name)}.")  # fmt: skip
        key, owner = (user, name), user or context.client
        self._end(key)
        self._make_room(owner)
        self._streams[key] = stream = ResumableStream(owner, events, context, self._limits, self._refusal)
        stream.forget_by(lambda: self._forget(key, stream))
        return await self._send(stream, request, context, None)

    async def read(self, request: Request, user: str, context: RequestContext) -> Response:
        """The answer of GET. Raises Refused."""
        name = request.path_params["stream_id"]
        stream = self._streams.get((user, name))
        if stream is None:
            raise Refused(f"No stream has the id {shown(name)}: none began, or it was ended by DELETE, replaced by a "
                          "newer one, or not read for too long.", "not_found")  # fmt: skip
        return await self._send(stream, request, context, context)

    async def end(self, request: Request, user: str, context: RequestContext) -> Response:
        """The answer of DELETE, the same whether or not there was a stream: a client may send it twice."""
        name = request.path_params["stream_id"]
        return JSONResponse({"id": name, "deleted": self._end((user, name))})

    async def _send(
        self, stream: ResumableStream, request: Request, context: RequestContext, reader: RequestContext | None
    ) -> Response:
        events = stream.read(context.watch(request.receive, outlasts=True))
        try:
            first = await anext(events, PING)
        except ClientGone:
            return Response(status_code=CLIENT_GONE)
        return EventStream(first, events, reader, self._limits)

    def _make_room(self, owner: str) -> None:
        """Ends streams that no client reads until a new one of `owner` is within the limits. Raises Refused."""
        computed = [key for key, stream in self._streams.items() if stream.owner == owner and not stream.over]
        if len(computed) >= self._limits.owner_streams:
            self._end_unread(computed, f"{self._limits.owner_streams} replies for one API key or address")
        if len(self._streams) >= self._limits.streams:
            self._end_unread([*self._streams], f"{self._limits.streams} replies")

    def _end_unread(self, among: list[tuple[str, str]], most: str) -> None:
        order = {key: unread for key in among if (unread := self._streams[key].unread) is not None}
        if not order:
            raise Refused(f"This server streams up to {most} at once with X-Conversation-Id, and clients read all of "
                          "them; try again later, or without the header.", "rate", None, _RETRY_SECONDS)  # fmt: skip
        self._end(min(order, key=order.__getitem__))

    def _end(self, key: tuple[str, str]) -> bool:
        """Returns whether there was one."""
        stream = self._streams.pop(key, None)
        if stream is not None:
            stream.end()
        return stream is not None

    def _forget(self, key: tuple[str, str], stream: ResumableStream) -> None:
        if self._streams.get(key) is stream:
            self._end(key)
