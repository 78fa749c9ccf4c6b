"""One request of a client, forwarded: sent to a place, elsewhere if that fails before the first byte, and answered.

Once a byte of an answer was passed on, a failure is given to the client as an error of its API, and nothing is sent
again. A request that a place may have begun to compute is sent to one more at most, so that one which makes places fail
does not fail all of them. Whatever ends a request early (its client left, its place hangs, the router shuts down) does
so by `end`, which aborts the connection to the place.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import h11
from starlette.requests import Request
from starlette.types import Receive, Send

from earthshine.errors import UnavailableError
from earthshine.prfaas.router.live import Choice, LiveFleet, Prompt, Ticket
from earthshine.prfaas.router.setup import NONE
from earthshine.server.http.body import Bodies, ClientGone, Limits
from earthshine.server.refusals import Refused
from earthshine.server.route.answers import RETRY_SECONDS, error_events
from earthshine.server.route.prompt import PREFILL_HEADER, generates, has_body, read_prompt
from earthshine.server.route.record import Record
from earthshine.server.route.sse import Counts, Events, ends_event
from earthshine.server.route.upstream import Exchange, Failed, Headers, Pool

_HELD_BYTES = 64 << 10  # of an answer that is no stream: if it breaks before, the client gets an error instead
_MOST_SENT = 2  # places that may have begun to compute a request
_SENT_ON = (b"accept", b"content-type", b"user-agent", b"anthropic-version", b"anthropic-beta")
_NOT_PASSED = frozenset((
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"te", b"trailer", b"transfer-encoding",
    b"upgrade", b"date", b"server", b"set-cookie", b"location", b"alt-svc", b"strict-transport-security",
))  # fmt: skip
_BUSY = (429, 503, 529)
_ELSEWHERE = (500, 502, 504, *_BUSY)  # statuses for which another place is tried


@dataclass(frozen=True, slots=True)
class Shared:
    """What all requests share."""

    fleet: LiveFleet
    pool: Pool
    bodies: Bodies
    limits: Limits
    at_places: dict[str, set["Forwarded"]]  # by the place's name


@dataclass(slots=True)
class _Attempt:
    """A request at a place, with the head of its answer once that came."""

    exchange: Exchange
    ticket: Ticket
    head: h11.Response
    first: bytes = b""
    over: bool = False  # `first` ends the body

    def has_event(self) -> bool:
        """Whether `first` has a whole event of a stream."""
        return self.streamed and ends_event(self.first)

    @property
    def streamed(self) -> bool:
        found = _header(self.head, b"content-type")
        return found.startswith(b"text/event-stream") and not _header(self.head, b"content-encoding")


@dataclass(eq=False, slots=True)
class Forwarded:
    """`target`: the path with its query, as it is sent on. `tenant`: the client's API key, as a digest. `near`: the
    conversation that it continues."""

    shared: Shared
    record: Record
    target: str
    tenant: str
    near: str | None = None
    conversation: str | None = None  # the id that places know it by
    fate: Exception | None = None
    began: bool = False  # an answer is being sent to the client
    _left: str = ""  # why the place is to be left
    _exchange: Exchange | None = None
    _watch: asyncio.Task[None] | None = None
    _kept: _Attempt | None = None  # a refusal that is passed on if no other place takes the request
    _tickets: set[Ticket] = field(default_factory=set)

    def end(self, reason: Exception) -> None:
        """Ends the request with ClientGone or a Refused, at once."""
        if self.fate is None:
            self.fate = reason
            if self._exchange is not None:
                self._exchange.abort()

    def leave(self, sentence: str) -> None:
        """The request fails at its place, which does not work any more, as if the connection had broken."""
        self._left = sentence
        if self._exchange is not None:
            self._exchange.abort()

    async def run(self, request: Request, send: Send) -> None:
        """Answers the request. Raises Refused and ClientGone, before anything was sent or after `fate` was decided."""
        try:
            async with self.shared.bodies.raw(request) as raw:
                prompt = Prompt()
                if request.method == "POST" and (raw or has_body(request.url.path)):
                    reader = partial(read_prompt, path=request.url.path, tenant=self.tenant)
                    prompt = await self.shared.bodies.parse(raw, reader)
                self._watch = asyncio.get_running_loop().create_task(self._until_gone(request.receive))
                self.record.model = prompt.model
                attempt = await self._obtain(request, raw, prompt)
            await self._answer(attempt, send)
        finally:
            if self._watch is not None:
                self._watch.cancel()
            self._drop_kept()
            for ticket in list(self._tickets):
                self._over(ticket, served=False)
            if self._exchange is not None:
                self._exchange.abort()

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end(ClientGone())

    async def _obtain(self, request: Request, raw: bytes, prompt: Prompt) -> _Attempt:
        """An answer's head and first bytes, from the first place that has one."""
        fleet, tried, n_sent = self.shared.fleet, set[str](), 0
        while True:
            try:
                choice = fleet.choose(prompt, time.monotonic(), tried, self.near)
            except UnavailableError as error:
                if self._kept is not None:
                    kept, self._kept = self._kept, None
                    return kept
                raise Refused(str(error), "unavailable", None, RETRY_SECONDS) from None
            name = choice.place.name
            try:
                attempt = await self._attempt(choice, request, raw, prompt)
            except Failed as error:
                if self.fate is not None:
                    raise self.fate from None
                choice.place.circuit.failed(time.monotonic(), str(error))
                self.record.failed.append(f"{name}: {error}")
                n_sent += error.sent
            else:
                if attempt.head.status_code not in _ELSEWHERE:
                    return attempt
                self._refused_by(choice, attempt)
                n_sent += attempt.head.status_code == 500
            tried.add(name)
            if n_sent >= _MOST_SENT:
                if self._kept is not None:
                    kept, self._kept = self._kept, None
                    return kept
                raise Refused(f"The request failed at {n_sent} places: {'; '.join(self.record.failed)}.", "unavailable")

    def _refused_by(self, choice: Choice, attempt: _Attempt) -> None:
        """A place has no room or failed: its answer is kept for the case that no other place has a better one."""
        now, status = time.monotonic(), attempt.head.status_code
        if status in _BUSY:
            given = _header(attempt.head, b"retry-after")
            choice.place.circuit.busy(now, float(given) if given.isdigit() and len(given) < 6 else 1.0)
        else:
            choice.place.circuit.failed(now, f"answered {status}")
        self.record.failed.append(f"{choice.place.name}: {status}")
        self._drop_kept()
        self._kept, self._exchange = attempt, None

    def _drop_kept(self) -> None:
        if self._kept is not None:
            self._kept.exchange.abort()
            self._over(self._kept.ticket, served=False)
            self._kept = None

    async def _attempt(self, choice: Choice, request: Request, raw: bytes, prompt: Prompt) -> _Attempt:
        """Sends the request to one place. Raises Failed."""
        shared, place = self.shared, choice.place
        site = place.setup.site
        assert site is not None  # of every place that decodes
        ticket = shared.fleet.begin(choice, prompt, time.monotonic())
        self._tickets.add(ticket)
        shared.at_places.setdefault(place.name, set()).add(self)
        self._note(choice)
        try:
            fresh = False
            while True:
                self._exchange = exchange = await shared.pool.open(site, fresh=fresh)
                if self.fate is not None:
                    raise Failed("the request ended", sent=False)
                try:
                    headers = self._headers(request, choice, len(raw))
                    await exchange.send(request.method, site.prefix + self.target, headers, raw)
                    self.record.sent = time.perf_counter()
                    return await self._begun(exchange, ticket)
                except Failed:
                    fresh = exchange.used and not exchange.began and self.fate is None and not self._left
                    if not fresh:  # else the place had closed the connection before the request came
                        raise
                    exchange.abort()
        except Failed as error:
            if self._exchange is not None:
                self._exchange.abort()
            self._exchange = None
            self._over(ticket, served=False)
            left, self._left = self._left, ""
            raise Failed(left, sent=True) if left else error from None

    async def _begun(self, exchange: Exchange, ticket: Ticket) -> _Attempt:
        """The head of the answer, and with it the first bytes of a stream or a short answer as a whole."""
        head = await exchange.head()
        place = ticket.choice.place
        place.alive_at = time.monotonic()
        if head.status_code in (401, 403) or head.status_code < 200 or 300 <= head.status_code < 400:
            raise Failed(f"answered the router's request with {head.status_code}", sent=False)
        found = _Attempt(exchange, ticket, head)
        try:
            # Until then another place may answer. A client waits this long for a stream's head, as with serve.
            async with asyncio.timeout(self.shared.limits.first_seconds if found.streamed else None):
                while not found.over and len(found.first) < _HELD_BYTES and not found.has_event():
                    part = await exchange.data()
                    found.first += part
                    found.over = not part
        except TimeoutError:
            pass
        return found

    def _note(self, choice: Choice) -> None:
        record = self.record
        record.place, record.lender = choice.place.name, choice.lender.name if choice.lender else None
        record.why, record.tokens, record.reused = choice.reason, choice.tokens, choice.reused

    def _headers(self, request: Request, choice: Choice, nbytes: int) -> Headers:
        site = choice.place.setup.site
        assert site is not None
        host = f"[{site.host}]" if ":" in site.host else site.host
        found = [(b"host", f"{host}:{site.port}".encode("ascii", "ignore")), (b"x-request-id", self.record.id.encode())]
        found += [(name, value) for name, value in request.headers.raw if name in _SENT_ON]
        if site.key:
            found.append((b"authorization", f"Bearer {site.key}".encode()))
        if self.conversation is not None:
            found.append((b"x-conversation-id", self.conversation.encode()))
        if self.shared.fleet.setup.prefill and generates(request.url.path):
            found.append((PREFILL_HEADER.encode(), (choice.lender.name if choice.lender else NONE).encode()))
        if request.method == "POST":
            found.append((b"content-length", str(nbytes).encode()))
        return found

    async def _answer(self, attempt: _Attempt, send: Send) -> None:
        """Passes the answer on."""
        place, self._exchange = attempt.ticket.choice.place, attempt.exchange
        self._note(attempt.ticket.choice)
        self.record.status, self.record.first = attempt.head.status_code, time.perf_counter()
        if self.fate is not None:
            raise self.fate
        self.began = True
        headers = [(name, value) for name, value in attempt.head.headers if name not in _NOT_PASSED]
        headers.append((b"x-request-id", self.record.id.encode()))
        await send({"type": "http.response.start", "status": attempt.head.status_code, "headers": _once(headers)})
        passing = _Passing(self, attempt, send)
        try:
            await passing.run()
        except Failed as error:
            await self._broken(passing, error)
            return
        self._over(attempt.ticket, served=attempt.head.status_code < 400, counts=passing.counts)
        if attempt.head.status_code < 500:
            place.circuit.succeeded()
            if self.near is not None:
                self.shared.fleet.remember(self.near, place.name)
        self.shared.pool.give_back(attempt.exchange)
        self._exchange = None

    async def _broken(self, passing: "_Passing", error: Failed) -> None:
        """The answer broke after its first byte: an error ends a stream, and all else is cut."""
        place = passing.attempt.ticket.choice.place
        if isinstance(self.fate, ClientGone):
            raise self.fate
        if self.fate is None:
            place.circuit.failed(time.monotonic(), str(error))
        cause = self._left or str(error)
        said = str(self.fate) if self.fate else f"The server {place.name} failed in the middle of the answer: {cause}."
        problem = self.fate if isinstance(self.fate, Refused) else Refused(said, "unavailable")
        self.record.problem, self.record.status = said, problem.status
        if not passing.attempt.streamed:
            raise ClientGone  # a shorter body than announced would look whole
        await passing.put(passing.events.before_error() + error_events(self.record.path, problem), more=False)

    def _over(self, ticket: Ticket, *, served: bool, counts: Counts | None = None) -> None:
        if ticket not in self._tickets:
            return
        self._tickets.discard(ticket)
        now, fleet = time.monotonic(), self.shared.fleet
        self.shared.at_places.get(ticket.choice.place.name, set()).discard(self)
        ticket.choice.place.circuit.ended()
        counted = (counts.prompt(), counts.output()) if served and counts is not None else (None, None)
        fleet.end(ticket, now, served=served, prompt_tokens=counted[0], output_tokens=counted[1])


