"""What a simulated fleet goes through beside its requests: links that change their rates, instances that fail and come
back, and the constants of the simulated machinery, each with its reason.

Raises UsageError for a change that names no part of the fleet, or that runs backwards.
"""

import math
from dataclasses import dataclass
from typing import Literal

from earthshine.errors import UsageError
from earthshine.prfaas.fleet import Fleet
from earthshine.untrusted import shown

Role = Literal["prefill", "decode"]
Ends = tuple[str, str]
_MOST_LAYERS = 10_000
_MATHIS = math.sqrt(3 / 2)  # with every segment acknowledged


@dataclass(frozen=True, slots=True)
class RateChange:
    """From `seconds` on, the link `ends` (source, target) has another rate; 0: it is down.

    loss: share of the segments that is lost and sent again, which lowers the rate further; see `Conditions.carried`.
    """

    seconds: float
    ends: Ends
    bytes_per_second: float
    loss: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """An instance of a cluster loses what it works on at `seconds`, and works again from `until` on."""

    seconds: float
    until: float
    cluster: str
    role: Role


@dataclass(frozen=True, slots=True)
class Conditions:
    """rates: by time. The other fields are constants of the simulated machinery."""

    rates: tuple[RateChange, ...] = ()
    failures: tuple[Failure, ...] = ()

    # A cache is sent in this many pieces, one for each layer as soon as it is computed. Models of a trillion
    # parameters have about 60 layers.
    layers: int = 60

    # TCP connections that share a link, as many as a peer opens, and the bytes that a segment carries over Ethernet.
    connections: int = 4
    segment_bytes: float = 1448.0

    # After this long without an answer a link counts as down, and as up again. Peers exchange heartbeats each second.
    detect_seconds: float = 1.0

    # Time constants with which the measured rate of a link follows the true one: while it is in use, samples of a
    # second are averaged; while it is idle, only a small probe every ten seconds tells.
    busy_seconds: float = 2.0
    idle_seconds: float = 10.0

    # An instance that has drained takes this long until it works in its new role. The weights stay; the
    # engine's graphs and its connections are rebuilt.
    convert_seconds: float = 15.0

    # Bytes of the prefix cache of each instance: what is left of 8 GPUs' memory, and some of the host's.
    cache_bytes: float = 256e9

    def carried(self, bytes_per_second: float, loss: float, round_trip_seconds: float) -> float:
        """Bytes per second over a link of a rate that loses a share of the segments.

        Each connection sends at most 1.22 segments per round trip over the square root of the loss (Mathis, Semke,
        Mahdavi and Ott, 1997). Policies count on another law, `Policy.halving_retransmission`, so that being wrong
        about losses costs them what it would in a network.
        """
        most = self.connections * self.segment_bytes * _MATHIS
        slowed = round_trip_seconds * math.sqrt(loss)
        return min(bytes_per_second, most / slowed) if slowed else bytes_per_second

    def check(self, fleet: Fleet) -> None:
        """Raises UsageError for a value out of range, and for what names no part of the fleet."""
        if not 1 <= self.layers <= _MOST_LAYERS:
            raise UsageError(f"layers must be 1 to {_MOST_LAYERS}, not {self.layers}.", "layers")
        if self.connections < 1:
            raise UsageError(f"connections must be at least 1, not {self.connections}.", "connections")
        for name in ("segment_bytes", "busy_seconds", "idle_seconds", "cache_bytes"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be above 0, not {getattr(self, name):g}.", name)
        for name in ("detect_seconds", "convert_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be 0 or more, not {getattr(self, name):g}.", name)
        self._check_rates(fleet)
        for failure in self.failures:
            if failure.cluster not in fleet.clusters:
                raise UsageError(f"An instance of {shown(failure.cluster)} fails, which the fleet lacks.")
            if failure.role not in ("prefill", "decode"):
                raise UsageError(f"An instance that fails must prefill or decode, not {shown(failure.role)}.")
            if not 0 <= failure.seconds < failure.until < math.inf:
                raise UsageError(
                    f"A failure must begin at 0 s or later and end after that, not last from {failure.seconds:g} to "
                    f"{failure.until:g} s."
                )

    def _check_rates(self, fleet: Fleet) -> None:
        before = 0.0
        for change in self.rates:
            if not before <= change.seconds < math.inf:
                raise UsageError(
                    f"A rate changes at {change.seconds:g} s, after {before:g} s; times must be 0 or more, sorted."
                )
            before = change.seconds
            if change.ends not in fleet.links:
                source, target = map(shown, change.ends)
                raise UsageError(f"A rate changes on a link from {source} to {target}, which the fleet lacks.")
            if not 0 <= change.bytes_per_second < math.inf:
                raise UsageError(f"A link's rate must be 0 or more bytes per second, not {change.bytes_per_second:g}.")
            if not 0 <= change.loss < 1:
                raise UsageError(f"A link's loss must be a share from 0 to below 1, not {change.loss:g}.")
