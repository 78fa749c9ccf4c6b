"""What happens to a simulated fleet's instances and links: they fail and come back, and instances change their roles.

Every request that a failed part held is routed again. An instance that is to change its role finishes its work first,
then takes `Conditions.convert_seconds`.
"""

import math

from earthshine.prfaas.simulator.clusters import SimulatedCluster
from earthshine.prfaas.simulator.conditions import Conditions, Failure, RateChange, Role
from earthshine.prfaas.simulator.events import EventQueue
from earthshine.prfaas.simulator.links import SimulatedLink
from earthshine.prfaas.simulator.requests import SimulatedRequest
from earthshine.prfaas.simulator.serving import Serving


class Instances:
    """Applies failures, changes of links and conversions to the clusters of `serving`. Counts `conversions`."""

    def __init__(self, serving: Serving, conditions: Conditions, events: EventQueue) -> None:
        self._serving, self._conditions, self._events = serving, conditions, events
        self.conversions = 0
        serving.on_drained = self._convert
        for change in conditions.rates:
            events.push(change.seconds, self._change_rate, change)
        for failure in conditions.failures:
            events.push(failure.seconds, self._fail, failure)

    # Links change.

    def _change_rate(self, now: float, change: RateChange) -> None:
        link = self._serving.links[change.ends]
        was_down = link.is_down
        link.change(now, change.bytes_per_second, change.loss)
        self._serving.schedule_transfers(link)
        if was_down != link.is_down:
            self._events.push(now + self._conditions.detect_seconds, self._detect, link)

    def _detect(self, now: float, link: SimulatedLink) -> None:
        """The router learns that a link is down, and routes again what it held; or that it is up."""
        link.detect()
        if link.is_down:
            for request in list(link.assigned):
                self._serving.reroute(now, request)
        else:
            self._serving.retry_unroutable(now)

    # Instances fail and come back.

    def _fail(self, now: float, failure: Failure) -> None:
        cluster = self._serving.clusters[failure.cluster]
        lost = _lose_prefill(cluster) if failure.role == "prefill" else _lose_decode(now, cluster)
        if lost is None:
            return  # the cluster had none in this role
        self._events.push(failure.until, self._recover, failure)
        for request in lost:
            self._serving.reroute(now, request)

    def _recover(self, now: float, failure: Failure) -> None:
        self._start(now, self._serving.clusters[failure.cluster], failure.role)

    def _start(self, now: float, cluster: SimulatedCluster, role: Role) -> None:
        """An instance begins to work."""
        if role == "prefill":
            cluster.prefill.n += 1
            cluster.prefill.instances_changed()
            self._serving.start_prefills(now, cluster)
        else:
            cluster.decode.start_instance()
            self._serving.admit(now, cluster)
        self._serving.retry_unroutable(now)

    # Roles change.

    def set_roles(self, now: float, cluster: SimulatedCluster, n_prefill: int) -> None:
        """Sets the number of instances that prefill. Opposite conversions in progress are cancelled first."""
        more = n_prefill - cluster.planned_prefill()
        while more > 0 and self._drain_decode(now, cluster):
            more -= 1
        while more < 0 and self._drain_prefill(now, cluster):
            more += 1
        cluster.prefill.instances_changed()
        for request in _stranded(cluster):
            self._serving.reroute(now, request)

    def _drain_decode(self, now: float, cluster: SimulatedCluster) -> bool:
        """One more instance will prefill; False where none is left to convert."""
        prefill, decode = cluster.prefill, cluster.decode
        if prefill.draining:
            prefill.draining, prefill.n = prefill.draining - 1, prefill.n + 1
            return True
        if not decode.instances:
            return False
        instance = min(decode.instances, key=lambda one: one.n)
        decode.instances.remove(instance)
        if instance.n:
            decode.draining.append(instance)
        else:
            self._convert(now, cluster, "decode")
        return True

    def _drain_prefill(self, now: float, cluster: SimulatedCluster) -> bool:
        """One more instance will decode; False where none is left to convert."""
        prefill, decode = cluster.prefill, cluster.decode
        if decode.draining:
            decode.instances.append(decode.draining.pop())
            self._serving.admit(now, cluster)
            return True
        if not prefill.n:
            return False
        idle = len(prefill.running) < prefill.n + prefill.draining
        prefill.n -= 1
        if idle:
            self._convert(now, cluster, "prefill")
        else:
            prefill.draining += 1
        return True

    def _convert(self, now: float, cluster: SimulatedCluster, drained: Role) -> None:
        """An instance without work in the role `drained` begins to change to the other one."""
        role: Role = "decode" if drained == "prefill" else "prefill"
        cluster.converting[role] += 1
        self.conversions += 1
        self._events.push(now + self._conditions.convert_seconds, self._converted, (cluster, role))

    def _converted(self, now: float, event: tuple[SimulatedCluster, Role]) -> None:
        cluster, role = event
        cluster.converting[role] -= 1
        self._start(now, cluster, role)


def _lose_prefill(cluster: SimulatedCluster) -> list[SimulatedRequest] | None:
    """Requests that one instance held: an idle one if there is one, else the one that began first. Where none is left
    the queue's too. None: the cluster had no instance that prefills."""
    prefill = cluster.prefill
    if not prefill.n + prefill.draining:
        return None
    busy = len(prefill.running) >= prefill.n + prefill.draining
    if prefill.draining and (busy or not prefill.n):
        prefill.draining -= 1
    else:
        prefill.n -= 1
    prefill.instances_changed()
    lost = [next(iter(prefill.running))] if busy else []
    for request in lost:
        prefill.finish(request)
    return lost + ([] if prefill.n else list(prefill.queue))


def _lose_decode(now: float, cluster: SimulatedCluster) -> list[SimulatedRequest] | None:
    """Sequences that one instance held, with the tokens that they had; where none is left those that wait too. None:
    the cluster had no instance that decodes."""
    decode = cluster.decode
    if not decode.instances and not decode.draining:
        return None
    instance = (decode.draining or decode.instances).pop(0)
    lost = instance.jobs
    for request in lost:
        decode.lose(request)
        left = max(1, math.ceil(instance.left(now, request)))
        request.tokens, request.output_tokens = request.tokens + request.output_tokens - left, left
        if request.record.first_token > now:
            request.record.first_token = math.inf
    instance.scheduled = math.inf  # its events are void
    return lost + decode.take_stranded()


def _stranded(cluster: SimulatedCluster) -> list[SimulatedRequest]:
    """What waits for a role in which no instance is left."""
    queued = [] if cluster.prefill.n else list(cluster.prefill.queue)
    return queued + cluster.decode.take_stranded()
