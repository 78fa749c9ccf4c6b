"""`earthshine chat` on a pseudo-terminal: what is pasted is asked, and none of it is left for a shell to run."""

import contextlib
import os
import pty
import select
import shlex
import sys
import termios
import time
import tty

import pytest

CHAT = [sys.executable, "-c", "from earthshine.cli import main; main()", "chat", "--max-tokens", "8"]
PATIENCE = 300  # seconds for what takes a few, or a minute where much else runs
START, END = "\x1b[200~", "\x1b[201~"


class Terminal:
    """The end of a pseudo-terminal where a person sits. `shown`: all that it got."""

    def __init__(self, screen: int) -> None:
        self._screen = screen
        self.shown, self._at = "", 0

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def until(self, text: str) -> str:
        """What is shown up to `text`, from where the last call ended."""
        end = time.monotonic() + PATIENCE
        while (at := self.shown.find(text, self._at)) < 0:
            assert time.monotonic() < end, (text, self.shown)
            self.read()
        before, self._at = self.shown[self._at : at], at + len(text)
        return before

    def read(self) -> None:
        if select.select([self._screen], [], [], 0.05)[0]:
            self.shown += os.read(self._screen, 4096).decode(errors="replace")


class Chat(Terminal):
    """`earthshine chat` at the other end, which stays open after it."""

    def __init__(self, forker, *arguments: str) -> None:
        screen, self._terminal = pty.openpty()
        super().__init__(screen)
        streams = {"stdin": self._terminal, "stdout": self._terminal, "stderr": self._terminal}
        self._process = forker.popen([*CHAT, *arguments], **streams, env=os.environ | {"TERM": "xterm"})

    def left(self) -> bytes:
        """What a shell would read there once the process has ended."""
        end = time.monotonic() + PATIENCE
        while self._process.poll() is None:
            assert time.monotonic() < end, self.shown
            self.read()
        tty.setraw(self._terminal, termios.TCSANOW)  # so that half a line is seen too
        os.set_blocking(self._terminal, False)
        with contextlib.suppress(BlockingIOError):
            return os.read(self._terminal, 4096)
        return b""

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)
        os.close(self._screen)


@pytest.fixture
def start(forker):
    """Starts `earthshine chat` with these further arguments."""
    started = []

    def begin(*arguments: str) -> Chat:
        started.append(Chat(forker, *arguments))
        return started[-1]

    yield begin
    for each in started:
        each.close()


def test_a_shell_does_not_run_what_was_pasted_into_a_conversation(tmp_path):
    """With a real shell, which waits for the process that it started."""
    made = tmp_path / "made"
    pid, screen = pty.fork()
    if pid == 0:
        os.execve("/bin/sh", ["sh", "-i"], {**os.environ, "PS1": "shell$ ", "TERM": "xterm", "ENV": ""})
    shell = Terminal(screen)
    try:
        shell.until("shell$ ")
        shell.type(shlex.join(CHAT) + "\n")
        shell.until("> ")
        shell.type(f"{START}list files\n\n\ntouch {made}\n{END}")
        shell.type("\r")
        shell.until("> ")
        assert shell.shown.count("(stopped after 8 tokens)") <= 1, "it is one message"
        shell.type(f"/bye\rtouch {made}\r")
        shell.until("shell$ ")
        shell.type("echo $((40 + 2))-done\n")
        shell.until("42-done")
        assert not made.exists()
    finally:
        with contextlib.suppress(OSError):
            shell.type("\x04exit\n")
        os.close(screen)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("end", ["/bye", "/exit", "/quit"])
def test_lines_after_the_end_are_not_left_for_a_shell(start, end):
    """Also from a terminal that does not mark pastes."""
    chat = start()
    chat.until("> ")
    chat.type(f"\r\r{end}\rtouch made\r")
    assert chat.left() == b""


def test_a_paste_while_the_model_is_loading_is_one_message(start):
    chat = start()
    chat.until("\x1b[?2004h")  # before the model is loaded
    chat.type(f"{START}list files\n\n/bye\ntouch made\n{END}\r")
    chat.until("Ask a question")
    chat.until("> ")
    chat.until("> ")  # the question was answered, and the conversation goes on
    chat.type("/bye\r")
    assert chat.left() == b""


def test_a_paste_while_loading_fails_is_not_left_for_a_shell(start):
    chat = start("/no/such/model")
    chat.until("\x1b[?2004h")
    chat.type("list files\n\ntouch made\n")
    chat.until("is neither a folder")
    assert chat.left() == b""


def test_empty_lines_do_not_end_a_conversation_and_commands_are_known(start):
    chat = start()
    chat.until("> ")
    chat.type("\r \r/help\r")
    assert "/clear  start a new conversation" in chat.until("Ctrl-C stops")
    chat.type("/nonsense now\r")
    chat.until("Unknown command '/nonsense now'.")
    chat.until("/clear  start a new conversation")
    chat.type("/?\r")
    chat.until("/clear  start a new conversation")
    chat.type("\x04")
    assert chat.left() == b""
