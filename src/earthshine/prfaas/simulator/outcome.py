"""What a simulation found: each request's times, and their summary."""

import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class Served:
    """One request. Times in seconds from the first arrival; infinite where that never came."""

    arrived: float
    tokens: int
    first_token: float = math.inf
    ended: float = math.inf
    prefill: str = ""  # where its prompt was computed, at last
    reused_tokens: int = 0
    remote: bool = False
    routes: int = 0  # how often it was routed; more than once after failures

    @property
    def wait(self) -> float:
        """Seconds to the first token."""
        return self.first_token - self.arrived


@dataclass(slots=True)
class Outcome:
    """Of one run. `sent_bytes` crossed links, in `seconds` until the last reply ended."""

    served: list[Served]
    seconds: float = 0.0
    sent_bytes: float = 0.0
    conversions: int = 0
    thresholds: list[tuple[float, float]] = field(default_factory=list)  # (time, value) where it changed

    def within(self, deadline_seconds: float) -> int:
        """Requests whose first token came within the deadline."""
        return sum(s.wait <= deadline_seconds for s in self.served)

    @property
    def waits(self) -> list[float]:
        """Seconds to the first token, ascending."""
        return sorted(s.wait for s in self.served)

    @property
    def unserved(self) -> int:
        """Requests that still waited when nothing was left that could happen."""
        return sum(s.ended == math.inf for s in self.served)

    @property
    def remote_share(self) -> float:
        return sum(s.remote for s in self.served) / len(self.served)

    @property
    def reused_share(self) -> float:
        """Prompt tokens found in a prefix cache."""
        return sum(s.reused_tokens for s in self.served) / sum(s.tokens for s in self.served)
