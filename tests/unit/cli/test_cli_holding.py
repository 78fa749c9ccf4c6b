"""Options for memory, threads and the trunk, what they cost, and progress on the way."""

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

from earthshine.cli import progress
from earthshine.cli.progress import ProgressLine
from earthshine.engine import PromptProgress

STATS = re.compile(
    r"prompt   ([0-9]+) tokens? computed, ([0-9]+) reused, [0-9.]+ per second\n"
    r"reply    ([0-9]+) tokens, [0-9.]+ per second\n"
    r"experts  ([0-9]+) of ([0-9]+) found in memory \(([0-9]+)%\), ([0-9.]+) (B|KiB|MiB) read(?:, [0-9.]+ .?i?B/s)?, "
    r"[0-9.]+ s of waiting for reads(?:; [A-Z].*)?\n"
    r"memory   [0-9.]+ [MG]iB at most, of [0-9.]+ [MG]iB\n"
)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("List all files in a directory, then count them.")
    return tmp_path / "text.txt"


GOOD = [
    ("--memory", "2GiB"),
    ("--memory", "4GB"),
    ("--threads", 1),
    ("--threads", 2),
    ("--trunk", "bf16"),
    ("--context", 300),
]
BAD = [
    ("--memory", "lots", "'lots' is not a size; write a number of bytes with a unit, such as 12GiB or 500MB."),
    ("--memory", "", "is not a size"),
    ("--memory", "-2GiB", "is not a size"),
    ("--memory", "1MiB", "MiB for this model with a context of 2048 tokens, not 1.00 MiB. The smallest budget"),
    ("--memory", "0", "--memory must be at least"),
    ("--threads", "0", "--threads must be between 1 and 512, not 0."),
    ("--threads", "513", "not 513."),
    ("--threads", "many", "--threads"),
    ("--trunk", "int4", "--trunk must be bf16 or int8, not 'int4'."),
    ("--trunk", "", "--trunk must be bf16 or int8, not ''."),
    ("--context", "1", "--context must be at least 2 tokens, not 1."),
    ("--context", "4097", "--context must be between 1 and 4096 tokens with this model, not 4097."),
    ("--dtype", "fp8", "--dtype must be bf16 or fp32, not 'fp8'."),
]


@pytest.mark.parametrize(("option", "value"), GOOD)
def test_memory_threads_and_context_do_not_change_an_answer(earthshine, text, option, value):
    plain = earthshine("chat", "-p", "hello", "--no-thinking")
    assert earthshine("chat", "-p", "hello", "--no-thinking", option, value) == plain
    assert plain[0] == 0
    assert plain[1].startswith("Hello!")
    scored = [earthshine("score", "gleam", text, "--json", *more) for more in ((), (option, value))]
    assert scored[0] == scored[1]
    assert scored[0][0] == 0


@pytest.mark.parametrize(("option", "value", "message"), BAD)
def test_impossible_options_are_refused_in_a_sentence_and_exit_2(earthshine, text, option, value, message):
    for command in (("chat", "-p", "hello"), ("score", "gleam", text)):
        code, out, err = earthshine(*command, option, value)
        assert (code, out) == (2, ""), err
        assert message in " ".join(err.split())
        assert "Traceback" not in err


def test_invalid_options_are_refused_before_anything_is_read(earthshine, monkeypatch):
    """A size that is none, and a dtype that is none, need no model; nor do they wait for a question."""
    monkeypatch.setattr(sys, "stdin", None)
    for option, value in (("--memory", "lots"), ("--dtype", "fp8"), ("--context", "1")):
        code, _, err = earthshine("chat", "no/such/folder", option, value)
        assert code == 2
        assert "no/such" not in err


def test_int8_answers_too_and_only_with_bf16(earthshine):
    code, out, _ = earthshine("chat", "-p", "hello", "--no-thinking", "--trunk", "int8")
    assert (code, out[:6]) == (0, "Hello!")
    code, _, err = earthshine("chat", "-p", "hello", "--trunk", "int8", "--dtype", "fp32")
    assert code == 2
    assert "--dtype must be bf16 with an int8 trunk" in err


def test_the_smallest_budget_that_a_refusal_names_works(earthshine):
    """With something on top for what the process takes on between the two."""
    named = re.search(r"must be at least ([0-9]+)MiB", earthshine("chat", "-p", "hello", "--memory", "1MiB")[2])
    code, out, err = earthshine("chat", "-p", "hello", "--no-thinking", "--memory", f"{int(named[1]) + 30}MiB")
    assert (code, err) == (0, "")
    assert out.startswith("Hello!")


def test_stats_are_lines_on_standard_error(earthshine):
    code, out, err = earthshine("chat", "-p", "hello", "--no-thinking", "--stats")
    assert (code, out) == earthshine("chat", "-p", "hello", "--no-thinking")[:2]
    found = STATS.fullmatch(err)
    assert found is not None, err
    computed, reused, replied, hits, wanted, share, nbytes = (float(part) for part in found.groups()[:7])
    assert (reused, nbytes) == (0, 0)
    assert computed > 4
    assert 3 < replied < 200
    assert hits == wanted >= 4 * 4 * replied, "all were read ahead, and a token takes four in each of four layers"
    assert share == 100


