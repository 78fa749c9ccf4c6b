"""Server-sent events: pieces of a reply as they come, with pings in between.

The source of the pieces is always closed, so that nothing is computed for a client that has gone. The connection of a
client that does not read for too long is aborted.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from earthshine.generation.request import Piece, Reading, Started
from earthshine.server.api import Exchange, ServerEvent
from earthshine.server.http.body import ClientGone, Limits
from earthshine.server.http.context import CLIENT_GONE, RequestContext
from earthshine.server.refusals import Refused

PING = b": ping\n\n"
_ID = b"request-id"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


def encode_events(events: Sequence[ServerEvent]) -> bytes:
    """The events as bytes; b"" for none."""
    parts = []
    for event in events:
        data = event.data
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        name = "" if event.name is None else f"event: {event.name}\n"
        parts.append(name + "".join(f"data: {line}\n" for line in text.split("\n")) + "\n")
    return "".join(parts).encode("utf-8", "replace")


async def follow(
    pieces: AsyncIterator[Piece], context: RequestContext, first: float, silence: float
) -> AsyncGenerator[Piece | None]:
    """Every piece, and None after each `silence` seconds without one, at the beginning after `first` seconds.

    Raises the context's fate once that is decided. Always closes `pieces`.
    """
    pending: asyncio.Task[Piece | None] | None = None
    loop = asyncio.get_running_loop()
    until = loop.time() + first
    try:
        while True:
            pending = loop.create_task(_next(pieces))
            waited: set[asyncio.Future[Any]] = {pending, context.fate}
            while not pending.done():
                await asyncio.wait(waited, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED)
                if context.fate.done():
                    raise context.fate.result()
                if not pending.done():
                    yield None
                    until = loop.time() + silence
            piece = pending.result()
            if piece is None:
                return
            context.observe(piece)
            yield piece
            if not isinstance(piece, Started | Reading):  # not every client gets an event for these
                until = loop.time() + silence
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)  # its own error may come with the fate
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


async def _next(pieces: AsyncIterator[Piece]) -> Piece | None:
    return await anext(pieces, None)


async def stream_events(
    exchange: Exchange,
    pieces: AsyncIterator[Piece],
    context: RequestContext,
    limits: Limits,
    refusal: Callable[[Exception], Refused],
) -> AsyncGenerator[bytes]:
    """The answer's events as bytes. An error before the first event is raised; a later one becomes an event."""
    begun = False
    try:
        async with aclosing(follow(pieces, context, limits.first_seconds, limits.ping_seconds)) as followed:
            async for piece in followed:
                sent = PING if piece is None else encode_events(exchange.push(piece))
                if sent:
                    begun = True
                    yield sent
        yield encode_events(exchange.end())
    except ClientGone:
        context.status = CLIENT_GONE
        raise
    except Exception as error:
        if not begun:
            raise
        problem = refusal(error)
        context.status, context.refused = problem.status, problem
        yield encode_events(exchange.failed(problem))


@dataclass(frozen=True, slots=True)
class _Sending:
    send: Send
    seconds: float

    async def __call__(self, body: bytes, more: bool = True) -> None:
        async with asyncio.timeout(self.seconds):
            await self.send({"type": "http.response.body", "body": body, "more_body": more})


class EventStream(Response):
    """Sends `first` and all that follows. A send that does not end in time aborts the connection, and `context`, if
    given, notes that."""

    def __init__(
        self, first: bytes, rest: AsyncGenerator[bytes], context: RequestContext | None, limits: Limits
    ) -> None:
        super().__init__()
        self._first, self._rest, self._context, self._limits = first, rest, context, limits
        self._finally: Callable[[], None] = lambda: None

    def finally_do(self, action: Callable[[], None]) -> None:
        """`action` is called once at the end, however the response ends."""
        self._finally = action

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        put = _Sending(send, self._limits.stalled_send_seconds)
        try:
            async with aclosing(self._rest):
                headers = [*_HEADERS, *((name, value) for name, value in self.raw_headers if name.endswith(_ID))]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await put(self._first)
                async for part in self._rest:
                    await put(part)
            await put(b"", more=False)
        except ClientGone:
            _cut(scope)
        except TimeoutError:
            if self._context is not None:
                self._context.status = CLIENT_GONE
            _cut(scope)
        finally:
            self._finally()


def _cut(scope: Scope) -> None:
    """Abort the connection without sending what the client has not read."""
    abort = scope.get("state", {}).get("abort")
    if abort is not None:
        abort()
