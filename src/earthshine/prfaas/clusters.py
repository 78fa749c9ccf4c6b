"""The simulator's clusters: a queue of prompts, first in first out, over instances that prefill one at a time; decode
batches, each step as long as its batch makes it; a prefix cache; and instances that change their roles.
"""

import heapq
from collections import deque

from earthshine.prfaas.conditions import Role
from earthshine.prfaas.fleet import Cluster
from earthshine.prfaas.prefix import PrefixCache
from earthshine.prfaas.requests import SimulatedRequest
from earthshine.prfaas.route import ClusterState
from earthshine.prfaas.sharing import ProcessorSharing

_REPLY_SHARE = 0.02  # of the newest reply in the mean length of replies: it remembers about 50

DecodeInstance = ProcessorSharing[SimulatedRequest]


class PrefillQueue:
    """The part of a cluster that prefills: `n` instances that stay, and `draining` ones that convert after their
    prompt."""

    __slots__ = ("_ready", "_ready_known", "draining", "n", "queue", "running")

    def __init__(self, n: int) -> None:
        self.n = n
        self.draining = 0
        self.queue: dict[SimulatedRequest, float] = {}  # to estimated seconds, in the order of arrival
        self.running: dict[SimulatedRequest, float] = {}  # to the prompt's end, in the order of start
        self._ready: list[float] = []  # when each instance is done with all that waits, estimated; a heap
        self._ready_known = False

    def add(self, now: float, request: SimulatedRequest, seconds: float) -> None:
        """A prompt that will take about `seconds` joins the queue."""
        if self._ready_known:
            heapq.heapreplace(self._ready, max(now, self._ready[0]) + seconds)
        self.queue[request] = seconds

    def has_idle(self) -> bool:
        return len(self.running) < self.n + self.draining and self.n > 0

    def pop(self) -> tuple[SimulatedRequest, float]:
        """The next prompt, and its estimated seconds."""
        request = next(iter(self.queue))
        return request, self.queue.pop(request)

    def start(self, now: float, request: SimulatedRequest, seconds: float, estimated: float) -> None:
        """An instance begins a prompt that takes `seconds`."""
        if abs(seconds - estimated) > 0.01 * estimated:
            self._ready_known = False
        self.running[request] = now + seconds

    def finish(self, request: SimulatedRequest) -> None:
        del self.running[request]

    def remove(self, request: SimulatedRequest) -> bool:
        """A request is routed elsewhere; whether it was being prefilled."""
        self._ready_known = False
        self.queue.pop(request, None)
        return self.running.pop(request, None) is not None

    def instances_changed(self) -> None:
        """Instances came or went: the estimate is recomputed when it is next used."""
        self._ready_known = False

    def wait(self, now: float) -> float:
        """Seconds until an instance begins a prompt that joins now, if each takes as long as estimated."""
        if not self.n:
            return sum(self.queue.values())
        if not self._ready_known:
            ends = sorted(self.running.values())[-self.n :]
            self._ready = ends + [now] * (self.n - len(ends))
            heapq.heapify(self._ready)
            for seconds in self.queue.values():
                heapq.heapreplace(self._ready, max(now, self._ready[0]) + seconds)
            self._ready_known = True
        return max(0.0, self._ready[0] - now)


class DecodeBatches:
    """The part of a cluster that decodes. An instance is a batch whose sequences share its steps; those in `draining`
    admit no more and convert once empty."""

    __slots__ = ("_batch", "_mean_reply", "_rates", "draining", "instances", "waiting")

    def __init__(self, cluster: Cluster) -> None:
        profile = cluster.profile
        self._batch = profile.batch
        steps = [profile.decode(n) for n in range(1, profile.batch + 1)] if profile.decode else []
        self._rates = [0.0] + [1 / seconds for seconds in steps]  # tokens per second of a sequence, by batch
        self.instances: list[DecodeInstance] = []
        self.draining: list[DecodeInstance] = []
        self.waiting: deque[SimulatedRequest] = deque()
        self._mean_reply = 0.0  # tokens
        for _ in range(cluster.n_decode):
            self.start_instance()

    def start_instance(self) -> None:
        """A new empty instance."""
        self.instances.append(ProcessorSharing(self._rates.__getitem__))

    def with_room(self) -> DecodeInstance | None:
        """The instance with the fewest sequences, if it can admit one."""
        best, least = None, self._batch
        for instance in self.instances:
            if instance.n < least:
                best, least = instance, instance.n
        return best

    def step_seconds(self, n: int) -> float:
        return 1 / self._rates[n]

    def wait(self) -> float:
        """Seconds until a sequence that arrives now is admitted, by the mean length of replies so far: full batches end
        their sequences evenly."""
        if not self.instances or self.with_room() is not None:
            return 0.0
        per_sequence = self._mean_reply / self._rates[self._batch] / self._batch / len(self.instances)
        return (len(self.waiting) + 1) * per_sequence

    def replied(self, tokens: float) -> None:
        """Update the mean length of replies with one of `tokens` tokens that has ended."""
        self._mean_reply += (tokens - self._mean_reply) * (_REPLY_SHARE if self._mean_reply else 1.0)

    def take_stranded(self) -> list[SimulatedRequest]:
        """Takes what waits for a batch, if no instance is left."""
        if self.instances:
            return []
        stranded, self.waiting = list(self.waiting), deque()
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
        state.prefill_depth = len(prefill.queue) + len(prefill.running)
        state.prefill_wait_seconds = prefill.wait(now)
        state.decode_wait_seconds = self.decode.wait()
