"""`earthshine chat` on terminals that are narrow, know few characters or move no cursor; and where nothing is kept."""

import json

import pytest

from earthshine.cli.terminal import decoded

from .pseudo_terminal import MAIN

# A fork has its streams already, so their encoding is set here, as LANG=C would.
ASCII = """
import sys
sys.stdin.reconfigure(encoding="ascii", errors="surrogateescape")
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(encoding="ascii", errors="strict")
"""


@pytest.mark.parametrize("size", [(20, 12), (10, 6)])
def test_all_that_is_said_fits_a_narrow_terminal(start, size):
    chat = start("--max-tokens", "2", size=size)
    chat.until_asked()
    for line in ("/help", "/show", "/nonsense", "/set temperature hot", "list all files", "/stats", "/set system x"):
        chat.type(f"{line}\r")
        chat.until_asked()
    chat.type("/bye\r")
    assert chat.end() == 0
    assert max(map(len, chat.lines)) <= size[0]
    broken = [line for line in chat.lines if line.endswith("-") and not line.startswith(" ")]
    assert broken == []


def test_words_that_the_locale_has_no_characters_for_are_sent_as_typed(start, tmp_path):
    chat = start("--max-tokens", "2", code=ASCII + MAIN)
    chat.until_asked()
    chat.type("caf\u00e9 \u2615\r")
    chat.until("(stopped after")
    chat.type(f"/save {tmp_path / 'saved.json'}\r")
    chat.until("Saved to")
    assert json.loads((tmp_path / "saved.json").read_text())["messages"][0]["content"] == "caf\u00e9 \u2615"


def test_bytes_that_are_no_text_are_refused_and_the_conversation_goes_on(start):
    chat = start("--max-tokens", "2", code=ASCII + MAIN)
    chat.until_asked()
    chat.type_bytes(b"caf\xe9\r")
    chat.until("The message is not UTF-8 text: character 3 can't be encoded.")
    chat.until_asked()
    chat.type("hello\r")
    chat.until("(stopped after")


def test_bytes_that_the_locale_did_not_decode_become_characters_where_they_are_utf8():
    for text, expected in (
        ("caf\udcc3\udca9", "caf\u00e9"),
        ("caf\udcff", "caf\udcff"),
        ("\ud800\udcc3", "\ud800\udcc3"),
    ):
        assert decoded(text) == expected


def test_control_sequences_on_a_dumb_terminal_do_not_reach_the_model(start):
    chat = start("--max-tokens", "2", environment={"TERM": "dumb"})
    chat.until("> ")
    chat.type("list\x1b[31m files\x1b]0;title\x07\n")
    chat.until("(stopped after")
    chat.type("/show messages\n")
    chat.until("user: list[31m files]0;title\r\n")
    assert "\x1b" not in chat.shown.replace("^[", "")


def test_a_history_file_that_can_not_be_used_is_named_once_and_costs_the_history_alone(start, tmp_path):
    (tmp_path / "state" / "earthshine" / "questions.jsonl").mkdir(parents=True)
    chat = start("--max-tokens", "2", size=(200, 24))
    chat.until("questions.jsonl' is not a regular file. Questions are not kept in this session.")
    for _ in range(2):
        chat.until_asked()
        chat.type("list files\r")
        chat.until("(stopped after")
    assert chat.shown.count("Questions are not kept") == 1
