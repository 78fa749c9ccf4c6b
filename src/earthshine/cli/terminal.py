"""The terminal of a conversation: its state, its size, and what may be written to it.

Bracketed paste is on from before the model is loaded until the end, so that a pasted text is read as one text with its
line breaks, also if it is pasted while the model is loaded or answers. While no question is read, the terminal neither
echoes nor edits, so that the marks of a paste are not changed. At the end, typed input that was not read is discarded,
since the shell would run it. A terminal that can't move its cursor (TERM=dumb) gets plain lines.
"""

import contextlib
import os
import select
import signal
import sys
import textwrap
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self, TextIO

from earthshine.settings import read_settings

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
_PASTE_ON, _PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"
_QUIET_SECONDS = 0.1  # the parts of a long paste come at shorter intervals
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_COLUMNS, _ROWS = 80, 24  # of a terminal that does not say


def printable(text: str) -> str:
    """The text without control characters other than line breaks and tabs."""
    return text.translate(_CONTROLS)


def decoded(text: str) -> str:
    """The text as UTF-8. Python represents bytes that the locale has no characters for as lone surrogates; those that
    are not UTF-8 stay."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return text


def is_terminal(stream: TextIO | None) -> bool:
    """Whether what is written there is seen at once; False where the caller closed the stream."""
    return stream is not None and stream.isatty()


def can_rewrite(stream: TextIO | None) -> bool:
    """Whether the stream is a terminal whose cursor moves."""
    return is_terminal(stream) and not read_settings().dumb_terminal


def has_utf8(stream: TextIO) -> bool:
    """Whether every character can be written there."""
    return (stream.encoding or "utf-8").lower().replace("_", "-") in ("utf-8", "utf8")


def size(stream: TextIO) -> tuple[int, int]:
    """Columns and rows of a terminal; at least 10 and 2, and 80 and 24 for one that does not say."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns, rows = 0, 0
    return max(columns or _COLUMNS, 10), max(rows or _ROWS, 2)


def say(text: str) -> None:
    """Print a message on standard error, wrapped at words where that is a terminal."""
    if sys.stderr is None:
        return
    if is_terminal(sys.stderr):
        columns, _ = size(sys.stderr)
        lines = printable(text).expandtabs(4).split("\n")
        text = "\n".join(
            textwrap.fill(line, columns - 1, subsequent_indent="  ", break_on_hyphens=False) for line in lines
        )
    print(text, file=sys.stderr)


class Terminal:
    """A context manager. Standard input must be a terminal; its state is always restored at the end."""

    def __enter__(self) -> Self:
        import termios

        self._screen = next((each for each in (sys.stdout, sys.stderr) if can_rewrite(each)), None)
        self._before = termios.tcgetattr(sys.stdin)
        self._handlers: list[Any] = [signal.signal(number, _leave) for number in _SIGNALS]
        self._rest()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        import termios

        with contextlib.suppress(OSError, termios.error):  # the terminal may have gone
            self._mark(_PASTE_OFF)
            self._drain()
            termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, self._before)
        for number, handler in zip(_SIGNALS, self._handlers, strict=True):
            signal.signal(number, handler)

    @property
    def screen(self) -> TextIO | None:
        """The stream on which a line can be edited; None where neither output is a terminal whose cursor moves."""
        return self._screen

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """A context manager while a line is read. Where it can't be edited here, the terminal echoes and edits."""
        import termios

        if self._screen is None:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, self._before)
        try:
            yield
        finally:
            self._rest()

    def _rest(self) -> None:
        """Turn echo and editing off; Ctrl-C still interrupts, and input that was typed ahead is kept.

        Where the terminal edits lines itself it goes on with that, or a Ctrl-D typed ahead would be a character.
        """
        import termios

        attributes = termios.tcgetattr(sys.stdin)
        attributes[3] &= ~(termios.ECHO if self._screen is None else termios.ICANON | termios.ECHO)
        attributes[3] |= termios.ISIG
        if self._screen is not None:
            attributes[6][termios.VMIN], attributes[6][termios.VTIME] = 1, 0
        termios.tcsetattr(sys.stdin, termios.TCSANOW, attributes)
        self._mark(_PASTE_ON)  # a line editor switches it off after each line

    def _mark(self, text: str) -> None:
        if self._screen is not None:
            self._screen.write(text)
            self._screen.flush()

    def _drain(self) -> None:
        """Read and discard input until no more comes, such as the rest of a paste."""
        descriptor = sys.stdin.fileno()
        while select.select([descriptor], [], [], _QUIET_SECONDS)[0]:
            if not os.read(descriptor, 1 << 16):
                return


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
