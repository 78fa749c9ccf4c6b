"""From an application to a server on a socket: signals, and an orderly end.

The first SIGTERM or Ctrl-C stops accepting, lets requests finish for a while, ends the rest with an error,
and closes the engine; a second one ends the process at once.
"""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import uvicorn
from starlette.applications import Starlette

from earthshine.net.connection import MAX_HEAD_BYTES, Connection, Waiting
from earthshine.server.http.endpoints import Lifetime

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KEEP_ALIVE_SECONDS = 60
_BACKLOG = 256  # also accepted at once, which with those that are open must stay below 1,024 files
_LAST_SECONDS = 2  # for the last events and for connections to close
_POLL_SECONDS = 0.02


class Ending(Protocol):
    """What is asked of an engine at the end."""

    def drain(self, seconds: float) -> object: ...

    def close(self) -> None: ...


class _Server(uvicorn.Server):
    """Leaves signals alone, and says when it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def stop_listening(self) -> None:
        """Connections that are open stay so."""
        for server in self.servers:
            server.close()


@dataclass(eq=False, slots=True)
class Service:
    """An application on its socket. `stop` may be called from any thread, as a signal would."""

    app: Starlette
    engine: Ending
    lifetime: Lifetime
    drain_seconds: float = 30.0
    tls: ssl.SSLContext | None = None
    ready: Callable[[], None] = lambda: None
    log: Callable[[str], None] = lambda line: None
    _loop: asyncio.AbstractEventLoop | None = None
    _stopping: asyncio.Event | None = None

    def run(self, bound: socket.socket, *, signals: bool = True) -> None:
        """Serve until a signal, or `stop`. The engine is closed at the end, in any case."""
        try:
            with asyncio.Runner() as runner:
                runner.run(self._run(bound, signals))
        finally:
            self.engine.close()

    def stop(self) -> None:
        """The orderly end begins; no harm before the beginning or after the end."""
        if self._loop is not None and self._stopping is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)

    async def _run(self, bound: socket.socket, signals: bool) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        for number in _SIGNALS if signals else ():
            self._loop.add_signal_handler(number, self._signalled, number)
        server = _Server(self._config(), self.ready)
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not serving.done():
            await self._drain(server)
        await serving

    def _signalled(self, number: int) -> None:
        if self._stopping is None or self._stopping.is_set():
            os._exit(128 + number)
        self._stopping.set()

    async def _drain(self, server: _Server) -> None:
        loop = asyncio.get_running_loop()
        self.lifetime.draining = True
        server.stop_listening()
        if self.lifetime.requests:
            self.log(
                f"ending; {len(self.lifetime.requests)} requests under way have {self.drain_seconds:g} s to finish"
            )
        end = loop.time() + self.drain_seconds
        await asyncio.to_thread(self.engine.drain, self.drain_seconds)
        while self.lifetime.requests and loop.time() < end:  # what is computed must still be read
            await asyncio.sleep(_POLL_SECONDS)
        self.lifetime.cut()
        last = loop.time() + _LAST_SECONDS
        while self.lifetime.requests and loop.time() < last:
            await asyncio.sleep(_POLL_SECONDS)
        server.should_exit = True

    def _config(self) -> uvicorn.Config:
        tls = self.tls
        return uvicorn.Config(
            self.app,
            loop="asyncio",
            http=partial(Connection, waiting=Waiting()),  # type: ignore[arg-type]  # a class is only called
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_LAST_SECONDS,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
        )
