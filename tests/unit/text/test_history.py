"""Histories as clients send them become the one form that Kimi was trained on, or are refused with a reason."""

import contextlib
import copy
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earthshine.errors import TextError
from earthshine.text import ChatTemplate, repair_history

Message = dict[str, Any]
USER: Message = {"role": "user", "content": "hi"}


def _asks(*calls: tuple[str, str], **more: Any) -> Message:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": '{"a":1}'}}
            for call_id, name in calls
        ],
        **more,
    }


def _result(call_id: str, text: str = "done") -> Message:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def _ids(messages: list[Message]) -> list[str]:
    return [call["id"] for message in messages for call in message.get("tool_calls", ())]


def _answers(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message["tool_call_id"], message["name"]) for message in messages if message["role"] == "tool"]


def test_ids_count_over_the_whole_conversation() -> None:
    messages = [
        USER,
        _asks(("x", "Read"), ("y", "Read")),
        _result("y"),
        _result("x"),
        _asks(("z", "Write")),
        _result("z"),
    ]
    before = copy.deepcopy(messages)
    repaired, n_calls = repair_history(messages)
    assert (n_calls, messages) == (3, before)
    assert _ids(repaired) == ["functions.Read:0", "functions.Read:1", "functions.Write:2"]
    assert _answers(repaired) == [
        ("functions.Read:1", "Read"),
        ("functions.Read:0", "Read"),
        ("functions.Write:2", "Write"),
    ]


@pytest.mark.parametrize(("made", "sent"), [("functions.Read:0", "functions_Read_0"), ("functions_Read_0",) * 2])
def test_rewritten_ids_are_undone(made: str, sent: str) -> None:
    repaired, _ = repair_history([USER, _asks((made, "Read")), _result(sent)])
    assert _ids(repaired) == ["functions.Read:0"]
    assert _answers(repaired) == [("functions.Read:0", "Read")]


def test_reused_ids_mean_the_nearest_message() -> None:
    turn = [_asks(("call_0", "a"), ("call_1", "b")), _result("call_0"), _result("call_1")]
    repaired, _ = repair_history([USER, *turn, *turn])
    assert [call_id for call_id, _ in _answers(repaired)] == [
        "functions.a:0", "functions.b:1", "functions.a:2", "functions.b:3",
    ]  # fmt: skip


def test_equal_ids_in_one_message_are_answered_in_order() -> None:
    repaired, _ = repair_history([USER, _asks(("c", "a"), ("c", "b")), _result("c"), _result("c")])
    assert _answers(repaired) == [("functions.a:0", "a"), ("functions.b:1", "b")]


@pytest.mark.parametrize(
    ("messages", "refusal"),
    [
        ([USER, _result("x")], "tool_call_id not found"),
        ([USER, _asks(("x", "a")), _result("y")], "tool_call_id not found"),
        ([USER, _result("x"), _asks(("x", "a"))], "tool_call_id not found"),
        ([USER, _asks(("x", "a")), _result("x"), _result("x")], "second result"),
        ([USER, _asks(("functions.a:0", "a")), _result("functions.a:0"), _result("functions_a_0")], "second result"),
        ([USER, {"role": "tool", "content": "x"}], "needs a tool_call_id"),
        ([USER, {"role": "function", "name": "a", "content": "x"}], "role tool"),
        ([USER, {"role": "assistant", "function_call": {"name": "a"}}], "one of tool_calls"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}], "reads text only"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "reads text only"),
        ([{"role": "user", "content": [{"type": "file"}]}], "reads text only"),
        ([USER, _asks(("x", ""))], "with a name"),
        ([USER, {"role": "assistant", "tool_calls": {}}], "must be a list"),
        ([USER, {"role": "assistant", "tool_calls": [5]}], "needs an id"),
        (
            [USER, {"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "a", "arguments": 5}}]}],
            "a text or",
        ),
        ([USER, {"role": "assistant", "reasoning": 5}], "reasoning must be a text"),
        (["x"], "must be an object"),
        ([], "at least one"),
        ({}, "at least one"),
    ],
)
def test_refused(messages: Any, refusal: str) -> None:
    with pytest.raises(TextError, match=refusal):
        repair_history(messages)


def test_a_call_without_result_is_kept() -> None:
    repaired, n_calls = repair_history([USER, _asks(("x", "a")), USER])
    assert n_calls == 1
    assert repaired[2] == USER


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {
            "reasoning_details": [
                {"type": "reasoning.text", "text": "h"},
                {"type": "reasoning.encrypted"},
                {"text": "m"},
            ]
        },
        {"reasoning_content": "hm", "reasoning": "other"},
        {"reasoning_content": None, "reasoning": "hm"},
    ],
)
def test_reasoning_has_one_name(fields: Message) -> None:
    repaired, _ = repair_history([USER, {"role": "assistant", "content": "x", **fields}])
    assert repaired[1] == {"role": "assistant", "content": "x", "reasoning_content": "hm"}


@pytest.mark.parametrize(("given", "kept"), [("", "{}"), (" \n", "{}"), (None, "{}"), ({"a": 1}, {"a": 1}), ("{", "{")])
def test_arguments(given: Any, kept: Any) -> None:
    call = {"id": "x", "function": {"name": "a", "arguments": given}}
    repaired, _ = repair_history([USER, {"role": "assistant", "tool_calls": [call]}])
    assert repaired[1]["tool_calls"][0]["function"] == {"name": "a", "arguments": kept}


def test_roles_and_contents(tiny_template: ChatTemplate) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    messages: list[Message] = [
        {"role": "developer", "content": "be kind"},
        {"role": "assistant", "content": parts},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant"},
    ]
    repaired, n_calls = repair_history(messages)
    assert n_calls == 0
    assert repaired[0] == {"role": "system", "content": "be kind"}
    assert repaired[1]["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert repaired[2:] == [
        {"role": "assistant", "content": "no"}, {"role": "assistant", "content": None}, {"role": "assistant"},
    ]  # fmt: skip
    assert "be kind" in tiny_template.render(repaired)


NAMES = st.sampled_from(["a", "b.c", "d-e"])
CALL_IDS = st.sampled_from(["x", "y", "functions.a:0", "functions_a_0"])


@given(st.lists(st.one_of(st.just(USER), st.lists(st.tuples(CALL_IDS, NAMES), min_size=1, max_size=3)), max_size=6))
def test_every_answered_conversation_is_canonical(turns: list[Any]) -> None:
    """Each turn's calls answered in order: every result names the call that stands in its place."""
    messages: list[Message] = [USER]
    for turn in turns:
        if isinstance(turn, dict):
            messages.append(turn)
        elif len({re.sub(r"\W", "_", call_id) for call_id, _ in turn}) == len(turn):
            messages += [_asks(*turn), *(_result(call_id) for call_id, _ in turn)]
    repaired, n_calls = repair_history(messages)
    ids = _ids(repaired)
    assert [call_id for call_id, _ in _answers(repaired)] == ids
    assert [int(call_id.rpartition(":")[2]) for call_id in ids] == list(range(n_calls))
    assert repair_history(repaired) == (repaired, n_calls)


KEYS = ["content", "tool_calls", "id", "function", "name", "type", "text", "reasoning", "tool_call_id", "arguments"]
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.sampled_from(["assistant", "tool", "user"]))
def test_nothing_but_text_errors_is_raised(value: Any, role: str) -> None:
    message = {**value, "role": role} if isinstance(value, dict) else value
    with contextlib.suppress(TextError):
        repaired, _ = repair_history([USER, message])
        assert repaired[1]["role"] == role
