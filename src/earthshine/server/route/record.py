"""One request at the router from its arrival to its end, and its line in the log: where it went, and why."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from earthshine.server.http.log import Log
from earthshine.units import format_duration
from earthshine.untrusted import shown

CLIENT_GONE = 499  # in the log only
_MOST_MODEL = 128


@dataclass(eq=False, slots=True)
class Record:
    """`status`: what the client got. `why`: the reason of the choice; `problem`: what went wrong, in words."""

    client: str
    method: str
    path: str
    id: str
    status: int = 200
    place: str | None = None
    lender: str | None = None
    why: str = ""
    problem: str = ""
    model: str | None = None
    tokens: int = 0
    reused: int = 0
    failed: list[str] = field(default_factory=list)  # places that were tried before, and why each failed
    began: float = field(default_factory=time.perf_counter)
    sent: float | None = None  # to the place that answered
    first: float | None = None  # the answer's first byte
    ended: float | None = None

    def seconds(self, at: float | None) -> float | None:
        """From the arrival until then."""
        return None if at is None else at - self.began

    def end(self, log: Log) -> None:
        """Logs the request, once."""
        if self.ended is not None:
            return
        self.ended = time.perf_counter()
        log.event("request", self._columns(), self.fields())

    def _columns(self) -> list[str]:
        where = f"{self.place}, prefill by {self.lender}" if self.lender else self.place
        first, whole = self.seconds(self.first), self.seconds(self.ended)
        times = [f"first byte {format_duration(first)}"] if first is not None else []
        times += [f"{format_duration(whole)} in all"] if whole is not None else []
        parts = [self.client, f"{self.method} {shown(self.path)[1:-1]}", str(self.status), where or "", self.why]
        parts += [*(f"after {each}" for each in self.failed), self.problem, *times, self.id]
        return [part for part in parts if part]

    def fields(self) -> Mapping[str, Any]:
        """For a line of JSON, and for the page."""
        return {
            "request_id": self.id,
            "client": self.client,
            "method": self.method,
            "path": self.path[:_MOST_MODEL],
            "model": None if self.model is None else self.model[:_MOST_MODEL],
            "status": self.status,
            "place": self.place,
            "prefill": self.lender,
            "why": self.why or None,
            "problem": self.problem or None,
            "failed": self.failed or None,
            "prompt_tokens_estimated": self.tokens or None,
            "reused_tokens_estimated": self.reused or None,
            "first_byte_seconds": self.seconds(self.first),
            "seconds": self.seconds(self.ended),
        }
