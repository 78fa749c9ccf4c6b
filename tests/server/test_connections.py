"""Many idle connections: the server stays reachable for others, over real sockets."""

import contextlib
import resource
import socket

import httpx
import pytest

from earthshine.net.connection import MOST_OPEN

from .serving import HANG_SECONDS, answered, received, serving, until

CROWD = 1500
FILES = 4096  # the crowd's and the server's ends are all in this process


@pytest.fixture(scope="module", autouse=True)
def _files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES:
        enough = hard if hard != resource.RLIM_INFINITY and hard > FILES else FILES
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, max(enough, FILES)))
    yield
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def crowd(server, first: bytes = b"") -> list[socket.socket]:
    found = []
    for _ in range(CROWD):
        found.append(server.connect())
        if first:
            with contextlib.suppress(OSError):
                found[-1].sendall(first)
    return found


def closed(connection: socket.socket) -> bool:
    connection.settimeout(HANG_SECONDS)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


REQUEST = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize("first", [b"", REQUEST, b"GET /hea"], ids=["nothing", "one request each", "half a head"])
def test_requests_are_answered_beside_many_connections_that_wait(first):
    with serving() as server:
        running = server.post({"prompt": "gate word hold", "stream": True})
        assert server.generator.begun.wait(HANG_SECONDS)
        crowd(server, first)
        for path in ("/health", "/metrics"):
            assert httpx.get(server.url + path).status_code == 200, path
        until(lambda: httpx.get(f"{server.url}/v1/models").status_code != 503)  # the crowd's requests are answered
        assert httpx.post(f"{server.url}/v1/echo", json={"prompt": "a"}).json() == {"text": "a"}
        assert not server.generator.closed.is_set() or len(server.generator.users) == 2
        server.generator.gate.set()
        assert b"word" in received(running, b"word")


def test_the_oldest_that_sent_nothing_are_closed_first():
    with serving() as server:
        kept = server.connect()
        kept.sendall(REQUEST)
        assert kept.recv(64).startswith(b"HTTP/1.1 200")
        idle = crowd(server)
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert all(closed(connection) for connection in idle[: CROWD - MOST_OPEN])
        for newest in (kept, *idle[-100:]):
            newest.sendall(b"GET /version HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            assert b"version" in received(newest)


def test_health_and_metrics_are_answered_where_every_connection_has_a_request():
    with serving() as server:
        body = {"prompt": "hold", "stream": True}
        busy = [server.post(body) for _ in range(MOST_OPEN + 20)]
        assert answered(busy[-1])[0] == 503
        for path, status in (("/health", 200), ("/metrics", 200), ("/v1/models", 503)):
            assert httpx.get(server.url + path).status_code == status, path
