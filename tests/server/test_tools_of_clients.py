"""Tools other than plain functions, and content that the model can't read, without a server."""

import json
from dataclasses import replace

import httpx
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from earthshine.errors import TextError
from earthshine.generation.prompts import Prompts
from earthshine.generation.request import Delta, Ended, Started, ToolChoice
from earthshine.hub import GLEAM
from earthshine.server.anthropic import MESSAGES
from earthshine.server.api import Served
from earthshine.server.http.body import parse_body
from earthshine.server.openai.chat import CHAT
from earthshine.server.openai.completions import COMPLETIONS
from earthshine.server.openai.responses import RESPONSES
from earthshine.server.refusals import Refused
from earthshine.text import ToolCallArguments, ToolCallEnd, ToolCallStart, load_template, load_tokenizer

from .serving import APIS, Echo, serving

SERVED = Served(("moon",), 1_700_000_000, 4096, True, True, lambda ids: "")
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}}
PATCH = {"type": "custom", "name": "patch", "description": "Changes a file."}
TOKENIZER = load_tokenizer(GLEAM)
PROMPTS = Prompts(TOKENIZER, load_template(GLEAM), 6144, (TOKENIZER.special_id("<|im_end|>"),), 4096)
GRAMMAR = {"syntax": "lark", "definition": 'start: "+" /.+/'}
NO_THOUGHT = {"reasoning": {"effort": "none"}}
LAMPS = [
    {"type": "namespace", "name": f"mcp__{name}", "tools": [{"type": "function", "name": "view", "parameters": SCHEMA}]}
    for name in ("lamp", "buoy")
]


def begin(api, **fields):
    raw = json.dumps({"model": "moon"} | fields).encode()
    return api.begin(parse_body(raw, api.body)[0], SERVED)


def respond(**fields):
    return begin(RESPONSES, **({"input": "Hello"} | fields))


def chat(*messages, **fields):
    return begin(CHAT, messages=[{"role": "user", "content": "Hello"}, *messages], **fields)


def anthropic(*messages, **fields):
    given = [{"role": role, "content": content} for role, content in messages]
    return begin(MESSAGES, **({"max_tokens": 9, "messages": given} | fields)).requests[0]


def calling(exchange, name, *arguments, end=True):
    """The events of an answer that calls a tool, and the whole."""
    start = ToolCallStart(0, f"functions.{name}:0", name)
    events = [start, *(ToolCallArguments(0, part) for part in arguments), *([ToolCallEnd(0)] if end else ())]
    pieces = [
        Started(11, 8),
        *(Delta(0, [event]) for event in events),
        Ended(0, "tool_calls" if end else "length", 5, 2),
    ]
    found = [event.data for piece in pieces for event in exchange.push(piece)]
    return found, exchange.whole()


