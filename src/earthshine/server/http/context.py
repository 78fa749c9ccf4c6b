"""One HTTP request from its arrival to its end: its metrics, its line in the log, and what may end it early.

The log has one line for each request that computes or is refused. Texts are logged only with `log_text`.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Receive

from earthshine.generation.request import Delta, Ended, Piece, Started
from earthshine.server.api import Exchange, Refused
from earthshine.server.http.body import ClientGone
from earthshine.server.http.metrics import Metrics
from earthshine.untrusted import shown

Log = Callable[[str], None]
CLIENT_GONE = 499  # in the log only


@dataclass(eq=False, slots=True)
class RequestContext:
    """`fate` is done once the answer is to end early: with ClientGone, or with the refusal that the client gets."""

    path: str
    client: str
    metrics: Metrics
    log: Log
    log_text: bool = False
    status: int = 200
    began: float = field(default_factory=time.monotonic)
    fate: asyncio.Future[ClientGone | Refused] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    body: dict[str, Any] | None = None
    exchange: Exchange | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reply_tokens: int = 0
    _first: float | None = None  # when the first tokens came
    _first_tokens: int = 0  # how many these were
    _last: float = 0.0  # when the last tokens came, or the end
    _watch: asyncio.Task[None] | None = None
    _closed: bool = False

    def watch(self, receive: Receive) -> None:
        """End the reply if the client closes its connection."""

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.end(ClientGone())

        self._watch = asyncio.get_running_loop().create_task(until_gone())

    def end(self, reason: ClientGone | Refused) -> None:
        """End the reply, if it has not ended yet."""
        if not self.fate.done():
            self.fate.set_result(reason)

    def observe(self, piece: Piece) -> None:
        """Count a piece and observe its time."""
        now = time.monotonic()
        if isinstance(piece, Started):
            self.prompt_tokens += piece.prompt_tokens
            self.cached_tokens += piece.cached_tokens
            self.metrics.queue_time.observe(now - self.began)
        elif isinstance(piece, Delta):
            if self._first is None:
                self._first, self._first_tokens = now, piece.completion_tokens
                self.metrics.first_token_time.observe(now - self.began)
            else:
                self.metrics.token_gap.observe(now - self._last)
            self._last = now
        elif isinstance(piece, Ended):
            self.reply_tokens += piece.completion_tokens
            self._last = now

    def close(self) -> None:
        """Observe the whole request and log its line, once."""
        if self._closed:
            return
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
        seconds = time.monotonic() - self.began
        if self.prompt_tokens:
            self.metrics.request_time.observe(seconds)
            self.metrics.prompt_size.observe(self.prompt_tokens)
            self.metrics.reply_size.observe(self.reply_tokens)
        self.log(self._line(seconds))
        if self.log_text and self.body is not None:
            self.log(f"  request {json.dumps(self.body)}")
            if self.exchange is not None and self.reply_tokens:
                self.log(f"  answer {json.dumps(self.exchange.whole())}")

    def _line(self, seconds: float) -> str:
        parts = [time.strftime("%Y-%m-%d %H:%M:%S"), self.client, self.path, str(self.status)]
        if self.prompt_tokens:
            parts.append(f"{self.prompt_tokens} tokens ({self.cached_tokens} cached)")
        if self.reply_tokens:
            rate = self._rate()
            parts.append(f"{self.reply_tokens} generated" + ("" if rate is None else f", {rate:.1f} per second"))
        return "  ".join([*parts, f"{seconds:.2f} s"])

    def _rate(self) -> float | None:
        """Tokens after the first per second, between the first and the end; None if there are none."""
        further = self.reply_tokens - self._first_tokens
        if self._first is None or further <= 0 or self._last <= self._first:
            return None
        return further / (self._last - self._first)


def shown_path(path: str) -> str:
    """A path without a route, in a form that is safe for logs and messages."""
    return shown(path)[1:-1]
