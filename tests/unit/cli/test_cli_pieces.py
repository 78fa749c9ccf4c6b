"""The pieces of the commands that no answer of gleam shows: the screen, a conversation's messages, room, downloads."""

import io
import sys
from dataclasses import replace

import pytest
import torch

from earthshine.cli.conversation import Choices, Conversation
from earthshine.cli.inspect import context_tokens
from earthshine.cli.reply import Reply
from earthshine.cli.score import score_windows
from earthshine.engine import SamplingParams, Session, load_model
from earthshine.errors import SourceError, UsageError
from earthshine.hub import GLEAM, find_config, find_model
from earthshine.plan import PlanArgs
from earthshine.spec import load_spec
from earthshine.text import Content, Reasoning, load_template, load_tokenizer


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "term", "shown"),
    [
        (Terminal, "xterm", "\x1b[2mwhy]0;x\x1b[0m\n\na[31mb  c\n"),
        (Terminal, "dumb", "why]0;x\n\na[31mb\tc\n"),
        (io.StringIO, "xterm", "a\x1b[31mb\tc\x9b\n"),
    ],
    ids=["terminal", "dumb terminal", "pipe"],
)
def test_a_terminal_sees_dimmed_reasoning_and_no_control_characters(monkeypatch, stream, term, shown):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stdout", stream())
    reply = Reply()
    reply.show(Reasoning("\n"))
    reply.show(Reasoning("why\x1b]0;x\x07"))
    reply.show(Content("a\x1b[31mb\tc\x9b"))
    assert reply.finish() == "a\x1b[31mb\tc\x9b"
    assert sys.stdout.getvalue() == shown


def test_a_reply_is_rendered_on_a_terminal_alone_and_can_be_left_as_written(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for stream, markdown, bold in ((Terminal, True, True), (Terminal, False, False), (io.StringIO, True, False)):
        monkeypatch.setattr(sys, "stdout", stream())
        reply = Reply(markdown=markdown)
        reply.show(Content("a **word**"))
        assert reply.finish() == "a **word**"
        assert ("\x1b[1mword" in sys.stdout.getvalue()) is bold


@pytest.fixture(scope="module")
def gleam():
    return load_model(GLEAM, PlanArgs(context_tokens=512)), load_tokenizer(GLEAM), load_template(GLEAM)


@pytest.mark.parametrize("thinking", [False, True])
def test_a_conversation_holds_its_system_message_its_turns_and_its_way_of_thinking(
    gleam, monkeypatch, capsys, thinking
):
    synced, sync = [], Session.sync
    monkeypatch.setattr(
        Session, "sync", lambda self, tokens, *more: (synced.append(tokens), sync(self, tokens, *more))[1]
    )
    model, tokenizer, template = gleam
    choices = Choices(SamplingParams(temperature=0, max_tokens=30), "Be brief.", thinking)
    conversation = Conversation(model, "gleam", tokenizer, template, choices)
    conversation.ask("hello")
    reply = {"role": "assistant", "content": capsys.readouterr().out.removesuffix("\n")}
    conversation.ask("who are you?")
    turns = [{"role": "user", "content": "hello"}, reply, {"role": "user", "content": "who are you?"}]
    messages = [{"role": "system", "content": "Be brief."}, *turns]
    assert synced[-1] == template.encode(tokenizer, messages, thinking=thinking)
    conversation.close()


def test_a_question_without_a_word_of_reply_is_forgotten(gleam, monkeypatch):
    def interrupted(self, *request):
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "generate", interrupted)
    model, tokenizer, template = gleam
    conversation = Conversation(model, "gleam", tokenizer, template, Choices(SamplingParams()))
    assert not conversation.ask("hello")
    assert conversation.messages == []
    conversation.close()


def test_flops_are_shown_at_32768_tokens_unless_another_number_is_asked_for():
    spec = replace(load_spec(GLEAM), max_context=262144)
    assert [context_tokens(spec, asked) for asked in (None, 2, 262144)] == [32768, 2, 262144]
    for asked in (1, 262145):
        with pytest.raises(UsageError, match=f"between 2 and 262144 tokens with this model, not {asked}"):
            context_tokens(spec, asked)


@pytest.mark.parametrize("reason", ["Got: ConnectError: name not known", "ConnectError: name not known.\nmore"])
def test_failed_download_gives_its_reason_as_a_sentence(monkeypatch, tmp_path, reason):
    def fail(api, name, **options):
        raise OSError(reason)

    monkeypatch.setenv("EARTHSHINE_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    with pytest.raises(SourceError, match=r"downloaded: ConnectError: name not known\. Check the id"):
        find_model("team/model")
    with pytest.raises(
        SourceError, match=r"not known\. Check the id and the network, or give the path of its config\."
    ):
        find_config("team/model")


def test_windows_are_as_long_as_they_may_be_and_share_one_token():
    seen = []

    class Recorder:
        def score(self, tokens):
            seen.append(tokens)
            return torch.zeros(len(tokens) - 1)

    assert len(score_windows(Recorder(), list(range(9)), 4)) == 8
    assert seen == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8]]
