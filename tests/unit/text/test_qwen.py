"""Qwen3's form: reasoning and tool calls as its template writes them, parsed from ids and held to schemas."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earthshine.errors import TextError
from earthshine.text import (
    CallForm,
    ChatTemplate,
    Content,
    Event,
    Grammars,
    OutputRule,
    Reasoning,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    ToolRule,
    call_form,
    load_template,
    load_tokenizer,
    region_parser,
)
from earthshine.text.tokenizer import Tokenizer

from . import qwen
from .grammars import FREE_TOOL, WEATHER_TOOL, House, check_forced_calls, parsed

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>'
NOTE = '<tool_call>\n{"name": "note.take", "arguments": {"x": [1, "}"]}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER_TOOL.parameters}}]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return qwen.write(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="session")
def tokenizer(folder) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def template(folder) -> ChatTemplate:
    return load_template(folder)


class QwenHouse(House):
    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.grammars = Grammars(tokenizer, self.vocab_size, [self.end], CallForm.JSON)


@pytest.fixture(scope="session")
def house(tokenizer) -> House:
    return QwenHouse(tokenizer)


def parse(tokenizer: Tokenizer, ids: list[int], thinking: bool = False, calls: bool = True) -> list[Event]:
    return parsed(region_parser(tokenizer, CallForm.JSON, thinking=thinking, calls=calls), ids)


def events_of(tokenizer: Tokenizer, text: str, thinking: bool = False, calls: bool = True) -> list[Event]:
    return parse(tokenizer, tokenizer.encode(text, True), thinking, calls)


def call(index: int, name: str, arguments: str) -> list[Event]:
    start = ToolCallStart(index, f"functions.{name}:{index}", name)
    return [start, ToolCallArguments(index, arguments), ToolCallEnd(index)]


def test_the_form_is_that_of_the_template(tokenizer, template) -> None:
    assert call_form(tokenizer, template) is CallForm.JSON
    assert call_form(tokenizer, None) is None
    assert call_form(tokenizer, ChatTemplate(qwen.CODER_TEMPLATE)) is CallForm.XML
    other = qwen.TEMPLATE.replace('{\\"name\\"', '<function=x>{\\"name\\"')
    assert call_form(tokenizer, ChatTemplate(other)) is None
    assert call_form(tokenizer, ChatTemplate("{{ messages[0].content }}")) is None


def test_tokens_are_those_of_the_library_that_made_the_file(tokenizer, folder) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    whole = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (
        "hello  world\n\n it's 2024!\r\n\tend ",
        "e\u0301 中文 🙂 don't",
        '{"name": {"a": 1}}\n',
        "<think>\nx\n</think>",
    ):
        assert tokenizer.encode(text, True) == whole.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode("hello 中\n", True)) == "hello 中\n"


def test_the_newlines_of_the_form_belong_to_neither_thought_nor_answer(tokenizer) -> None:
    assert events_of(tokenizer, "<think>\nhm\n\nso\n</think>\n\nhello\n\nyou\n") == [
        Reasoning("hm\n\nso"), Content("hello\n\nyou\n"),
    ]  # fmt: skip
    assert events_of(tokenizer, "hm\n</think>\n\nhello", thinking=True) == [Reasoning("hm"), Content("hello")]
    assert events_of(tokenizer, "\nhello") == [Content("\nhello")]


def test_calls_one_after_the_other(tokenizer) -> None:
    found = events_of(tokenizer, f"Let me see.\n{CALL}\n{NOTE}")
    weather, note = call(0, "weather", '{"city": "Rome", "days": 3}'), call(1, "note.take", '{"x": [1, "}"]}')
    assert found == [Content("Let me see."), *weather, *note]


def test_arguments_are_passed_on_before_the_call_ends(tokenizer) -> None:
    parser = region_parser(tokenizer, CallForm.JSON, thinking=False)
    text = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ro'
    events = [event for token in tokenizer.encode(text, True) for event in parser.push(token)]
    assert events[0] == ToolCallStart(0, "functions.weather:0", "weather")
    assert "".join(event.text for event in events[1:]) == '{"city": "Ro'
    assert not any(isinstance(event, ToolCallEnd) for event in parser.flush())


@pytest.mark.parametrize(
    ("body", "name", "arguments"),
    [
        ('{"arguments": {"a": 1}, "name": "f"}', "f", '{"a": 1}'),
        ('{"name": "f"}', "f", "{}"),
        ('{"name":"f","arguments":"{\\"a\\": 1}"}', "f", '{"a": 1}'),
        ('\n\n{ "name" : "f" , "arguments" : {"a": "\\"}"} }\n\n', "f", '{"a": "\\"}"}'),
        ('{"name": "f", "arguments": {}}', "f", "{}"),
    ],
)
def test_other_ways_to_write_the_same_call(tokenizer, body, name, arguments) -> None:
    assert events_of(tokenizer, f"<tool_call>{body}</tool_call>") == call(0, name, arguments)
    assert events_of(tokenizer, f"<tool_call>{body}") == call(0, name, arguments)


@pytest.mark.parametrize(
    "body", ["", "hm", "[1]", '{"name": 3, "arguments": {}}', '{"name": "f", "arguments": [1]}', "{" * 99]
)
def test_malformed_calls_become_content(tokenizer, body) -> None:
    text = f"a\n<tool_call>\n{body}\n</tool_call>b"
    assert events_of(tokenizer, text) == [Content(text)]


def test_without_tools_the_markers_are_text(tokenizer) -> None:
    assert events_of(tokenizer, CALL, calls=False) == [Content(CALL)]
    typed = tokenizer.encode(CALL, False)
    assert parse(tokenizer, typed) == [Content(CALL)]


PIECES = ("<tool_call>", "</tool_call>", "<think>", "</think>", "x", "\n", '{"name": "f"', ', "arguments": {', "}", '"')


@given(st.lists(st.sampled_from(PIECES)), st.booleans())
def test_nothing_raises_and_no_text_is_lost(tokenizer, pieces, thinking) -> None:
    """Except newlines and what a call is made of."""
    events = events_of(tokenizer, "".join(pieces), thinking)
    assert sum("x" in piece for piece in pieces) == sum(getattr(event, "text", "").count("x") for event in events)
    starts = [event.index for event in events if isinstance(event, ToolCallStart)]
    assert starts == list(range(len(starts)))


def test_a_conversation_goes_back_into_the_template_as_it_was_written(tokenizer, template) -> None:
    function = {"name": "weather", "arguments": '{"city": "Rome", "days": 3}'}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": None, "reasoning_content": "hm",
         "tool_calls": [{"id": "functions.weather:0", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "functions.weather:0", "content": "sun"},
    ]  # fmt: skip
    ids = template.encode(tokenizer, messages, tools=TOOLS)
    text = tokenizer.decode(ids)
    assert f"<think>\nhm\n</think>\n\n{CALL}<|im_end|>" in text
    assert text.endswith("<|im_start|>user\n<tool_response>\nsun\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    off = tokenizer.decode(template.encode(tokenizer, messages[:1], thinking=False))
    assert off.endswith("<think>\n\n</think>\n\n")
    messages[0]["content"] = "</think><tool_call>"
    typed = template.encode(tokenizer, messages[:1])
    assert tokenizer.special_id("<tool_call>") not in typed


@pytest.mark.parametrize("choice", ["required", "named"])
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("thinking", [True, False])
def test_forced_calls(house, choice, parallel, thinking) -> None:
    def read(ids: list[int]) -> list[Event]:
        return parse(house.tokenizer, ids, thinking)

    check_forced_calls(house, read, choice, parallel, thinking=thinking)


def test_offered_calls(house) -> None:
    grammar = house.compile(tools=(WEATHER_TOOL, FREE_TOOL))
    assert house.follows(grammar, "It rains.")
    assert house.follows(grammar, f"Let me see.\n{CALL}\n{NOTE}")
    assert house.follows(grammar, CALL.replace('": ', '":').replace(", ", ","))
    assert not house.follows(grammar, CALL[: -len("</tool_call>")])
    assert not house.follows(grammar, CALL + "more")
    assert not house.follows(grammar, CALL.replace("3", "15"))
    assert not house.follows(grammar, CALL.replace("weather", "other"))
    assert not house.follows(grammar, CALL.replace("\n</", "</"))
    single = house.compile(tools=(WEATHER_TOOL, FREE_TOOL), parallel=False)
    assert house.follows(single, CALL)
    assert not house.follows(single, f"{CALL}\n{NOTE}")


def test_references_stay_within_their_tool(house) -> None:
    def tool(name: str, kind: str) -> ToolRule:
        inner = {"$defs": {"x": {"type": kind}}, "type": "object", "properties": {"v": {"$ref": "#/$defs/x"}}}
        return ToolRule(name, inner | {"required": ["v"], "additionalProperties": False}, strict=True)

    grammar = house.compile(tools=(tool("a", "integer"), tool("b", "boolean")))
    made = '<tool_call>\n{"name": "%s", "arguments": {"v": %s}}\n</tool_call>'
    for name, value, right in (("a", 7, True), ("a", "true", False), ("b", "true", True), ("b", 7, False)):
        assert house.follows(grammar, made % (name, value)) is right


def test_a_format_in_place_of_calls_and_schemas_that_can_not_bind(house, tokenizer) -> None:
    grammar = house.compile(format="choice", value=["yes", "no"], tools=(FREE_TOOL,))
    assert house.follows(grammar, "yes")
    assert house.follows(grammar, NOTE)
    odd = ToolRule("odd", {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}})
    lenient = house.compile(tools=(odd,), choice="required")
    assert house.follows(lenient, '<tool_call>\n{"name": "odd", "arguments": {"a": 1}}\n</tool_call>')
    with pytest.raises(TextError, match="The schema of the tool 'odd'"):
        house.compile(tools=(ToolRule("odd", odd.parameters, strict=True),))
    with pytest.raises(TextError, match="no form for tool calls"):
        Grammars(tokenizer, house.vocab_size, [house.end], None).compile(
            OutputRule(tools=(FREE_TOOL,), choice="required")
        )
