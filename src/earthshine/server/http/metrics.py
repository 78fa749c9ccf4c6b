"""Prometheus metrics, with vLLM's names where the meaning is the same, and the gauges of the page.

Counters are read from the engine when they are asked for; histograms are observed per request. Nothing is stored per
user.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from earthshine.prfaas.figures import Figure
from earthshine.server.http.timing import Timing
from earthshine.units import format_bytes

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240)
_TOKENS = tuple(2**power for power in range(0, 21))
_WINDOW_SECONDS, _SAMPLE_SECONDS = 10.0, 0.5

_ENDS = {"cancelled": "abort"}  # what vLLM calls it
_GAUGES = (
    ("vllm:num_requests_running", "Requests that are computed.", "running"),
    ("vllm:num_requests_waiting", "Requests in the queue.", "waiting"),
    ("earthshine:prefill_tokens", "Tokens of the prompts that are computed now.", "prefill_tokens"),
    ("earthshine:prefill_tokens_processed", "Of these, tokens computed or found in the cache.", "prefill_processed"),
    ("earthshine:prefill_seconds_left", "Longest wait expected for these; 0: unknown.", "prefill_seconds_left"),
    ("earthshine:disk_cache_bytes", "Bytes of pages on disk.", "disk_cache_bytes"),
    ("earthshine:disk_cache_pages", "Pages on disk.", "disk_cache_pages"),
    ("earthshine:resident_bytes", "Resident memory of this process.", "resident_bytes"),
    ("earthshine:budget_bytes", "Memory that this process may use.", "budget_bytes"),
)
_COUNTERS = (
    ("vllm:prefix_cache_queries", "Prompt tokens that were looked up in the prefix cache.", "prefix_queries"),
    ("vllm:prefix_cache_hits", "Prompt tokens that were found in the prefix cache.", "prefix_hits"),
    ("vllm:num_preemptions", "Requests that were preempted.", "preemptions"),
    ("vllm:prompt_tokens_cached", "Tokens of prompts that were found in the cache.", "prefix_hits"),
    ("vllm:generation_tokens", "Tokens generated.", "generated_tokens"),
    ("earthshine:expert_hits", "Experts found in memory.", "expert_hits"),
    ("earthshine:expert_misses", "Experts read from disk.", "expert_misses"),
    ("earthshine:expert_bytes_read", "Bytes of experts read from disk.", "expert_bytes_read"),
    ("earthshine:disk_cache_pages_read", "Pages read from disk.", "pages_read"),
    ("earthshine:disk_cache_pages_written", "Pages written to disk.", "pages_written"),
    ("earthshine:disk_cache_damaged_pages", "Pages on disk that failed their checksum.", "damaged_pages"),
)


class Engine(Protocol):
    """The part of engine.Engine that is used here."""

    @property
    def alive(self) -> bool: ...

    def gauges(self) -> Any: ...

    def stalled_seconds(self) -> float: ...


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """Experts found in memory, experts read, and the bytes of these; since the start, or between two times."""

    hits: int
    misses: int
    bytes_read: int

    def since(self, before: "ExpertCounts") -> "ExpertCounts":
        """The difference to earlier counts."""
        return ExpertCounts(self.hits - before.hits, self.misses - before.misses, self.bytes_read - before.bytes_read)

    def columns(self) -> list[str]:
        """The columns of a log line; none where no experts were used."""
        wanted = self.hits + self.misses
        read = format_bytes(self.bytes_read)
        return [f"{self.hits / wanted:.0%} of experts in memory, {read} read"] if wanted else []

    def fields(self) -> dict[str, int]:
        """The fields of a log line, named as in /metrics."""
        return {"expert_hits": self.hits, "expert_misses": self.misses, "expert_bytes_read": self.bytes_read}


def pages_used(gauges: Any) -> float:
    """The share of pages that running sequences hold; pages that are only cached can be evicted at once."""
    return float((gauges.pages - gauges.pages_free - gauges.pages_cached) / max(gauges.pages, 1))


class _FromEngine(Collector):
    """The metrics that come from the engine's gauges."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine, self._model = engine, model

    def collect(self) -> Iterator[Metric]:
        gauges = self._engine.gauges()
        for name, meaning, source in _GAUGES:
            yield self._gauge(name, meaning, getattr(gauges, source))
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of pages in use, 0 to 1.", pages_used(gauges))
        for name, meaning, source in _COUNTERS:
            yield self._counter(name, meaning, getattr(gauges, source))
        tokens = gauges.prompt_tokens + gauges.prefix_hits  # vLLM's counter has both too
        yield self._counter("vllm:prompt_tokens", "Tokens of prompts, computed or found in the cache.", tokens)
        ended = CounterMetricFamily(
            "vllm:request_success", "Requests by their finish reason.", labels=["model_name", "finished_reason"]
        )
        for reason, number in sorted(gauges.finished.items()):
            ended.add_metric([self._model, _ENDS.get(reason, reason)], number)
        yield ended

    def _gauge(self, name: str, meaning: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(name, meaning, labels=["model_name"])
        gauge.add_metric([self._model], value)
        return gauge

    def _counter(self, name: str, meaning: str, value: float) -> Metric:
        counter = CounterMetricFamily(name, meaning, labels=["model_name"])
        counter.add_metric([self._model], value)
        return counter


class _FromFigures(Collector):
    """Metrics that another part of the server has, with a label where it has values by name."""

    def __init__(self, figures: Callable[[], Iterable[Figure]]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        for name, meaning, kind, values in self._figures():
            family = GaugeMetricFamily if kind == "gauge" else CounterMetricFamily
            labels = [] if "" in values else ["name"]
            metric = family(f"earthshine:{name}", meaning, labels=labels)
            for label, value in values.items():
                metric.add_metric([label] if labels else [], value)
            yield metric


class Metrics:
    """The registry of one server, and the histograms that its requests observe."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine, self._model = engine, model
        disable_created_metrics()  # type: ignore[no-untyped-call]  # series that no dashboard reads
        self._registry = CollectorRegistry()
        self._registry.register(_FromEngine(engine, model))
        self._samples: deque[tuple[float, int, int]] = deque()
        self._reported: tuple[str | None, int] = (None, 0)  # by `news`: the problem, and the number of damaged pages
        self._first_token_time = self._histogram("time_to_first_token_seconds", "Time to the first text.", _SECONDS)
        self._token_gap = self._histogram("inter_token_latency_seconds", "Time between pieces of text.", _SECONDS)
        self._request_time = self._histogram("e2e_request_latency_seconds", "Time from arrival to end.", _SECONDS)
        self._queue_time = self._histogram("request_queue_time_seconds", "Time until admission.", _SECONDS)
        self._prefill_time = self._histogram(
            "request_prefill_time_seconds", "Time from admission to the first text.", _SECONDS
        )
        self._decode_time = self._histogram(
            "request_decode_time_seconds", "Time from the first text to the last.", _SECONDS
        )
        self._inference_time = self._histogram("request_inference_time_seconds", "Prefill and decode time.", _SECONDS)
        self._token_time = self._histogram(
            "request_time_per_output_token_seconds", "Decode time per token after the first text.", _SECONDS
        )
        self._prompt_size = self._histogram("request_prompt_tokens", "Tokens of a request's prompts.", _TOKENS)
        self._reply_size = self._histogram("request_generation_tokens", "Tokens of a request's replies.", _TOKENS)

    def add(self, figures: Callable[[], Iterable[Figure]]) -> None:
        """Show more: by name, meaning, "gauge" or "counter", and values by label, or one by ""."""
        self._registry.register(_FromFigures(figures))

    def admitted(self, seconds: float) -> None:
        """Observe that a prompt was admitted `seconds` after its request's arrival."""
        self._queue_time.observe(seconds)

    def text_came(self, timing: Timing, seconds: float) -> None:
        """Observe a piece of text that came `seconds` after its request's arrival."""
        if timing.gap is None:
            self._first_token_time.observe(seconds)
        else:
            self._token_gap.observe(timing.gap)

    def ended(self, timing: Timing) -> None:
        """Observe a request that has ended; a cancelled or failed request has no decode time."""
        if not timing.prompt_tokens:
            return
        self._request_time.observe(timing.seconds)
        self._prompt_size.observe(timing.prompt_tokens)
        self._reply_size.observe(timing.tokens)
        if timing.has_text or timing.reasons:
            self._prefill_time.observe(timing.prefill_seconds)
        if timing.reasons:
            self._decode_time.observe(timing.decode_seconds)
            self._inference_time.observe(timing.prefill_seconds + timing.decode_seconds)
            if timing.seconds_per_token is not None:
                self._token_time.observe(timing.seconds_per_token)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        whole = Histogram(f"vllm:{name}", meaning, ["model_name"], registry=self._registry, buckets=buckets)
        return whole.labels(self._model)

    def experts(self) -> ExpertCounts:
        """All experts used so far."""
        gauges = self._engine.gauges()
        return ExpertCounts(gauges.expert_hits, gauges.expert_misses, gauges.expert_bytes_read)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def news(self) -> list[str]:
        """Problems of the disk cache since the last call, as sentences for the log."""
        gauges = self._engine.gauges()
        problem, damaged = self._reported
        self._reported = gauges.problem, gauges.damaged_pages
        found = [gauges.problem] if gauges.problem and gauges.problem != problem else []
        if problem and not gauges.problem:
            found.append("Writing pages to the disk cache works again.")
        if gauges.damaged_pages > damaged:
            count = gauges.damaged_pages - damaged
            found.append(f"{count} damaged page{'s' * (count > 1)} on disk: deleted, and computed again.")
        return found

    def summary(self) -> dict[str, Any]:
        """The engine's gauges and its rates over the last seconds, for the page."""
        gauges, now = self._engine.gauges(), time.monotonic()
        samples = self._samples
        while samples and now - samples[0][0] > _WINDOW_SECONDS:
            samples.popleft()
        began, tokens, nbytes = samples[0] if samples else (now, gauges.generated_tokens, gauges.expert_bytes_read)
        if not samples or now - samples[-1][0] >= _SAMPLE_SECONDS:
            samples.append((now, gauges.generated_tokens, gauges.expert_bytes_read))
        seconds = max(now - began, 1e-9)
        wanted = gauges.expert_hits + gauges.expert_misses
        return {
            "model": self._model,
            "tokens_per_second": (gauges.generated_tokens - tokens) / seconds,
            "disk_bytes_per_second": (gauges.expert_bytes_read - nbytes) / seconds,
            "expert_hits": gauges.expert_hits,
            "expert_misses": gauges.expert_misses,
            "expert_hit_rate": gauges.expert_hits / wanted if wanted else None,
            "pages": gauges.pages,
            "pages_used": gauges.pages - gauges.pages_free - gauges.pages_cached,
            "pages_free": gauges.pages_free,
            "pages_cached": gauges.pages_cached,
            "prefix_query_tokens": gauges.prefix_queries,
            "prefix_hit_tokens": gauges.prefix_hits,
            "prefix_hit_rate": gauges.prefix_hits / gauges.prefix_queries if gauges.prefix_queries else None,
            "preemptions": gauges.preemptions,
            "prefill_tokens": gauges.prefill_tokens,
            "prefill_tokens_processed": gauges.prefill_processed,
            "prefill_seconds_left": gauges.prefill_seconds_left or None,
            "running": gauges.running,
            "waiting": gauges.waiting,
            "resident_bytes": gauges.resident_bytes,
            "budget_bytes": gauges.budget_bytes,
            "disk_cache_bytes": gauges.disk_cache_bytes,
            "problem": gauges.problem,
        }