def test_stats_count_what_was_read_and_what_was_not_there(earthshine):
    named = re.search(r"must be at least ([0-9]+)MiB", earthshine("chat", "-p", "hello", "--memory", "1MiB")[2])
    little = f"{int(named[1]) + 8}MiB"
    err = earthshine("chat", "-p", "hello", "--no-thinking", "--memory", little, "--stats")[2]
    found = STATS.fullmatch(err)
    assert found is not None, err
    hits, wanted, share = (int(found[i]) for i in (4, 5, 6))
    assert hits < wanted
    assert share == round(100 * hits / wanted)
    assert float(found[7]) > 0


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal], ids=["pipe", "terminal"])
@pytest.mark.parametrize("quiet", [0.0, 3600.0], ids=["slow", "quick"])
def test_progress_is_for_terminals_and_for_what_takes_long(monkeypatch, stream, quiet):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr(progress, "_QUIET_SECONDS", quiet)
    monkeypatch.setattr(progress, "_EVERY_SECONDS", 0.0)
    with ProgressLine() as reading:
        reading.loading("trunk", 1 << 20, 4 << 20)
        reading.loading("experts", 3 << 20, 4 << 20)
    with ProgressLine() as computing:
        computing.prompt(PromptProgress(20, 0, 7, 1.0, None))
        computing.prompt(PromptProgress(20, 2, 12, 4.0, 3.2))
    shown = sys.stderr.getvalue()
    if quiet or stream is io.StringIO:
        assert shown == ""
        return
    lines = shown.split("\r\x1b[K")
    assert lines[1].startswith("Reading the trunk: 1.00 MiB of 4.00 MiB, ")
    assert lines[2].startswith("Reading the experts: 3.00 MiB of 4.00 MiB, ")
    assert lines[3] == "", "the line is cleared at the end"
    assert lines[4] == "Reading the prompt: 35%"
    assert lines[5] == "Reading the prompt: 56%, about 3 s"
    assert lines[6] == ""
    assert "\n" not in shown


def test_progress_is_shown_ten_times_a_second_at_most(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    clock = iter([0.0, *(i / 100 for i in range(1000))])
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with ProgressLine() as computing:
        for done in range(600):
            computing.prompt(PromptProgress(600, 0, done, 1.0, None))
    assert 20 < sys.stderr.getvalue().count("Reading") < 52


def test_a_terminal_whose_cursor_does_not_move_gets_lines_now_and_then(monkeypatch):
    clock = iter([0.0, *(i / 10 for i in range(1000))])
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with ProgressLine() as computing:
        for done in range(300):
            computing.prompt(PromptProgress(300, 0, done, 1.0, None))
    lines = sys.stderr.getvalue().splitlines()
    assert 1 < len(lines) < 10
    assert all(line.startswith("Reading the prompt: ") for line in lines)
    assert "\x1b" not in sys.stderr.getvalue()


def test_progress_bears_a_closed_standard_error(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.0)
    with ProgressLine() as reading:
        reading.loading("trunk", 1, 2)


SLOW = "from earthshine.cli import main, progress; progress._QUIET_SECONDS = progress._EVERY_SECONDS = 0.0; main()"


def test_a_terminal_sees_how_far_a_slow_start_is_and_an_answer_on_a_clean_line(forker):
    screen, terminal = pty.openpty()
    arguments = [sys.executable, "-c", SLOW, "chat", "-p", "hello", "--no-thinking"]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": terminal}
    process = forker.popen(arguments, **streams, env=os.environ | {"TERM": "xterm"})
    os.close(terminal)
    shown, deadline = b"", time.monotonic() + 300
    while time.monotonic() < deadline:
        if not select.select([screen], [], [], 0.5)[0]:
            continue
        try:
            shown += os.read(screen, 65536)
        except OSError:  # the last of those who could write has gone
            break
    os.close(screen)
    out = process.stdout.read()
    process.stdout.close()
    assert process.wait(300) == 0
    assert out.startswith(b"Hello!")
    for word in (b"Reading the trunk: ", b"Reading the experts: ", b"Reading the prompt: "):
        assert word in shown
    assert shown.endswith(b"\r\x1b[K")


def test_a_pipe_sees_the_answer_alone(forker):
    done = forker.run([sys.executable, "-c", SLOW, "chat", "-p", "hello", "--no-thinking"], stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"Hello!")


def test_a_score_is_the_same_in_windows_that_the_memory_allows(earthshine, text):
    codes = [earthshine("score", "gleam", text, "--json", "--context", n) for n in (4096, 60)]
    assert json.loads(codes[0][1]) == json.loads(codes[1][1])
