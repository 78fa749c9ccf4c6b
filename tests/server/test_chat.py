"""Chat completions without a server: bodies to requests, and pieces to what OpenAI's SDK parses."""

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from earthshine.engine import SamplingParams
from earthshine.generation.request import Delta, Ended, Format, Scored, Started, ToolChoice
from earthshine.server.api import Served
from earthshine.server.http.body import parse_body
from earthshine.server.openai import chat
from earthshine.server.refusals import Refused
from earthshine.text import Content, Reasoning, ToolCallArguments, ToolCallEnd, ToolCallStart

SERVED = Served(("moon", "alias"), 1_700_000_000, 4096, True, True, lambda ids: "")
HELLO = [{"role": "user", "content": "Hello"}]
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
GO = {"type": "function", "function": {"name": "go", "description": "Goes.", "strict": True}}

WORDS = some.sampled_from(["auto", "function", "allowed_tools", "json_schema", "look", "text", "enabled", "assistant"])
KEYS = some.sampled_from(["type", "function", "name", "tools", "mode", "schema", "json", "role", "content", "keep"])
ANYTHING = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


def begin(served=SERVED, **fields):
    raw = json.dumps({"model": "moon", "messages": HELLO} | fields).encode()
    return chat.begin(parse_body(raw, chat.ChatBody)[0], served)


def request(served=SERVED, **fields):
    (only,) = begin(served, **fields).requests
    return only


def refusal(served=SERVED, **fields):
    with pytest.raises(Refused) as caught:
        begin(served, **fields)
    assert caught.value.status == 400
    assert str(caught.value).endswith(".")
    return caught.value


