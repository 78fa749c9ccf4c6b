"""How a simulated fleet serves a request: it is routed, its prompt prefilled, its cache sent, its reply decoded.

Events of an earlier route of a request are void; `SimulatedRequest.attempt` tells. What a failure takes from a request
is released before it is routed again, so that it is always in exactly one place: a queue, an instance, a link, a batch,
or among those that no cluster could take.
"""

import math
from collections.abc import Callable

from earthshine.errors import UnavailableError
from earthshine.loadgen.trace import BLOCK_TOKENS
from earthshine.prfaas.fleet import Fleet
from earthshine.prfaas.route import ORDINARY, Cached, FleetState, Route, Router, RouteRequest
from earthshine.prfaas.simulator.clusters import DecodeInstance, SimulatedCluster
from earthshine.prfaas.simulator.conditions import Conditions, Role
from earthshine.prfaas.simulator.events import EventQueue
from earthshine.prfaas.simulator.links import SimulatedLink
from earthshine.prfaas.simulator.requests import SimulatedRequest

_NO_CACHES: dict[str, Cached] = {}
_Attempt = tuple[SimulatedRequest, int]  # the argument of an event: a request, and the attempt that it belongs to


class Serving:
    """Clusters, links and the requests in them.

    `on_drained(now, cluster, role)` is called when an instance that is to change its role has finished its work in
    `role`, and `on_replied(request)`, where it is set, when a reply has ended. `decoded` counts these.
    """

    on_drained: Callable[[float, SimulatedCluster, Role], None]
    on_replied: Callable[[SimulatedRequest], None] | None = None

    def __init__(
        self,
        fleet: Fleet,
        router: Router,
        conditions: Conditions,
        events: EventQueue,
        threshold: float,
        deadline_seconds: float | None,
    ) -> None:
        self._router, self._conditions, self._events = router, conditions, events
        self._deadline_seconds = deadline_seconds
        self.state = state = FleetState.idle(fleet, threshold)
        self.clusters = {
            name: SimulatedCluster(cluster, state.clusters[name], conditions.cache_bytes)
            for name, cluster in fleet.clusters.items()
        }
        self.links = {
            ends: SimulatedLink(state.links[ends], link.round_trip_seconds, conditions)
            for ends, link in fleet.links.items()
        }
        for each in self.clusters.values():
            each.prefill.on_late = self._became_late
        self._unroutable: list[SimulatedRequest] = []  # that no cluster could take
        self.decoded = 0

    # A request is routed.

    def cached(self, request: SimulatedRequest) -> dict[str, Cached]:
        """What each cluster has of its prompt."""
        if not request.blocks:
            return _NO_CACHES
        return {name: cluster.cache.find(request.blocks) for name, cluster in self.clusters.items()}

    def route(self, now: float, request: SimulatedRequest, cached: dict[str, Cached]) -> None:
        self.refresh(now)
        left = self._deadline_seconds
        if request.record.first_token <= now:
            left = None  # a failure interrupted the reply: its first token is not wanted again
        elif left is not None:
            left = max(0.0, left - (now - request.arrival.seconds))
        request.attempt += 1
        try:
            request.route = route = self._router(RouteRequest(request.tokens, cached, left), self.state)
        except UnavailableError:
            request.route = None
            self._unroutable.append(request)
            return
        request.late = route.priority > ORDINARY
        request.begin_by, request.admit_by = now + route.begin_within, now + route.admit_within
        request.record.routes += 1
        request.record.prefill, request.record.remote = route.prefill, route.prefill != route.decode
        for move in (route.pull, route.send):
            if move is not None:
                self.links[move.source, move.target].assign(request, move.nbytes)
        if not request.late:
            self.clusters[route.decode].decode.expected.add(request)
        if route.pull is not None:
            link = self.links[route.pull.source, route.pull.target]
            link.start(now, request)
            self.schedule_transfers(link)
        else:
            self._enqueue(now, request, route)

    def sent_bytes(self, now: float) -> float:
        """Bytes that crossed links, those of transfers that were given up included."""
        return sum(link.sent_bytes(now) for link in self.links.values())

    def _became_late(self, request: SimulatedRequest) -> None:
        """It can't begin in time, so it waits behind those that can, wherever it comes."""
        request.late, route = True, request.route
        assert route is not None
        for link in self.links.values():
            link.became_late(request)
        self.clusters[route.decode].decode.expected.discard(request)

    def refresh(self, now: float) -> None:
        """Writes what a router knows now into the fleet's state."""
        for cluster in self.clusters.values():
            cluster.refresh(now)
        for link in self.links.values():
            link.refresh(now)

    def reroute(self, now: float, request: SimulatedRequest) -> None:
        """After a failure: whatever the request holds is released first."""
        route = request.route
        if route is not None:
            for link in self.links.values():
                if link.release(now, request):
                    self.schedule_transfers(link)
            self.clusters[route.decode].decode.expected.discard(request)
            cluster = self.clusters[route.prefill]
            freed = cluster.free(request)
            if cluster.prefill.remove(request):
                self._instance_free(now, cluster)
            elif freed:
                self.start_prefills(now, cluster)
        self.route(now, request, self.cached(request))

    def retry_unroutable(self, now: float) -> None:
        """After any change that could let a cluster take them."""
        waiting, self._unroutable = self._unroutable, []
        for request in waiting:
            self.route(now, request, self.cached(request))

    # Its prompt is prefilled.

    def _enqueue(self, now: float, request: SimulatedRequest, route: Route) -> None:
        cluster = self.clusters[route.prefill]
        cluster.prefill.add(now, request, route.first_token.prefill)
        self.start_prefills(now, cluster)

    def start_prefills(self, now: float, cluster: SimulatedCluster) -> None:
        """Idle instances take prompts from the queue."""
        prefill, layers = cluster.prefill, self._conditions.layers
        while prefill.has_idle() and prefill.queue and cluster.has_memory():
            request, estimated = prefill.pop(now)
            seconds = self._prefill_seconds(cluster, request)
            prefill.start(now, request, seconds, estimated)
            send = request.route.send if request.route is not None else None
            if send is not None:
                cluster.hold(request, send.nbytes)
                if layers > 1 and seconds > 0:
                    self._events.push(now + seconds / layers, self._first_layer, (request, request.attempt, seconds))
            self._events.push(now + seconds, self._prefilled, (request, request.attempt))

    def _prefill_seconds(self, cluster: SimulatedCluster, request: SimulatedRequest) -> float:
        """How long the prompt takes, with what the cluster's cache has of it."""
        profile = cluster.cluster.profile
        if not request.blocks:
            return profile.prefill_seconds(request.tokens)
        found = cluster.cache.find(request.blocks)
        reused, request.cached_blocks = found.usable(profile.recurrent), found.tokens // BLOCK_TOKENS
        request.record.reused_tokens = reused
        if reused:
            cluster.cache.touch(request.blocks)
        return profile.prefill_seconds(request.tokens, reused)

    def _prefilled(self, now: float, event: _Attempt) -> None:
        request, attempt = event
        route = request.route
        if request.attempt != attempt or route is None:
            return
        cluster = self.clusters[route.prefill]
        cluster.prefill.finish(request)
        if request.blocks:
            cluster.cache.keep(request.blocks, request.cached_blocks)
        if route.send is None:
            self._enqueue_decode(now, request)
        else:
            link = self.links[route.send.source, route.send.target]
            link.prefilled(now, request)
            self.schedule_transfers(link)
        self._instance_free(now, cluster)
        self.retry_unroutable(now)

    def _instance_free(self, now: float, cluster: SimulatedCluster) -> None:
        """An instance finished a prompt or dropped it."""
        if cluster.prefill.draining:
            cluster.prefill.draining -= 1
            self.on_drained(now, cluster, "prefill")
        self.start_prefills(now, cluster)

    # Its cache is sent.

    def _first_layer(self, now: float, event: tuple[SimulatedRequest, int, float]) -> None:
        request, attempt, prefill_seconds = event
        if request.attempt == attempt and request.route is not None and request.route.send is not None:
            link = self.links[request.route.send.source, request.route.send.target]
            link.start(now, request, prefill_seconds)
            self.schedule_transfers(link)

    def schedule_transfers(self, link: SimulatedLink) -> None:
        """An event for the end of the transfer that ends first, if there is none."""
        if link.scheduled == link.version:
            return
        link.scheduled = link.version
        at = link.next_change()
        if at < math.inf:
            self._events.push(at, self._transferred, (link, link.version))

    def _transferred(self, now: float, event: tuple[SimulatedLink, int]) -> None:
        link, version = event
        if link.version != version:
            return
        request = link.pop_ended(now)
        self.schedule_transfers(link)
        if request is None:
            return
        route = request.route
        assert route is not None
        pulled = route.pull is not None and link is self.links[route.pull.source, route.pull.target]
        arrived = self._pulled if pulled else self._sent
        trip = 2 * link.one_way_seconds if pulled else link.one_way_seconds  # a pull must be asked for
        if trip:
            self._events.push(now + trip, arrived, (request, request.attempt))
        else:
            arrived(now, (request, request.attempt))
        if not pulled:
            cluster = self.clusters[route.prefill]
            if cluster.free(request):
                self.start_prefills(now, cluster)

    def _pulled(self, now: float, event: _Attempt) -> None:
        request, attempt = event
        if request.attempt == attempt and request.route is not None and request.route.pull is not None:
            move = request.route.pull
            self.links[move.source, move.target].release(now, request)
            self.clusters[move.target].cache.keep(request.blocks[: move.tokens // BLOCK_TOKENS])
            self._enqueue(now, request, request.route)

    def _sent(self, now: float, event: _Attempt) -> None:
        request, attempt = event
        if request.attempt == attempt and request.route is not None and request.route.send is not None:
            move = request.route.send
            self.links[move.source, move.target].release(now, request)
            self.clusters[move.target].cache.keep(request.blocks)
            self._enqueue_decode(now, request)

    # Its reply is decoded.

    def _enqueue_decode(self, now: float, request: SimulatedRequest) -> None:
        assert request.route is not None
        cluster = self.clusters[request.route.decode]
        cluster.decode.enqueue(request)
        self.admit(now, cluster)

    def admit(self, now: float, cluster: SimulatedCluster) -> None:
        """Batches with room take sequences that wait."""
        decode = cluster.decode
        while (admitted := decode.admit(now)) is not None:
            instance, request = admitted
            if request.record.first_token > now:
                request.record.first_token = now + decode.step_seconds(instance.n)
            self._schedule_replies(cluster, instance)

    def _schedule_replies(self, cluster: SimulatedCluster, instance: DecodeInstance) -> None:
        """An event for the reply that ends first, unless there is one before: that looks again."""
        at = instance.next_end()
        if at < instance.scheduled:
            instance.scheduled = at
            self._events.push(at, self._replied, (cluster, instance))

    def _replied(self, now: float, event: tuple[SimulatedCluster, DecodeInstance]) -> None:
        cluster, instance = event
        if instance.scheduled != now:
            return
        instance.scheduled = math.inf
        if instance.next_end() <= now:
            self._end_reply(now, cluster, instance)
        if instance.n:
            self._schedule_replies(cluster, instance)
        self.retry_unroutable(now)

    def _end_reply(self, now: float, cluster: SimulatedCluster, instance: DecodeInstance) -> None:
        request, decode = instance.end_first(now), cluster.decode
        request.record.ended = now
        # A batch that became smaller made the first step shorter than it was to be.
        request.record.first_token = min(request.record.first_token, now)
        self.decoded += 1
        decode.replied(request)
        if self.on_replied is not None:
            self.on_replied(request)
        if request.reply_blocks:
            cluster.cache.keep(request.blocks + request.reply_blocks)
        if not instance.n and instance in decode.draining:
            decode.draining.remove(instance)
            self.on_drained(now, cluster, "decode")
        if decode.waiting:
            self.admit(now, cluster)
