"""What `decide` reads and returns: a request, the state of a fleet, and a route.

State is what a router or the simulator knows now, and updates in place; `decide` only reads it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from earthshine.errors import UsageError
from earthshine.prfaas.fleet import Fleet

_LONGEST = 1e9  # tokens; a threshold may be infinite
# Bytes per second; a link that carries less counts as down. The cache of 1,500 tokens of a large model with a latent
# cache, at 70 KB a token, would take more than a day.
LEAST_RATE = 1000.0
ORDINARY, LATE = 0, 1  # priorities; lower ones are served first, as in vLLM


@dataclass(frozen=True, slots=True)
class Cached:
    """A request's prefix in one cluster's cache: rows of `tokens` tokens, and the lengths where a recurrent state is
    kept, ascending."""

    tokens: int
    states: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.tokens >= 0 or (self.states and not self.states[0] >= 0):
            raise UsageError(
                f"A cached prefix must have 0 or more tokens, not {self.tokens} and {self.states}.", "cached"
            )

    def usable(self, recurrent: bool, most: int | None = None) -> int:
        """Tokens from which a prefill can go on, at most `most`: a recurrent model needs rows and a state of exactly
        that length."""
        tokens = self.tokens if most is None or most > self.tokens else most
        if not recurrent:
            return tokens
        return max([length for length in self.states if length <= tokens], default=0)


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """A prompt of `tokens` tokens, and what each cluster has of it. Seconds count from now; below 0: over already.

    Raises UsageError for a prompt without tokens, a deadline that is not a number and a ceiling that is not 0 or more.
    """

    tokens: int
    cached: Mapping[str, Cached] = field(default_factory=dict)  # by cluster
    deadline_seconds: float | None = None  # for the first token
    usd_ceiling: float | None = None  # for borrowed compute
    decode: str | None = None  # the cluster that must decode it; None: any

    def __post_init__(self) -> None:
        if not 1 <= self.tokens < math.inf:
            raise UsageError(f"A prompt must have 1 token or more, not {self.tokens}.", "tokens")
        if self.deadline_seconds is not None and math.isnan(self.deadline_seconds):
            raise UsageError(f"deadline_seconds must be a number, not {self.deadline_seconds}.", "deadline_seconds")
        if self.usd_ceiling is not None and not self.usd_ceiling >= 0:
            raise UsageError(f"usd_ceiling must be 0 or more, not {self.usd_ceiling}.", "usd_ceiling")


@dataclass(slots=True)
class ClusterState:
    """Live figures of a cluster."""

    n_prefill: int  # instances that work, by role
    n_decode: int
    prefill_wait_seconds: float = 0.0  # until an instance begins a prompt that joins the queue now, before late ones
    prefill_depth: int = 0  # prompts queued or in work; late ones only in work
    late_seconds: float = 0.0  # of prefill of the late prompts queued
    decode_wait_seconds: float = 0.0  # until a batch could admit a sequence after all that were routed there before


@dataclass(slots=True)
class LinkState:
    """Live figures of a link."""

    bytes_per_second: float  # measured, all connections together; below LEAST_RATE: it is down
    queued_bytes: float = 0.0  # that are still to be sent, without those of late prompts
    late_bytes: float = 0.0  # of late prompts
    # Share of the segments now, beyond that while the rate was measured: the rate shows what was lost then, and a
    # link that always loses the same has 0.
    retransmitted: float = 0.0
    n_queued: int = 0  # caches that `queued_bytes` belong to


@dataclass(slots=True)
class FleetState:
    """A fleet and its live figures, by the fleet's own names."""

    fleet: Fleet
    clusters: dict[str, ClusterState]
    links: dict[tuple[str, str], LinkState]
    threshold: float  # tokens after prefix hits, above which a prompt is prefilled remotely; see `control`
    _at_threshold: tuple[Fleet, float, dict[str, float]] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    @classmethod
    def idle(cls, fleet: Fleet, threshold: float) -> "FleetState":
        """Every instance works, every queue is empty and every link has its nominal rate."""
        return cls(
            fleet,
            {name: ClusterState(c.n_prefill, c.n_decode) for name, c in fleet.clusters.items()},
            {ends: LinkState(link.bytes_per_second) for ends, link in fleet.links.items()},
            threshold,
        )

    def at_threshold(self) -> dict[str, float]:
        """Seconds of prefill of a prompt as long as the threshold, for each cluster that prefills. Computed once for a
        fleet and a threshold."""
        known = self._at_threshold
        if known is None or known[0] is not self.fleet or known[1] != self.threshold:
            tokens, found = min(self.threshold, _LONGEST), {}
            for name, cluster in self.fleet.clusters.items():
                if cluster.profile.prefill is not None:
                    found[name] = max(cluster.profile.prefill(tokens), 1e-9)
            self._at_threshold = known = (self.fleet, self.threshold, found)
        return known[2]


class Move(NamedTuple):
    """Cache that crosses a link: the first `tokens` tokens' rows, without those that the target holds."""

    source: str
    target: str
    tokens: int
    nbytes: float


class FirstToken(NamedTuple):
    """Seconds to the first token by parts; they add up."""

    queue: float  # for an instance that prefills
    pull: float  # of a cached prefix from another cluster, before the prefill
    prefill: float
    transfer: float  # of the cache, beyond the prefill that it overlaps with
    decode: float  # for a place in a batch, and the first step

    @property
    def total(self) -> float:
        return self.queue + self.pull + self.prefill + self.transfer + self.decode


class Route(NamedTuple):
    """Where a prompt is computed and decoded, what moves, and why."""

    prefill: str
    decode: str
    reused_tokens: int  # found in the prefix cache of `prefill`, what is pulled included
    pull: Move | None  # a cached prefix, to where the prompt is computed
    send: Move | None  # the prompt's cache, to where it is decoded; None in one cluster
    first_token: FirstToken
    usd: float  # of borrowed compute
    reason: str  # in words, for a log
    priority: int = ORDINARY
    begin_within: float = math.inf  # seconds in which its prefill must begin to meet the deadline; else it is late
    admit_within: float = math.inf  # seconds in which a batch must admit it, likewise


Router = Callable[[RouteRequest, FleetState], Route]  # `decide` with its policy, or a baseline
