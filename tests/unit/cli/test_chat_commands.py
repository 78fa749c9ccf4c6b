"""The commands of a conversation, and the files that it is saved in and loaded from."""

import errno
import json
import os

import pytest

from earthshine.cli.commands import Commands, completions, is_command
from earthshine.cli.saved_conversation import FORMAT
from earthshine.engine import Session
from earthshine.errors import EarthshineError, TextError

HELLO = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Hi."}]


@pytest.mark.parametrize("line", ["/help", "/?", "/set temperature 1", "/", "/HELP", "/save a/b"])
def test_a_line_that_begins_with_a_slash_and_letters_is_a_command(line):
    assert is_command(line)


@pytest.mark.parametrize("line", ["/etc/passwd is what?", " /help", "/help\nme", "what is /help", ""])
def test_a_path_a_text_of_several_lines_and_a_space_first_are_messages(line):
    assert not is_command(line)


@pytest.mark.parametrize("line", ["/bye", "/exit ", "/quit"])
def test_three_commands_end_a_conversation(chat, line):
    assert chat(line) is False


@pytest.mark.parametrize(
    ("line", "hint"), [("/hlep", "Did you mean /help? "), ("/xyzzy", ""), ("/Help", "Did you mean /help? ")]
)
def test_an_unknown_command_is_refused_with_a_hint(chat, capsys, line, hint):
    assert chat(line)
    said = capsys.readouterr().err
    assert said == f"Unknown command '{line}'. {hint}/help lists the commands.\n"


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("/set temperature 0.7", "temperature", 0.7),
        ("/set parameter temperature 0.7", "temperature", 0.7),
        ("/set top_p 0.5", "top_p", 0.5),
        ("/set top_k 20", "top_k", 20),
        ("/set seed -3", "seed", -3),
        ("/set max_tokens 5", "max_tokens", 5),
        ("/set max_tokens default", "max_tokens", 8),
        ("/set\ttop_p\t 0.5", "top_p", 0.5),
        ("/set \tparameter\ttop_k\t20 ", "top_k", 20),
    ],
)
def test_sampling_is_set_for_the_next_reply(chat, monkeypatch, line, field, value):
    used = []
    whole = Session.generate
    monkeypatch.setattr(Session, "generate", lambda self, *given: (used.append(given[0]), whole(self, *given))[1])
    assert chat(line)
    chat.conversation.ask("hello")
    assert getattr(used[0], field) == value


@pytest.mark.parametrize("line", ["/set think on", "/set think", "/set think default", "/set nothink"])
def test_thinking_and_the_system_message_are_set_for_the_next_prompt(chat, monkeypatch, parts, line):
    synced = []
    whole = Session.sync
    monkeypatch.setattr(Session, "sync", lambda self, ids, *more: (synced.append(ids), whole(self, ids, *more))[1])
    chat(line)
    chat('/set system "Answer in verse."')
    chat.conversation.ask("hello")
    messages = [{"role": "system", "content": "Answer in verse."}, {"role": "user", "content": "hello"}]
    thinking = line in ("/set think on", "/set think")
    assert synced == [parts[1].encode(parts[0], messages, thinking=thinking)]
    chat("/set system")
    assert chat.conversation.messages[0]["role"] == "user"
    chat("/set system default")
    assert chat.conversation.messages[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set", "Name a setting; there are system, temperature"),
        ("/set heat 1", "'heat' is not a setting; there are system, temperature"),
        ("/set temperature hot", "temperature must be a number, not 'hot'. Example: /set temperature 1"),
        ("/set temperature", "temperature must be a number, not ''"),
        ("/set temperature -1", "temperature must be a number 0 or more, not -1.0"),
        ("/set temperature nan", "temperature must be a number 0 or more, not nan"),
        ("/set top_p 0", "top_p must be above 0"),
        ("/set top_k 1.5", "top_k must be a whole number, not '1.5'"),
        ("/set think maybe", "think is on or off, not 'maybe'"),
        ("/set history maybe", "history is on or off, not 'maybe'"),
        ("/show all", "/show takes no argument, or messages; not 'all'"),
        ("/save", "Name a file: /save FILE"),
        ("/load", "Name a file: /load FILE"),
        ("/load ~nobody-of-this-name/x", "'~nobody-of-this-name/x' is in a home folder that is not known here"),
        ("/load a\0b", "is not a path"),
        ("/regen", "There is no reply yet that could be generated again; ask a question first."),
    ],
)
def test_what_has_no_meaning_is_named_and_changes_nothing(chat, line, message):
    before = chat.conversation.choices
    with pytest.raises(EarthshineError) as refused:
        chat(line)
    assert message in str(refused.value)
    assert (chat.conversation.choices, chat.conversation.messages[1:]) == (before, [])


