"""Simulates a fleet: requests arrive, a router places each, and prompts, transfers and replies take their time.

Discrete events on a heap; equal inputs give equal results. The simulator owns the truth (queues, links, caches,
failures) and gives the router, which may be `decide` or a baseline, what a real one would know. A prompt's cache may be
sent from its first layer on, and arrives no earlier than its computation and the last layer's transfer. After a failure
of an instance or a link every request that it held is routed again, so none is lost; a request that no cluster can take
waits until one can. In a batch a sequence that joins or leaves takes effect at once rather than at the next step.

A reply's tokens are in the cache of the cluster that decoded it once it has ended, if a later prompt contains them.

Raises UsageError for conditions that don't fit the fleet, and for requests that are not in the order of their times.
"""

import math
from collections.abc import Callable, Sequence

from earthshine.loadgen.trace import Arrival
from earthshine.prfaas.control import Controller
from earthshine.prfaas.fleet import Fleet
from earthshine.prfaas.route import Router
from earthshine.prfaas.simulator.conditions import Conditions
from earthshine.prfaas.simulator.events import EventQueue
from earthshine.prfaas.simulator.instances import Instances
from earthshine.prfaas.simulator.outcome import Outcome, Served
from earthshine.prfaas.simulator.requests import SimulatedRequest
from earthshine.prfaas.simulator.serving import Serving
from earthshine.prfaas.workload import check_arrivals, reply_blocks, whole_blocks

_CHECKS = 100  # of a run for whether too many are late
_MOST_IDLE_TICKS = 100  # in a row that let nothing happen: what waits then is not served


def simulate(
    fleet: Fleet,
    arrivals: Sequence[Arrival],
    router: Router,
    *,
    threshold: float = math.inf,
    conditions: Conditions | None = None,
    controller: Controller | None = None,
    deadline_seconds: float | None = None,
    most_late: int | None = None,
) -> Outcome:
    """Runs until every request is served or nothing more can happen.

    threshold: tokens, where the fleet's state begins. controller: called for each arrival, each reply that ended and
    once in each of its periods. deadline_seconds: for the first token, given to the router. most_late: end early, soon
    after more first tokens than that have missed the deadline; what is not served until then is not served at all.
    """
    found = conditions or Conditions()
    found.check(fleet)
    check_arrivals(arrivals)
    events = EventQueue()
    serving = Serving(fleet, router, found, events, threshold, deadline_seconds)
    instances = Instances(serving, found, events)
    blocks = list(whole_blocks(arrivals))
    requests = [
        SimulatedRequest(
            arrival,
            prompt,
            reply,
            arrival.input_tokens,
            arrival.output_tokens,
            Served(arrival.seconds, arrival.input_tokens),
        )
        for arrival, prompt, reply in zip(arrivals, blocks, reply_blocks(arrivals, blocks), strict=True)
    ]
    outcome = Outcome([request.record for request in requests])
    ticks = None if controller is None else _Ticks(controller, serving, instances, events, outcome)
    hopeless = None
    if most_late is not None and deadline_seconds is not None:
        hopeless = _Late(outcome, deadline_seconds, most_late).too_many
    outcome.seconds = _run(requests, serving, events, ticks, hopeless)
    outcome.sent_bytes, outcome.conversions = serving.sent_bytes(outcome.seconds), instances.conversions
    return outcome


def _run(
    requests: Sequence[SimulatedRequest],
    serving: Serving,
    events: EventQueue,
    ticks: "_Ticks | None",
    hopeless: Callable[[float], bool] | None,
) -> float:
    """Arrivals and events in the order of their times; returns the last one's."""
    now, pause = 0.0, max(1, len(requests) // _CHECKS)
    for number, request in enumerate(requests):
        if hopeless is not None and number % pause == 0 and hopeless(now):
            return now
        now = request.arrival.seconds
        events.run_before(now)
        cached = serving.cached(request)
        if ticks is not None:
            longest = max((c.tokens for c in cached.values()), default=0)
            ticks.controller.observe(now, request.tokens - longest)
        serving.route(now, request, cached)
    if ticks is not None:
        ticks.all_arrived = True
    while serving.decoded < len(requests) and events:
        now = events.run_next()
    return now


class _Late:
    """Counts first tokens that missed the deadline."""

    def __init__(self, outcome: Outcome, deadline: float, most: int) -> None:
        self._served, self._deadline, self._most = outcome.served, deadline, most
        self._seen = self._late = 0

    def too_many(self, now: float) -> bool:
        """Whether more than the most are late for certain, of requests whose deadlines have passed."""
        served, deadline = self._served, self._deadline
        while self._seen < len(served) and served[self._seen].arrived + deadline < now:
            self._late += served[self._seen].wait > deadline
            self._seen += 1
        return self._late > self._most


class _Ticks:
    """Calls the controller once a period and applies what it returns, until ticks alone would go on for ever."""

    def __init__(
        self, controller: Controller, serving: Serving, instances: Instances, events: EventQueue, outcome: Outcome
    ) -> None:
        self.controller = controller
        self.all_arrived = False
        self._serving, self._instances, self._events, self._outcome = serving, instances, events, outcome
        self._idle = 0  # ticks in a row after which nothing else was to happen
        serving.on_replied = self._replied
        events.push(controller.period_seconds, self._tick, None)

    def _replied(self, request: SimulatedRequest) -> None:
        self.controller.replied(request.arrival.output_tokens)

    def _tick(self, now: float, _: None) -> None:
        serving = self._serving
        serving.refresh(now)
        control = self.controller.tick(now, serving.state)
        if control.threshold != serving.state.threshold:
            serving.state.threshold = control.threshold
            self._outcome.thresholds.append((now, control.threshold))
        for name, n_prefill in control.n_prefill.items():
            cluster = serving.clusters[name]
            if cluster.cluster.convertible:
                self._instances.set_roles(now, cluster, n_prefill)
        serving.retry_unroutable(now)
        self._idle = self._idle + 1 if self.all_arrived and not self._events else 0
        if self._idle < _MOST_IDLE_TICKS:
            self._events.push(now + self.controller.period_seconds, self._tick, None)