@dataclass(eq=False, slots=True)
class _Passing:
    """An answer that passes through, no faster than the client reads it."""

    forwarded: Forwarded
    attempt: _Attempt
    send: Send
    events: Events = field(default_factory=Events)
    counts: Counts = field(default_factory=Counts)

    async def run(self) -> None:
        """Raises Failed where the answer breaks, and ClientGone where the client does not read it."""
        attempt, streamed = self.attempt, self.attempt.streamed
        data, place = attempt.first, attempt.ticket.choice.place
        while True:
            if data:
                place.alive_at = time.monotonic()
                self.counts.add(data)
                passed = self.events.take(data) if streamed else data
                if self.events.token_seen:
                    self.forwarded.shared.fleet.first(attempt.ticket, place.alive_at)
                if passed:
                    await self.put(passed)
            if attempt.over:
                break
            data = await attempt.exchange.data()
            attempt.over = not data
        await self.put(self.events.rest(), more=False)

    async def put(self, body: bytes, *, more: bool = True) -> None:
        try:
            async with asyncio.timeout(self.forwarded.shared.limits.stalled_send_seconds):
                await self.send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError:
            raise ClientGone from None


def _header(head: h11.Response, name: bytes) -> bytes:
    return next((value for key, value in head.headers if key == name), b"")


def _once(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Without a name that comes again; the last value counts."""
    found: Mapping[bytes, bytes] = dict(headers)
    return list(found.items())