@pytest.mark.parametrize("kept", [True, False])
def test_the_history_is_set_back_to_what_the_session_began_with(chat, capsys, kept):
    chat.kept = kept
    chat.commands = Commands(chat.conversation, chat.history)
    chat(f"/set history {'off' if kept else 'on'}")
    chat("/set history default")
    assert chat.kept is kept
    assert capsys.readouterr().err.endswith(f"history is {'on' if kept else 'off'}\n")


def test_show_has_every_setting_and_the_conversation(chat, capsys):
    chat.conversation.ask("hello")
    reply = capsys.readouterr().out.strip()
    chat("/set temperature 0.5")
    chat("/set history off")
    capsys.readouterr()
    chat("/show")
    said = capsys.readouterr().err
    assert said.startswith(f"gleam: {chat.conversation.n_tokens()} of 512 tokens used\n")
    names = [line.split()[0] for line in said.splitlines()[1:]]
    assert names == [name.removeprefix("/set ") for name in completions() if name.startswith("/set ")]
    assert "temperature         0.5\n" in said
    assert "history             off\n" in said
    chat("/show messages")
    assert capsys.readouterr().err == f"system: Be brief.\nuser: hello\nassistant: {reply}\n"


def test_clear_keeps_the_system_message_alone(chat):
    chat.conversation.ask("hello")
    chat("/clear")
    assert chat.conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_regen_replaces_the_last_reply(chat, capsys):
    chat.conversation.ask("hello")
    whole = chat.conversation.messages
    chat("/set max_tokens 2")
    capsys.readouterr()
    chat("/regen")
    said = capsys.readouterr()
    assert "With temperature 0 the reply will be the same; /set temperature 0.7 gives others." in said.err
    again = chat.conversation.messages
    assert again[:-1] == whole[:-1]
    assert again[-1]["content"] == said.out.strip()
    assert whole[-1]["content"].startswith(again[-1]["content"])
    assert again != whole


def test_a_regen_that_is_interrupted_at_once_keeps_the_reply(chat, monkeypatch):
    chat.conversation.ask("hello")
    before = chat.conversation.messages

    def interrupted(self, *request):
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "generate", interrupted)
    chat("/regen")
    assert chat.conversation.messages == before


def test_a_saved_conversation_is_private_and_loads_as_it_was(chat, capsys, tmp_path):
    chat.conversation.ask("hello")
    chat("/set temperature 0.25")
    saved = chat.conversation.messages
    chat(f"/save {tmp_path / 'a b.json'}")
    assert (tmp_path / "a b.json").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["a b.json"]
    assert json.loads((tmp_path / "a b.json").read_text())["format"] == FORMAT
    for line in ("/clear", "/set temperature 0", "/set think on", "/set system"):
        chat(line)
    capsys.readouterr()
    chat(f"/load '{tmp_path / 'a b.json'}'")
    assert chat.conversation.messages == saved
    assert (chat.conversation.choices.params.temperature, chat.conversation.choices.thinking) == (0.25, False)
    said = capsys.readouterr().err
    assert said.startswith(f"Loaded 3 messages, {chat.conversation.n_tokens()} tokens; temperature 0.25, think off.")
    assert "another model" not in said
    chat("/regen")  # also of a reply that was loaded


def test_saving_again_replaces_the_own_file_and_no_other(chat, tmp_path):
    chat.conversation.ask("hello")
    chat(f"/save {tmp_path / 'own.json'}")
    chat.conversation.ask("who are you?")
    chat("/save")
    assert len(json.loads((tmp_path / "own.json").read_text())["messages"]) == 5
    (tmp_path / "other.json").write_text("mine")
    with pytest.raises(EarthshineError, match="exists already; choose another name, or delete it first"):
        chat(f"/save {tmp_path / 'other.json'}")
    assert (tmp_path / "other.json").read_text() == "mine"
    chat("/clear")
    with pytest.raises(EarthshineError, match=r"There is nothing to save yet|Name a file"):
        chat("/save")


def test_a_full_disk_is_named_and_leaves_the_file_as_it_was(chat, monkeypatch, tmp_path):
    chat.conversation.ask("hello")
    chat(f"/save {tmp_path / 'own.json'}")
    before = (tmp_path / "own.json").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EarthshineError, match=r"No space left on device. The conversation is not saved."):
        chat("/save")
    assert (tmp_path / "own.json").read_bytes() == before
    assert os.listdir(tmp_path) == ["own.json"]


