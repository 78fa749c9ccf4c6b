"""`earthshine chat` holds replies to JSON where that is asked for, and refuses what it can't hold them to."""

import json

import pytest
import torch

from earthshine.cli.answer_format import asked_format, format_of_schema
from earthshine.cli.conversation import Choices, Conversation
from earthshine.engine import Sampler, SamplingParams
from earthshine.errors import EarthshineError, UsageError

SCHEMA = {
    "type": "object",
    "properties": {"command": {"type": "string", "maxLength": 20}, "safe": {"type": "boolean"}},
    "required": ["command", "safe"],
    "additionalProperties": False,
}


def test_format_json_makes_replies_json_objects(earthshine):
    code, out, err = earthshine("chat", "-p", "list all files", "--format", "json", "--max-tokens", 200)
    assert (code, err) == (0, "")
    assert isinstance(json.loads(out), dict)


@pytest.mark.parametrize("given", ["text", "file", "tilde"])
def test_a_schema_is_given_as_text_or_as_a_file(earthshine, monkeypatch, tmp_path, given):
    path = tmp_path / "a schema.json"
    path.write_text(json.dumps(SCHEMA))
    monkeypatch.setenv("HOME", str(tmp_path))
    schema = {"text": json.dumps(SCHEMA), "file": path, "tilde": "~/a schema.json"}[given]
    code, out, err = earthshine("chat", "-p", "list all files", "--json-schema", schema)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert sorted(found) == ["command", "safe"]
    assert isinstance(found["safe"], bool)
    assert len(found["command"]) <= 20


def test_a_format_begins_after_the_thoughts(model, parts, capsys, monkeypatch):
    """gleam has no thoughts of its own: its template opens one here, which ends after five tokens."""
    tokenizer, template = parts
    opened, ended = (tokenizer.special_id(text) for text in ("<think>", "</think>"))
    encode, constrained, tokens = type(template).encode, Sampler.constrained, []

    def ending(self, logits, *given):
        if len(tokens) <= 5:
            logits = logits.index_fill(0, torch.tensor([ended]), 1e4 if len(tokens) == 5 else -1e4)
        tokens.append((sampled := constrained(self, logits, *given)).token)
        return sampled

    monkeypatch.setattr(type(template), "encode", lambda *given, **options: [*encode(*given, **options), opened])
    monkeypatch.setattr(Sampler, "constrained", ending)
    choices = Choices(SamplingParams(temperature=0, max_tokens=40), form=asked_format(None, json.dumps(SCHEMA)))
    conversation = Conversation(model, "gleam", tokenizer, template, choices)
    conversation.ask("list all files")
    conversation.close()
    assert tokens[5] == ended
    assert not tokenizer.decode(tokens[:5]).startswith("{"), "thoughts are free text"
    assert sorted(json.loads(capsys.readouterr().out)) == ["command", "safe"]


def test_json_that_is_cut_is_said_to_be_incomplete(earthshine):
    code, _, err = earthshine("chat", "-p", "list all files", "--json-schema", json.dumps(SCHEMA), "--max-tokens", 2)
    assert (code, err) == (0, "(stopped after 2 tokens; the JSON is not complete)\n")


def test_json_that_is_whole_where_it_is_cut_is_not_said_to_be_incomplete(earthshine):
    code, out, err = earthshine(
        "chat", "-p", "list all files", "--json-schema", '{"const": 1}', "--max-tokens", 2, "--temperature", 0
    )
    assert (code, out) == (0, "1\n")
    assert err == "(stopped after 2 tokens)\n"


