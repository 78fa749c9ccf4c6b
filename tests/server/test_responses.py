"""Responses without a server: items to requests, and pieces to the objects and events that OpenAI's SDK parses."""

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from earthshine.engine import SamplingParams
from earthshine.generation.request import Delta, Ended, Format, Scored, Started, ToolChoice
from earthshine.server.api import Served
from earthshine.server.http.body import parse_body
from earthshine.server.openai import responses
from earthshine.server.refusals import Refused
from earthshine.text import Content, Reasoning, ToolCallArguments, ToolCallEnd, ToolCallStart

SERVED = Served(("moon",), 1_700_000_000, 4096, True, True, lambda ids: "")
EVENT = TypeAdapter(ResponseStreamEvent)
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}
GO = {"type": "function", "name": "go"}

WORDS = some.sampled_from(["message", "reasoning", "function_call", "function_call_output", "json_schema", "function"])
KEYS = some.sampled_from(
    ["type", "role", "content", "name", "call_id", "output", "summary", "format", "schema", "tools"]
)
ANYTHING = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


def begin(**fields):
    raw = json.dumps({"model": "moon", "input": "Hello"} | fields).encode()
    return responses.begin(parse_body(raw, responses.ResponsesBody)[0], SERVED)


def request(**fields):
    (only,) = begin(**fields).requests
    return only