class TestRequest:
    def test_plain(self):
        found = request(temperature=0.5, max_tokens=7, max_completion_tokens=9, stop="x", seed=3, unheard_of=1)
        assert found.prompt == [{"role": "user", "content": "Hello"}]
        assert found.params == SamplingParams(temperature=0.5, max_tokens=9, seed=3, stop="x")
        assert (found.tools, found.tool_choice) == ([], ToolChoice())
        assert (found.thinking, found.preserve_thinking, found.continue_final_message) == (None, False, False)
        assert found.parallel_tool_calls

    def test_messages_of_all_kinds(self):
        call = {"id": "functions.look:0", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
        given = [
            {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {"role": "developer", "content": "And kind.", "name": "dev"},
            {"role": "user", "content": "Look."},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
            {"role": "tool", "tool_call_id": "functions.look:0", "content": "A wall."},
            {"role": "assistant", "reasoning": "Yes.", "reasoning_details": [{"text": "Yes."}], "refusal": None},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "tool_calls": None},
        ]
        assert request(messages=given).prompt == [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "And kind.", "name": "dev"},
            {"role": "user", "content": "Look."},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
            {"role": "tool", "tool_call_id": "functions.look:0", "content": "A wall."},
            {"role": "assistant", "content": None, "reasoning": "Yes.", "reasoning_details": [{"text": "Yes."}]},
            {"role": "assistant", "content": "No."},
        ]

    @pytest.mark.parametrize(("given", "expected"), [({"at": 1}, {"at": 1}), ({}, {}), (None, ""), ("", "")])
    def test_arguments_may_be_an_object_or_null(self, given, expected):
        call = {"id": "a", "function": {"name": "look", "arguments": given}}
        (message,) = request(messages=[{"role": "assistant", "tool_calls": [call]}]).prompt
        function = {"name": "look", "arguments": expected}
        assert message["tool_calls"] == [{"id": "a", "type": "function", "function": function}]

    @pytest.mark.parametrize(
        ("choice", "names", "expected"),
        [
            (None, ["look", "go"], ToolChoice("auto")),
            ("auto", ["look", "go"], ToolChoice("auto")),
            ("none", ["look", "go"], ToolChoice("none")),
            ("required", ["look", "go"], ToolChoice("required")),
            ({"type": "function", "function": {"name": "go"}}, ["look", "go"], ToolChoice("named", "go")),
            (
                {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [LOOK]}},
                ["look"],
                ToolChoice("required"),
            ),
        ],
    )
    def test_tool_choice(self, choice, names, expected):
        found = request(tools=[LOOK, GO], tool_choice=choice)
        assert [tool["function"]["name"] for tool in found.tools] == names
        assert found.tool_choice == expected

    def test_tools_keep_what_templates_read(self):
        search = {"type": "web_search", "external_web_access": False}
        assert request(tools=[LOOK, search, GO], parallel_tool_calls=False).tools == [LOOK, GO]
        assert not request(tools=[LOOK], parallel_tool_calls=False).parallel_tool_calls

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"response_format": {"type": "text"}}, None),
            ({"response_format": {"type": "json_object"}}, Format("json_object")),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array"}}}},
                Format("json_schema", {"type": "array"}),
            ),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": True}}},
                Format("json_schema", {}, strict=True),
            ),
        ],
    )
    def test_formats(self, fields, expected):
        assert request(**fields).format == expected

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"thinking": {"type": "disabled"}}, (False, False)),
            ({"thinking": {"type": "enabled", "keep": "all"}}, (True, True)),
            ({"chat_template_kwargs": {"thinking": False}, "reasoning_effort": "none"}, (False, False)),
            ({"chat_template_kwargs": {"enable_thinking": True, "preserve_thinking": True}}, (True, True)),
            ({"reasoning_effort": "high"}, (None, False)),
            ({"reasoning_effort": "none"}, (False, False)),
            ({"preserve_thinking": True}, (None, True)),
            ({"reasoning": {"enabled": False}}, (False, False)),
            ({"reasoning": {"enabled": True, "effort": "low"}}, (True, False)),
            ({"reasoning": {"effort": "none"}}, (False, False)),
            ({"think": False}, (False, False)),
            ({"think": "high"}, (True, False)),
        ],
    )
    def test_thinking(self, fields, expected):
        found = request(**fields)
        assert (found.thinking, found.preserve_thinking) == expected
        thoughtless = request(Served(("moon",), 0, 4096, False, False, lambda ids: ""), **fields)
        assert (thoughtless.thinking, thoughtless.preserve_thinking) == (None, False)

    @pytest.mark.parametrize(
        "fields",
        [
            {"thinking_token_budget": 5},
            {"thinking_budget": 5},
            {"reasoning_budget_tokens": 5},
            {"thinking": {"type": "enabled", "budget_tokens": 5}},
            {"reasoning": {"max_tokens": 5}},
        ],
    )
    def test_a_bound_of_thoughts(self, fields):
        assert request(**fields).thinking_tokens == 5
        assert request(Served(("moon",), 0, 4096, False, False, lambda ids: ""), **fields).thinking_tokens == 5
        assert request(thinking_token_budget=-1).thinking_tokens is None

    def test_thoughts_can_be_hidden(self):
        for fields in ({"include_reasoning": False}, {"reasoning": {"exclude": True}}):
            exchange = begin(**fields)
            exchange.push(Started(1, 0))
            exchange.push(Delta(0, [Reasoning("Hm."), Content("Yes.")]))
            message = exchange.whole()["choices"][0]["message"]
            assert (message["content"], message.get("reasoning_content")) == ("Yes.", None)

    def test_prefill(self):
        begun = [*HELLO, {"role": "assistant", "content": "Well,"}]
        assert request(messages=begun, continue_final_message=True, add_generation_prompt=False).continue_final_message
        assert request(messages=[*HELLO, begun[1] | {"partial": True}]).continue_final_message
        assert not request(messages=begun).continue_final_message

    def test_logprobs_and_what_keeps_caches_apart(self):
        assert request(logprobs=True).params.logprobs == 0
        assert request(logprobs=True, top_logprobs=20).params.logprobs == 20
        found = request(cache_salt="s", priority=-3, prompt_cache_key="k", user="u")
        assert (found.cache_salt, found.priority) == ("s", -3)

    @pytest.mark.parametrize(
        ("param", "fields"),
        [
            ("messages", {"messages": []}),
            ("messages", {"messages": HELLO * 10_001}),
            ("messages[0].role", {"messages": [{"role": "function", "name": "f", "content": ""}]}),
            ("messages[0].content", {"messages": [{"role": "user", "content": 3}]}),
            ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            ("messages[0].content[0]", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
            ("messages[0].function_call", {"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}),
            ("tools", {"tools": [LOOK] * 513}),
            ("tools[1]", {"tools": [LOOK, LOOK]}),
            ("tools[0]", {"tools": [{"type": "custom", "custom": {"description": "No name."}}]}),
            ("tools[0]", {"tools": [{"type": "function"}]}),
            ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": "two words"}}]}),
            ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": "line\n"}}]}),
            ("tool_choice", {"tool_choice": "required"}),
            ("tool_choice", {"tools": [LOOK], "tool_choice": "sometimes"}),
            ("tool_choice", {"tools": [LOOK], "tool_choice": {"type": "function", "function": {"name": "go"}}}),
            ("tool_choice", {"tools": [LOOK], "tool_choice": {"type": "function", "function": [3]}}),
            ("tool_choice", {"tools": [LOOK], "tool_choice": {"type": "allowed_tools", "allowed_tools": 3}}),
            ("tool_choice", {"tools": [LOOK], "tool_choice": {"type": "custom"}}),
            ("functions", {"functions": [LOOK["function"]]}),
            ("function_call", {"function_call": "auto"}),
            ("audio", {"audio": {"voice": "alloy", "format": "wav"}}),
            ("modalities", {"modalities": ["text", "audio"]}),
            ("web_search_options", {"web_search_options": {}}),
            ("chat_template", {"chat_template": "{{ messages }}"}),
            ("chat_template_kwargs", {"chat_template_kwargs": {"tools": []}}),
            ("chat_template_kwargs", {"chat_template_kwargs": {"thinking": "yes"}}),
            ("enable_thinking", {"thinking": {"type": "disabled"}, "enable_thinking": True}),
            ("reasoning_effort", {"thinking": {"type": "enabled"}, "reasoning_effort": "none"}),
            ("reasoning.enabled", {"think": False, "reasoning": {"enabled": True}}),
            ("reasoning.max_tokens", {"thinking_budget": 5, "reasoning": {"max_tokens": 6}}),
            ("reasoning.max_tokens", {"reasoning": {"max_tokens": -3}}),
            ("stream_options", {"stream_options": {"include_usage": True}}),
            ("top_logprobs", {"top_logprobs": 2}),
            ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
            ("prompt_logprobs", {"prompt_logprobs": 1}),
            ("response_format.type", {"response_format": {"type": "xml"}}),
            ("response_format", {"response_format": {"type": "json_schema"}}),
            ("response_format", {"response_format": {"type": "json_object"}, "guided_regex": "a"}),
            ("add_generation_prompt", {"add_generation_prompt": False}),
            ("messages", {"continue_final_message": True}),
            ("n", {"n": 0}),
            ("stop", {"stop": ["x"] * 65}),
            ("logit_bias", {"logit_bias": {"the": 1}}),
            ("temperature", {"temperature": "warm"}),
        ],
    )
    def test_refusals_name_their_field(self, param, fields):
        assert refusal(**fields).param == param

    def test_a_template_that_forgets_thoughts(self):
        forgetful = Served(("moon",), 0, 4096, True, False, lambda ids: "")
        assert refusal(forgetful, thinking={"keep": "all"}).param == "preserve_thinking"

    def test_another_model(self):
        with pytest.raises(Refused) as caught:
            begin(model="sun")
        assert (caught.value.status, caught.value.param) == (404, "model")

    @settings(max_examples=150, deadline=None)
    @given(fields=some.dictionaries(some.sampled_from(sorted(chat.ChatBody.model_fields)), ANYTHING, max_size=3))
    def test_any_value_of_a_field_is_accepted_or_refused_without_a_fault(self, fields):
        with suppress(Refused):
            json.dumps(begin(**fields).whole(), allow_nan=False)


CALL = [
    ToolCallStart(0, "functions.look:0", "look"),
    ToolCallArguments(0, '{"at":'),
    ToolCallArguments(0, " 1}"),
    ToolCallEnd(0),
]
SECOND = [ToolCallStart(1, "functions.go:1", "go"), ToolCallEnd(1)]
CASES = {
    "text": ([Content("Hel"), Content("lo")], "stop", {"content": "Hello"}),
    "nothing": ([], "stop", {"content": ""}),
    "thought": ([Reasoning("Hm."), Content("Hello")], "stop", {"content": "Hello", "thought": "Hm."}),
    "calls": (
        [Reasoning("Hm."), *CALL, *SECOND],
        "tool_calls",
        {"content": None, "thought": "Hm.", "calls": [("look", '{"at": 1}'), ("go", "{}")]},
    ),
    "text and call": ([Content("So: "), *CALL], "tool_calls", {"content": "So: ", "calls": [("look", '{"at": 1}')]}),
    "broken call": ([*CALL[:2]], "length", {"content": None, "calls": [("look", '{"at":')]}),
    "cut text": ([Content("Hel")], "context", {"content": "Hel"}),
}


def answer(exchange, events, reason):
    """The stream's data, and the whole."""
    pieces = [Started(11, 8), *(Delta(0, [event]) for event in events), Ended(0, reason, 5, 2)]
    data = [event.data for piece in pieces for event in exchange.push(piece)]
    return [*data, *(event.data for event in exchange.end())], exchange.whole()


@pytest.mark.parametrize("name", CASES)
class TestAnswer:
    def test_whole(self, name):
        events, reason, expected = CASES[name]
        _, whole = answer(begin(), events, reason)
        found = ChatCompletion.model_validate(whole)
        (choice,) = found.choices
        message = choice.message
        assert (found.object, found.model, message.role) == ("chat.completion", "moon", "assistant")
        assert found.id.startswith("chatcmpl-")
        assert choice.finish_reason == {"context": "length"}.get(reason, reason)
        assert message.content == expected["content"]
        assert getattr(message, "reasoning_content", None) == expected.get("thought")
        assert not hasattr(message, "reasoning")  # Kimi Code shows a thought once for each name that it finds
        calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
        assert calls == expected.get("calls", [])
        assert [call.id for call in message.tool_calls or ()] == ["functions.look:0", "functions.go:1"][: len(calls)]
        assert found.usage.model_dump(exclude_none=True) == {
            "prompt_tokens": 11,
            "completion_tokens": 5,
            "total_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 8},
            "completion_tokens_details": {"reasoning_tokens": 2},
            "cached_tokens": 8,
        }
        json.dumps(whole, allow_nan=False)

    def test_deltas_add_up_to_the_whole(self, name):
        events, reason, _ = CASES[name]
        data, whole = answer(begin(stream=True, stream_options={"include_usage": True}), events, reason)
        assert data[-1] == "[DONE]"
        chunks = [ChatCompletionChunk.model_validate(entry) for entry in data[:-1]]
        assert {(chunk.id, chunk.created, chunk.model) for chunk in chunks} == {
            (whole["id"], whole["created"], whole["model"])
        }
        assert chunks[0].choices[0].delta.role == "assistant"
        assert all(entry["usage"] is None for entry in data[:-2])
        assert (data[-2]["choices"], data[-2]["usage"]) == ([], whole["usage"])
        deltas = [entry["choices"][0] for entry in data[:-2]]
        assert [entry["finish_reason"] for entry in deltas[:-1]] == [None] * (len(deltas) - 1)
        (choice,) = whole["choices"]
        assert deltas[-1]["finish_reason"] == choice["finish_reason"]
        parts = [entry["delta"] for entry in deltas]
        message = choice["message"]
        assert "".join(delta.get("content", "") for delta in parts) == (message["content"] or "")
        assert "".join(delta.get("reasoning_content", "") for delta in parts) == message.get("reasoning_content", "")
        calls = {}
        for delta in (call for entry in parts for call in entry.get("tool_calls", ())):
            if "id" in delta:
                assert delta["index"] not in calls
                assert delta["function"]["arguments"] == ""
                calls[delta["index"]] = {key: delta[key] for key in ("id", "type")} | {"function": delta["function"]}
            else:
                calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
        assert list(calls.values()) == message.get("tool_calls", [])


class TestStream:
    def test_without_usage(self):
        data, _ = answer(begin(stream=True), [Content("a")], "stop")
        assert not [entry for entry in data[:-1] if "usage" in entry]
        assert [entry["choices"][0]["delta"] for entry in data[:-1]] == [
            {"role": "assistant", "content": ""},
            {"content": "a"},
            {},
        ]

    def test_choices_stay_apart(self):
        exchange = begin(n=2)
        pieces = [Started(3, 0), Delta(1, [Content("b")]), Delta(0, [Content("a")]), Ended(1, "stop", 1, 0)]
        pieces += [Delta(0, [Content("c")]), Ended(0, "length", 2, 0)]
        chunks = [event.data for piece in pieces for event in exchange.push(piece)]
        assert [chunk["choices"][0]["index"] for chunk in chunks] == [0, 1, 1, 0, 1, 0, 0]
        whole = ChatCompletion.model_validate(exchange.whole())
        choices = [(choice.index, choice.message.content, choice.finish_reason) for choice in whole.choices]
        assert choices == [(0, "ac", "length"), (1, "b", "stop")]
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 3)

    def test_scores_come_with_the_text_they_made(self):
        exchange = begin(logprobs=True, top_logprobs=1)
        first = Scored(7, b"\xc3", -0.5, ((7, b"\xc3", -0.5),))
        second = Scored(8, b"\xa9", float("-inf"), ((9, b"e", -1.0),))
        last = Scored(2, b"", -0.25)
        pieces = [Started(1, 0), Delta(0, [], [first]), Delta(0, [Content("é")], [second]), Delta(0, [], [last])]
        data = [event.data["choices"][0] for piece in pieces for event in exchange.push(piece)]
        data += [event.data["choices"][0] for event in exchange.push(Ended(0, "stop", 3, 0))]
        assert [entry["delta"].get("content") for entry in data] == ["", "é", None]
        assert [entry["logprobs"] and len(entry["logprobs"]["content"]) for entry in data] == [None, 2, 1]
        (choice,) = ChatCompletion.model_validate(exchange.whole()).choices
        scores = choice.logprobs.content
        assert [score.token for score in scores] == ["\N{REPLACEMENT CHARACTER}"] * 2 + [""]
        assert [score.bytes for score in scores] == [[0xC3], [0xA9], []]
        assert [score.logprob for score in scores] == [-0.5, -9999.0, -0.25]
        assert [(top.token, top.logprob) for top in scores[1].top_logprobs] == [("e", -1.0)]

    def test_hidden_thoughts(self):
        exchange = begin(include_reasoning=False, logprobs=True)
        exchange.push(Started(1, 0))
        assert exchange.push(Delta(0, [Reasoning("secret")], [Scored(1, b"secret", -1.0)])) == []
        exchange.push(Delta(0, [Content("a")], [Scored(2, b"a", -2.0)]))
        exchange.push(Ended(0, "stop", 2, 1))
        assert "secret" not in json.dumps(exchange.whole())
        assert exchange.whole()["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}

    def test_failure_in_mid_stream(self):
        failure, done = begin(stream=True).failed(Refused("The engine broke.", "internal"))
        error = {"message": "The engine broke.", "type": "server_error", "param": None, "code": None}
        assert (failure.data, done.data) == ({"error": error}, "[DONE]")
