"""The terminal of a conversation: questions are read whole, pastes included, and nothing typed is left to the shell.

Bracketed paste stays on from before the model is loaded until the end: the terminal marks a pasted text, and readline
takes it as one text with its line breaks, also where it was pasted while the model was loaded or answered. In between
the terminal neither echoes nor edits, so that marks pass as they came. At the end what was typed and not read is
thrown away, since the shell would run it. Line editing and pastes are GNU readline's, which Python brings; without it
(libedit) each pasted line is a text of its own.
"""

import contextlib
import os
import select
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Self

_PASTE_ON, _PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"
_QUIET_SECONDS = 0.1  # a terminal that sends a long paste pauses for less between its parts
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Terminal:
    """A context. Standard input must be a terminal; the terminal is as it was at the end, whatever ended it."""

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

        with contextlib.suppress(OSError, termios.error):  # a terminal that has gone needs nothing
            self._mark(_PASTE_OFF)
            self._drain()
            termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, self._before)
        for number, handler in zip(_SIGNALS, self._handlers, strict=True):
            signal.signal(number, handler)

    def ask(self, prompt: str) -> str:
        """One line, or one paste with its lines. Raises EOFError, KeyboardInterrupt and UnicodeDecodeError."""
        self._set(echo=True)  # without it readline shows nothing
        try:
            return input(prompt)
        finally:
            self._rest()

    def _rest(self) -> None:
        """No echo and no editing while nothing is asked; Ctrl-C still interrupts."""
        self._set(echo=False)
        self._mark(_PASTE_ON)  # readline switches it off after each line

    def _set(self, echo: bool) -> None:
        """Typed-ahead input stays."""
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
        """Reads until nothing comes: the rest of a paste may still be on its way."""
        descriptor = sys.stdin.fileno()
        while select.select([descriptor], [], [], _QUIET_SECONDS)[0]:
            if not os.read(descriptor, 1 << 16):
                return


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
