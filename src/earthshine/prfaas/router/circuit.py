"""Whether a place may get requests: from its probes, and from the requests that it failed.

Several failures in a row open the circuit: the place gets no requests for a time that doubles up to a limit. Then one
request is tried; its success closes the circuit, its failure opens it again. No failure lasts: a place that works again
is used again.
"""

from dataclasses import dataclass

_FAILURES = 3  # in a row, until the circuit opens; one alone may be the request's own fault
_PROBES = 2  # that fail in a row until a place counts as down: one may be lost
_FIRST_SECONDS, _MOST_SECONDS = 1.0, 30.0  # that a circuit stays open
_MOST_BUSY_SECONDS = 10.0  # that a place's Retry-After is obeyed: it has room sooner than it can know


@dataclass(slots=True)
class Circuit:
    """One place's. Times are seconds of any clock that never runs backwards."""

    failures: int = 0
    failed_probes: int = 0
    why: str = ""  # the last failure, in words
    probe_why: str = ""
    busy_until: float = 0.0
    _open_until: float = 0.0
    _seconds: float = _FIRST_SECONDS
    _trying: bool = False

    @property
    def down(self) -> bool:
        """The probes say that the place does not work."""
        return self.failed_probes >= _PROBES

    @property
    def open(self) -> bool:
        return self.failures >= _FAILURES

    def allows(self, now: float) -> bool:
        """Whether a request may be sent now."""
        if self.down or now < self.busy_until:
            return False
        return not self.open or (now >= self._open_until and not self._trying)

    def begun(self) -> None:
        """A request is sent; if the circuit is open, it is the trial."""
        self._trying = self.open

    def ended(self) -> None:
        """A request ended without saying anything about the place, such as by its client."""
        self._trying = False

    def succeeded(self) -> None:
        self.failures, self._seconds, self._trying, self.why = 0, _FIRST_SECONDS, False, ""

    def failed(self, now: float, why: str) -> None:
        self.failures += 1
        self.why = why
        if self.open:
            self._open_until = now + self._seconds
            self._seconds = min(2 * self._seconds, _MOST_SECONDS)
        self._trying = False

    def busy(self, now: float, seconds: float) -> None:
        """The place refused a request because it has no room."""
        self.busy_until = now + min(max(seconds, 0.0), _MOST_BUSY_SECONDS)
        self._trying = False

    def probed(self, problem: str, *, certain: bool = False) -> None:
        """A probe's outcome; "" for a good one. certain: the place itself says that it does not work."""
        self.failed_probes = (max(_PROBES, self.failed_probes) if certain else self.failed_probes + 1) if problem else 0
        self.probe_why = problem

    def sentence(self, now: float) -> str:
        """Why no request may be sent, or ""."""
        if self.down:
            return self.probe_why
        if now < self.busy_until:
            return f"has no room for {self.busy_until - now:.0f} s"
        if self.open:
            left = self._open_until - now
            return self.why + (f"; tried again in {left:.0f} s" if left > 0 else "; tried again now")
        return ""
