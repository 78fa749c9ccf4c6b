"""When a request was admitted, when its prompt had been computed and its tokens came, and how many of each.

Times are seconds of a monotonic clock. A request may have several prompts and choices; its phases are those of the
first and last of them.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from earthshine.engine import PromptProgress
from earthshine.generation.request import Delta, Ended, Piece, Reading, Started
from earthshine.units import counted, format_duration

Phase = Literal["queued", "prefill", "decode"]


@dataclass(slots=True)
class Timing:
    """`reasons`: why choices ended, each once."""

    began: float = field(default_factory=lambda: time.monotonic())
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reasons: dict[str, None] = field(default_factory=dict)
    seconds: float = 0.0  # in all, once it has ended
    gap: float | None = None  # seconds between the last two pieces with tokens
    _admitted: float | None = None
    _first: float | None = None  # when the first tokens came
    _first_tokens: int = 0  # how many these were
    _last: float = 0.0  # when the last tokens came, or the end
    _prompts: dict[int, PromptProgress] = field(default_factory=dict)  # by the first of their choices
    _generated: dict[int, int] = field(default_factory=dict)  # so far, by choice

    def observe(self, piece: Piece) -> float:
        """Note a piece; returns the seconds from the arrival until now."""
        now = time.monotonic()
        if isinstance(piece, Started):
            self._admitted = now if self._admitted is None else self._admitted
            self.prompt_tokens += piece.prompt_tokens
            self.cached_tokens += piece.cached_tokens
        elif isinstance(piece, Reading):
            self._prompts[piece.choice] = piece.progress
        else:
            self._generated[piece.choice] = piece.completion_tokens
            if isinstance(piece, Delta):
                self._came(now, piece.completion_tokens)
            else:
                self._ended(now, piece)
        return now - self.began

    def _came(self, now: float, tokens: int) -> None:
        if self._first is None:
            self._first, self._first_tokens = now, tokens
        else:
            self.gap = now - self._last
        self._last = now

    def _ended(self, now: float, piece: Ended) -> None:
        self.reasons[piece.reason] = None
        self._last = now

    def end(self) -> None:
        self.seconds = time.monotonic() - self.began

    @property
    def phase(self) -> Phase:
        if self._admitted is None:
            return "queued"
        return "prefill" if self._first is None and self._last == 0.0 else "decode"

    @property
    def queue_seconds(self) -> float:
        """Seconds until the first prompt was admitted, or until now."""
        return (time.monotonic() if self._admitted is None else self._admitted) - self.began

    @property
    def prefill_seconds(self) -> float:
        """Seconds from the admission to the first tokens, or until now; 0 while it waits."""
        if self._admitted is None:
            return 0.0
        return (self._first or self._last or time.monotonic()) - self._admitted

    @property
    def decode_seconds(self) -> float:
        """Seconds from the first tokens to the last ones."""
        return 0.0 if self._first is None else self._last - self._first

    @property
    def seconds_per_token(self) -> float | None:
        """Mean time of the tokens after the first ones; None if there are none."""
        further = self.tokens - self._first_tokens
        return None if further <= 0 or self.decode_seconds <= 0 else self.decode_seconds / further

    @property
    def has_text(self) -> bool:
        return self._first is not None

    @property
    def tokens(self) -> int:
        """Tokens generated so far, stop tokens included."""
        return sum(self._generated.values())

    @property
    def prompt(self) -> str:
        """The size of its prompts, for people."""
        return f"{counted(self.prompt_tokens, 'token')} ({self.cached_tokens} cached)"

    def seconds_left(self) -> float | None:
        """Seconds until all prompts have been computed; None where that is unknown."""
        known = (each.seconds_left for each in self._prompts.values())
        return max((seconds for seconds in known if seconds is not None), default=None)

    def sentence(self) -> str:
        """What it does now, for people."""
        if self.phase == "queued":
            return f"waits in the queue for {format_duration(self.queue_seconds, rough=True)}"
        if self.phase == "decode":
            return self._written()
        total, done, rate = self._computed()
        left = self.seconds_left()
        rest = "" if left is None else f", about {format_duration(left, rough=True)} to go"
        share = f"{done / max(total, 1):.0%} of {counted(total, 'token')}"
        return f"reading the prompt: {share}, {rate:.1f} per second{rest}"

    def columns(self, more: list[str]) -> list[str]:
        """What is known at the end, for people; `more` comes before the times."""
        read = f" read in {self.prefill_seconds:.1f} s" if self.has_text or self.reasons else ""
        found = [self.prompt + read] if self.prompt_tokens else []
        if self.tokens:
            rate = self._rate()
            pace = "" if rate is None else f" in {self.decode_seconds:.1f} s ({rate:.1f} per second)"
            found += [f"{self.tokens} generated{pace}"]
        found += more
        found += [f"{self.queue_seconds:.2f} s in the queue"] if self._admitted is not None else []
        return [*found, f"{self.seconds:.2f} s in all"]

    def state(self) -> dict[str, Any]:
        """What it does now, for programs."""
        phase = self.phase
        total, done, rate = self._computed()
        found = {"phase": phase, "prompt_tokens": total, "cached_tokens": self.cached_tokens, "processed_tokens": done}
        pace = rate if phase == "prefill" else self._rate()
        left = self.seconds_left() if phase == "prefill" else None
        return {
            **found,
            "completion_tokens": self.tokens,
            "tokens_per_second": _rounded(pace),
            "seconds_left": _rounded(left),
            "seconds": _rounded(time.monotonic() - self.began),
        }

    def fields(self) -> dict[str, Any]:
        """What is known at the end, for programs."""
        computed = self._admitted is not None
        return {
            "prompt_tokens": self.prompt_tokens if computed else None,
            "cached_tokens": self.cached_tokens if computed else None,
            "completion_tokens": self.tokens if computed else None,
            "tokens_per_second": _rounded(self._rate()),
            "queue_seconds": _rounded(self.queue_seconds) if computed else None,
            "prefill_seconds": _rounded(self.prefill_seconds) if computed else None,
            "decode_seconds": _rounded(self.decode_seconds) if computed else None,
            "seconds": _rounded(self.seconds),
        }

    def _computed(self) -> tuple[int, int, float]:
        """Returns the number of all prompts' tokens, of those computed or found, and tokens computed per second."""
        known = self._prompts.values()
        total, done = self.prompt_tokens, sum(each.processed for each in known)
        seconds = max((each.seconds for each in known), default=0.0)
        return total, done, (done - sum(each.cached for each in known)) / seconds if seconds > 0 else 0.0

    def _rate(self) -> float | None:
        each = self.seconds_per_token
        return None if each is None else 1 / each

    def _written(self) -> str:
        rate = self._rate()
        return f"{self.tokens} generated" + ("" if rate is None else f", {rate:.1f} per second")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
