"""`earthshine chat` in a shell on a pseudo-terminal: what is pasted is asked, and never run by the shell afterwards."""

import contextlib
import os
import pty
import select
import shlex
import sys
import time

import pytest

CHAT = shlex.join([sys.executable, "-c", "from earthshine.cli import main; main()", "chat", "--max-tokens", "8"])
PATIENCE = 300  # seconds for what takes a few, or a minute where much else runs
START, END = "\x1b[200~", "\x1b[201~"


class Shell:
    """A shell that a person would sit at. `shown`: all that the terminal got."""

    def __init__(self) -> None:
        self.pid, self._screen = pty.fork()
        if self.pid == 0:
            os.execve("/bin/sh", ["sh", "-i"], {**os.environ, "PS1": "shell$ ", "TERM": "xterm", "ENV": ""})
        self.shown, self._at = "", 0

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def until(self, text: str) -> str:
        """What is shown up to `text`, from where the last call ended."""
        end = time.monotonic() + PATIENCE
        while (at := self.shown.find(text, self._at)) < 0:
            assert time.monotonic() < end, (text, self.shown)
            if select.select([self._screen], [], [], 0.1)[0]:
                self.shown += os.read(self._screen, 4096).decode(errors="replace")
        before, self._at = self.shown[self._at : at], at + len(text)
        return before

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.type("\x04exit\n")
        os.close(self._screen)
        os.waitpid(self.pid, 0)


@pytest.fixture
def shell():
    opened = Shell()
    opened.until("shell$ ")
    yield opened
    opened.close()


def finished(shell: Shell) -> None:
    """The shell has done all that it was given."""
    shell.type("echo $((40 + 2))-done\n")
    shell.until("42-done")


def test_a_pasted_text_with_empty_lines_is_one_message(shell, tmp_path):
    made = tmp_path / "made"
    shell.type(CHAT + "\n")
    shell.until("> ")
    shell.type(f"{START}list files\n\n\ntouch {made}\n{END}")
    shell.type("\r")
    shell.until("> ")
    assert shell.shown.count("(stopped after 8 tokens)") <= 1
    shell.type("/bye\r")
    shell.until("shell$ ")
    finished(shell)
    assert not made.exists()


@pytest.mark.parametrize("end", ["/bye", "/exit", "/quit"])
def test_lines_after_the_end_never_reach_the_shell(shell, tmp_path, end):
    """Also from a terminal that does not mark pastes."""
    made = tmp_path / "made"
    shell.type(CHAT + "\n")
    shell.until("> ")
    shell.type(f"\r\r{end}\rtouch {made}\r")
    shell.until("shell$ ")
    finished(shell)
    assert not made.exists()


def test_what_is_pasted_while_the_model_is_loaded_is_one_message(shell, tmp_path):
    made = tmp_path / "made"
    shell.type(CHAT + "\n")
    shell.until("\x1b[?2004h")  # before the model is loaded
    shell.type(f"{START}list files\n\n/bye\ntouch {made}\n{END}\r")
    shell.until("Ask away")
    shell.until("> ")
    shell.until("> ")  # the question was answered, and the conversation goes on
    shell.type("/bye\r")
    shell.until("shell$ ")
    finished(shell)
    assert not made.exists()


def test_what_is_pasted_while_loading_fails_never_reaches_the_shell(shell, tmp_path):
    made = tmp_path / "made"
    shell.type(CHAT + " /no/such/model\n")
    shell.until("\x1b[?2004h")
    shell.type(f"list files\n\ntouch {made}\n")
    shell.until("is neither a folder")
    shell.until("shell$ ")
    finished(shell)
    assert not made.exists()


def test_empty_lines_do_not_end_a_conversation_and_commands_are_known(shell):
    shell.type(CHAT + "\n")
    shell.until("> ")
    shell.type("\r \r/help\r")
    assert "/clear  starts" in shell.until("Ctrl-C stops")
    shell.type("/nonsense now\r")
    shell.until("There is no command '/nonsense now'.")
    shell.until("/clear  starts")
    shell.type("/?\r")
    shell.until("/clear  starts")
    shell.type("\x04")
    shell.until("shell$ ")
    finished(shell)