class TestRequest:
    def test_plain(self):
        found = request(instructions="Be brief.", max_output_tokens=9, temperature=0, top_p=0.5)
        assert found.prompt == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
        assert found.params == SamplingParams(temperature=0, top_p=0.5, max_tokens=9)
        assert (found.tools, found.tool_choice) == ([], ToolChoice())

    def test_items_of_one_answer_become_one_message(self):
        given = [
            {"role": "user", "content": [{"type": "input_text", "text": "Look "}, {"type": "input_text", "text": "!"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "So:"}]},
            {"type": "function_call", "call_id": "functions.look:0", "name": "look", "arguments": "{}"},
            {"type": "function_call", "call_id": "functions.go:1", "name": "go", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "functions.look:0", "output": "A wall."},
            {
                "type": "function_call_output",
                "call_id": "functions.go:1",
                "output": [{"type": "input_text", "text": "Ow."}],
            },
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Well."}], "encrypted_content": None},
            {"type": "message", "role": "assistant", "content": "Done."},
            {"type": "reasoning", "summary": []},
            {"type": "message", "role": "developer", "content": "Go on."},
        ]
        calls = [
            {"id": f"functions.{name}:{n}", "type": "function", "function": {"name": name, "arguments": "{}"}}
            for n, name in enumerate(("look", "go"))
        ]
        assert request(input=given).prompt == [
            {"role": "user", "content": "Look !"},
            {"role": "assistant", "reasoning_content": "Hm.", "content": "So:", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "functions.look:0", "content": "A wall."},
            {"role": "tool", "tool_call_id": "functions.go:1", "content": "Ow."},
            {"role": "assistant", "reasoning_content": "Well.", "content": "Done."},
            {"role": "assistant", "reasoning_content": "", "content": None},
            {"role": "developer", "content": "Go on."},
        ]

    def test_answers_that_follow_each_other_stay_apart(self):
        call = {"type": "function_call", "call_id": "functions.go:0", "name": "go"}
        given = [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}, call]
        given += [{"type": "reasoning", "summary": []}, call]
        found = request(input=given).prompt
        assert [(message["content"], len(message.get("tool_calls", ()))) for message in found] == [
            ("a", 0),
            ("b", 1),
            (None, 1),
        ]

    @pytest.mark.parametrize(
        ("choice", "names", "expected"),
        [
            ("required", ["look", "go"], ToolChoice("required")),
            ({"type": "function", "name": "go"}, ["look", "go"], ToolChoice("named", "go")),
            (
                {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "go"}]},
                ["go"],
                ToolChoice("auto"),
            ),
        ],
    )
    def test_tools(self, choice, names, expected):
        found = request(tools=[LOOK, {"type": "web_search"}, GO], tool_choice=choice)
        assert [tool["function"]["name"] for tool in found.tools] == names
        assert found.tool_choice == expected
        whole = Response.model_validate(begin(tools=[LOOK, GO], tool_choice=choice).whole())
        assert [tool.name for tool in whole.tools] == names

    @pytest.mark.parametrize(
        ("format", "expected"),
        [
            ({"type": "text"}, None),
            ({"type": "json_object"}, Format("json_object")),
            (
                {"type": "json_schema", "name": "a", "strict": True, "schema": {"type": "array"}},
                Format("json_schema", {"type": "array"}, strict=True),
            ),
        ],
    )
    def test_formats(self, format, expected):
        exchange = begin(text={"format": format, "verbosity": "low"})
        assert exchange.requests[0].format == expected
        repeated = Response.model_validate(exchange.whole()).text.format
        assert repeated.model_dump(by_alias=True, exclude_none=True) == format

    def test_thinking_and_logprobs(self):
        assert request(reasoning={"effort": "none"}).thinking is False
        assert request(reasoning={"effort": "high", "summary": "auto"}).thinking is None
        assert request(thinking={"type": "enabled", "keep": "all"}).preserve_thinking
        assert request(top_logprobs=3).params.logprobs == 3
        assert request(include=["message.output_text.logprobs", "reasoning.encrypted_content"]).params.logprobs == 0

    @pytest.mark.parametrize(
        ("param", "fields"),
        [
            ("input", {"input": []}),
            ("input[0].role", {"input": [{"content": "Hello"}]}),
            ("input[0].content[0].type", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            ("input[0]", {"input": [{"type": "function_call", "name": "go"}]}),
            ("input[0]", {"input": [{"type": "function_call_output", "output": "x"}]}),
            ("input[0]", {"input": [{"type": "item_reference", "id": "msg_1"}]}),
            ("input[0].type", {"input": [{"type": "mesage", "role": "user", "content": "Hello"}]}),
            ("tools[0].type", {"tools": [{"type": "functoin", "name": "go", "parameters": {}}]}),
            ("tools[0]", {"tools": [{"type": "function"}]}),
            ("tool_choice", {"tools": [GO], "tool_choice": {"type": "function", "name": "look"}}),
            ("text.format", {"text": {"format": {"type": "json_schema", "name": "a"}}}),
            ("previous_response_id", {"previous_response_id": "resp_1"}),
            ("conversation", {"conversation": "conv_1"}),
            ("prompt", {"prompt": {"id": "pmpt_1"}}),
            ("store", {"store": True}),
            ("background", {"background": True}),
            ("truncation", {"truncation": "auto"}),
            ("max_output_tokens", {"max_output_tokens": 0}),
            ("top_logprobs", {"top_logprobs": 21}),
            ("prompt_logprobs", {"prompt_logprobs": 1}),
            ("n", {"n": 2}),
            ("metadata", {"metadata": {str(n): "" for n in range(17)}}),
        ],
    )
    def test_refusals_name_their_field(self, param, fields):
        with pytest.raises(Refused) as caught:
            begin(**fields)
        assert (caught.value.status, caught.value.param) == (400, param)
        assert str(caught.value).endswith(".")

    @settings(max_examples=150, deadline=None)
    @given(
        fields=some.dictionaries(some.sampled_from(sorted(responses.ResponsesBody.model_fields)), ANYTHING, max_size=3)
    )
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
CASES = {  # events, the end's reason, and items: type, text, status
    "text": ([Content("Hel"), Content("lo")], "stop", [("message", "Hello", "completed")]),
    "nothing": ([], "stop", []),
    "thought": (
        [Reasoning("H"), Reasoning("m."), Content("Hello")],
        "stop",
        [("reasoning", "Hm.", "completed"), ("message", "Hello", "completed")],
    ),
    "calls": (
        [Reasoning("Hm."), Content("So: "), *CALL, *SECOND],
        "tool_calls",
        [
            ("reasoning", "Hm.", "completed"),
            ("message", "So: ", "completed"),
            ("function_call", '{"at": 1}', "completed"),
            ("function_call", "{}", "completed"),
        ],
    ),
    "broken call": (CALL[:2], "length", [("function_call", '{"at":', "incomplete")]),
    "cut thought": ([Reasoning("Hm")], "context", [("reasoning", "Hm", "incomplete")]),
}


def answer(exchange, events, reason):
    """The stream's events, and the whole."""
    pieces = [Started(11, 8), *(Delta(0, [event]) for event in events), Ended(0, reason, 5, 2)]
    found = [event for piece in pieces for event in exchange.push(piece)]
    return [*found, *exchange.end()], exchange.whole()


def text_of(item):
    return item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]


