"""The engine of a server that borrows prefill: prompts are computed here or at a peer, as `decide` says.

A remote prefill fills the prefix cache: its pages arrive in the pool, verified, and then the request is queued like any
other. Where the peer fails, is late, or its request is cancelled, the request goes on from what has arrived. Nothing
waits: each step follows from a callback of the engine or of the wire. Invariant: an accepted request is queued exactly
once, whatever its transfer does.
"""

import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from earthshine.engine import Admitted, Engine, ReplyEvent, Request, Sink, Ticket, TokenEvent
from earthshine.kv import Arrival, PageKeys
from earthshine.prfaas.announce import announced
from earthshine.prfaas.figures import Figure, LogEvent
from earthshine.prfaas.live import HERE, LiveFleet
from earthshine.prfaas.profile import Profile
from earthshine.prfaas.receive import PieceReceiver
from earthshine.prfaas.route import Route
from earthshine.prfaas.wire import PrefillPeer, PrefillRequest, Reason, Transfer, WireError
from earthshine.units import format_bytes

_LOGGER = logging.getLogger("earthshine.prfaas")
_LEAST_DEADLINE_SECONDS = 2.0  # the first transfer makes the connections
_OURS = (Reason.CANCELLED, Reason.CLOSED)  # reasons that say nothing against a peer


@dataclass(slots=True, eq=False)
class _Waiting:
    """An accepted request that has not begun."""

    ticket: Ticket
    request: Request
    watch: "_Watch"


@dataclass(slots=True, eq=False)
class _Job:
    """A remote prefill, the request that it is for (None once that was cancelled), and others that wait for its
    pages."""

    mine: _Waiting | None
    request: Request
    route: Route
    keys: frozenset[bytes]
    deadline_seconds: float
    others: list[_Waiting] = field(default_factory=list)
    began: float = field(default_factory=lambda: time.monotonic())
    arrival: Arrival | None = None
    transfer: Transfer | None = None
    unwanted: bool = False