def test_bytes_that_the_locale_did_not_decode_are_the_schemas_characters():
    assert format_of_schema('{"const": "\udcc3\udca9"}').value == {"const": "\u00e9"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "yaml"], "--format must be text or json, not 'yaml'; json-schema takes a schema."),
        (["--json-schema", ""], "--json-schema must be a JSON schema, or the name of a file with one."),
        (["--json-schema", "/no/such.json"], "'/no/such.json', can't be opened: No such file or directory."),
        (["--json-schema", "true"], "must be a JSON object, or the name of a file with one, not 'true'"),
        (["--json-schema", '["a"]'], "must be a JSON object, or the name of a file with one"),
        (["--json-schema", '{"const": "\udcff"}'], "The JSON schema is not UTF-8 text: character 11 can't be encoded."),
        (["--json-schema", "/"], "is not a regular file"),
        (["--json-schema", '{"type": '], "The JSON schema is not JSON: Expecting value at line 1, column 9."),
        (["--json-schema", '{"type": "objekt"}'], "The JSON schema can't be used: "),
        (["--json-schema", '{"$ref": "http://127.0.0.1/x"}'], "a $ref may only point inside the schema"),
        (["--json-schema", "{}", "--format", "text"], "contradict each other; leave one out"),
    ],
)
def test_a_wrong_format_is_named_before_the_model_is_loaded(earthshine, monkeypatch, arguments, message):
    monkeypatch.setattr("earthshine.cli.open_chat.load_model", lambda *_: pytest.fail("it was loaded"))
    code, out, err = earthshine("chat", "-p", "hello", *arguments)
    assert code in (1, 2)
    assert out == ""
    assert message in err


def test_a_schema_file_that_is_no_schema_is_named(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UsageError, match=r"list.json', holds no JSON object"):
        format_of_schema(str(tmp_path / "list.json"))
    with pytest.raises(UsageError, match="neither a JSON schema nor a path"):
        format_of_schema("a\0b")


def test_format_json_and_a_schema_agree():
    assert asked_format("json", "{}") == asked_format(None, "{}")


def test_formats_are_set_shown_and_taken_back_in_a_session(chat, capsys, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    chat("/set max_tokens 100")
    replies = []
    for line in ("/set format json", f"/set json-schema {tmp_path / 'schema.json'}", "/set format text"):
        chat(line)
        capsys.readouterr()
        chat.conversation.ask("list all files")
        replies.append(capsys.readouterr().out)
        chat("/show")
        replies.append(capsys.readouterr().err)
    assert isinstance(json.loads(replies[0]), dict)
    rows = [dict(row.split(None, 1) for row in shown.splitlines()[1:]) for shown in replies[1::2]]
    assert [(row["format"], row["json-schema"][:8]) for row in rows] == [
        ("json", "none"), ("json-schema", "'{\"type\""), ("text", "none"),
    ]  # fmt: skip
    assert sorted(json.loads(replies[2])) == ["command", "safe"]
    assert "{" not in replies[4]


@pytest.mark.parametrize("line", ["/set noformat", "/set format default", "/set json-schema none", "/set format text"])
def test_a_format_is_taken_back(chat, line):
    chat("/set format json")
    assert chat.conversation.choices.form is not None
    chat(line)
    assert chat.conversation.choices.form is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set format", "format must be text or json, not ''"),
        ("/set format yaml", "format must be text or json, not 'yaml'"),
        ("/set json-schema", "json-schema must be a JSON schema, or the name of a file with one"),
        ('/set json-schema {"type": "objekt"}', "The JSON schema can't be used"),
    ],
)
def test_a_wrong_format_in_a_session_changes_nothing(chat, line, message):
    chat("/set format json")
    before = chat.conversation.choices
    with pytest.raises(EarthshineError) as refused:
        chat(line)
    assert message in str(refused.value)
    assert chat.conversation.choices == before


def test_a_saved_conversation_keeps_its_format(chat, tmp_path):
    chat(f"/set json-schema {json.dumps(SCHEMA)}")
    chat.conversation.ask("list all files")
    chat(f"/save {tmp_path / 'saved.json'}")
    form = chat.conversation.choices.form
    chat("/set format text")
    chat(f"/load {tmp_path / 'saved.json'}")
    assert chat.conversation.choices.form == form


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "yaml"}, "is damaged: format must be text or json"),
        ({"format": 1}, "is damaged: format must be a text, not 1"),
        ({"json-schema": "/etc/passwd"}, "is damaged: json-schema must be a JSON schema"),
        ({"json-schema": '{"type": "objekt"}'}, "The JSON schema can't be used"),
    ],
)
def test_a_saved_format_that_has_no_meaning_is_refused(chat, tmp_path, settings, message):
    chat.conversation.ask("hello")
    chat(f"/save {tmp_path / 'saved.json'}")
    saved = json.loads((tmp_path / "saved.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(saved | {"settings": settings}))
    before = chat.conversation.messages, chat.conversation.choices
    with pytest.raises(EarthshineError) as refused:
        chat(f"/load {tmp_path / 'other.json'}")
    assert message in str(refused.value)
    assert (chat.conversation.messages, chat.conversation.choices) == before