@pytest.mark.parametrize("name", CASES)
class TestAnswer:
    def test_whole(self, name):
        events, reason, items = CASES[name]
        _, whole = answer(begin(metadata={"a": "b"}, user="u"), events, reason)
        found = Response.model_validate(whole)
        assert [(item["type"], text_of(item), item["status"]) for item in whole["output"]] == items
        cut = reason in ("length", "context")
        assert found.status == ("incomplete" if cut else "completed")
        assert (found.incomplete_details.reason if cut else found.incomplete_details) == (
            "max_output_tokens" if cut else None
        )
        assert found.output_text == "".join(text for kind, text, _ in items if kind == "message")
        calls = [item for item in found.output if item.type == "function_call"]
        assert [(item.call_id, item.name) for item in calls] == [
            (event.id, event.name) for event in events if isinstance(event, ToolCallStart)
        ]
        assert len({item.id for item in found.output}) == len(items)
        assert found.usage.model_dump(exclude_none=True) == {
            "input_tokens": 11,
            "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 16,
        }
        assert (found.metadata, found.user, found.model, whole["store"]) == ({"a": "b"}, "u", "moon", False)
        json.dumps(whole, allow_nan=False)

    def test_events_are_openais_and_add_up_to_the_whole(self, name):
        events, reason, items = CASES[name]
        stream, whole = answer(begin(stream=True), events, reason)
        data = [event.data for event in stream]
        for entry in data:
            assert EVENT.validate_python(entry).type == entry["type"]
        assert [event.name for event in stream] == [entry["type"] for entry in data]
        assert [entry["sequence_number"] for entry in data] == list(range(len(data)))
        assert [entry["type"] for entry in data[:2]] == ["response.created", "response.in_progress"]
        assert data[-1]["type"] == f"response.{whole['status']}"
        assert data[-1]["response"] | {"completed_at": 0} == whole | {"completed_at": 0}
        for index, item in enumerate(whole["output"]):
            mine = [entry for entry in data if entry.get("output_index") == index]
            kinds = [entry["type"].removeprefix("response.") for entry in mine]
            text = {"reasoning": "reasoning_text", "message": "output_text"}.get(item["type"])
            part, text = (["content_part"], text) if text else ([], "function_call_arguments")
            deltas = [entry["delta"] for entry in mine if "delta" in entry]
            assert kinds == [
                "output_item.added",
                *(f"{name}.added" for name in part),
                *[f"{text}.delta"] * len(deltas),
                f"{text}.done",
                *(f"{name}.done" for name in part),
                "output_item.done",
            ]
            assert (mine[0]["item"]["status"], mine[-1]["item"]) == ("in_progress", item)
            assert {entry["item_id"] for entry in mine[1:-1]} == {item["id"]}
            done = next(entry for entry in mine if entry["type"] == f"response.{text}.done")
            assert "".join(deltas) == text_of(item) == done.get("text", done.get("arguments"))
        assert len(whole["output"]) == len(items)


class TestStream:
    def test_scores_belong_to_texts(self):
        exchange = begin(top_logprobs=1, stream=True)
        first = Scored(5, b"\xc3", -0.5, ((5, b"\xc3", -0.5),))
        pieces = [
            Started(1, 0),
            Delta(0, [Reasoning("Hm.")], [Scored(3, b"Hm.", -1.0)]),
            Delta(0, [], [first]),
            Delta(0, [Content("é")], [Scored(6, b"\xa9", -0.25)]),
            Delta(0, CALL, [Scored(7, b"{", -2.0)]),
            Ended(0, "tool_calls", 4, 1),
        ]
        data = [event.data for piece in pieces for event in exchange.push(piece)]
        scores = [[score["logprob"] for score in entry["logprobs"]] for entry in data if "logprobs" in entry]
        assert scores == [[-0.5, -0.25], [-0.5, -0.25]]
        _, message, _ = Response.model_validate(exchange.whole()).output
        assert [score.bytes for score in message.content[0].logprobs] == [[0xC3], [0xA9]]
        assert message.content[0].logprobs[0].top_logprobs[0].logprob == -0.5

    def test_hidden_thoughts(self):
        stream, whole = answer(begin(include_reasoning=False), [Reasoning("secret"), Content("a")], "stop")
        assert "secret" not in json.dumps([whole, *(event.data for event in stream)])
        assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}

    @pytest.mark.parametrize(("kind", "code"), [("internal", "server_error"), ("context", "invalid_prompt")])
    @pytest.mark.parametrize("begun", [False, True])
    def test_failure_in_mid_stream(self, kind, code, begun):
        exchange = begin(stream=True)
        before = [event for piece in [Started(1, 0), Delta(0, [Content("a")])] for event in exchange.push(piece)]
        if not begun:
            exchange, before = begin(stream=True), []
        events = [*before, *exchange.failed(Refused("The engine broke.", kind))]
        parsed = [EVENT.validate_python(event.data) for event in events]
        assert [event.sequence_number for event in parsed] == list(range(len(parsed)))
        assert (parsed[0].type, parsed[-1].type) == ("response.created", "response.failed")
        error = parsed[-1].response.error
        assert (parsed[-1].response.status, error.code, error.message) == ("failed", code, "The engine broke.")
