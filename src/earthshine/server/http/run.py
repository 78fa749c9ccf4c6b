"""An application as a server on a socket, with a graceful shutdown.

After the first SIGTERM or Ctrl-C no more requests are accepted and those under way may finish for a while; then the
rest end with an error and the engine is closed. A second signal ends the process at once.
"""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from earthshine.net.connection import MAX_HEAD_BYTES, Connection, Waiting

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KEEP_ALIVE_SECONDS = 60
_BACKLOG = 256  # accepted at once too, so with open connections they must stay below 1,024 files
_LAST_SECONDS = 2  # for the last events, and for connections to close
_POLL_SECONDS = 0.02


class Ending(Protocol):
    """The part of engine.Engine that a shutdown uses."""

    def drain(self, seconds: float) -> object: ...

    def close(self) -> None: ...


class Lifetime(Protocol):
    """The part of endpoints.Lifetime that a shutdown uses."""

    draining: bool

    @property
    def requests(self) -> Sized:
        """What is under way."""
        ...

    def cut(self) -> None:
        """End every request that is under way with an error."""
        ...


class _Server(uvicorn.Server):
    """uvicorn's server without signal handlers; it calls `ready` once it listens."""

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
        """Close the listening sockets; open connections stay open."""
        for server in self.servers:
            server.close()


@dataclass(eq=False, slots=True)
class Service:
    """An application on its socket. `stop` may be called from any thread and has the effect of a signal."""

    app: ASGIApp
    engine: Ending
    lifetime: Lifetime
    drain_seconds: float = 30.0
    tls: ssl.SSLContext | None = None
    ready: Callable[[], None] = lambda: None
    log: Callable[[str], None] = lambda sentence: None
    hang_up: Callable[[], None] | None = None  # what SIGHUP does; None: as the system has it
    _loop: asyncio.AbstractEventLoop | None = None
    _stopping: asyncio.Event | None = None

    def run(self, bound: socket.socket, *, signals: bool = True) -> None:
        """Serve until a signal or `stop`, and always close the engine at the end."""
        try:
            with asyncio.Runner() as runner:
                runner.run(self._run(bound, signals))
        finally:
            self.engine.close()

    def stop(self) -> None:
        """Begin the shutdown. Has no effect before the server runs and after it has ended."""
        if self._loop is not None and self._stopping is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)

    async def _run(self, bound: socket.socket, signals: bool) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        for number in _SIGNALS if signals else ():
            self._loop.add_signal_handler(number, self._signalled, number)
        if signals and self.hang_up is not None:
            self._loop.add_signal_handler(signal.SIGHUP, self.hang_up)
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
                f"shutting down; {len(self.lifetime.requests)} running requests have {self.drain_seconds:g} s to finish"
            )
        end = loop.time() + self.drain_seconds
        await asyncio.to_thread(self.engine.drain, self.drain_seconds)
        while self.lifetime.requests and loop.time() < end:  # answers that are computed are still sent
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
            http=partial(Connection, waiting=Waiting()),  # type: ignore[arg-type]  # uvicorn only calls it
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
