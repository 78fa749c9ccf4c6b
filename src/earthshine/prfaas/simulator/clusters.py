"""The simulator's clusters: a queue of prompts by priority over instances that prefill one at a time; decode batches,
each step as long as its batch makes it; a prefix cache; and instances that change their roles.
"""

import heapq
import itertools
import math
from collections.abc import Callable

from earthshine.prfaas.fleet import Cluster
from earthshine.prfaas.route import ClusterState
from earthshine.prfaas.simulator.conditions import Role
from earthshine.prfaas.simulator.prefix import PrefixCache
from earthshine.prfaas.simulator.requests import SimulatedRequest
from earthshine.prfaas.simulator.sharing import ProcessorSharing
from earthshine.prfaas.simulator.waiting import WaitingRequests

_ROUNDING = 1e-6  # seconds
_SHORT_QUEUE = 32  # prompts: the estimate for no more than these is computed again when one of them takes longer
_REPLY_SHARE = 0.02  # of the newest reply in the mean length of replies: it remembers about 50


class DecodeInstance(ProcessorSharing[SimulatedRequest]):
    """A batch whose sequences share its steps. scheduled: when an event looks for the next reply's end."""

    __slots__ = ("scheduled",)

    def __init__(self, rate: Callable[[int], float]) -> None:
        super().__init__(rate)
        self.scheduled = math.inf


class PrefillQueue:
    """The part of a cluster that prefills: `n` instances that stay, and `draining` ones that convert after their
    prompt. Prompts that can no longer begin in time become late; `on_late` is called with each."""

    __slots__ = ("_ready", "_ready_known", "draining", "n", "on_late", "queue", "running")

    def __init__(self, n: int) -> None:
        self.n = n
        self.draining = 0
        self.queue = WaitingRequests()  # with estimated seconds
        self.running: dict[SimulatedRequest, float] = {}  # to the prompt's end, in the order of start
        self.on_late: Callable[[SimulatedRequest], None] = _mark_late
        self._ready: list[float] = []  # when each instance is done with all but late prompts, estimated; a heap
        self._ready_known = False

    def add(self, now: float, request: SimulatedRequest, seconds: float) -> None:
        """A prompt that will take about `seconds` joins the queue."""
        self.queue.add(request, seconds)
        if self._ready_known and not request.late:
            begin = max(now, self._ready[0])
            heapq.heapreplace(self._ready, begin + seconds)
            self._ready_known = begin <= request.begin_by + _ROUNDING

    def has_idle(self) -> bool:
        return len(self.running) < self.n + self.draining and self.n > 0

    def pop(self, now: float) -> tuple[SimulatedRequest, float]:
        """The next prompt, and its estimated seconds."""
        self._estimate(now)
        return self.queue.pop()

    def start(self, now: float, request: SimulatedRequest, seconds: float, estimated: float) -> None:
        """An instance begins a prompt that takes `seconds`."""
        longer = seconds - estimated
        if request.late or (abs(longer) > 0.01 * estimated and len(self.queue.timely) <= _SHORT_QUEUE):
            self._ready_known = False
        elif longer and self._ready_known:  # the work of all is right, and its division over instances nearly so
            self._ready = [ready + longer / self.n for ready in self._ready]
        self.running[request] = now + seconds

    def finish(self, request: SimulatedRequest) -> None:
        del self.running[request]

    def remove(self, request: SimulatedRequest) -> bool:
        """A request is routed elsewhere; whether it was being prefilled."""
        self._ready_known = False
        self.queue.remove(request)
        return self.running.pop(request, None) is not None

    def instances_changed(self) -> None:
        """Instances came or went: the estimate is recomputed when it is next used."""
        self._ready_known = False

    def wait(self, now: float) -> float:
        """Seconds until an instance begins a prompt that joins now, if each takes as long as estimated."""
        if not self.n:
            return sum(self.queue.timely.values())
        if not self._ready_known:
            self._estimate(now)
        ready = self._ready[0]
        return ready - now if ready > now else 0.0

    def _estimate(self, now: float) -> None:
        """When instances are ready. Where a prompt can't begin in time, the longest of those up to it becomes late
        until all others begin in time. With one instance and equal deadlines this makes the fewest late (J. M. Moore,
        1968); elsewhere it is a rule of thumb."""
        while not self._ready_known:
            late = self._find_late(now)
            self._ready_known = late is None
            if late is not None:
                seconds = self.queue.timely[late]
                self.queue.remove(late)
                self.on_late(late)
                self.queue.add(late, seconds)

    def _find_late(self, now: float) -> SimulatedRequest | None:
        """One that should become late, if any; else the estimate is complete."""
        ends = sorted(self.running.values())[-self.n :] if self.n else []
        self._ready = ready = ends + [now] * (max(1, self.n) - len(ends))
        heapq.heapify(ready)
        longest, most = None, 0.0
        for request, seconds in self.queue.timely.items():
            begin = max(now, ready[0])
            if seconds > most and request.begin_by < math.inf:
                longest, most = request, seconds
            if begin > request.begin_by + _ROUNDING:
                return request if now > request.begin_by + _ROUNDING else longest
            heapq.heapreplace(ready, begin + seconds)
        return None