class RemotePrefill:
    """Submits to `engine` as `generation.submission.Computes` does. `peers`: by name, as in `fleet`; `here`: this
    server's profile, without what was measured. `above`: prompts that lack more tokens go to a peer whatever the
    forecast says, and no others. Closes engine and peers."""

    def __init__(
        self,
        engine: Engine,
        peers: Mapping[str, PrefillPeer],
        fleet: LiveFleet,
        log: LogEvent,
        here: Profile,
        above: int | None = None,
    ) -> None:
        self._engine, self._peers, self._fleet, self._log = engine, peers, fleet, log
        self._here, self._above = here, above
        self._about = dict.fromkeys(peers, b"")
        self._lock = threading.RLock()  # guards what follows, and the fleet
        self._jobs: list[_Job] = []
        self._ends = Counter[str]()
        self._tokens = self._bytes = self._count = 0
        self._name = secrets.token_hex(4)

    def submit(self, request: Request, sink: Sink) -> Ticket:
        """As Engine.submit."""
        watch = _Watch(self, request, sink)
        waiting = _Waiting(self._engine.accept(request, watch), request, watch)
        self._place(waiting)
        return waiting.ticket

    def cancel(self, ticket: Ticket) -> None:
        """As Engine.cancel, also while the prompt is at a peer."""
        self._engine.cancel(ticket)
        with self._lock:
            for job in self._jobs:
                if job.mine is not None and job.mine.ticket is ticket:
                    job.mine = None
                job.others = [other for other in job.others if other.ticket is not ticket]
            unwanted = [job for job in self._jobs if job.mine is None and not job.others]
            for job in unwanted:
                job.unwanted = True
        self._engine.begin(ticket)
        for job in unwanted:
            if job.transfer is not None:
                job.transfer.cancel()

    def drain(self, seconds: float) -> object:
        """As Engine.drain; requests at a peer count as accepted."""
        return self._engine.drain(seconds)

    def close(self) -> None:
        """End all transfers and connections, then the engine."""
        for peer in self._peers.values():
            peer.close()
        self._engine.close()

    def figures(self) -> Iterable[Figure]:
        """For /metrics."""
        with self._lock:
            running, ends = float(len(self._jobs)), dict(self._ends)
            links = self._fleet.figures()
        yield "remote_prefills_running", "Prompts that a peer prefills now.", "gauge", {"": running}
        yield "remote_prefills", "Prompts by where and how they were prefilled.", "counter", ends
        yield "remote_prefill_tokens", "Tokens whose cache a peer has sent.", "counter", {"": self._tokens}
        yield "remote_prefill_bytes", "Bytes of caches received.", "counter", {"": self._bytes}
        rates, out = ({name: pair[at] for name, pair in links.items()} for at in (0, 1))
        yield "remote_link_bytes_per_second", "Rate of the link from a peer.", "gauge", rates
        yield "remote_peer_left_out", "1 while a peer is not asked because it failed.", "gauge", out

    # --- where a prompt is prefilled

    def _place(self, waiting: _Waiting) -> None:
        """Begin the request, or let it wait for a remote prefill."""
        try:
            job = self._job(waiting)
        except Exception as error:
            _LOGGER.error("No place could be chosen for a prompt; it is computed here.", exc_info=error)
            job = None
        if job is None:
            self._engine.begin(waiting.ticket)
        elif job.mine is waiting:
            self._engine.expect(waiting.request).add_done_callback(partial(self._expected, job))

    def _job(self, waiting: _Waiting) -> _Job | None:
        """The remote prefill that the request waits for; None where it is to be computed here."""
        request = waiting.request
        if request.params.prompt_logprobs is not None or request.pieces is not None:
            return None
        size, known = self._engine.page_tokens, self._engine.known_tokens(request)
        end = (len(request.tokens) - 1) // size * size
        if end <= known or (self._above is not None and len(request.tokens) - known <= self._above):
            return None
        keys = [key.key for key in PageKeys(request.tenant, size).of(request.tokens, end // size)]
        with self._lock:
            for job in self._jobs:
                if keys[known // size] in job.keys and not job.unwanted:
                    job.others.append(waiting)
                    return job
            route = self._route(len(request.tokens), known)
            if route.prefill == HERE:
                self._ends["here"] += 1
                return None
            deadline = route.first_token.total + self._fleet.seconds_here(len(request.tokens), known)
            deadline = max(_LEAST_DEADLINE_SECONDS, deadline)
            job = _Job(waiting, request, route, frozenset(keys), deadline)
            self._jobs.append(job)
            self._fleet.began(route)
        return job

    def _route(self, tokens: int, known: int) -> Route:
        figures = {name: peer.figures() for name, peer in self._peers.items()}
        for name, peer in self._peers.items():
            if peer.about != self._about[name]:
                self._about[name] = peer.about
                if (profile := announced(peer.about, self._here)) is not None:
                    self._fleet.announced(name, profile)
        trips = {name: (each.rtt_seconds, each.retransmitted) for name, each in figures.items()}
        return self._fleet.route(tokens, known, self._engine.waiting_tokens(), trips, away=self._above is not None)

    # --- one remote prefill

    def _expected(self, job: _Job, found: "Future[Arrival | None]") -> None:
        """There is room for the pages, or none."""
        failed = found.exception()
        arrival = job.arrival = None if failed else found.result()
        if arrival is None:
            self._over(job, None)
            return
        over = partial(self._over, job)
        try:
            receiver = PieceReceiver(arrival, self._engine.layout, self._engine.page_tokens, over)
            with self._lock:
                self._count += 1
                name = f"{self._name}-{self._count}"
            tokens = job.request.tokens[: arrival.end]
            asked = PrefillRequest(
                name, job.request.tenant, self._engine.layout.fingerprint, tuple(tokens), arrival.start
            )
            job.transfer = self._peers[job.route.prefill].prefill(asked, receiver, job.deadline_seconds)
        except Exception as error:
            arrival.close()
            known = error if isinstance(error, WireError) else WireError(Reason.REFUSED, str(error))
            self._over(job, known)
            return
        arrival.on_give_up = job.transfer.cancel
        if job.unwanted or arrival.given_up:
            job.transfer.cancel()

    def _over(self, job: _Job, error: WireError | None) -> None:
        """Nothing more arrives, or nothing could be expected: begin the request, and see where the others belong."""
        seconds = time.monotonic() - job.began
        try:
            self._settle(job, error, seconds)
        finally:
            with self._lock:
                if job in self._jobs:
                    self._jobs.remove(job)
                mine, others, job.mine, job.others = job.mine, job.others, None, []
            if mine is not None:
                mine.watch.measures = False
                self._engine.begin(mine.ticket, job.arrival.start if job.arrival is not None else None)
            if others:
                self._engine.share_arrived().add_done_callback(partial(self._place_all, others))

    def _place_all(self, others: Sequence[_Waiting], _: object) -> None:
        for other in others:
            self._place(other)

    def _settle(self, job: _Job, error: WireError | None, seconds: float) -> None:
        """Note how it went, and log it."""
        arrival, transfer, peer = job.arrival, job.transfer, job.route.prefill
        tokens = arrival.n_verified if arrival is not None else 0
        nbytes = transfer.received_bytes if transfer is not None else 0
        end = "whole" if arrival is not None else "no_room"
        end = end if error is None else error.reason.name.lower()
        with self._lock:
            self._ends[end] += 1
            self._tokens += tokens
            self._bytes += nbytes
            well = error is None or error.reason in _OURS
            link = self._peers[peer].figures()
            self._fleet.ended(job.route, seconds, nbytes, link.bytes_per_second, well, retransmitted=link.retransmitted)
        asked = arrival.end - arrival.start if arrival is not None else 0
        forecast = job.route.first_token.total
        columns = [
            f"remote prefill {end}",
            peer,
            f"{tokens} of {asked} tokens, {format_bytes(nbytes)} in {seconds:.2f} s (forecast {forecast:.2f} s)",
            *([] if error is None else [f"computed here from there on: {error}"]),
        ]
        fields = {
            "peer": peer,
            "end": end,
            "asked_tokens": asked,
            "arrived_tokens": tokens,
            "received_bytes": nbytes,
            "seconds": round(seconds, 3),
            "forecast_seconds": round(forecast, 3),
            "message": None if error is None else str(error),
        }
        self._log("remote_prefill", columns, fields)

    def computed(self, request: Request, known: int, seconds: float) -> None:
        """A prompt was computed here, of which `known` tokens were cached."""
        if len(request.tokens) - known >= self._engine.page_tokens:
            with self._lock:
                self._fleet.computed_here(len(request.tokens), known, seconds)

    def is_alone(self, request: Request, reused: int) -> bool:
        """Whether a prompt that was just admitted is the only one that is to be computed."""
        return self._engine.waiting_tokens() <= len(request.tokens) - reused


class _Watch:
    """A request's sink that measures how long its prompt takes here, where nothing else is computed."""

    def __init__(self, engine: RemotePrefill, request: Request, sink: Sink) -> None:
        self._engine, self._request, self._sink = engine, request, sink
        self.measures = True
        self._begun: tuple[float, int] | None = None

    def __call__(self, event: ReplyEvent) -> None:
        if self.measures:
            self._measure(event)
        self._sink(event)

    def _measure(self, event: ReplyEvent) -> None:
        if isinstance(event, Admitted):
            self.measures = self._engine.is_alone(self._request, event.reused)
            self._begun = time.monotonic(), event.reused
        elif self._begun is not None and isinstance(event, TokenEvent):
            self.measures = False
            self._engine.computed(self._request, self._begun[1], time.monotonic() - self._begun[0])
