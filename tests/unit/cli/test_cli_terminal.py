"""`earthshine chat` on a pseudo-terminal: what is pasted is asked, none of it is left for a shell to run, and what a
poor terminal or an interrupt takes away is replaced by words."""

import contextlib
import os
import pty
import shlex
import signal
import sys

import pytest

from .pseudo_terminal import END, MAIN, START, Terminal

SHORT = ("--max-tokens", "2")
# A reply that goes on until it is stopped.
ENDLESS = """
import itertools, time
from earthshine.engine import Session, TokenEvent
whole = Session.generate
def endless(self, *request):
    events = [event for event in whole(self, *request) if isinstance(event, TokenEvent)]
    for event in itertools.cycle(events):
        yield event
        time.sleep(0.01)
Session.generate = endless
"""
# The layers of a prompt that never ends.
LONG_PROMPT = """
import itertools, time
from earthshine.cli import progress
from earthshine.engine import PromptProgress, Session
progress._QUIET_SECONDS = 0.0
def endless(self, tokens, report):
    for step in itertools.count():
        report(PromptProgress(100, 0, 34, 20.6, 40.0))
        time.sleep(0.01)
Session.sync = endless
"""


def test_a_shell_does_not_run_what_was_pasted_into_a_conversation(tmp_path):
    """With a real shell, which waits for the process that it started."""
    made = tmp_path / "made"
    pid, screen = pty.fork()
    if pid == 0:
        ours = {"PS1": "shell$ ", "TERM": "xterm", "ENV": "", "XDG_STATE_HOME": str(tmp_path)}
        os.execve("/bin/sh", ["sh", "-i"], os.environ | ours)
    shell = Terminal(screen)
    try:
        shell.until("shell$ ")
        shell.type(shlex.join([sys.executable, "-c", MAIN, "chat", *SHORT]) + "\n")
        shell.until_asked()
        shell.type(f"{START}list files\n\n\ntouch {made}\n{END}")
        shell.type("\r")
        shell.until("(stopped after 2 tokens)")
        shell.until_asked()
        shell.type("\x03")
        shell.until("(/bye or Ctrl-D ends)")
        shell.type(f"/bye\rtouch {made}\r")
        shell.until("shell$ ")
        shell.type("echo $((40 + 2))-done\n")
        shell.until("42-done")
        assert shell.shown.count("(stopped after 2 tokens)") == 1, "it is one message"
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
    chat.until_asked()
    chat.type(f"\r\r{end}\rtouch made\r")
    assert chat.left() == b""


def test_a_paste_while_the_model_is_loading_is_one_message(start):
    chat = start(*SHORT)
    chat.until("\x1b[?2004h")  # before the model is loaded
    chat.type(f"{START}list files\n\n/bye\ntouch made\n{END}\r")
    chat.until("ask a question")
    chat.until("(stopped after 2 tokens)")
    chat.type("/bye\r")
    assert chat.left() == b""


def test_a_paste_while_loading_fails_is_not_left_for_a_shell(start):
    chat = start("/no/such/model")
    chat.until("\x1b[?2004h")
    chat.type("list files\n\ntouch made\n")
    chat.until("is neither a folder")
    assert chat.left() == b""


def test_empty_lines_do_not_end_a_conversation_and_unknown_commands_are_refused_with_a_hint(start):
    chat = start()
    chat.until_asked()
    chat.type("\r \r/help\r")
    assert "/clear            start a new conversation" in chat.until("Ctrl-C stops")
    chat.type("/nonsense now\r")
    chat.until("Unknown command '/nonsense'. /help lists the commands.")
    chat.type("/sav x\r")
    chat.until("Unknown command '/sav'. Did you mean /save?")
    chat.type("\x04")
    assert chat.left() == b""


def test_control_sequences_of_a_paste_reach_neither_the_screen_nor_the_model(start):
    chat = start("--max-tokens", "2")
    chat.until_asked()
    chat.type(f"{START}list\x1b]0;title\x07 \x1b[31mfiles\x9b1m\r\nnow\x00{END}\r")
    chat.until("(5 control characters were left out)")
    chat.until("(stopped after")
    chat.type("/show messages\r")
    chat.until("user: list]0;title [31mfiles1m\r\nnow")
    for sequence in ("\x1b]0;", "\x07", "\x1b[31m", "\x9b"):
        assert sequence not in chat.shown


@pytest.mark.parametrize("typed", ["one\x1b\rtwo\r", '"""one\rtwo"""\r', '"""\rone\rtwo\r"""\r'])
def test_several_lines_are_one_message(start, typed):
    chat = start("--max-tokens", "2")
    chat.until_asked()
    chat.type(typed)
    chat.until("(stopped after")
    chat.type("/show messages\r")
    chat.until("user: one\r\ntwo\r\nassistant: ")


def test_an_interrupt_stops_a_reply_and_keeps_the_conversation(start):
    chat = start(code=ENDLESS + MAIN)
    chat.until_asked()
    chat.type("hello\r")
    chat.until("Hello!")
    chat.interrupt()
    chat.until("(interrupted)")
    chat.until_asked()
    chat.type("/show messages\r")
    chat.until("user: hello\r\nassistant: Hello!")
    chat.type("/bye\r")
    assert chat.end() == 0
    assert chat.edits()