def may_be_called(request, name, arguments):
    """Whether a reply that calls this is allowed to its end."""
    constraint = PROMPTS.choices(request)[0].request.constraint
    call = f"<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"
    text = f"<|tool_calls_section_begin|>{call}<|tool_calls_section_end|><|im_end|>"
    for token in [] if constraint is None else TOKENIZER.encode(text, allow_special=True):
        mask = constraint.allowed()
        if not mask[token // 32] >> (token % 32) & 1:
            return False
        constraint.accept(token)
    return True


class TestNamespaces:
    def test_inner_functions_are_declared_apart(self):
        assert [tool["function"]["name"] for tool in respond(tools=LAMPS).requests[0].tools] == [
            "mcp__lamp__view",
            "mcp__buoy__view",
        ]

    def test_call_goes_back_under_both_names(self):
        exchange = respond(tools=LAMPS)
        events, whole = calling(exchange, "mcp__buoy__view", '{"path":', '"a"}')
        (item,) = whole["output"]
        assert (item["name"], item["namespace"], item["arguments"]) == ("view", "mcp__buoy", '{"path":"a"}')
        added = next(event for event in events if event["type"] == "response.output_item.added")
        assert (added["item"]["name"], added["item"]["namespace"]) == ("view", "mcp__buoy")
        Response.model_validate(whole)

    def test_history_and_choice_use_the_name_that_the_model_knows(self):
        call = {"type": "function_call", "call_id": "c", "name": "view", "namespace": "mcp__lamp", "arguments": "{}"}
        request = respond(
            tools=LAMPS, input=[call], tool_choice={"type": "function", "name": "view", "namespace": "mcp__buoy"}
        ).requests[0]
        assert request.prompt[0]["tool_calls"][0]["function"]["name"] == "mcp__lamp__view"
        assert request.tool_choice == ToolChoice("named", "mcp__buoy__view")

    def test_bare_inner_name_is_not_a_choice(self):
        with pytest.raises(Refused, match="'view', which is not among the tools"):
            respond(tools=LAMPS, tool_choice={"type": "function", "name": "view"})


class TestCustom:
    def test_is_a_function_of_one_text(self):
        tool = PATCH | {"format": {"type": "grammar", **GRAMMAR}}
        nested = {"type": "custom", "custom": {**PATCH, "format": {"type": "grammar", "grammar": GRAMMAR}}}
        for exchange in (respond(tools=[tool]), chat(tools=[nested])):
            function = exchange.requests[0].tools[0]["function"]
            assert function["parameters"]["required"] == ["input"]
            assert function["parameters"]["properties"] == {"input": {"type": "string"}}
            assert GRAMMAR["definition"] in function["description"]
            assert exchange.requests[0].unenforced == ["patch"]

    def test_a_regex_binds_the_text_of_a_call(self):
        form = {"type": "grammar", "syntax": "regex", "definition": "[+-] (one|two)"}
        request = respond(tools=[PATCH | {"format": form}], **NO_THOUGHT).requests[0]
        nested = {**PATCH, "format": {"type": "grammar", "grammar": form}}
        assert request.tools == chat(tools=[{"type": "custom", "custom": nested}]).requests[0].tools
        assert not request.unenforced
        for text, allowed in (("+ one", True), ("- two", True), ("+ one more", False), ("say + one", False)):
            assert may_be_called(request, "patch", json.dumps({"input": text}, separators=(",", ":"))) is allowed, text
        free = respond(tools=[PATCH], **NO_THOUGHT).requests[0]
        assert may_be_called(free, "patch", '{"input":"say + one"}')

    @pytest.mark.parametrize(
        "form",
        [{"type": "grammar"}, {"type": "grammar", "syntax": "ebnf", "definition": "a"}, {"type": "grammar", "syntax":
         "lark", "definition": 5}, {"type": "grammar", "grammar": "a"}, {"type": "json"}],
    )  # fmt: skip
    def test_a_format_that_says_nothing_known_is_refused(self, form):
        with pytest.raises(Refused, match="lark or regex") as caught:
            respond(tools=[PATCH | {"format": form}])
        assert caught.value.param == "tools[0].format"
        respond(tools=[PATCH | {"format": {"type": "text"}}])

    def test_a_regex_that_can_not_be_read_is_refused(self):
        form = {"type": "grammar", "syntax": "regex", "definition": "(one"}
        with pytest.raises(TextError, match="patch"):
            PROMPTS.choices(respond(tools=[PATCH | {"format": form}]).requests[0])

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [(['{"input": "+ a', '\\nb"}'], "+ a\nb"), (["+ a"], "+ a"), (['{"other": 1}'], '{"other": 1}')],
    )
    @pytest.mark.parametrize("end", [True, False])
    def test_call_is_a_text_again(self, arguments, expected, end):
        events, whole = calling(respond(tools=[PATCH]), "patch", *arguments, end=end)
        for event in events:
            TypeAdapter(ResponseStreamEvent).validate_python(event)
        (item,) = whole["output"]
        assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "patch", expected)
        assert "".join(event["delta"] for event in events if event["type"].endswith("input.delta")) == expected
        exchange = chat(tools=[{"type": "custom", "custom": PATCH}], stream=True)
        events, whole = calling(exchange, "patch", *arguments, end=end)
        (call,) = whole["choices"][0]["message"]["tool_calls"]
        assert call == {"id": call["id"], "type": "custom", "custom": {"name": "patch", "input": expected}}
        deltas = [call for event in events for call in event["choices"][0]["delta"].get("tool_calls", ())]
        assert "".join(delta["custom"]["input"] for delta in deltas) == expected

    def test_history(self):
        call = {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": '+ "a"'}
        output = {"type": "custom_tool_call_output", "call_id": "c", "output": "done"}
        asked, answered = respond(input=[call, output]).requests[0].prompt
        assert json.loads(asked["tool_calls"][0]["function"]["arguments"]) == {"input": '+ "a"'}
        assert answered == {"role": "tool", "tool_call_id": "c", "content": "done"}
        given = {"id": "c", "type": "custom", "custom": {"name": "patch", "input": '+ "a"'}}
        found = chat({"role": "assistant", "tool_calls": [given]}).requests[0].prompt[1]["tool_calls"]
        assert found == asked["tool_calls"]


class Left(Echo):
    """As an exchange whose client gave tools that are not run, or not held to their grammar."""

    def __init__(self, body, served):
        super().__init__(body, served)
        self.requests = [replace(each, left_out=("web_search",), unenforced=("patch",)) for each in self.requests]


class TestLeftOut:
    def test_is_logged_once(self):
        with serving(apis=(replace(APIS[0], begin=Left),)) as server:
            for _ in range(2):
                httpx.post(f"{server.url}/v1/echo", json={"prompt": "a"}).raise_for_status()
        assert [line.split("  ")[3] for line in server.lines if "tool" in line] == [
            "a tool that this server can't run was left out: 'web_search'",
            "a tool's Lark grammar is shown to the model but not enforced: 'patch'",
        ]

    def test_tools_that_nobody_runs_are_named_for_the_log(self):
        hosted = [{"type": "web_search"}, {"type": "image_generation"}, {"type": "local_shell"}, PATCH]
        request = respond(tools=hosted).requests[0]
        assert request.left_out == ["web_search", "image_generation", "local_shell"]
        assert len(request.tools) == 1
        built_in = {"type": "builtin_function", "function": {"name": "$web_search"}}
        assert chat(tools=[built_in]).requests[0].left_out == ["builtin_function"]
        theirs = [{"type": "bash_20250124", "name": "bash"}, {"type": "mcp_toolset", "mcp_server_name": "x"}]
        assert anthropic(("user", "Hi"), tools=theirs).left_out == ["bash_20250124", "mcp_toolset"]

    def test_required_call_needs_a_tool_that_is_left(self):
        with pytest.raises(Refused, match="needs tools to choose from"):
            respond(tools=[{"type": "web_search"}], tool_choice="required")

    def test_deferred_tools_are_all_there_where_anthropic_would_search_them(self):
        tools = [{"type": "tool_search_tool_regex_20251119", "name": "search"},
                 {"name": "view", "input_schema": SCHEMA, "defer_loading": True}]  # fmt: skip
        assert len(anthropic(("user", "Hi"), tools=tools).tools) == 1
        assert not anthropic(("user", "Hi"), tools=tools[1:]).tools


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}
MARK = "[image_url: left out, since this model reads text only]"