def _mark_late(request: SimulatedRequest) -> None:
    request.late = True


class DecodeBatches:
    """The part of a cluster that decodes. Instances in `draining` admit no more sequences and convert once empty."""

    __slots__ = ("_admitted", "_batch", "_mean_reply", "_rates", "draining", "expected", "instances", "waiting")

    def __init__(self, cluster: Cluster) -> None:
        profile = cluster.profile
        self._batch = profile.batch
        steps = [profile.decode(n) for n in range(1, profile.batch + 1)] if profile.decode else []
        self._rates = [0.0] + [1 / seconds for seconds in steps]  # tokens per second of a sequence, by batch
        self.instances: list[DecodeInstance] = []
        self.draining: list[DecodeInstance] = []
        self.waiting = WaitingRequests()  # each one's work is 1
        self.expected: set[SimulatedRequest] = set()  # routed here and not late, whose cache has yet to arrive
        self._admitted: dict[SimulatedRequest, float] = {}  # when, in this order
        self._mean_reply = 0.0  # tokens
        for _ in range(cluster.n_decode):
            self.start_instance()

    def start_instance(self) -> None:
        """A new empty instance."""
        self.instances.append(DecodeInstance(self._rates.__getitem__))

    def with_room(self) -> DecodeInstance | None:
        """The instance with the fewest sequences, if it can admit one."""
        best, least = None, self._batch
        for instance in self.instances:
            if instance.n < least:
                best, least = instance, instance.n
        return best

    def step_seconds(self, n: int) -> float:
        return 1 / self._rates[n]

    def enqueue(self, request: SimulatedRequest) -> None:
        """A request's cache is there. Those that can be in time are served by their deadlines."""
        self.expected.discard(request)
        waiting = self.waiting
        last = next(reversed(waiting.timely), None)
        waiting.add(request, 1.0)
        if not request.late and last is not None and request.admit_by < last.admit_by:
            waiting.timely = dict(sorted(waiting.timely.items(), key=lambda item: item[0].admit_by))

    def admit(self, now: float) -> tuple[DecodeInstance, SimulatedRequest] | None:
        """The next request joins a batch; None where none waits or fits."""
        if not self.waiting or (instance := self.with_room()) is None:
            return None
        self._expire(now)
        request, _ = self.waiting.pop()
        instance.join(now, request, request.output_tokens)
        self._admitted[request] = now
        return instance, request

    def _expire(self, now: float) -> None:
        """Sequences that can no longer be admitted in time become late: in an overload the queue is about as long as
        the deadline, and all that are served would come just too late."""
        waiting = self.waiting
        while (first := next(iter(waiting.timely), None)) is not None and first.admit_by < now:
            waiting.remove(first)
            first.late = True
            waiting.add(first, 1.0)

    def lose(self, request: SimulatedRequest) -> None:
        """A request's instance failed."""
        del self._admitted[request]

    def wait(self, now: float) -> float:
        """Seconds until a sequence that is routed here now could be admitted, after all those that are expected. Each
        one in a batch is expected to end once a reply of mean length would."""
        if not self.instances or not self._admitted:
            return 0.0
        ahead = len(self.waiting.timely) + len(self.expected) - len(self.instances) * self._batch + len(self._admitted)
        if ahead < 0:
            return 0.0
        seconds = self._mean_reply / self._rates[self._batch]
        rounds, nth = divmod(ahead, len(self._admitted))
        begun = next(itertools.islice(self._admitted.values(), nth, None))
        return max(0.0, begun + seconds - now) + rounds * seconds

    def replied(self, request: SimulatedRequest) -> None:
        """A request's reply has ended; updates the mean length of replies."""
        del self._admitted[request]
        tokens = request.arrival.output_tokens
        self._mean_reply += (tokens - self._mean_reply) * (_REPLY_SHARE if self._mean_reply else 1.0)

    def take_stranded(self) -> list[SimulatedRequest]:
        """Takes what waits for a batch, if no instance is left."""
        if self.instances:
            return []
        stranded, self.waiting = list(self.waiting), WaitingRequests()
        return stranded


