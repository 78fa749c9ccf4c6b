"""The router's metrics for Prometheus, and what its page shows. Nothing is stored per client."""

from collections import deque
from collections.abc import Iterator
from time import monotonic
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from earthshine.prfaas.router.live import LiveFleet, by_name
from earthshine.server.route.record import Record

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240)
_ADDED = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_DECISIONS = 50  # on the page


class _OfPlaces(Collector):
    """Gauges that are read from the fleet when they are asked for."""

    def __init__(self, fleet: LiveFleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        now, places = monotonic(), list(self._fleet.places.values())
        for name, meaning, value in (
            ("up", "1 where the place may get requests.", lambda p: float(not p.problem(now))),
            ("requests_running", "Requests that the router sent there and that have not ended.", lambda p: p.sequences),
            ("prompts_waiting", "Of these, prompts whose first token has not come.", lambda p: len(p.work)),
            ("queue_seconds", "Seconds until a new prompt would begin there.", lambda p: p.wait_seconds(now)),
        ):
            gauge = GaugeMetricFamily(f"earthshine_route:{name}", meaning, labels=["place"])
            for place in places:
                gauge.add_metric([place.name], value(place))
            yield gauge
        threshold = GaugeMetricFamily(
            "earthshine_route:threshold_tokens", "Longer prompts are prefilled remotely; +Inf: none are."
        )
        threshold.add_metric([], self._fleet.threshold)
        yield threshold
        queued = GaugeMetricFamily(
            "earthshine_route:link_queued_bytes", "Bytes still to be sent over a link.", labels=["source", "target"]
        )
        for (source, target), link in self._fleet.links.items():
            queued.add_metric([source, target], link.queued_bytes)
        yield queued


class RouterMetrics:
    """One router's."""

    def __init__(self, fleet: LiveFleet) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # series that no dashboard reads
        self._fleet = fleet
        self._registry = registry = CollectorRegistry()
        registry.register(_OfPlaces(fleet))
        self.decisions: deque[Record] = deque(maxlen=_DECISIONS)
        self._requests = Counter(
            "earthshine_route:requests", "Requests by place and status.", ["place", "status"], registry=registry
        )
        self._borrowed = Counter(
            "earthshine_route:borrowed", "Requests whose prompt another place prefilled.", ["place", "prefill"],
            registry=registry,
        )  # fmt: skip
        self._failed = Counter("earthshine_route:retries", "Requests sent to another place.", registry=registry)
        self._first = Histogram(
            "earthshine_route:first_byte_seconds", "From arrival to the answer's first byte.", registry=registry,
            buckets=_SECONDS,
        )  # fmt: skip
        self._whole = Histogram(
            "earthshine_route:request_seconds", "From arrival to end.", registry=registry, buckets=_SECONDS
        )
        self._sending = Histogram(
            "earthshine_route:sending_seconds", "From arrival until a request was sent to its place.",
            registry=registry, buckets=_ADDED,
        )  # fmt: skip

    def ended(self, record: Record) -> None:
        """Observes a request that was for a place."""
        self.decisions.appendleft(record)
        self._requests.labels(record.place or "none", str(record.status)).inc()
        if record.failed:
            self._failed.inc(len(record.failed))
        if record.lender is not None:
            self._borrowed.labels(record.place, record.lender).inc()
        for histogram, at in ((self._first, record.first), (self._whole, record.ended), (self._sending, record.sent)):
            seconds = record.seconds(at)
            if seconds is not None:
                histogram.observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def summary(self) -> dict[str, Any]:
        """The fleet and the last decisions, for the page."""
        now, fleet = monotonic(), self._fleet
        places = [
            {
                "name": place.name,
                "decodes": place.decodes,
                "address": _address(place.setup.site),
                "problem": place.problem(now) or None,
                "running": place.sequences,
                "waiting": len(place.work),
                "others_waiting": place.others,
                "queue_seconds": place.wait_seconds(now),
                "served": place.served,
                "profile": place.profile(now).source if place.given else f"learned from {place.learned.observations}",
                "seconds_of_4096": place.profile(now).prefill_seconds(4096),
                "models": sorted(place.models) if place.models is not None else None,
            }
            for place in by_name(fleet.places)
        ]
        links = [
            {"source": source, "target": target, "bytes_per_second": link.bytes_per_second,
             "queued_bytes": link.queued_bytes}
            for (source, target), link in fleet.links.items()
        ]  # fmt: skip
        finite = fleet.threshold if fleet.threshold < 1e18 else None
        return {
            "places": places,
            "links": links,
            "threshold": finite,
            "threshold_why": fleet.why,
            "prefix_blocks": len(fleet.index),
            "decisions": [dict(record.fields()) for record in self.decisions],
        }


def _address(site: Any) -> str | None:
    return None if site is None else f"{site.host}:{site.port}"
