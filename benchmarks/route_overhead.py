"""What the router adds to a request: a trivial server, asked directly and through `earthshine route` in turns.

    python benchmarks/route_overhead.py [--rate N] [--seconds N] [--repeats N] [--stream]

Server, router and clients are three processes. Requests are sent at fixed times, N per second through the router and as
many directly, each on a connection that is kept open, and none waits for another. Each asks for a reply to a chat of
2,000 characters; with --stream it comes as 20 events. Prints one JSON document with rows for docs/results: the time to
the reply's end, the difference of both ways' medians and of their 99th percentiles.
"""

import argparse
import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator

from result_rows import result_rows

_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'
_WHOLE = b'{"choices":[{"message":{"role":"assistant","content":"word"}}],"usage":{"prompt_tokens":9}}'
_N_EVENTS = 20
_PROMPT = "The quick brown fox jumps over the lazy dog. " * 44


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers every request on a connection at once."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = re.search(rb"content-length: *(\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            if b'"stream": true' in body:
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                for _ in range(_N_EVENTS):
                    writer.write(b"%x\r\n%s\r\n" % (len(_EVENT), _EVENT))
                    await asyncio.sleep(0)
                writer.write(b"0\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                             % (len(_WHOLE), _WHOLE))  # fmt: skip
            await writer.drain()
    writer.close()


async def serve() -> None:
    """The trivial server; prints its port."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def started(command: list[str], port: str) -> Iterator[int]:
    """The port of a process, which matches `port` in a line that it prints."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(port, line):
                yield int(found[1])
                return
        raise SystemExit(f"{command} ended")
    finally:
        process.kill()
        process.wait()


class Way:
    """One of both ways: a port, connections that are free, and the seconds that each request took."""

    def __init__(self, port: int, stream: bool) -> None:
        body = json.dumps({"messages": [{"role": "user", "content": _PROMPT}], "stream": stream}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self._port, self._end = port, b"0\r\n\r\n" if stream else b"}}"
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.seconds: list[float] = []

    async def ask(self) -> None:
        """One request."""
        began = time.perf_counter()
        if not self._free:
            self._free.append(await asyncio.open_connection("127.0.0.1", self._port))
            began = time.perf_counter()
        reader, writer = connection = self._free.pop()
        writer.write(self._request)
        found = b""
        while not found.endswith(self._end):
            part = await reader.read(65536)
            assert part, found
            found += part
        self.seconds.append(time.perf_counter() - began)
        assert found.startswith(b"HTTP/1.1 200"), found[-400:]
        self._free.append(connection)


async def measure(ways: list[Way], rate: float, seconds: float) -> None:
    """Sends requests both ways in turns."""
    began, running = time.perf_counter(), set()
    for number in range(int(rate * len(ways) * seconds)):
        await asyncio.sleep(max(0.0, began + number / (rate * len(ways)) - time.perf_counter()))
        task = asyncio.create_task(ways[number % len(ways)].ask())
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


async def figures(
    ports: tuple[int, int], stream: bool, rate: float, seconds: float, repeats: int
) -> dict[str, list[float]]:
    """Milliseconds of each repeat."""
    found: dict[str, list[float]] = {}
    await measure([Way(port, stream) for port in ports], rate, 1.0)
    for _ in range(repeats):
        direct, routed = ways = [Way(port, stream) for port in ports]
        await measure(ways, rate, seconds)
        for name, share in (("median", 0.5), ("p99", 0.99)):
            times = [1e3 * sorted(way.seconds)[int(share * len(way.seconds))] for way in (direct, routed)]
            found.setdefault(f"added by the router, {name} (ms)", []).append(times[1] - times[0])
            found.setdefault(f"directly, {name} (ms)", []).append(times[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve())
        return
    with started([sys.executable, __file__, "--serve"], r"^(\d+)$") as direct:
        places = [f"--decode={name}=http://127.0.0.1:{direct}" for name in "ab"]
        route = [sys.executable, "-c", "from earthshine.cli import main; main()", "route", "--port=0", *places]
        with started(route, r"BASE_URL=http://127.0.0.1:(\d+)") as routed:
            found = asyncio.run(figures((direct, routed), given.stream, given.rate, given.seconds, given.repeats))
    print(json.dumps({"rows": result_rows(found)}, ensure_ascii=False))


if __name__ == "__main__":
    main()
