"""A progress line on standard error, if that is a terminal.

It is rewritten, and cleared at the end. A terminal whose cursor does not move gets a new line now and then instead.
"""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from earthshine.cli.terminal import can_rewrite, is_terminal, size
from earthshine.units import format_bytes, format_duration

if TYPE_CHECKING:
    from earthshine.engine import PromptProgress

_QUIET_SECONDS = 1.0  # nothing is shown for work that ends sooner
_EVERY_SECONDS = 0.1
_LINE_SECONDS = 10.0  # where each report is a line of its own


class ProgressLine:
    """What is being read: a model or a prompt. Nothing is shown of work that ends soon. `title`: shown at once, until
    there is more to show."""

    def __init__(self, title: str = "") -> None:
        self._what, self._since = "", time.monotonic()  # what is being loaded, and from when
        self._terminal, self._rewrites = is_terminal(sys.stderr), can_rewrite(sys.stderr)
        self._began = self._last = time.monotonic()
        self._shown = False
        if title and self._terminal:
            self._put(title, title)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.clear()

    def clear(self) -> None:
        """Make room for other lines."""
        if self._shown and self._rewrites:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        self._shown = False

    def loading(self, what: str, done: int, total: int) -> None:
        """`what` is being read, `done` of `total` bytes so far."""
        if what != self._what:
            self._what, self._since = what, time.monotonic()
        rate = done / max(time.monotonic() - self._since, 1e-9)
        left = f", about {format_duration((total - done) / rate, rough=True)}" if rate else ""
        text = f"Reading the {what}: {format_bytes(done)} of {format_bytes(total)}, {format_bytes(rate)}/s{left}"
        self._show(text, f"{what} {done / max(total, 1):.0%}")

    def prompt(self, progress: "PromptProgress") -> None:
        """How far a prompt is; what was cached is not counted."""
        done, total = progress.processed - progress.cached, progress.total - progress.cached
        left = "" if progress.seconds_left is None else f", about {format_duration(progress.seconds_left, rough=True)}"
        share = f"{done / max(total, 1):.0%}{left}"
        self._show(f"Reading the prompt: {share}", share)

    def measuring(self, what: str) -> None:
        """`what` is being measured."""
        self._show(f"Measuring: {what}", what)

    def simulating(self, what: str) -> None:
        """`what` is being simulated."""
        self._show(f"Simulating: {what}", what)

    def _show(self, text: str, short: str) -> None:
        """`short`: for a terminal that is narrower than the text."""
        now = time.monotonic()
        every = _EVERY_SECONDS if self._rewrites else _LINE_SECONDS
        if not self._terminal or now - self._began < _QUIET_SECONDS or now - self._last < every:
            return
        self._last = now
        self._put(text, short)

    def _put(self, text: str, short: str) -> None:
        self._shown = True
        columns, _ = size(sys.stderr)
        text = text if len(text) < columns else short[: columns - 1]
        sys.stderr.write(f"\r\x1b[K{text}" if self._rewrites else f"{text}\n")
        sys.stderr.flush()
