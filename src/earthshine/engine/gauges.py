"""A snapshot of an engine's state, for metrics and pages."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Gauges:
    """A snapshot of the engine's state. Counters count from the start.

    pages_cached: pages that no sequence uses.
    prompt_tokens: of prompts, those that were computed; again after a preemption.
    resident_bytes: of the whole process.
    finished: number of replies by reason.
    problem: what the disk cache can't do now.
    prefill_tokens, prefill_processed: of all prompts that are being computed, the tokens and those that are done.
    prefill_seconds_left: the longest expected wait among them; 0 where it is unknown.
    """

    running: int
    waiting: int
    pages: int
    pages_free: int
    pages_cached: int
    prefix_queries: int
    prefix_hits: int
    preemptions: int
    prompt_tokens: int
    generated_tokens: int
    expert_hits: int
    expert_misses: int
    expert_bytes_read: int
    disk_cache_bytes: int
    disk_cache_pages: int
    pages_read: int
    pages_written: int
    damaged_pages: int
    resident_bytes: int
    budget_bytes: int
    finished: Mapping[str, int] = field(default_factory=dict)
    problem: str | None = None
    prefill_tokens: int = 0
    prefill_processed: int = 0
    prefill_seconds_left: float = 0.0