def test_an_interrupt_at_the_prompt_tells_how_to_end_and_clears_a_line(start):
    chat = start()
    chat.until_asked()
    chat.type("\x03")
    chat.until("(/bye or Ctrl-D ends)")
    chat.type("half a line\x03")
    chat.until_asked()
    chat.type("/show messages\r")
    chat.until("There are no messages yet.")
    assert chat.shown.count("(/bye or Ctrl-D ends)") == 1


@pytest.mark.parametrize(("columns", "line"), [(80, "Reading the prompt: 34%, about 40 s"), (20, "34%, about 40 s")])
def test_a_long_prompt_shows_how_far_it_is_and_can_be_interrupted(start, columns, line):
    chat = start(code=LONG_PROMPT + MAIN, size=(columns, 24))
    chat.until_asked()
    chat.type("hello\r")
    chat.until(f"\x1b[K{line}")
    assert all(len(each) < columns for each in chat.lines)
    chat.interrupt()
    chat.until("(interrupted)")
    chat.until_asked()
    assert not any("34%" in each for each in chat.lines), "the line is cleared"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(start, number):
    chat = start()
    chat.until_asked()
    chat.type("half a l")
    chat.until_seen("> half a l")
    chat.process.send_signal(number)
    assert chat.end() == 128 + number
    assert chat.edits()
    assert chat.shown.endswith("\x1b[?2004l")


def test_questions_of_earlier_sessions_are_found_by_the_arrow_and_kept_private(start, tmp_path):
    kept = tmp_path / "state" / "earthshine" / "questions.jsonl"
    for first in (True, False):
        chat = start("--max-tokens", "2")
        chat.until_asked()
        chat.type("list all files\r" if first else "\x1b[A\x1b[A\r")
        chat.until("(stopped after")
        chat.type("/bye\r")
        assert chat.end() == 0
        assert any("> list all files" in line for line in chat.lines)
        assert kept.stat().st_mode & 0o777 == 0o600
        assert kept.parent.stat().st_mode & 0o777 == 0o700


def test_tab_completes_commands_and_settings(start):
    chat = start()
    chat.until_asked()
    chat.type("/set temp\t 0.25\r")
    chat.until("temperature is 0.25")
    chat.type("/by\t\r")
    assert chat.end() == 0


@pytest.mark.parametrize("off", ["flag", "variable", "command"])
def test_no_question_is_kept_where_the_history_is_off(start, tmp_path, off):
    variable = {"EARTHSHINE_HISTORY": "off"} if off == "variable" else {}
    chat = start("--max-tokens", "2", *(["--no-history"] if off == "flag" else []), environment=variable)
    chat.until_asked()
    if off == "command":
        chat.type("/set history off\r")
        chat.until("history is off")
    chat.type("secret\r")
    chat.until("(stopped after")
    chat.type("/set history on\r")
    chat.until("history is on" if off == "command" else "no place for its questions")
    chat.type("/bye\r")
    assert chat.end() == 0
    kept = tmp_path / "state" / "earthshine" / "questions.jsonl"
    assert not kept.exists() or "secret" not in kept.read_text()


def test_without_a_home_folder_a_conversation_goes_on(start):
    chat = start("--max-tokens", "2", environment={"XDG_STATE_HOME": "", "HOME": "/proc/nobody"})
    chat.until_asked()
    chat.type("hello\r")
    chat.until("'/proc/nobody/.local/state/earthshine/questions.jsonl' can't be written: ")
    chat.until("Questions are not kept in this session.")
    chat.until("(stopped after")


def test_a_dumb_terminal_gets_plain_lines(start):
    chat = start("--max-tokens", "6", environment={"TERM": "dumb"})
    chat.until("> ")
    chat.type('"""list\nfiles"""\n')
    chat.until("(stopped after 6 tokens)")
    chat.type("/show messages\n")
    chat.until("user: list\r\nfiles")
    chat.type("\x04")  # perhaps before the next prompt, which makes no difference
    assert chat.end() == 0
    assert "\x1b" not in chat.shown
    assert chat.edits()


def test_a_terminal_without_utf8_gets_question_marks_and_is_told(start):
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    chat = start("--max-tokens", "6", environment=ascii_only, code="import sys\n" + RECODED + MAIN)
    chat.until("Characters that ascii lacks are shown as ?; LANG=C.UTF-8 gives them all.")
    chat.until_asked()
    chat.type("hello\r")
    chat.until("? caf?")
    chat.until("(stopped after 6 tokens)")


# A fork has its streams already, so their encoding is set here; and gleam speaks no French.
RECODED = """
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(encoding="ascii", errors="strict")
from earthshine.text import RegionParser, Content
RegionParser.push = lambda self, token: [Content("\\u2615 caf\\u00e9 ")]
"""


def test_a_conversation_whose_output_is_a_file_shows_its_prompt_and_writes_replies_there(start, tmp_path):
    with (tmp_path / "out").open("wb") as file:
        chat = start(stdout=file)
        chat.until_asked()
        chat.type("hello\r")
        chat.until_seen("> hello")
        chat.until_asked()
        chat.type("/bye\r")
        assert chat.end() == 0
    out = (tmp_path / "out").read_text()
    assert out.startswith("Hello!")
    assert "\x1b" not in out
    assert out.count("\n") == 1


def test_twenty_columns_hold_a_conversation(start):
    chat = start(size=(20, 12))
    chat.until_asked()
    chat.type("hello\r")
    chat.until_asked()
    chat.type("/bye\r")
    assert chat.end() == 0
    lines = chat.lines
    at = lines.index("Hello! Tell me what")
    assert lines[at : at + 4] == ["Hello! Tell me what", "you want to do, and", "I answer with a", "command."]
