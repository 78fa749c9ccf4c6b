"""The simulator's clusters: a queue of prompts, first in first out, over instances that compute one at a time; decode
batches, each step as long as its batch makes it; a prefix cache; and instances that change their roles.

An instance that is to change finishes what it works on, then converts. Prompts and sequences are named by their jobs'
numbers.
"""

import heapq
from collections import deque

from earthshine.prfaas.conditions import Role
from earthshine.prfaas.fleet import Cluster
from earthshine.prfaas.prefix import PrefixCache
from earthshine.prfaas.route import ClusterState
from earthshine.prfaas.sharing import Sharing

_REPLY_SHARE = 0.02  # of the newest reply in the mean length of replies: it remembers about 50


class Prompts:
    """The part of a cluster that prefills: `n` instances that work and stay, `leaving` that end with their prompt."""

    __slots__ = ("_free", "_known", "leaving", "n", "queue", "running")

    def __init__(self, n: int) -> None:
        self.n = n
        self.leaving = 0
        self.queue: dict[int, float] = {}  # estimated seconds by job, in the order of arrival
        self.running: dict[int, float] = {}  # to the prompt's end, in the order of start
        self._free: list[float] = []  # when each instance is done with all that waits, estimated; a heap
        self._known = False

    def add(self, now: float, job: int, seconds: float) -> None:
        if self._known:
            heapq.heapreplace(self._free, max(now, self._free[0]) + seconds)
        self.queue[job] = seconds

    def idle(self) -> bool:
        return len(self.running) < self.n + self.leaving and self.n > 0

    def remove(self, job: int) -> bool:
        """A job is routed elsewhere; whether it was being computed."""
        self.changed()
        self.queue.pop(job, None)
        return self.running.pop(job, None) is not None

    def changed(self) -> None:
        """Instances came or went: the estimate is recomputed when it is next used."""
        self._known = False

    def wait(self, now: float) -> float:
        """Seconds until an instance begins a prompt that joins now, if each takes as long as estimated."""
        if not self.n:
            return sum(self.queue.values())
        if not self._known:
            ends = sorted(self.running.values())[-self.n :]
            self._free = ends + [now] * (self.n - len(ends))
            heapq.heapify(self._free)
            for seconds in self.queue.values():
                heapq.heapreplace(self._free, max(now, self._free[0]) + seconds)
            self._known = True
        return max(0.0, self._free[0] - now)


class Batches:
    """The part of a cluster that decodes: an instance is a `Sharing` of tokens; those in `leaving` admit no more."""

    __slots__ = ("_batch", "_rates", "active", "instances", "leaving", "mean_reply", "waiting")

    def __init__(self, cluster: Cluster) -> None:
        profile = cluster.profile
        self._batch = profile.batch
        steps = [profile.decode(n) for n in range(1, profile.batch + 1)] if profile.decode else []
        self._rates = [0.0] + [1 / seconds for seconds in steps]
        self.instances: list[Sharing[int]] = []
        self.leaving: list[Sharing[int]] = []
        self.waiting: deque[int] = deque()
        self.active = 0  # sequences in batches
        self.mean_reply = 0.0  # tokens
        for _ in range(cluster.n_decode):
            self.start()

    def start(self) -> Sharing[int]:
        """A new empty instance."""
        self.instances.append(Sharing(self._rates.__getitem__))
        return self.instances[-1]

    def room(self) -> Sharing[int] | None:
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
        if not self.instances or self.room() is not None:
            return 0.0
        per_sequence = self.mean_reply / self._rates[self._batch] / self._batch / len(self.instances)
        return (len(self.waiting) + 1) * per_sequence

    def replied(self, tokens: float) -> None:
        """Update the mean length of replies with one of `tokens` tokens that has ended."""
        self.mean_reply += (tokens - self.mean_reply) * (_REPLY_SHARE if self.mean_reply else 1.0)


class Place:
    """A cluster: `state` is what routers see, the rest is the truth."""

    __slots__ = ("batches", "cache", "cluster", "converting", "prompts", "state")

    def __init__(self, cluster: Cluster, state: ClusterState, cache_bytes: float) -> None:
        self.cluster = cluster
        self.state = state
        self.prompts = Prompts(cluster.n_prefill)
        self.batches = Batches(cluster)
        self.cache = PrefixCache(cluster.profile, cache_bytes * cluster.n_instances)
        self.converting: dict[Role, int] = {"prefill": 0, "decode": 0}  # drained instances, by their new role

    def planned_prefill(self) -> int:
        """Instances that prefill once all changes under way are made."""
        return self.prompts.n + self.converting["prefill"] + len(self.batches.leaving)

    def refresh(self, now: float) -> None:
        """Writes what a router knows now into the state."""
        state, prompts, batches = self.state, self.prompts, self.batches
        state.n_prefill, state.n_decode = prompts.n, len(batches.instances)
        state.prefill_depth = len(prompts.queue) + len(prompts.running)
        state.prefill_wait_seconds = prompts.wait(now)
        state.decode_depth = len(batches.waiting) + batches.active
        state.decode_wait_seconds = batches.wait()
