"""HTTP/1.1 to a place: connections that are kept for the next request, and one exchange at a time on each.

h11 checks what comes: an answer with contradicting lengths, a truncated body or another protocol is a failure. Heads
are bounded, and bodies are read no faster than they are taken. An exchange may be aborted at any time, from any task of
the event loop; what waits for it then gets `Failed`.
"""

import asyncio
import functools
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import h11

from earthshine.loadgen.client import Site
from earthshine.net.connection import MAX_HEAD_BYTES

CONNECT_SECONDS = 5.0
_READ_BYTES = 64 << 10
IDLE_SECONDS = 20.0  # below the 60 s after which Earthshine's server closes, and the 75 s of most proxies
_MOST_IDLE = 64

Headers = Sequence[tuple[bytes, bytes]]


class Failed(Exception):
    """A place did not answer as it should. `sent`: it may have begun to compute; `sentence` says what happened."""

    def __init__(self, sentence: str, *, sent: bool) -> None:
        super().__init__(sentence)
        self.sent = sent


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


class Exchange:
    """One request and its answer on a connection."""

    def __init__(self, site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, used: bool) -> None:
        self._reader, self._writer, self.used = reader, writer, used
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self.site = site
        self.idle_since = 0.0
        self.began = False  # a byte of the answer has come
        self._ended = False  # so has the last

    async def send(self, method: str, target: str, headers: Headers, body: bytes) -> None:
        """Sends a request. Raises Failed."""
        self.began = self._ended = False
        try:
            events = [h11.Request(method=method, target=target, headers=list(headers)), h11.EndOfMessage()]
            if body:
                events.insert(1, h11.Data(data=body))
            self._writer.writelines([self._http.send(event) or b"" for event in events])
            await self._writer.drain()
        except OSError as error:
            raise Failed(f"the connection broke: {error.strerror or type(error).__name__}", sent=True) from None

    async def head(self) -> h11.Response:
        """The head of the answer. Raises Failed."""
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
                raise Failed("the answer is in another protocol", sent=True)

    async def data(self) -> bytes:
        """Bytes of the body, all that have come; b"" at its end. Raises Failed."""
        parts = list[bytes]()
        while not self._ended:
            event = await self._next() if not parts else self._ready()
            if isinstance(event, h11.Data):
                parts += [bytes(event.data)] if event.data else []
            elif isinstance(event, h11.EndOfMessage):
                self._ended = True
            elif event is h11.NEED_DATA:
                break
            else:
                raise Failed("the connection was closed", sent=True)
        return b"".join(parts)

    def _ready(self) -> object:
        """What has come already. An error is left for when it is waited for."""
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError:
            return h11.NEED_DATA

    async def _next(self) -> object:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                data = await self._reader.read(_READ_BYTES)
                if not data and not self.began:
                    raise Failed("the connection was closed without an answer", sent=True)
                self.began = True
                self._http.receive_data(data)
            return event
        except OSError as error:
            raise Failed(f"the connection broke: {error.strerror or type(error).__name__}", sent=True) from None
        except h11.RemoteProtocolError as error:
            raise Failed(f"the answer is not HTTP/1.1: {str(error)[:120]}", sent=True) from None

    @property
    def closed(self) -> bool:
        """The place has closed the connection."""
        return self._reader.at_eof() or self._writer.is_closing()

    def abort(self) -> None:
        """Closes the connection at once."""
        self._writer.transport.abort()

    def reuse(self) -> bool:
        """Prepares for the next request; False if the connection can't have one."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        if self.closed or self._http.trailing_data[0]:
            return False
        self._http.start_next_cycle()
        self.used = True
        return True


@dataclass(eq=False, slots=True)
class Pool:
    """Connections to all places. `idle`: of each site, the one used last at the end; they are closed after a while."""

    idle: dict[Site, deque[Exchange]] = field(default_factory=dict)
    idle_seconds: float = IDLE_SECONDS
    _sweep: asyncio.TimerHandle | None = None

    async def open(self, site: Site, *, fresh: bool = False) -> Exchange:
        """A connection for one request: an idle one, unless it must be `fresh`. Raises Failed."""
        waiting = self.idle.get(site)
        while waiting and not fresh:
            found = waiting.pop()
            if not found.closed:
                return found
            found.abort()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                secure = _tls() if site.tls else None
                reader, writer = await asyncio.open_connection(site.host, site.port, ssl=secure, limit=_READ_BYTES)
        except TimeoutError:
            raise Failed(f"no connection within {CONNECT_SECONDS:g} s", sent=False) from None
        except (OSError, UnicodeError, ssl.SSLError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
            raise Failed(f"no connection: {reason}", sent=False) from None
        return Exchange(site, reader, writer, used=False)

    def give_back(self, exchange: Exchange) -> None:
        """Keeps the connection if it can have another request, or closes it."""
        waiting = self.idle.setdefault(exchange.site, deque())
        if len(waiting) >= _MOST_IDLE or not exchange.reuse():
            exchange.abort()
            return
        loop = asyncio.get_running_loop()
        exchange.idle_since = loop.time()
        waiting.append(exchange)
        if self._sweep is None:
            self._sweep = loop.call_later(self.idle_seconds, self._close_old)

    def _close_old(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self.idle_seconds
        for site, waiting in list(self.idle.items()):
            while waiting and waiting[0].idle_since <= oldest:
                waiting.popleft().abort()
            if not waiting:
                del self.idle[site]
        self._sweep = loop.call_later(self.idle_seconds, self._close_old) if self.idle else None

    def close(self) -> None:
        """Closes what is idle."""
        for waiting in self.idle.values():
            for exchange in waiting:
                exchange.abort()
        self.idle.clear()
