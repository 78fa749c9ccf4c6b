"""One HTTP request from its arrival to its end: its metrics, its lines in the log, and what may end it early.

The log has one line for each request that computes or is refused, and before it, for one that takes long, a line once
its wait is known and one every `report_seconds`. Its experts are those that the engine used from its admission to its
end, for other requests too. Texts are logged only with `log_text`.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Receive

from earthshine.generation.request import Delta, Piece, Reading, Started
from earthshine.server.api import Exchange
from earthshine.server.http.body import ClientGone
from earthshine.server.http.log import Log, request_id
from earthshine.server.http.metrics import ExpertCounts, Metrics
from earthshine.server.http.timing import Timing
from earthshine.server.refusals import Refused
from earthshine.units import format_duration
from earthshine.untrusted import shown

CLIENT_GONE = 499  # in the log only
REPORT_SECONDS = 10.0
_MOST_MODEL = 128  # characters of a model's name, which may be the client's


@dataclass(eq=False, slots=True)
class RequestContext:
    """`fate` is done once the answer is to end early: with ClientGone, or with the refusal that the client gets. `id`
    names the request in the log and in its answer's headers. `model`: the name that the client asked for."""

    path: str
    client: str
    metrics: Metrics
    log: Log
    log_text: bool = False
    id: str = field(default_factory=lambda: request_id({}))
    report_seconds: float = REPORT_SECONDS
    status: int = 200
    refused: Refused | None = None
    fate: asyncio.Future[ClientGone | Refused] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    body: dict[str, Any] | None = None
    exchange: Exchange | None = None
    model: str | None = None
    timing: Timing = field(default_factory=Timing)
    _experts_before: ExpertCounts | None = None  # at its admission
    computing: asyncio.Task[None] | None = None  # of a reply that outlasts the connection
    _watch: asyncio.Task[None] | None = None
    _timer: asyncio.TimerHandle | None = None
    _announced: bool = False
    _queue_reported: bool = False
    _closed: bool = False

    def watch(self, receive: Receive, *, outlasts: bool = False) -> asyncio.Future[ClientGone | Refused]:
        """The future that is done once the client has closed its connection: `fate`, which ends the reply, or another
        one if the reply outlasts the connection."""
        gone = asyncio.get_running_loop().create_future() if outlasts else self.fate

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            if not gone.done():
                gone.set_result(ClientGone())

        self._watch = asyncio.get_running_loop().create_task(until_gone())
        return gone

    def end(self, reason: ClientGone | Refused) -> None:
        """End the reply, if it has not ended yet."""
        if not self.fate.done():
            self.fate.set_result(reason)

    def observe(self, piece: Piece) -> None:
        """Count a piece and observe its time."""
        seconds = self.timing.observe(piece)
        if isinstance(piece, Started):
            self.metrics.admitted(seconds)
            self._experts_before = self._experts_before or self.metrics.experts()
        elif isinstance(piece, Reading):
            self._announce()
        elif isinstance(piece, Delta):
            self.metrics.text_came(self.timing, seconds)

    def close(self) -> None:
        """Observe the whole request and log its line, once."""
        if self._closed:
            return
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self.timing.end()
        self.metrics.ended(self.timing)
        before = self._experts_before
        used = None if before is None else self.metrics.experts().since(before)
        columns = [self._outcome(), *self.timing.columns([] if used is None else used.columns())]
        self._log("request", columns, self._result() | (used.fields() if used is not None else {}))
        if self.log_text and self.body is not None and not self.log.as_json:
            self.log(f"  request {json.dumps(self.body)}")
            if self._answer is not None:
                self.log(f"  answer {json.dumps(self._answer)}")

    @property
    def _answer(self) -> dict[str, Any] | None:
        return self.exchange.whole() if self.exchange is not None and self.timing.tokens else None

    def _result(self) -> dict[str, Any]:
        found: dict[str, Any] = {"status": self.status, "reason": self._reason()}
        if self.refused is not None:
            found |= {"param": self.refused.param, "figures": self.refused.figures or None}
        found |= self.timing.fields()
        return found | ({"request": self.body, "answer": self._answer} if self.log_text else {})

    def _reason(self) -> str | None:
        """Why it ended: the reasons of its choices, or the kind of its refusal."""
        if self.status == CLIENT_GONE:
            return "client_gone"
        return self.refused.kind if self.refused is not None else ",".join(self.timing.reasons) or None

    def _outcome(self) -> str:
        """The status and the reason, for people; for a refused field its name, and what did not fit."""
        more = ""
        if self.refused is not None:
            more = self.refused.figures if self.refused.param is None else shown(self.refused.param)[1:-1]
        return f"{self.status} {self._reason() or ''}".rstrip() + (f": {more}" if more else "")

    def notice(self, sentence: str) -> None:
        """Log a sentence about this request."""
        self._log("notice", [sentence], {"message": sentence})

    def _announce(self) -> None:
        """Log the first line of a request whose prompt is expected to take long."""
        left = self.timing.seconds_left()
        if self._announced or left is None or self.timing.prefill_seconds + left < self.report_seconds:
            return
        self._announced = True
        self._log(
            "started", [f"reading {self.timing.prompt}, about {format_duration(left, rough=True)}"], self.timing.state()
        )

    def report_later(self) -> None:
        """Report every `report_seconds` from now on what is computed."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self.report_seconds, self._report)

    def _report(self) -> None:
        """Log what the request does now; one that waits in the queue says so once."""
        queued = self.timing.phase == "queued"
        if not (queued and self._queue_reported):
            self._queue_reported = queued
            self._announced = self._announced or not queued
            self._log("progress", [self.timing.sentence()], self.timing.state())
        self.report_later()

    def _log(self, event: str, columns: list[str], fields: Mapping[str, Any]) -> None:
        method, _, path = self.path.partition(" ")
        own = {"request_id": self.id, "client": self.client, "method": method, "path": path}
        model = None if self.model is None else self.model[:_MOST_MODEL]
        self.log.event(event, [self.client, self.path, *columns, self.id], {**own, "model": model, **fields})