def test_a_folder_that_is_not_there_is_named(chat, tmp_path):
    chat.conversation.ask("hello")
    with pytest.raises(EarthshineError, match="can't be written: No such file or directory"):
        chat(f"/save {tmp_path / 'no' / 'file'}")


def document(**changes):
    whole = {"format": FORMAT, "model": {"name": "gleam", "id": "x"}, "settings": {}, "messages": HELLO}
    return json.dumps({key: value for key, value in (whole | changes).items() if value is not None}).encode()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is not JSON: it is empty"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (document()[:-9], "is not JSON"),
        (b"[]", "holds no JSON object"),
        (b"[" * 100_000, "nests more than 32 levels deep"),
        (document(format="earthshine conversation 0"), "was saved by another version of Earthshine"),
        (document(format="earthshine conversation 2"), "this one reads 'earthshine conversation 1'"),
        (document(format=None), "is not a saved conversation"),
        (document(format="earthshine plan 2"), "is not a saved conversation"),
        (document(model=None), "its model must be an object with a name and an id"),
        (document(model={"name": "gleam"}), "its model must be an object with a name and an id"),
        (document(settings=[]), "its settings must be an object"),
        (document(settings={"temperature": "hot"}), "temperature must be a number, not 'hot'"),
        (document(settings={"temperature": -1}), "temperature must be a number 0 or more"),
        (document(settings={"top_k": 1.5}), "top_k must be a whole number"),
        (document(settings={"seed": True}), "seed must be a whole number"),
        (document(settings={"think": 1}), "think must be true or false, not 1"),
        (document(messages=None), "its messages must be a list"),
        (document(messages={}), "its messages must be a list"),
        (document(messages=["hello"]), "message 0 must be an object with a role among system, user, assistant"),
        (document(messages=[*HELLO, {"role": "tool", "content": "x"}]), "message 2 must be an object with a role"),
        (document(messages=[{"role": "user", "content": None}]), "message 0 must have a text as its content"),
        (document(messages=[{"role": "user", "content": "\ud800"}]), "message 0 holds half of a character"),
        (document(messages=[{"role": "user", "content": "x" * (17 << 20)}]), "hold more than 16777216 characters"),
        (document(messages=[{"role": "user", "content": "word " * 600}]), "this conversation has room for 512"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_and_the_conversation_stays(chat, tmp_path, raw, message):
    chat.conversation.ask("hello")
    before = chat.conversation.messages, chat.conversation.choices
    (tmp_path / "file.json").write_bytes(raw)
    with pytest.raises(EarthshineError) as refused:
        chat(f"/load {tmp_path / 'file.json'}")
    assert message in str(refused.value)
    assert (chat.conversation.messages, chat.conversation.choices) == before


@pytest.mark.parametrize("name", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_named_and_not_waited_for(chat, tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EarthshineError, match=r"can't be opened: No such file|is not a regular file"):
        chat(f"/load {tmp_path / name}")


def test_another_models_conversation_goes_on_and_says_so(chat, capsys, tmp_path):
    odd = {"name": "team/\x1b[31mother", "id": "other", "more": 1}
    messages = [{**message, "odd": [1]} for message in HELLO]
    (tmp_path / "file.json").write_bytes(document(model=odd, messages=messages, note="kept by another program"))
    chat(f"/load {tmp_path / 'file.json'}")
    said = capsys.readouterr().err
    assert "It was saved with another model, 'team/\\x1b[31mother'; 'gleam' goes on with it." in said
    assert chat.conversation.messages == HELLO
    chat.conversation.ask("who are you?")
    assert len(chat.conversation.messages) == 4


def test_a_loading_that_is_interrupted_leaves_the_conversation(chat, monkeypatch, parts, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    (tmp_path / "file.json").write_bytes(document(settings={"temperature": 0.5}))
    before = chat.conversation.messages, chat.conversation.choices
    monkeypatch.setattr(type(parts[1]), "encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        chat(f"/load {tmp_path / 'file.json'}")
    assert (chat.conversation.messages, chat.conversation.choices) == before


def test_a_conversation_that_the_template_refuses_is_left_out(chat, monkeypatch, parts, tmp_path):
    def refuse(*_, **__):
        raise TextError("roles must alternate")

    (tmp_path / "file.json").write_bytes(document())
    monkeypatch.setattr(type(parts[1]), "encode", refuse)
    with pytest.raises(TextError, match="roles must alternate"):
        chat(f"/load {tmp_path / 'file.json'}")
    assert chat.conversation.messages == [{"role": "system", "content": "Be brief."}]
