"""Whether places work: each is asked for /health again and again, and must answer in seconds.

A place that accepts connections and never answers is hung, as is one whose probe is fine while nothing at all came from
it for a long time although requests wait there: then it must generate one token. The requests that are at a place which
went down are tried elsewhere, or end with an error if a part of their answer was sent. A probe also reads which models
a place has and, where that is configured, how many requests others sent there.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from earthshine.prfaas.router.live import LiveFleet
from earthshine.prfaas.router.place import LivePlace
from earthshine.server.route.forward import Forwarded
from earthshine.server.route.upstream import Failed, Headers, Pool
from earthshine.untrusted import shown

_MOST_BYTES = 1 << 20  # of a probe's answer
_MODELS_EVERY = 15  # probes
_WAITING = re.compile(rb"^vllm:num_requests_(?:running|waiting)(?:\{[^}\n]*\})? ([0-9.e+]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ProbeTimes:
    """every: between two probes of a place; answer: within which one must be answered; hang: without a byte from a
    place with requests, until it must generate a token, in as much time again. All in seconds."""

    every: float = 2.0
    answer: float = 5.0
    hang: float = 60.0


@dataclass(eq=False, slots=True)
class Probes:
    """The probes of all places of a fleet."""

    fleet: LiveFleet
    at_places: dict[str, set[Forwarded]]
    log: Callable[[str], None]
    times: ProbeTimes = field(default_factory=ProbeTimes)
    _pool: Pool = field(default_factory=Pool)  # of its own: a hung connection of a request says nothing here
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def start(self) -> None:
        """Begins to probe the fleet's places, and ends with those that are gone."""
        loop = asyncio.get_running_loop()
        for name in self._tasks.keys() - self.fleet.places.keys():
            self._tasks.pop(name).cancel()
        for name, place in self.fleet.places.items():
            if place.setup.site is not None and name not in self._tasks:
                self._tasks[name] = loop.create_task(self._again_and_again(name))

    async def _again_and_again(self, name: str) -> None:
        n = 0
        while (place := self.fleet.places.get(name)) is not None:
            was = place.circuit.down
            await self.probe(place, models=n % _MODELS_EVERY == 0 or place.models is None)
            if place.circuit.down != was:
                self.log(f"{name} {place.circuit.probe_why}" if not was else f"{name} works again")
            if place.circuit.down:
                self._leave(place)
                n = 0
            await asyncio.sleep(self.times.every)
            n += 1

    def _leave(self, place: LivePlace) -> None:
        for forwarded in list(self.at_places.get(place.name, ())):
            forwarded.leave(place.circuit.probe_why)

    async def probe(self, place: LivePlace, *, models: bool) -> None:
        """One probe of a place, with what else is to be read."""
        try:
            status, answer = await self._ask(place, "GET", place.setup.health)
            if status == 503:
                place.circuit.probed(f"says that it does not work: {_message(answer)}", certain=True)
                return
            if status >= 500:
                raise Failed(f"answered {status} to a probe", sent=False)
            if place.decodes:
                await self._read_more(place, models)
            if self._suspicious(place):
                await self._generate(place)
        except Failed as error:
            place.circuit.probed(str(error))
        else:
            place.circuit.probed("")

    async def _read_more(self, place: LivePlace, models: bool) -> None:
        if models:
            status, answer = await self._ask(place, "GET", "/v1/models")
            if status == 200 and (found := _models(answer)):
                place.models = found
        if place.setup.metrics:
            status, answer = await self._ask(place, "GET", "/metrics")
            if status == 200:
                there = sum(float(match[1]) for match in _WAITING.finditer(answer))
                place.others = max(0, int(there) - place.sequences)

    def _suspicious(self, place: LivePlace) -> bool:
        return place.sequences > 0 and time.monotonic() - place.alive_at > self.times.hang

    async def _generate(self, place: LivePlace) -> None:
        """One token. Raises Failed if it does not come."""
        model = next(iter(place.models or ()), None)
        body = json.dumps({"prompt": "1", "max_tokens": 1} | ({"model": model} if model else {})).encode()
        began = time.monotonic()
        try:
            await self._ask(place, "POST", "/v1/completions", body, self.times.hang)
            place.alive_at = time.monotonic()
        except Failed:
            if place.alive_at >= began:  # meanwhile a request got an answer
                return
            place.circuit.failed_probes += 1  # as conclusive as two probes
            raise Failed(
                f"hangs: no byte came from it for {time.monotonic() - place.alive_at:.0f} s", sent=True
            ) from None

    async def _ask(
        self, place: LivePlace, method: str, path: str, body: bytes = b"", seconds: float | None = None
    ) -> tuple[int, bytes]:
        """The status and the body of an answer. Raises Failed."""
        site, exchange = place.setup.site, None
        assert site is not None
        limit = self.times.answer if seconds is None else seconds
        try:
            async with asyncio.timeout(limit):
                exchange = await self._pool.open(site, fresh=True)
                await exchange.send(method, site.prefix + path, _headers(place, method, body), body)
                head, parts, size = await exchange.head(), [], 0
                while (part := await exchange.data()) and size < _MOST_BYTES:
                    parts.append(part)
                    size += len(part)
                return head.status_code, b"".join(parts)
        except TimeoutError:
            raise Failed(f"hangs: it did not answer {path} within {limit:g} s", sent=False) from None
        finally:
            if exchange is not None:
                exchange.abort()


def _headers(place: LivePlace, method: str, body: bytes) -> Headers:
    site = place.setup.site
    assert site is not None
    host = f"[{site.host}]" if ":" in site.host else site.host
    found = [(b"host", f"{host}:{site.port}".encode("ascii", "ignore")), (b"connection", b"close")]
    if site.key:
        found.append((b"authorization", f"Bearer {site.key}".encode()))
    if method == "POST":
        found += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    return found


def _parsed(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        return None


def _models(answer: bytes) -> frozenset[str]:
    found = _parsed(answer)
    data = found.get("data") if isinstance(found, dict) else None
    entries = [entry.get("id") for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    return frozenset(name for name in entries[:1000] if isinstance(name, str) and len(name) <= 256)


def _message(answer: bytes) -> str:
    found = _parsed(answer)
    message = found.get("message") if isinstance(found, dict) else None
    return shown(message)[1:-1] if isinstance(message, str) else "status 503"
