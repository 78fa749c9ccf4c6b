"""Simulates a fleet: requests arrive, a router places each, and prompts, transfers and replies take their time.

Discrete events on a heap; equal inputs give equal results. The simulator owns the truth (queues, links, caches,
failures) and gives the router, which may be `decide` or a baseline, what a real one would know. A prompt's cache may be
sent from its first layer on, and arrives no earlier than its computation and the last layer's transfer. After a failure
of an instance or a link every request that it held is routed again, so none is lost; a request that no cluster can take
waits until one can. In a batch a sequence that joins or leaves takes effect at once rather than at the next step.

Raises UsageError for conditions that don't fit the fleet.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from earthshine.loadgen.trace import Arrival
from earthshine.prfaas.conditions import Conditions, Failure, RateChange
from earthshine.prfaas.fleet import Fleet
from earthshine.prfaas.life import Job, Life
from earthshine.prfaas.links import Wire
from earthshine.prfaas.outcome import Outcome
from earthshine.prfaas.places import Place
from earthshine.prfaas.route import FleetState, Router

_MOST_IDLE_TICKS = 100  # in a row that let nothing happen: what waits then is not served


class Control(Protocol):
    """What a tick may change: the threshold, and the number of instances that prefill, by cluster."""

    @property
    def threshold(self) -> float: ...

    @property
    def n_prefill(self) -> Mapping[str, int]: ...


class Controls(Protocol):
    """A controller, called for each arrival and once in each period."""

    @property
    def period_seconds(self) -> float: ...

    def observe(self, now: float, uncached_tokens: int, output_tokens: int) -> None: ...

    def tick(self, now: float, state: FleetState) -> Control: ...


def simulate(
    fleet: Fleet,
    arrivals: Sequence[Arrival],
    router: Router,
    *,
    threshold: float = math.inf,
    conditions: Conditions | None = None,
    controls: Controls | None = None,
    deadline_seconds: float | None = None,
) -> Outcome:
    """Runs until every request is served or nothing more can happen.

    threshold: tokens, where the fleet's state begins. deadline_seconds: for the first token, given to the router.
    """
    found = conditions or Conditions()
    found.check(fleet)
    simulation = _Simulation(fleet, arrivals, router, found, threshold)
    return simulation.run(controls, deadline_seconds)


class _Simulation(Life):
    """Adds to the life of requests what happens to the fleet."""

    _controls: Controls | None = None
    _idle_ticks = 0

    def run(self, controls: Controls | None, deadline: float | None) -> Outcome:
        self._controls, self._deadline = controls, deadline
        for change in self._conditions.rates:
            self._push(change.seconds, self._change_rate, change)
        for failure in self._conditions.failures:
            self._push(failure.seconds, self._fail, failure)
        if controls is not None:
            self._push(controls.period_seconds, self._tick, controls)
        events, jobs, arrived, now = self._events, self._jobs, 0, 0.0
        while self._open:
            if arrived < len(jobs) and (not events or jobs[arrived].arrival.seconds <= events[0][0]):
                job, arrived = jobs[arrived], arrived + 1
                now = job.arrival.seconds
                self._arrive(now, job)
            elif events:
                now, _, action, argument = heapq.heappop(events)
                action(now, argument)
            else:
                break
        self._outcome.seconds = now
        return self._outcome

    def _arrive(self, now: float, job: Job) -> None:
        cached = self._cached(job)
        if self._controls is not None:
            longest = max((c.tokens for c in cached.values()), default=0)
            self._controls.observe(now, job.tokens - longest, job.output)
        self._route(now, job, cached)

    # Links change.

    def _change_rate(self, now: float, change: RateChange) -> None:
        wire = self._wires[change.ends]
        was_down = wire.down
        wire.change(now, change.bytes_per_second)
        self._watch_wire(wire)
        if was_down != wire.down:
            self._push(now + self._conditions.detect_seconds, self._detect, wire)

    def _detect(self, now: float, wire: Wire) -> None:
        """The router learns that a link is down, and routes again what it held; or that it is up."""
        wire.detect()
        if wire.down:
            for number in list(wire.committed):
                self._route_again(now, self._jobs[number])
        else:
            self._retry_parked(now)

    # Instances fail and come back.

    def _fail(self, now: float, failure: Failure) -> None:
        place = self._places[failure.cluster]
        lost = self._lose_prefill(place) if failure.role == "prefill" else self._lose_decode(now, place)
        if lost is None:
            return  # the cluster had none in this role
        self._push(failure.back, self._back, failure)
        for number in lost:
            self._route_again(now, self._jobs[number])

    def _back(self, now: float, failure: Failure) -> None:
        self._come(now, self._places[failure.cluster], failure.role)

    def _lose_prefill(self, place: Place) -> list[int] | None:
        """Jobs that one instance held: an idle one if there is one, else the one that began first. Where none is left
        the queue's too."""
        prompts = place.prompts
        if not prompts.n + prompts.leaving:
            return None
        busy = len(prompts.running) >= prompts.n + prompts.leaving
        if prompts.leaving and (busy or not prompts.n):
            prompts.leaving -= 1
        else:
            prompts.n -= 1
        prompts.changed()
        lost = [next(iter(prompts.running))] if busy else []
        for number in lost:
            del prompts.running[number]
        return lost + ([] if prompts.n else list(prompts.queue))

    def _lose_decode(self, now: float, place: Place) -> list[int] | None:
        """Sequences that one instance held, with the tokens that they had; where none is left those that wait too."""
        batches = place.batches
        if not batches.instances and not batches.leaving:
            return None
        instance = (batches.leaving or batches.instances).pop(0)
        lost = instance.jobs
        batches.active -= len(lost)
        for number in lost:
            job = self._jobs[number]
            left = max(1, math.ceil(instance.left(now, number)))
            job.tokens, job.output = job.tokens + job.output - left, left
            if job.record.first_token > now:
                job.record.first_token = math.inf
        instance.version += 1  # its events are void
        if not batches.instances:
            lost += batches.waiting
            batches.waiting.clear()
        return lost

    # Roles change.

    def _tick(self, now: float, controls: Controls) -> None:
        self._refresh(now)
        control = controls.tick(now, self._state)
        if control.threshold != self._state.threshold:
            self._state.threshold = control.threshold
            self._outcome.thresholds.append((now, control.threshold))
        for name, n_prefill in control.n_prefill.items():
            place = self._places[name]
            if place.cluster.convertible:
                self._set_roles(now, place, n_prefill)
        self._retry_parked(now)
        self._idle_ticks = 0 if self._events or not self._jobs[-1].epoch else self._idle_ticks + 1
        if self._idle_ticks < _MOST_IDLE_TICKS:
            self._push(now + controls.period_seconds, self._tick, controls)

    def _set_roles(self, now: float, place: Place, n_prefill: int) -> None:
        """Set the number of instances that prefill. Opposite conversions in progress are cancelled first."""
        prompts, batches = place.prompts, place.batches
        more = n_prefill - place.planned_prefill()
        while more > 0 and (prompts.leaving or batches.instances):
            more -= 1
            if prompts.leaving:
                prompts.leaving, prompts.n = prompts.leaving - 1, prompts.n + 1
                continue
            instance = min(batches.instances, key=lambda one: one.n)
            batches.instances.remove(instance)
            if instance.n:
                batches.leaving.append(instance)
            else:
                self._convert(now, place, "prefill")
        while more < 0 and (batches.leaving or prompts.n):
            more += 1
            if batches.leaving:
                batches.instances.append(batches.leaving.pop())
                self._admit(now, place)
                continue
            idle = len(prompts.running) < prompts.n + prompts.leaving
            prompts.n -= 1
            if idle:
                self._convert(now, place, "decode")
            else:
                prompts.leaving += 1
        prompts.changed()
        self._strand(now, place)

    def _strand(self, now: float, place: Place) -> None:
        """Where no instance is left in a role, what waits for one is routed again."""
        lost = [] if place.prompts.n else list(place.prompts.queue)
        if not place.batches.instances:
            lost += place.batches.waiting
            place.batches.waiting.clear()
        for number in lost:
            self._route_again(now, self._jobs[number])
