"""What a simulated fleet goes through beside its requests: links that change their rates, instances that fail and come
back, and the constants of the simulated machinery, each with its reason.

Raises UsageError for a change that names no part of the fleet, or that runs backwards.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from earthshine.errors import UsageError
from earthshine.prfaas.fleet import Fleet
from earthshine.untrusted import shown

Role = Literal["prefill", "decode"]
Ends = tuple[str, str]


@dataclass(frozen=True, slots=True)
class RateChange:
    """From `seconds` on, the link `ends` (source, target) has another rate; 0: it is down."""

    seconds: float
    ends: Ends
    bytes_per_second: float


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

    def check(self, fleet: Fleet) -> None:
        for before, after in pairwise(self.rates):
            if after.seconds < before.seconds:
                raise UsageError(
                    f"A rate changes at {after.seconds:g} s, after one at {before.seconds:g} s; sort them by time."
                )
        for change in self.rates:
            if change.ends not in fleet.links:
                source, target = map(shown, change.ends)
                raise UsageError(f"A rate changes on a link from {source} to {target}, which the fleet lacks.")
            if not 0 <= change.bytes_per_second < math.inf:
                raise UsageError(f"A link's rate must be 0 or more bytes per second, not {change.bytes_per_second:g}.")
        for failure in self.failures:
            if failure.cluster not in fleet.clusters:
                raise UsageError(f"An instance of {shown(failure.cluster)} fails, which the fleet lacks.")
            if not 0 <= failure.seconds < failure.until < math.inf:
                raise UsageError(
                    f"A failure must begin at 0 s or later and end after that, not at {failure.until:g} s."
                )
