"""The terminal of a conversation: reads questions and pasted texts as a whole.

Bracketed paste is on from before the model is loaded until the end, so that a pasted text is read as one text with its
line breaks, also if it is pasted while the model is loaded or answers. While no question is read, the terminal neither
echoes nor edits, so that the marks of a paste are not changed. At the end, typed input that was not read is discarded,
since the shell would run it. Line editing and pastes need GNU readline; with libedit each pasted line is a separate
text.
"""

import contextlib
import os
import select
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Self

_PASTE_ON, _PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"
_QUIET_SECONDS = 0.1  # the parts of a long paste come at shorter intervals
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Terminal:
    """A context manager. Standard input must be a terminal; its state is always restored at the end."""

    def __enter__(self) -> Self:
        import readline
        import termios

        self._marks = "libedit" not in (readline.__doc__ or "")
        if self._marks:
            readline.parse_and_bind("set enable-bracketed-paste on")
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

    def ask(self, prompt: str) -> str:
        """Read one line, or one pasted text. Raises EOFError, KeyboardInterrupt and UnicodeDecodeError."""
        self._set(echo=True)  # without it readline shows nothing
        try:
            return input(prompt)
        finally:
            self._rest()

    def _rest(self) -> None:
        """Turn echo and editing off; Ctrl-C still interrupts."""
        self._set(echo=False)
        self._mark(_PASTE_ON)  # readline switches it off after each line

    def _set(self, echo: bool) -> None:
        """Set the terminal's mode; input that was typed ahead is kept."""
        import termios

        attributes = termios.tcgetattr(sys.stdin)
        attributes[3] &= ~(termios.ICANON | termios.ECHO)
        attributes[3] |= termios.ECHO if echo else 0
        attributes[6][termios.VMIN], attributes[6][termios.VTIME] = 1, 0
        termios.tcsetattr(sys.stdin, termios.TCSANOW, attributes)

    def _mark(self, text: str) -> None:
        if self._marks:
            sys.stdout.write(text)
            sys.stdout.flush()

    def _drain(self) -> None:
        """Read and discard input until no more comes, such as the rest of a paste."""
        descriptor = sys.stdin.fileno()
        while select.select([descriptor], [], [], _QUIET_SECONDS)[0]:
            if not os.read(descriptor, 1 << 16):
                return


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
