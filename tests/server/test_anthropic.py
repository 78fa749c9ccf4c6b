"""Anthropic's API as two translations: bodies to requests, and pieces to events and messages of the SDK's types."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earthshine.engine import SamplingParams
from earthshine.generation.request import Delta, Ended, Format, Started, ToolChoice
from earthshine.server.anthropic import COUNT_TOKENS, MESSAGES
from earthshine.server.api import Served
from earthshine.server.dialects import OBEYED_AS, OPENAI_ONLY
from earthshine.server.http.body import parse_body
from earthshine.server.openai.chat import ChatBody
from earthshine.server.refusals import Refused
from earthshine.text import Content, Reasoning, ToolCallArguments, ToolCallEnd, ToolCallStart

SERVED = Served(("kimi", "kimi-k2.6"), 0, 4096, True, True, lambda ids: "")
PLAIN = Served(("gleam",), 0, 512, False, False, lambda ids: "")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "weather", "description": "Tells it.", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}
HI = [{"role": "user", "content": "Hi"}]


def begin(served: Served = SERVED, api: Any = MESSAGES, **fields: Any) -> Any:
    asked = {"model": served.names[0], "max_tokens": 10, "messages": HI} | fields
    raw = json.dumps({name: value for name, value in asked.items() if value is not ...}).encode()
    return api.begin(parse_body(raw, api.body)[0], served)


def refusal(**fields: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        begin(**fields)
    return caught.value


def prompt(*messages: tuple[str, Any], **fields: Any) -> Any:
    return (
        begin(messages=[{"role": role, "content": content} for role, content in messages], **fields).requests[0].prompt
    )


class TestBody:
    def test_plain(self):
        request = begin().requests[0]
        assert request.prompt == [{"role": "user", "content": "Hi"}]
        assert request.params == SamplingParams(max_tokens=10)
        assert (request.thinking, request.continue_final_message) == (None, False)
        assert not begin().stream
        assert begin(stream=True).stream

    def test_everything_that_has_a_meaning(self):
        request = begin(
            temperature=0.5, top_p=0.9, top_k=7, stop_sequences=["a", "b"], cache_salt="s", tools=[TOOL],
            output_config={"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "high"},
            metadata={"user_id": "u"}, service_tier="auto", context_management={"edits": []}, cache_control={},
        ).requests[0]  # fmt: skip
        assert request.params == SamplingParams(max_tokens=10, temperature=0.5, top_p=0.9, top_k=7, stop=["a", "b"])
        assert (request.cache_salt, request.format) == ("s", Format("json_schema", SCHEMA))
        function = {"name": "weather", "description": "Tells it.", "parameters": SCHEMA}
        assert request.tools == [{"type": "function", "function": function}]

    @pytest.mark.parametrize(
        "field",
        [
            {"guided_choice": ["yes", "no"]}, {"guided_regex": "a+"}, {"guided_json": SCHEMA}, {"regex": "a"},
            {"ebnf": "root ::= a"}, {"grammar": 5}, {"json_schema": SCHEMA}, {"format": "json"},
            {"response_format": {"type": "json_object"}}, {"structured_outputs": {"regex": "a"}},
            {"structural_tag": {"a": 1}}, {"bad_words": ["a"]}, {"allowed_token_ids": [1]},
            {"min_tokens": 3}, {"stop": ["a"]}, {"seed": 0}, {"n": 2}, {"logit_bias": {"1": 5}}, {"ignore_eos": True},
            {"repetition_penalty": 1.2}, {"logprobs": True}, {"reasoning_effort": "none"}, {"think": False},
            {"options": {"num_ctx": 9, "num_predict": 2}}, {"extra_body": {"seed": 1}}, {"mirostat": 2},
        ],
        ids=lambda field: next(iter(field)),
    )  # fmt: skip
    def test_field_of_another_api_that_changes_the_answer_is_refused_by_name(self, field):
        name = "num_predict" if "options" in field else next(iter(field))
        error = refusal(**field)
        assert error.param == name
        assert f"has no field {name};" in str(error)

    def test_field_of_another_api_that_says_nothing_is_ignored(self):
        request = begin(
            guided_json=None, response_format=None, stop=[], n=1, repetition_penalty=1.0, presence_penalty=0,
            structured_outputs=True, min_tokens=0, options={"num_ctx": 4096}, keep_alive="5m", odd={"a": 1},
        ).requests[0]  # fmt: skip
        assert request.params == SamplingParams(max_tokens=10)

    def test_every_field_that_openais_chat_obeys_is_known(self):
        mine = {"model", "max_tokens", "temperature", "top_p", "top_k", "stream", "cache_salt", "thinking", "messages",
                "tools", "tool_choice"}  # fmt: skip
        harmless = {"stream_options", "user", "priority", "options", "usage", "modalities", "preserve_thinking",
                    "return_progress"}  # fmt: skip
        elsewhere = {"add_generation_prompt", "continue_final_message"}
        fields = {*ChatBody.model_fields, *OBEYED_AS} - mine - harmless - elsewhere - {"stop_sequences", "extra_key"}
        assert fields <= OPENAI_ONLY.keys()

    def test_the_betas_place_of_a_schema(self):
        request = begin(output_format={"type": "json_schema", "schema": SCHEMA}).requests[0]
        assert request.format == Format("json_schema", SCHEMA)

    @pytest.mark.parametrize(
        ("kind", "expected"), [("enabled", True), ("adaptive", True), ("disabled", False), ("between_tools", None)]
    )
    def test_thinking(self, kind, expected):
        thinking = {"type": kind, "budget_tokens": 1024}
        assert begin(thinking=thinking).requests[0].thinking is expected
        assert begin(PLAIN, thinking=thinking).requests[0].thinking is None

    @pytest.mark.parametrize(
        ("choice", "expected", "parallel"),
        [
            ({"type": "auto"}, ToolChoice(), True),
            ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice("required"), False),
            ({"type": "tool", "name": "weather"}, ToolChoice("named", "weather"), True),
            ({"type": "none"}, ToolChoice("none"), True),
        ],
    )
    def test_tool_choice(self, choice, expected, parallel):
        request = begin(tools=[TOOL], tool_choice=choice).requests[0]
        assert (request.tool_choice, request.parallel_tool_calls) == (expected, parallel)

    def test_counting_needs_no_limit(self):
        exchange = begin(api=COUNT_TOKENS, max_tokens=...)
        assert exchange.counted([17]) == {"input_tokens": 17}
        assert exchange.requests[0].params == SamplingParams()
        calls = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]}
        assert not begin(api=COUNT_TOKENS, messages=[*HI, calls]).requests[0].continue_final_message

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"max_tokens": ...}, "max_tokens is missing"),
            ({"max_tokens": 0}, "max_tokens must be a whole number 1 or more"),
            ({"max_tokens": "5"}, "max_tokens should be a valid integer"),
            ({"temperature": -0.5}, "temperature must be a number 0 or more"),
            ({"top_p": 0}, "top_p must be above 0"),
            ({"top_k": -2}, "top_k must be a whole number between -1"),
            ({"stop_sequences": [""]}, "stop_sequences must be up to 64 texts"),
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\].role"),
            ({"messages": [{"role": "user"}]}, r"messages\[0\].content is missing"),
            ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"content\[0\].text is missing"),
            ({"messages": [{"role": "user", "content": [{"type": {}}]}]}, r"content\[0\].type should be a valid str"),
            ({"model": "gpt"}, "model 'gpt' is not served here; ask for 'kimi', 'kimi-k2.6'"),
            ({"tools": [{"input_schema": SCHEMA}]}, r"tools\[0\].*name"),
            ({"tools": [{"name": "weather"}]}, "no input_schema.*API takes"),
            ({"tools": [{"type": "function"}]}, r"tools\[0\].type.*another API.*input_schema"),
            ({"tools": [{"type": "function", "function": {"name": "a", "parameters": SCHEMA}}]}, r"tools\[0\].type"),
            ({"tools": [{"type": "x", "name": "a", "parameters": SCHEMA}]}, "no input_schema.*API takes"),
            ({"tools": [{"type": "", "name": "weather"}]}, "no input_schema"),
            ({"tools": [{**TOOL, "input_schema": "city"}]}, r"tools\[0\].input_schema"),
            ({"tools": [{**TOOL, "input_schema": {"type": "string"}}]}, r"input_schema.type.* not 'string'"),
            ({"tools": [{**TOOL, "name": "a b"}]}, r"tools\[0\].name"),
            ({"tools": [TOOL, TOOL]}, "names must differ"),
            ({"tool_choice": {"type": "any"}}, "needs tools"),
            ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "'x', which is not among the tools"),
            ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "null, which is not among the tools"),
            ({"thinking": {"type": "sometimes"}}, "thinking.type"),
            ({"cache_salt": ""}, "cache_salt"),
        ],
    )
    def test_refusals(self, fields, words):
        problem = refusal(**fields)
        message = MESSAGES.error(problem)["error"]["message"]
        assert re.search(words, message)
        assert message.count(problem.param or "nothing") <= 1 + message.count("should")


class TestConversation:
    def test_system_texts_are_joined_and_the_billing_line_goes(self):
        bill = "x-anthropic-billing-header: cc_version=2.1; cch=00ab1;"
        blocks = [{"type": "text", "text": text, "cache_control": {}} for text in (bill, "You help.", "Be brief.")]
        expected = {"role": "system", "content": "You help.\n\nBe brief."}
        assert prompt(("user", "Hi"), system=blocks)[0] == expected
        assert prompt(("user", "Hi"), system=f"{bill}\nYou help.\n\nBe brief.")[0] == expected
        assert prompt(("user", "Hi"), system=bill) == HI
        assert prompt(("user", "Hi"), ("system", "Now be long."), ("user", bill))[1:] == [
            {"role": "system", "content": "Now be long."},
            {"role": "user", "content": bill},
        ]

    def test_tools_and_thoughts(self):
        spoken = prompt(
            ("user", "Weather?"),
            ("assistant", [
                {"type": "thinking", "thinking": "Ask.", "signature": "unsigned"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Let me "},
                {"type": "text", "text": "see."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln", "n": 1}},
                {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {}},
            ]),
            ("user", [
                {"type": "text", "text": "There."},
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Rain", "cache_control": {}},
                {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": True,
                 "content": [{"type": "text", "text": "No"}, {"type": "text", "text": "city"}]},
                {"type": "text", "text": "So?"},
            ]),
            ("user", [{"type": "tool_result", "tool_use_id": "toolu_3"}]),
        )  # fmt: skip
        calls = [
            {"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}}
            for id, arguments in (("toolu_1", '{"city": "Köln", "n": 1}'), ("toolu_2", "{}"))
        ]
        assert spoken[1:] == [
            {"role": "assistant", "content": "Let me see.", "reasoning_content": "Ask.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "toolu_1", "content": "Rain"},
            {"role": "tool", "tool_call_id": "toolu_2", "content": "Error: No\n\ncity"},
            {"role": "user", "content": "There.\n\nSo?"},
            {"role": "tool", "tool_call_id": "toolu_3", "content": ""},
        ]

    def test_a_last_message_of_the_assistant_is_continued(self):
        request = begin(messages=[*HI, {"role": "assistant", "content": "Well,"}]).requests[0]
        assert request.continue_final_message
        assert request.prompt[-1] == {"role": "assistant", "content": "Well,"}

    @pytest.mark.parametrize(
        ("role", "block", "words"),
        [
            ("user", {"type": "tool_use", "id": "a", "name": "b", "input": {}}, "tool_use is not possible here"),
            ("user", {"type": "thinking", "thinking": "x"}, "thinking is not possible here"),
            ("assistant", {"type": "tool_result", "tool_use_id": "a"}, "tool_result is not possible here"),
            ("assistant", {"type": "tool_use", "id": "a", "name": "b", "input": {}}, "calls tools"),
            ("system", {"type": "tool_result", "tool_use_id": "a"}, "tool_result is not possible here"),
        ],
    )
    def test_refused_blocks(self, role, block, words):
        problem = refusal(messages=[{"role": role, "content": [block]}])
        assert re.search(words, str(problem))
        assert problem.kind == "invalid"
        assert problem.param in ("messages", "messages[0].content")


WORDS = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result", "image", "user", "assistant", "kimi", "a")
FIELDS = (
    "type",
    "text",
    "thinking",
    "id",
    "name",
    "input",
    "tool_use_id",
    "content",
    "is_error",
    "role",
    "input_schema",
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(0, 2) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=6),
    max_leaves=12,
)
BLOCKS = st.fixed_dictionaries({"type": st.sampled_from(WORDS)}, optional={name: VALUES for name in FIELDS[1:9]})
ROLES = st.sampled_from(("user", "assistant", "system"))
TURNS = st.fixed_dictionaries({"role": ROLES, "content": st.text(max_size=9) | st.lists(BLOCKS, max_size=4)})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(TURNS, max_size=4), st.dictionaries(st.sampled_from(list(MESSAGES.body.model_fields)), VALUES, max_size=4)
)
def test_any_body_is_taken_or_refused(messages, fields):
    problem, prompt = None, []
    try:
        prompt = begin(**({"messages": messages} | fields)).requests[0].prompt
    except Refused as refused:
        problem = refused
    assert problem is None or problem.kind in ("invalid", "not_found")
    assert problem is None or 10 < len(MESSAGES.error(problem)["error"]["message"]) < 1000
    assert all(isinstance(message["content"], str) for message in prompt)


CALL = [
    ToolCallStart(0, "functions.weather:3", "weather"),
    ToolCallArguments(0, '{"city": '),
    ToolCallArguments(0, '"Köln"}'),
    ToolCallEnd(0),
]
OPENED = Started(100, 64)


def answered(events: list[Any], ended: Ended) -> tuple[Any, list[Any]]:
    exchange = begin(stream=True)
    pieces = [OPENED, *(Delta(0, [event]) for event in events), ended]
    return exchange, [event for piece in pieces for event in exchange.push(piece)] + exchange.end()


def summary(events: list[Any]) -> list[str]:
    """Each event as one word, with what a delta adds."""
    found = []
    for event in events:
        delta = event.data.get("delta", {})
        added = [value for key, value in delta.items() if key != "type"] if event.name.startswith("content") else []
        assert event.data["type"] == event.name
        found.append(" ".join([event.name.removeprefix("content_block_"), *added]))
    return found


class TestReply:
    def test_events_of_thought_text_and_call(self):
        _, events = answered([Reasoning("So"), Reasoning("…"), Content("A"), *CALL, Content("B")],
                         Ended(0, "tool_calls", 9, 2))  # fmt: skip
        assert summary(events) == [
            "message_start", "ping", "start", "delta So", "delta …", "delta unsigned", "stop", "start", "delta A",
            "stop", "start", 'delta {"city": ', 'delta "Köln"}', "stop", "start", "delta B", "stop", "message_delta",
            "message_stop",
        ]  # fmt: skip
        indices = [event.data["index"] for event in events if "index" in event.data]
        assert indices == [0] * 5 + [1] * 3 + [2] * 4 + [3] * 3
        assert events[0].data["message"]["usage"]["input_tokens"] == 36
        assert events[0].data["message"]["content"] == []
        assert events[0].data["message"]["stop_reason"] is None

    def test_whole(self):
        exchange, events = answered([Reasoning("So"), Content("A"), *CALL], Ended(0, "tool_calls", 9, 2))
        whole = exchange.whole()
        called = whole["content"][2]
        assert whole["content"][:2] == [
            {"type": "thinking", "thinking": "So", "signature": "unsigned"}, {"type": "text", "text": "A"}
        ]  # fmt: skip
        assert called["input"] == {"city": "Köln"}
        assert re.fullmatch("toolu_[a-f0-9]{24}_0", called["id"])
        assert whole["usage"] == {
            "input_tokens": 36, "cache_read_input_tokens": 64, "cache_creation_input_tokens": 0, "output_tokens": 9,
            "output_tokens_details": {"thinking_tokens": 2},
        }  # fmt: skip
        assert events[-2].data["usage"] == whole["usage"]
        assert (whole["stop_reason"], whole["model"]) == ("tool_use", "kimi")
        assert begin().whole()["id"] != whole["id"]

    @pytest.mark.parametrize(
        ("ended", "expected"),
        [
            (Ended(0, "stop", 1, 0), ("end_turn", None)),
            (Ended(0, "stop", 1, 0, "END"), ("stop_sequence", "END")),
            (Ended(0, "length", 1, 0), ("max_tokens", None)),
            (Ended(0, "context", 1, 0), ("model_context_window_exceeded", None)),
            (Ended(0, "tool_calls", 1, 0), ("tool_use", None)),
        ],
    )
    def test_reasons(self, ended, expected):
        exchange, events = answered([Content("A")], ended)
        assert (exchange.whole()["stop_reason"], exchange.whole()["stop_sequence"]) == expected
        assert events[-2].data["delta"] == {"stop_reason": expected[0], "stop_sequence": expected[1]}

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ([], {}),
            (["{}"], {}),
            (['{"a": [1'], {"unparsed": '{"a": [1'}),
            (["[1]"], {"unparsed": "[1]"}),
            (['{"a": "\\ud800"}'], {"unparsed": '{"a": "\\ud800"}'}),
            (["[" * 5000], {"unparsed": "[" * 5000}),
        ],
    )
    def test_arguments(self, arguments, expected):
        start, *rest = CALL[0], *(ToolCallArguments(0, text) for text in arguments), ToolCallEnd(0)
        exchange, events = answered([start, *rest], Ended(0, "tool_calls", 1, 0))
        assert exchange.whole()["content"][0]["input"] == expected
        sent = [
            event.data["delta"]["partial_json"] for event in events if "index" in event.data and "delta" in event.data
        ]
        assert "".join(sent) == ("".join(arguments) or "{}")

    def test_a_call_that_is_cut_off_is_closed(self):
        exchange, events = answered(CALL[:2], Ended(0, "length", 1, 0))
        assert summary(events)[-3:] == ["stop", "message_delta", "message_stop"]
        assert exchange.whole()["content"][0]["input"] == {"unparsed": '{"city": '}

    def test_an_empty_answer(self):
        exchange, events = answered([], Ended(0, "stop", 1, 0))
        assert summary(events) == ["message_start", "ping", "message_delta", "message_stop"]
        assert exchange.whole()["content"] == []

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("invalid", "invalid_request_error"), ("context", "invalid_request_error"), ("rate", "rate_limit_error"),
            ("unauthorized", "authentication_error"), ("not_found", "not_found_error"), ("internal", "api_error"),
            ("too_large", "request_too_large"), ("unavailable", "overloaded_error"),
            ("method", "invalid_request_error"),
        ],
    )  # fmt: skip
    def test_errors(self, kind, expected):
        body = MESSAGES.error(Refused("No.", kind))
        text = "prompt is too long: No." if kind == "context" else "No."
        assert body == {"type": "error", "error": {"type": expected, "message": text}}
        (event,) = begin(stream=True).failed(Refused("No.", kind))
        assert (event.name, event.data) == ("error", body)
