"""A server on a real socket in a thread, with an API and replies of the tests' own."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

from pydantic import BaseModel, Field

from earthshine.engine import SamplingParams
from earthshine.generation.request import Delta, Ended, GenerationRequest, Started
from earthshine.net.access import make_access
from earthshine.net.listen import ListenOptions, bind
from earthshine.server.api import Api, Served, ServerEvent
from earthshine.server.http.app import Lifetime, Options, make_app
from earthshine.server.http.log import Log
from earthshine.server.http.run import Service
from earthshine.text import Content

HANG_SECONDS = 300.0  # the busiest machine takes less, so that only a hang lasts as long


class Item(BaseModel):
    role: str
    content: str | list[str] = ""


class Body(BaseModel):
    model: str | None = None
    prompt: str
    n: int = Field(default=1, ge=1)
    times: int = 1
    stream: bool = False
    items: list[Item] = Field(default_factory=list)


class Echo:
    """Counts pieces; says them as they come."""

    def __init__(self, body, served):
        self.requests, self.stream = (
            [GenerationRequest(body.prompt, SamplingParams(n=body.n))] * body.times,
            body.stream,
        )
        self.texts = []

    def push(self, piece):
        if isinstance(piece, Delta):
            self.texts.append("".join(event.text for event in piece.events))
            return [ServerEvent({"text": self.texts[-1]}, "said")]
        return []

    def end(self):
        return [ServerEvent("[DONE]")]

    def failed(self, problem):
        return [ServerEvent({"error": str(problem), "kind": problem.kind})]

    def whole(self):
        return {"text": "".join(self.texts)}

    def counted(self, tokens):
        return {"tokens": list(tokens)}


def error(problem):
    return {"echo": str(problem), "kind": problem.kind, "param": problem.param}


def error_of_messages(problem):
    return {"type": "error", "message": str(problem)}


APIS = (
    Api("/v1/echo", "Says it back.", Body, Echo, error),
    Api("/v1/echo/count", "Counts it.", Body, Echo, error, counts=True),
    Api("/v1/messages", "In another shape.", Body, Echo, error_of_messages),
)


@dataclass
class FakeGenerator:
    """Says the prompt word by word. `gate` waits until a test opens it; a word that begins with ! is raised; `hold`
    waits for the end of time; `flood` never ends."""

    users: list = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)
    errors: dict = field(default_factory=dict)

    async def answer(self, requests, user):
        self.users.append(user)
        self.begun.set()
        try:
            prompt = requests[0].prompt
            words = (prompt if isinstance(prompt, str) else prompt[-1]["content"]).split()
            opened = False
            for at, word in enumerate(words):
                if word.startswith("!"):
                    raise self.errors[word[1:]]
                if word == "gate":
                    while not self.gate.is_set():
                        await asyncio.sleep(0.01)
                    continue
                if not opened:
                    yield Started(len(words), at)
                    opened = True
                if word == "hold":
                    await asyncio.Event().wait()
                while word == "flood":
                    yield Delta(0, [Content("x" * 4096)])
                    await asyncio.sleep(0)
                yield Delta(0, [Content(word)])
            yield Ended(0, "stop", len(words), 0)
        finally:
            self.closed.set()

    async def count(self, requests):
        return [len(request.prompt.split()) for request in requests]


GAUGES = SimpleNamespace(
    running=1, waiting=2, pages=10, pages_free=5, pages_cached=3, prefix_queries=100, prefix_hits=60, preemptions=4,
    prompt_tokens=500, generated_tokens=700, expert_hits=30, expert_misses=10, expert_bytes_read=4096,
    disk_cache_bytes=11, disk_cache_pages=12, pages_read=13, pages_written=14, damaged_pages=15, resident_bytes=1 << 20,
    budget_bytes=1 << 21, finished={"stop": 6, "length": 7, "cancelled": 3}, problem=None,
    prefill_tokens=900, prefill_processed=300, prefill_seconds_left=21.5,
)  # fmt: skip


class FakeEngine:
    alive = True
    stalled = 0.0
    drained = closed = False

    def gauges(self):
        return GAUGES

    def stalled_seconds(self):
        return self.stalled

    def drain(self, seconds):
        self.drained = True

    def close(self):
        self.closed = True


@dataclass
class Served_:
    port: int
    generator: FakeGenerator
    engine: FakeEngine
    lifetime: Lifetime
    service: Service
    lines: list
    thread: threading.Thread
    opened: list = field(default_factory=list)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def connect(self):
        """A connection that is closed with the server, if not before."""
        self.opened.append(socket.create_connection(("127.0.0.1", self.port), HANG_SECONDS))
        return self.opened[-1]

    def post(self, body, path="/v1/echo", headers=""):
        """A connection that has sent a request."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = self.connect()
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(raw)}\r\n{headers}\r\n".encode() + raw
        )
        return connection


@contextlib.contextmanager
def serving(
    *,
    access=None,
    tls=None,
    drain_seconds=HANG_SECONDS,
    apis=APIS,
    errors=None,
    names=("tiny", "small"),
    log_json=False,
    **options,
):
    """A server in a thread, ended in order at the end."""
    replies, engine, lifetime, lines = FakeGenerator(errors=errors or {}), FakeEngine(), Lifetime(), []
    served = Served(names, 1_700_000_000, 4096, False, False, str)
    app = make_app(
        replies,
        engine,
        served,
        apis,
        access or make_access("127.0.0.1"),
        Options(log=Log(lines.append, log_json), **options),
        lifetime,
    )
    bound, ready = bind(ListenOptions(port=0)), threading.Event()
    port = bound.getsockname()[1]
    service = Service(app, engine, lifetime, drain_seconds, tls, ready.set)
    thread = threading.Thread(target=service.run, args=(bound,), kwargs={"signals": False})
    thread.start()
    assert ready.wait(HANG_SECONDS)
    server = Served_(port, replies, engine, lifetime, service, lines, thread)
    try:
        yield server
    finally:
        replies.gate.set()
        for connection in server.opened:
            connection.close()
        service.stop()
        thread.join(HANG_SECONDS)
        assert not thread.is_alive()


def until(holds: Callable[[], object]) -> None:
    """Waits for what another thread or process is about to do."""
    end = time.monotonic() + HANG_SECONDS
    while not holds():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.002)


def received(connection, last: bytes | None = None) -> bytes:
    """Everything until the server closes, or until `last` has come."""
    connection.settimeout(HANG_SECONDS)
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while (last is None or last not in found) and (part := connection.recv(65536)):
            found += part
    return found


def answered(connection) -> tuple[int, bytes]:
    """The status and the body of one answer; the connection may stay open."""
    connection.settimeout(HANG_SECONDS)
    with contextlib.closing(http.client.HTTPResponse(connection)) as answer:
        answer.begin()
        return answer.status, answer.read()
