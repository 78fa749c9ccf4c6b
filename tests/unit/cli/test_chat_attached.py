"""`/read` puts the text of a file before the next message; an editor that Ctrl-G opens writes the message itself."""

import json
import os
import re

import pytest

from earthshine.cli.text_editor import MOST_CHARACTERS, edited
from earthshine.engine import Session
from earthshine.errors import EarthshineError, UsageError


def test_a_file_that_is_read_begins_the_next_message_alone(chat, capsys, tmp_path):
    (tmp_path / "a note.txt").write_bytes(b"\xef\xbb\xbfone\r\n\ttwo\x1b[31m\n\n")
    chat(f"/read '{tmp_path / 'a note.txt'}'")
    said = capsys.readouterr().err
    assert said.startswith("The next message begins with 'a note.txt': ")
    assert said.endswith(" tokens (without 1 control character). /clear removes it.\n")
    chat("/show")
    assert "The next message begins with 'a note.txt'.\n" in capsys.readouterr().err
    chat.conversation.ask("what is this?")
    chat.conversation.ask("and this?")
    asked = [message["content"] for message in chat.conversation.messages if message["role"] == "user"]
    assert asked == ["--- a note.txt ---\none\n\ttwo[31m\n\nwhat is this?", "and this?"]


def test_several_files_come_in_their_order_and_clear_removes_them(chat, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"text of {name}")
        chat(f"/read {tmp_path / name}")
    assert [file.name for file in chat.conversation.attached] == ["one", "two"]
    chat("/clear")
    assert chat.conversation.attached == []


def test_a_file_stays_until_a_message_with_it_is_kept(chat, monkeypatch, tmp_path):
    def interrupted(self, *request):
        raise KeyboardInterrupt

    (tmp_path / "note").write_text("a note")
    chat(f"/read {tmp_path / 'note'}")
    with monkeypatch.context() as patch:
        patch.setattr(Session, "generate", interrupted)
        assert not chat.conversation.ask("what is this?")
    assert [file.name for file in chat.conversation.attached] == ["note"]
    chat.conversation.ask("what is this?")
    assert chat.conversation.attached == []


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("", None, "Name a file: /read FILE"),
        ("missing", None, "missing' can't be opened: No such file or directory."),
        ("empty", b" \n", "empty' is empty."),
        ("picture", b"\x89PNG\r\n\x1a\n\0\0", "picture' is not a text file: its byte 8 is 0."),
        ("latin1", b"caf\xe9 au lait", "latin1' is not UTF-8 text: byte 3 can't be decoded."),
        ("long", b"word " * 600, "'long' is too long: this conversation has room for 512 tokens."),
    ],
)
def test_a_file_that_can_not_be_read_is_named_and_attaches_nothing(chat, tmp_path, name, raw, message):
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(EarthshineError) as refused:
        chat(f"/read {tmp_path / name}" if name else "/read")
    assert message in str(refused.value)
    assert chat.conversation.attached == []


def test_a_pipe_and_a_folder_are_refused_without_waiting(chat, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ""):
        with pytest.raises(EarthshineError, match="is not a regular file"):
            chat(f"/read {tmp_path / name}")


def test_stats_are_switched_by_a_command(chat, capsys):
    for line, on in (("/stats", True), ("/stats", False), ("/stats on", True), ("/stats off", False)):
        chat(line)
        assert chat.conversation.choices.stats is on
        assert f"stats is {'on' if on else 'off'}\n" in capsys.readouterr().err
    with pytest.raises(EarthshineError, match="stats is on or off, not 'maybe'"):
        chat("/stats maybe")


@pytest.fixture
def editor(tmp_path):
    """A program for $VISUAL, made of lines for a shell; it keeps what it was given in tmp_path / "given"."""

    def make(script):
        path = tmp_path / "an editor"
        path.write_text(f'#!/bin/sh\ncat "$1" > "{tmp_path / "given"}"\n{script}\n')
        path.chmod(0o700)
        return {"VISUAL": f"'{path}'", "EDITOR": "/no/such/editor"}

    return make


@pytest.mark.parametrize("keys", ["\x07", "\x18\x05"], ids=["Ctrl-G", "Ctrl-X Ctrl-E"])
def test_an_editor_writes_the_message_which_is_sent_after_a_look(start, tmp_path, editor, keys):
    chat = start("--max-tokens", "2", environment=editor(r"""printf 'list\nfiles\033[31m\n' > "$1" """))
    chat.until_asked()
    chat.type("half a" + keys)
    chat.until_seen("> list")
    assert (tmp_path / "given").read_text() == "half a"
    chat.type("\r")
    chat.until("(1 control characters were left out)")
    chat.until("(stopped after")
    chat.type("/show messages\r")
    chat.until("user: list\r\nfiles[31m\r\nassistant: ")


def test_an_editor_that_fails_leaves_the_text(start, tmp_path, editor):
    chat = start("--max-tokens", "2", environment=editor(r"""printf 'list' > "$1"; echo sorry; exit 1"""))
    chat.until_asked()
    chat.type("half a\x07")
    chat.until("sorry")
    chat.until("failed with code 1; the message stays as it was.")
    chat.type(" line\r")
    chat.until("(stopped after")
    chat.type(f"/save {tmp_path / 'saved.json'}\r")
    chat.until("Saved to")
    assert json.loads((tmp_path / "saved.json").read_text())["messages"][0]["content"] == "half a line"


def test_an_editors_text_that_is_not_utf8_is_named_and_leaves_the_text(start, editor):
    chat = start("--max-tokens", "2", environment=editor(r"""printf '\377' > "$1" """))
    chat.until_asked()
    chat.type("half a\x07")
    chat.until("The text of the editor is not UTF-8: byte 0 can't be decoded.")
    chat.type(" line\r")
    chat.until("(stopped after")
    assert "Traceback" not in chat.shown


def test_an_editors_text_that_is_too_long_is_refused_and_leaves_the_message(start, editor):
    script = f"""head -c {4 * MOST_CHARACTERS + 4} /dev/zero | tr '\\0' x > "$1" """
    chat = start("--max-tokens", "2", environment=editor(script))
    chat.until_asked()
    chat.type("half a\x07")
    chat.until(f"The message would have over {MOST_CHARACTERS} characters")
    chat.type(" line\r")
    chat.until("(stopped after")
    chat.type("/show messages\r")
    chat.until("user: half a line")


@pytest.mark.parametrize(("script", "message"), [
    ("rm \"$1\"", "The text of the editor can't be opened: No such file or directory."),
    (f"head -c {MOST_CHARACTERS + 1} /dev/zero > \"$1\"", f"over {MOST_CHARACTERS} characters"),
])  # fmt: skip
def test_what_an_editor_leaves_is_refused_by_name(monkeypatch, editor, script, message):
    monkeypatch.setenv("VISUAL", editor(script)["VISUAL"])
    with pytest.raises(UsageError, match=re.escape(message)):
        edited("text")


@pytest.mark.parametrize("name", ["/no/such/editor", "'unclosed"])
def test_an_editor_that_can_not_be_started_is_named(monkeypatch, name):
    monkeypatch.setenv("VISUAL", name)
    with pytest.raises(UsageError, match=r"The editor .* can't be started: N"):
        edited("text")
