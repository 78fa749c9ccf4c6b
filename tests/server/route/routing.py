"""A router on a real socket in a thread, in front of places whose answers the tests write byte by byte."""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from earthshine.net.access import make_access
from earthshine.net.listen import ListenOptions, bind
from earthshine.prfaas.router.setup import RouterSetup, place_from
from earthshine.server.http.log import Log
from earthshine.server.http.run import Service
from earthshine.server.route.app import Router
from earthshine.server.route.probes import ProbeTimes

from ..serving import HANG_SECONDS

REPLY = b'{"id":"x","choices":[{"message":{"role":"assistant","content":"hi"}}],"usage":{"prompt_tokens":9}}'
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
SLOW = ProbeTimes(every=HANG_SECONDS, answer=HANG_SECONDS, hang=HANG_SECONDS)  # one probe, and none again


def answer(body: bytes = REPLY, status: str = "200 OK", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@dataclass
class Asked:
    """A request that a place got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(eq=False)
class FakePlace:
    """A server whose `script` answers each request on a connection: it returns False to close it. Probes get `health`
    and `models`, or no answer at all while `deaf` is set."""

    script: Callable[[socket.socket, Asked], object] = lambda connection, asked: connection.sendall(answer())
    health: bytes = answer(b"{}")
    models: tuple[str, ...] = ("m",)
    metrics: bytes = b""
    deaf: threading.Event = field(default_factory=threading.Event)
    asked: list[Asked] = field(default_factory=list)
    probed: int = 0
    open: set[socket.socket] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                self.open.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as file:
            while (asked := self._read(file)) is not None:
                if self._answer(connection, asked) is False:
                    break
        self.open.discard(connection)

    def _read(self, file) -> Asked | None:
        lines = []
        while (line := file.readline()) not in (b"\r\n", b""):
            lines.append(line.decode("latin-1").rstrip("\r\n"))
        if not lines:
            return None
        method, path, _ = lines[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines[1:])}
        return Asked(method, path, headers, file.read(int(headers.get("content-length", 0))))

    def _answer(self, connection: socket.socket, asked: Asked) -> object:
        if self.deaf.is_set():
            threading.Event().wait(HANG_SECONDS)
        if asked.path == "/health":
            self.probed += 1
            return connection.sendall(self.health)
        if asked.path == "/metrics":
            return connection.sendall(answer(self.metrics))
        if asked.path == "/v1/models" and asked.headers.get("connection") == "close":  # a probe's
            found = {"data": [{"id": name} for name in self.models]}
            return connection.sendall(answer(json.dumps(found).encode()))
        self.asked.append(asked)
        return self.script(connection, asked)

    def close(self) -> None:
        """No connection is accepted any more."""
        with contextlib.suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@dataclass
class Routed:
    """A router; places are called a, b, c in the order in which they were given."""

    router: Router
    port: int
    lines: list[str]
    service: Service
    opened: list[socket.socket] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        self.opened.append(socket.create_connection(("127.0.0.1", self.port), HANG_SECONDS))
        return self.opened[-1]

    def send(self, body: object = CHAT, path: str = "/v1/chat/completions", headers: str = "") -> socket.socket:
        """A connection that has sent a request."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = self.connect()
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(raw)}\r\n{headers}\r\n".encode() + raw
        )
        return connection

    def requests(self) -> list[str]:
        """The log's lines of requests."""
        return [line for line in self.lines if re.search(r"  (POST|GET|DELETE) ", line)]


@contextlib.contextmanager
def routing(
    *places: FakePlace,
    prefill: tuple[str, ...] = (),
    key: str = "",
    keys=None,
    times: ProbeTimes = SLOW,
    limits=None,
    setup: RouterSetup | None = None,
    setup_again=None,
    drain_seconds: float = HANG_SECONDS,
) -> Iterator[Routed]:
    """A router in a thread, ended in order at the end."""
    decode = tuple(place_from(f"{'abcdefgh'[at]}={place.url}", key) for at, place in enumerate(places))
    lenders = tuple(place_from(text, prefill=True) for text in prefill)
    lines: list[str] = []
    access = make_access("127.0.0.1", keys)
    router = Router(setup or RouterSetup(decode, lenders), access, Log(lines.append), limits, setup_again, times)
    bound, ready = bind(ListenOptions(port=0)), threading.Event()

    class Nothing:
        def drain(self, seconds): ...

        def close(self): ...

    def begin() -> None:
        router.start()
        ready.set()

    service = Service(router, Nothing(), router.lifetime, drain_seconds, ready=begin)
    thread = threading.Thread(target=service.run, args=(bound,), kwargs={"signals": False})
    port = bound.getsockname()[1]
    thread.start()
    assert ready.wait(HANG_SECONDS)
    routed = Routed(router, port, lines, service)
    try:
        yield routed
    finally:
        for connection in routed.opened:
            connection.close()
        for place in places:
            place.close()
        service.stop()
        thread.join(HANG_SECONDS)
        assert not thread.is_alive()
