"""The log line of a request: its tokens, and their rate. What ends a request early."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from earthshine.errors import OverloadError
from earthshine.generation.request import Delta, Ended, Piece, Started
from earthshine.server.http import timing
from earthshine.server.http.body import ClientGone
from earthshine.server.http.context import RequestContext
from earthshine.server.http.events import follow
from earthshine.server.http.log import Log
from earthshine.server.http.metrics import Metrics

from .serving import FakeEngine


def line_of(monkeypatch: pytest.MonkeyPatch, timed: list) -> str:
    """The log's line after pieces that come at given times, in seconds from the request's arrival."""
    lines: list[str] = []

    async def run() -> None:
        now = 100.0
        monkeypatch.setattr(timing.time, "monotonic", lambda: now)
        context = RequestContext("POST /v1/echo", "-", Metrics(FakeEngine(), "tiny"), Log(lines.append))
        for at, piece in timed:
            now = 100.0 + at
            context.observe(piece)
        context.close()

    asyncio.run(run())
    (line,) = lines
    return line


def delta(n_tokens: int, choice: int = 0) -> Delta:
    return Delta(choice, [], (), n_tokens)


@pytest.mark.parametrize(
    ("timed", "expected"),
    [
        ([(4, delta(1)), (5, delta(2)), (6, Ended(0, "stop", 3, 0))], "3 generated in 2.0 s (1.0 per second)"),
        ([(4, delta(3)), (5, delta(5)), (6, Ended(0, "length", 7, 0))], "7 generated in 2.0 s (2.0 per second)"),
        ([(4, delta(1)), (4, delta(1, 1)), (8, Ended(0, "stop", 3, 0)), (8, Ended(1, "stop", 4, 0))],
         "7 generated in 4.0 s (1.5 per second)"),
        ([(4, delta(1)), (4, Ended(0, "length", 1, 0))], "1 generated  "),
        ([(9, delta(50)), (9, Ended(0, "stop", 50, 0))], "50 generated  "),  # a call that was held back to its end
        ([(4, Ended(0, "stop", 1, 0))], "1 generated  "),
    ],
)  # fmt: skip
def test_the_rate_is_that_of_the_tokens_after_the_first(monkeypatch, timed, expected):
    line = line_of(monkeypatch, [(1, Started(5, 2)), *timed])
    assert "5 tokens (2 cached)" in line
    assert expected in line


def test_a_failure_that_comes_with_the_end_of_a_request_is_not_reported_as_lost():
    """A closed engine fails its requests while the server ends them."""
    lost: list[dict] = []

    async def request() -> None:
        context = RequestContext("POST /v1/echo", "-", Metrics(FakeEngine(), "tiny"), Log(lambda line: None))

        async def pieces() -> AsyncIterator[Piece]:
            yield delta(1)
            context.end(ClientGone())
            raise OverloadError("The engine was closed.", 1)

        with suppress(ClientGone):
            async for _ in follow(pieces(), context, 1000, 1000):
                pass
        context.close()

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, problem: lost.append(problem))
        await request()
        gc.collect()

    asyncio.run(run())
    assert lost == []
