"""The life of a simulated request: it is routed, its prompt computed, its cache sent, its reply decoded.

Events of an earlier route of a request are void; `Job.epoch` tells. What a failure takes from a request is released
before it is routed again, so that it is always in exactly one place: a queue, an instance, a link, a batch, or among
those that no cluster could take.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from earthshine.errors import UnavailableError
from earthshine.loadgen.trace import BLOCK_TOKENS, Arrival
from earthshine.prfaas.conditions import Conditions, Role
from earthshine.prfaas.fleet import Fleet
from earthshine.prfaas.links import Wire
from earthshine.prfaas.outcome import Outcome, Served
from earthshine.prfaas.places import Place
from earthshine.prfaas.prefix import NOTHING
from earthshine.prfaas.route import Cached, FleetState, Move, Route, Router, RouteRequest
from earthshine.prfaas.sharing import Sharing
from earthshine.prfaas.workload import whole_blocks

_NO_CACHES: dict[str, Cached] = {}


@dataclass(slots=True)
class Job:
    """A request on its way. `epoch` counts its routes: events of an earlier one are void."""

    number: int
    arrival: Arrival
    blocks: tuple[int, ...]
    tokens: int  # of its prompt; replies that were lost with an instance count as prompt
    output: int  # tokens still to be generated
    record: Served
    epoch: int = 0
    route: Route | None = None
    known: int = 0  # of its blocks in the cache where it was computed
    computed: bool = False
    streamed: bool = False  # all pieces of its cache but the last layer's are sent


class Life:
    """The queues of events, and what happens to a request. `simulate` adds what happens to the fleet."""

    def __init__(
        self, fleet: Fleet, arrivals: Sequence[Arrival], router: Router, conditions: Conditions, threshold: float
    ) -> None:
        self._router, self._conditions = router, conditions
        self._deadline: float | None = None
        self._state = state = FleetState.idle(fleet, threshold)
        bytes_each = conditions.cache_bytes
        self._places = {name: Place(c, state.clusters[name], bytes_each) for name, c in fleet.clusters.items()}
        self._wires = {
            ends: Wire(state.links[ends], link.round_trip_seconds, conditions) for ends, link in fleet.links.items()
        }
        records = [Served(a.seconds, a.input_tokens) for a in arrivals]
        self._jobs = [
            Job(i, a, blocks, a.input_tokens, a.output_tokens, record)
            for i, (a, blocks, record) in enumerate(zip(arrivals, whole_blocks(arrivals), records, strict=True))
        ]
        self._parked: list[Job] = []  # that no cluster could take
        self._open = len(records)  # requests whose reply has not ended
        self._outcome = Outcome(records)
        self._events: list[tuple[float, int, Callable[[float, Any], None], Any]] = []
        self._order = 0

    def _push(self, at: float, action: Callable[[float, Any], None], argument: Any) -> None:
        self._order += 1  # equal times: first pushed, first handled
        heapq.heappush(self._events, (at, self._order, action, argument))

    # A request is routed.

    def _cached(self, job: Job) -> dict[str, Cached]:
        if not job.blocks:
            return _NO_CACHES
        return {name: place.cache.find(job.blocks) for name, place in self._places.items()}

    def _route(self, now: float, job: Job, cached: dict[str, Cached]) -> None:
        self._refresh(now)
        left = None if self._deadline is None else max(0.0, self._deadline - (now - job.arrival.seconds))
        job.epoch += 1
        job.computed = job.streamed = False
        try:
            job.route = route = self._router(RouteRequest(job.tokens, cached, left), self._state)
        except UnavailableError:
            job.route = None
            self._parked.append(job)
            return
        job.record.routes += 1
        job.record.prefill, job.record.remote = route.prefill, route.prefill != route.decode
        for move in (route.pull, route.send):
            if move is not None:
                self._wires[move.source, move.target].commit(job.number, move.nbytes)
        if route.pull is not None:
            self._join(now, route.pull, job, route.pull.nbytes)
        else:
            self._enqueue(now, job, route)

    def _refresh(self, now: float) -> None:
        for place in self._places.values():
            place.refresh(now)
        for wire in self._wires.values():
            wire.refresh(now)

    def _route_again(self, now: float, job: Job) -> None:
        """After a failure: whatever the job holds is released first."""
        route = job.route
        if route is not None:
            for wire in self._wires.values():
                if job.number in wire.committed:
                    wire.settle(job.number)
                    if job.number in wire.shared:
                        wire.shared.leave(now, job.number)
                        self._watch_wire(wire)
            place = self._places[route.prefill]
            if place.prompts.remove(job.number):
                self._freed(now, place)
        self._route(now, job, self._cached(job))

    def _retry_parked(self, now: float) -> None:
        parked, self._parked = self._parked, []
        for job in parked:
            self._route(now, job, self._cached(job))

    # Its prompt is computed.

    def _enqueue(self, now: float, job: Job, route: Route) -> None:
        place = self._places[route.prefill]
        place.prompts.add(now, job.number, route.first_token.prefill)
        self._start_prompts(now, place)

    def _start_prompts(self, now: float, place: Place) -> None:
        prompts, profile = place.prompts, place.cluster.profile
        while prompts.queue and prompts.idle():
            job = self._jobs[next(iter(prompts.queue))]
            estimated = prompts.queue.pop(job.number)
            found = place.cache.find(job.blocks) if job.blocks else NOTHING
            reused, job.known = found.usable(profile.recurrent), found.tokens // BLOCK_TOKENS
            job.record.reused_tokens = reused
            if reused:
                place.cache.touch(job.blocks)
            seconds = profile.prefill_seconds(job.tokens, reused)
            if abs(seconds - estimated) > 0.01 * estimated:
                prompts.changed()
            prompts.running[job.number] = now + seconds
            self._push(now + seconds, self._computed, (job, job.epoch))
            if job.route is not None and job.route.send is not None:
                self._push(now + seconds / self._conditions.layers, self._stream, (job, job.epoch))

    def _computed(self, now: float, argument: tuple[Job, int]) -> None:
        job, epoch = argument
        route = job.route
        if job.epoch != epoch or route is None:
            return
        place = self._places[route.prefill]
        del place.prompts.running[job.number]
        place.cache.keep(job.blocks, job.known)
        job.computed = True
        if route.send is None:
            self._wait_for_batch(now, job)
        elif job.streamed:
            self._join(now, route.send, job, route.send.nbytes / self._conditions.layers)
        self._freed(now, place)

    def _freed(self, now: float, place: Place) -> None:
        """An instance ended a prompt or dropped it; one that was to change its role does so now."""
        if place.prompts.leaving:
            place.prompts.leaving -= 1
            self._convert(now, place, "decode")
        self._start_prompts(now, place)

    # Its cache is sent.

    def _stream(self, now: float, argument: tuple[Job, int]) -> None:
        job, epoch = argument
        if job.epoch == epoch and job.route is not None and job.route.send is not None:
            send = job.route.send
            self._join(now, send, job, send.nbytes * (1 - 1 / self._conditions.layers))

    def _join(self, now: float, move: Move, job: Job, nbytes: float) -> None:
        wire = self._wires[move.source, move.target]
        wire.measure(now)
        wire.shared.join(now, job.number, nbytes)
        self._outcome.sent_bytes += nbytes
        self._watch_wire(wire)

    def _watch_wire(self, wire: Wire) -> None:
        at = wire.shared.next_end()
        if at < math.inf:
            self._push(at, self._transferred, (wire, wire.shared.version))

    def _transferred(self, now: float, argument: tuple[Wire, int]) -> None:
        wire, version = argument
        if wire.shared.version != version:
            return
        wire.measure(now)
        job = self._jobs[wire.shared.end_first(now)]
        self._watch_wire(wire)
        route = job.route
        assert route is not None
        if route.pull is not None and wire is self._wires[route.pull.source, route.pull.target]:
            self._push(now + wire.trip, self._pulled, (job, job.epoch))
        elif not job.streamed:
            job.streamed = True
            if job.computed and route.send is not None:
                self._join(now, route.send, job, route.send.nbytes / self._conditions.layers)
        else:
            self._push(now + wire.trip, self._sent, (job, job.epoch))

    def _pulled(self, now: float, argument: tuple[Job, int]) -> None:
        job, epoch = argument
        if job.epoch == epoch and job.route is not None and job.route.pull is not None:
            move = job.route.pull
            self._wires[move.source, move.target].settle(job.number)
            self._places[move.target].cache.keep(job.blocks[: move.tokens // BLOCK_TOKENS])
            self._enqueue(now, job, job.route)

    def _sent(self, now: float, argument: tuple[Job, int]) -> None:
        job, epoch = argument
        if job.epoch == epoch and job.route is not None and job.route.send is not None:
            move = job.route.send
            self._wires[move.source, move.target].settle(job.number)
            self._places[move.target].cache.keep(job.blocks)
            self._wait_for_batch(now, job)

    # Its reply is decoded.

    def _wait_for_batch(self, now: float, job: Job) -> None:
        assert job.route is not None
        place = self._places[job.route.decode]
        place.batches.waiting.append(job.number)
        self._admit(now, place)

    def _admit(self, now: float, place: Place) -> None:
        batches = place.batches
        while batches.waiting and (instance := batches.room()) is not None:
            job = self._jobs[batches.waiting.popleft()]
            instance.join(now, job.number, job.output)
            batches.active += 1
            if job.record.first_token > now:
                job.record.first_token = now + batches.step_seconds(instance.n)
            self._watch_batch(place, instance)

    def _watch_batch(self, place: Place, instance: Sharing[int]) -> None:
        self._push(instance.next_end(), self._replied, (place, instance, instance.version))

    def _replied(self, now: float, argument: tuple[Place, Sharing[int], int]) -> None:
        place, instance, version = argument
        if instance.version != version:
            return
        job = self._jobs[instance.end_first(now)]
        job.record.ended = now
        self._open -= 1
        place.batches.active -= 1
        place.batches.replied(job.arrival.output_tokens)
        if instance.n:
            self._watch_batch(place, instance)
        elif instance in place.batches.leaving:
            place.batches.leaving.remove(instance)
            self._convert(now, place, "prefill")
        self._admit(now, place)

    def _convert(self, now: float, place: Place, role: Role) -> None:
        """A drained instance begins to change its role."""
        place.converting[role] += 1
        self._outcome.conversions += 1
        self._push(now + self._conditions.convert_seconds, self._converted, (place, role))

    def _converted(self, now: float, argument: tuple[Place, Role]) -> None:
        place, role = argument
        place.converting[role] -= 1
        self._come(now, place, role)

    def _come(self, now: float, place: Place, role: Role) -> None:
        """An instance begins to work."""
        if role == "prefill":
            place.prompts.n += 1
            place.prompts.changed()
            self._start_prompts(now, place)
        else:
            place.batches.start()
            self._admit(now, place)
        self._retry_parked(now)