class TestUnread:
    def test_pictures_of_tools_and_past_messages_become_a_placeholder(self):
        past = {"role": "user", "content": [PICTURE, {"type": "text", "text": "?"}]}
        call = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "view"}}]}
        result = {"role": "tool", "tool_call_id": "c", "content": [PICTURE]}
        of_result = {"role": "user", "content": [PICTURE]}
        found = chat(past, call, result, of_result).requests[0].prompt
        assert [message["content"] for message in found[1:]] == [f"{MARK}?", None, MARK, MARK]

    def test_newest_message_is_refused_in_openais_apis(self):
        with pytest.raises(Refused, match="reads text only") as caught:
            chat({"role": "assistant", "content": "Yes?"}, {"role": "user", "content": [PICTURE]})
        assert caught.value.param == "messages[2].content[0].type"

    def test_items_of_openais_own_tools(self):
        given = [
            {"type": "local_shell_call", "call_id": "s", "action": {"command": ["ls"]}, "status": "completed"},
            {"type": "local_shell_call_output", "call_id": "s", "output": [{"text": "a.png"}, {"exit": 0}]},
            {"type": "computer_call", "call_id": "p", "action": {"type": "screenshot"}},
            {"type": "computer_call_output", "call_id": "p", "output": {"type": "shot", "image_url": "data:,"}},
            {"type": "web_search_call", "id": "w"},
            {"type": "compaction", "encrypted_content": "eA=="},
        ]
        shell, listed, _, shot, search, compacted = respond(input=given).requests[0].prompt
        assert shell["tool_calls"][0]["function"] == {"name": "local_shell", "arguments": '{"command": ["ls"]}'}
        assert listed["content"] == 'a.png\n{"exit": 0}'
        assert shot["content"].startswith("[shot: left out")
        assert search == {
            "role": "assistant",
            "content": "[web_search_call: left out, since this model reads text only]",
        }
        assert compacted["role"] == "system"

    @pytest.mark.parametrize(
        ("block", "expected"),
        [
            ({"type": "image", "source": {}}, "[image: left out, since this model reads text only]"),
            ({"type": "document", "title": "Tides", "source": {"type": "text", "data": "High."}}, "Tides\nHigh."),
            ({"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "a"},
                                                                           {"type": "image"}]}},
             "a\n\n[image: left out, since this model reads text only]"),
            ({"type": "document", "title": "Tides", "source": {"type": "base64", "data": "eA=="}},
             "[document 'Tides': left out, since this model reads text only]"),
            ({"type": "search_result", "title": "Tides", "source": "sea", "content": [{"type": "text", "text": "a"}]},
             "Tides\nsea\na"),
            ({"type": "tool_reference", "tool_name": "view"}, "The tool view is available now."),
        ],
    )  # fmt: skip
    def test_blocks_of_anthropics_results(self, block, expected):
        call = [{"type": "tool_use", "id": "a", "name": "view", "input": {}}]
        result = [{"type": "tool_result", "tool_use_id": "a", "content": [block]}, block]
        found = anthropic(("assistant", call), ("user", result)).prompt
        assert [message["content"] for message in found[1:]] == [expected, expected]

    def test_nothing_and_blocks_of_anthropics_servers(self):
        begun = [{"type": "text", "text": "So "}, {"type": "server_tool_use", "id": "s", "name": "web_search"}]
        call = [*begun, {"type": "tool_use", "id": "a", "name": "view", "input": {}}]
        found = anthropic(
            ("assistant", call), ("user", [{"type": "tool_result", "tool_use_id": "a", "content": None}])
        ).prompt
        assert found[0]["content"] == "So [server_tool_use: left out, since this model reads text only]"
        assert found[1]["content"] == ""


