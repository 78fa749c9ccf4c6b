"""A pseudo-terminal with what a person would see on it, and `earthshine chat` at its other end."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
import tty

import pyte

MAIN = "from earthshine.cli import main; main()"
PATIENCE = 300  # seconds for what takes a few, or a minute where much else runs
START, END = "\x1b[200~", "\x1b[201~"


def resize(terminal: int, columns: int, rows: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


class Terminal:
    """The end of a pseudo-terminal where a person sits. `shown`: all that it got."""

    def __init__(self, screen: int, columns: int = 80, rows: int = 24) -> None:
        self._screen = screen
        self.shown, self._at = "", 0
        self._display = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.01)
        self._stream = pyte.ByteStream(self._display)

    def type(self, text: str) -> None:
        self.type_bytes(text.encode())

    def type_bytes(self, raw: bytes) -> None:
        os.write(self._screen, raw)

    def until(self, text: str) -> str:
        """What is shown up to `text`, from where the last call ended."""
        end = time.monotonic() + PATIENCE
        while (at := self.shown.find(text, self._at)) < 0:
            assert time.monotonic() < end, (text, self.shown)
            self.read()
        before, self._at = self.shown[self._at : at], at + len(text)
        return before

    def until_asked(self) -> None:
        """Until a question may be typed: a line editor writes its prompt, and moves the cursor over the space."""
        self.until(">\x08\x1b[2C")

    def until_seen(self, text: str) -> None:
        """Until the text is in a line of the screen."""
        end = time.monotonic() + PATIENCE
        while not any(text in line for line in self.lines):
            assert time.monotonic() < end, (text, self.lines)
            self.read()

    def read(self) -> None:
        if select.select([self._screen], [], [], 0.05)[0]:
            raw = os.read(self._screen, 4096)
            self.shown += raw.decode(errors="replace")
            self._stream.feed(raw)

    @property
    def lines(self) -> list[str]:
        """What a person sees, and what has left the screen above it."""
        display = self._display
        above = ["".join(row[x].data for x in range(display.columns)) for row in display.history.top]
        return [line.rstrip() for line in [*above, *display.display]]


class Chat(Terminal):
    """`earthshine chat` at the other end, which stays open after it."""

    def __init__(self, forker, arguments, *, code=MAIN, environment, size=(80, 24), stdout=None) -> None:
        screen, self._terminal = pty.openpty()
        resize(self._terminal, *size)
        super().__init__(screen, *size)
        streams = {"stdin": self._terminal, "stdout": stdout or self._terminal, "stderr": self._terminal}
        command = [sys.executable, "-c", code, "chat", *arguments]
        self.process = forker.popen(command, **streams, env=os.environ | {"TERM": "xterm"} | environment)

    def resize(self, columns: int, rows: int) -> None:
        resize(self._terminal, columns, rows)
        self._display.resize(rows, columns)
        self.process.send_signal(signal.SIGWINCH)

    def interrupt(self) -> None:
        """As the terminal does on Ctrl-C, where it is the one that controls the process."""
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """The exit code, once the process has ended."""
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < end, self.shown
            self.read()
        self.read()
        return int(self.process.returncode)

    def left(self) -> bytes:
        """What a shell would read there once the process has ended."""
        self.end()
        tty.setraw(self._terminal, termios.TCSANOW)  # so that half a line is seen too
        os.set_blocking(self._terminal, False)
        with contextlib.suppress(BlockingIOError):
            return os.read(self._terminal, 4096)
        return b""

    def edits(self) -> bool:
        """Whether the terminal echoes and edits lines, as a shell expects it."""
        flags = termios.tcgetattr(self._terminal)[3]
        return bool(flags & termios.ECHO and flags & termios.ICANON)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)
        os.close(self._screen)