class SimulatedCluster:
    """A cluster: `state` is what routers see, the rest is the truth.

    Caches that are being sent to another cluster take memory of their own, as much as the prefix cache at most; a
    prompt whose cache would begin beyond that waits in the queue.
    """

    __slots__ = ("_memory_bytes", "_unsent", "_unsent_bytes", "cache", "cluster", "converting", "decode", "prefill",
                 "state")  # fmt: skip

    def __init__(self, cluster: Cluster, state: ClusterState, cache_bytes: float) -> None:
        self.cluster = cluster
        self.state = state
        self.prefill = PrefillQueue(cluster.n_prefill)
        self.decode = DecodeBatches(cluster)
        self._memory_bytes = cache_bytes * cluster.n_instances
        self.cache = PrefixCache(cluster.profile, self._memory_bytes)
        self._unsent: dict[SimulatedRequest, float] = {}  # bytes of caches that are being computed or sent
        self._unsent_bytes = 0.0
        self.converting: dict[Role, int] = {"prefill": 0, "decode": 0}  # drained instances, by their new role

    def planned_prefill(self) -> int:
        """Instances that prefill once all changes under way are made."""
        return self.prefill.n + self.converting["prefill"] + len(self.decode.draining)

    def has_memory(self) -> bool:
        """Whether another cache may be computed that is to be sent."""
        return self._unsent_bytes < self._memory_bytes

    def hold(self, request: SimulatedRequest, nbytes: float) -> None:
        """A prompt begins whose cache will be sent."""
        self._unsent[request] = nbytes
        self._unsent_bytes += nbytes

    def free(self, request: SimulatedRequest) -> bool:
        """A request's cache is sent, or not needed any more; whether it took memory here."""
        nbytes = self._unsent.pop(request, None)
        if nbytes is None:
            return False
        self._unsent_bytes = self._unsent_bytes - nbytes if self._unsent else 0.0
        return True

    def refresh(self, now: float) -> None:
        """Writes what a router knows now into the state."""
        state, prefill = self.state, self.prefill
        state.n_prefill, state.n_decode = prefill.n, len(self.decode.instances)
        state.prefill_wait_seconds = prefill.wait(now)
        state.prefill_depth = len(prefill.queue.timely) + len(prefill.running)
        state.late_seconds = prefill.queue.late_work
        state.decode_wait_seconds = self.decode.wait(now)