class TestNumbers:
    @pytest.mark.parametrize("api", [CHAT, COMPLETIONS, RESPONSES, MESSAGES], ids=lambda api: api.path)
    def test_whole_number_with_a_point_is_an_integer(self, api):
        asked = {"model": "moon", "max_tokens": 8.0, "top_k": 5.0, "prompt": "a", "input": "a",
                 "messages": [{"role": "user", "content": "a"}]}  # fmt: skip
        body, _ = parse_body(json.dumps(asked).encode(), api.body)
        assert (body.max_tokens, body.top_k) == (8, 5)
        assert isinstance(body.max_tokens, int)

    def test_within_lists_and_not_within_schemas(self):
        tool = {"type": "function", "function": {"name": "f", "parameters": {"minimum": 8.0}}}
        asked = {"messages": [{"role": "user", "content": "a"}], "stop_token_ids": [1.0, 2], "tools": [tool]}
        body, _ = parse_body(json.dumps(asked).encode(), CHAT.body)
        assert body.stop_token_ids == [1, 2]
        assert isinstance(body.tools[0].function.parameters["minimum"], float)

    @pytest.mark.parametrize("value", [8.5, "8", True, 1e400])
    def test_other_values_are_refused(self, value):
        raw = json.dumps({"messages": [{"role": "user", "content": "a"}], "max_tokens": value}).encode()
        with pytest.raises(Refused):
            parse_body(raw, CHAT.body)


def test_empty_input_is_named():
    with pytest.raises(Refused, match="a text or at least one item") as caught:
        respond(input=[])
    assert caught.value.param == "input"
