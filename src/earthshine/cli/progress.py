"""A progress line on standard error, if that is a terminal."""

import sys
import time
from types import TracebackType
from typing import Self

from earthshine.engine import PromptProgress
from earthshine.units import format_bytes

_QUIET_SECONDS = 1.0  # nothing is shown for work that ends sooner
_EVERY_SECONDS = 0.1


class _Line:
    """Rewrites one terminal line, and clears it at the end."""

    def __init__(self) -> None:
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._began = self._last = time.monotonic()
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _show(self, text: str) -> None:
        now = time.monotonic()
        if not self._terminal or now - self._began < _QUIET_SECONDS or now - self._last < _EVERY_SECONDS:
            return
        self._last, self._shown = now, True
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


class ByteProgress(_Line):
    """Bytes read while a model is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self._what, self._since = "", time.monotonic()

    def report(self, what: str, done: int, total: int) -> None:
        """`what` is being read, `done` of `total` bytes so far."""
        if what != self._what:
            self._what, self._since = what, time.monotonic()
        rate = done / max(time.monotonic() - self._since, 1e-9)
        self._show(f"reading the {what}: {format_bytes(done)} of {format_bytes(total)}, {format_bytes(rate)}/s")


class TokenProgress(_Line):
    """Tokens of a prompt that are computed."""

    def report(self, progress: PromptProgress) -> None:
        """How far the prompt is, as Session.sync passes it on."""
        rate = (progress.processed - progress.cached) / max(progress.seconds, 1e-9)
        left = "" if progress.seconds_left is None else f", {progress.seconds_left:.0f} s to go"
        done = f"{progress.processed} of {progress.total} tokens"
        self._show(f"reading the prompt: {done}, {rate:.1f} per second{left}")
