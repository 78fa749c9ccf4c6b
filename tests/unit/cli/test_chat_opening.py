"""What `earthshine chat` shows before the first question: that it loads, what gleam is, and how long a reply takes."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from earthshine.cli.open_chat import first_wait
from earthshine.hub import GLEAM
from earthshine.machine import described, read_machine
from earthshine.plan import PlanArgs, make_plan
from earthshine.spec import load_spec

from .pseudo_terminal import MAIN

# What loads torch never ends.
STUCK = """
import sys, time
class Stuck:
    def find_spec(self, name, path=None, target=None):
        if name == "earthshine.cli.open_chat":
            time.sleep(1000)
sys.meta_path.insert(0, Stuck())
"""


@pytest.mark.parametrize("arguments", [(), ("-p", "hello")])
def test_what_is_loaded_is_shown_before_torch_is_imported(start, arguments):
    chat = start(*arguments, code=STUCK + MAIN)
    chat.until_seen("Loading gleam ...")


def test_the_loading_line_is_gone_once_the_model_greets(start):
    chat = start()
    chat.until_asked()
    assert not any("Loading" in line for line in chat.lines)
    assert chat.lines[0].startswith("gleam: ask a question.")


def test_a_dumb_terminal_keeps_the_loading_line(start):
    chat = start(environment={"TERM": "dumb"})
    chat.until("Loading gleam ...\r\n")
    chat.until("gleam: ask a question.")


def test_a_model_that_is_not_there_leaves_its_name_and_no_loading_line(start):
    chat = start("/no/such/\x1bmodel")
    assert chat.end() == 1
    assert any("'/no/such/\\x1bmodel' is neither a folder" in line for line in chat.lines)
    assert not any("Loading" in line for line in chat.lines)


def test_gleam_says_what_it_can_do_and_its_example_gets_an_answer(start):
    chat = start()
    chat.until_asked()
    words = " ".join(" ".join(chat.lines).split())
    assert "turns a task into a shell command" in words
    example = words.partition("Try: ")[2].partition(". ")[0]
    chat.type(f"{example}\r")
    chat.until_seen("ls -la")


def test_questions_to_gleam_are_sent_alone_until_that_is_changed(start):
    chat = start(code=PROMPTS + MAIN)
    for line, sent in (("list files", 1), ("list files", 1), ("/set multi_turn on", None), ("list files", 3)):
        chat.until_asked()
        chat.type(f"{line}\r")
        if sent is None:
            chat.until("multi_turn is on")
        else:
            chat.until(f"[{sent} questions]")
    chat.until_asked()
    chat.type("/show messages\r")
    for _ in range(3):
        chat.until("user: list files")


# Counts the questions in a prompt, by the control token that begins each.
PROMPTS = """
from earthshine.engine import Session
from earthshine.hub import GLEAM
from earthshine.text import load_tokenizer
begin = load_tokenizer(GLEAM).special_id("<|im_user|>")
whole = Session.sync
def counted(self, tokens, *more):
    print(f"[{list(tokens).count(begin)} questions]")
    return whole(self, tokens, *more)
Session.sync = counted
"""


def loaded(spec, machine, **args):
    return SimpleNamespace(spec=spec, plan=make_plan(spec, PlanArgs(**args), machine))


def test_the_wait_for_a_first_token_is_forecast_where_it_is_long(monkeypatch, k2_6):
    machine = read_machine(described()["mini-24gb"])
    monkeypatch.setattr("earthshine.cli.open_chat.this_machine", lambda folder: (machine, ""))
    (line,) = first_wait(loaded(load_spec(k2_6), machine), k2_6.parent)
    assert line.startswith("By the forecast, the first token of a short question comes after about ")
    assert "of one of 4096 tokens after about 4 min; then 0.28 tokens per second." in line
    assert first_wait(loaded(load_spec(GLEAM), machine), GLEAM) == [], "it is quick"


def test_an_estimated_wait_says_that_it_is_one(monkeypatch):
    slow = replace(read_machine(described()["mini-24gb"]), layer_seconds=3.0)
    monkeypatch.setattr("earthshine.cli.open_chat.this_machine", lambda folder: (slow, "It has not been measured."))
    (line,) = first_wait(loaded(load_spec(GLEAM), slow), GLEAM)
    assert "comes after about 15 s; then 0.067 tokens per second." in line
    assert line.endswith("It has not been measured. earthshine bench machine measures it.")


def test_a_damaged_profile_is_no_reason_against_a_chat(monkeypatch, tmp_path):
    (tmp_path / "earthshine").mkdir()
    (tmp_path / "earthshine" / "machine.json").write_text("{")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    machine = read_machine(described()["mini-24gb"])
    assert first_wait(loaded(load_spec(GLEAM), machine), GLEAM) == []
