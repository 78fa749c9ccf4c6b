"""Qwen3-Coder's form: tool calls as tags, parsed from ids with types from their schemas, and constrained to these."""

import json
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
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    ToolRule,
    load_template,
    load_tokenizer,
    region_parser,
)
from earthshine.text.tokenizer import Tokenizer

from . import qwen
from .grammars import FREE_TOOL, WEATHER_TOOL, House, check_forced_calls, parsed

WRITE = {
    "type": "object",
    "properties": {
        "path": {"type": "string"}, "text": {"type": "string"}, "mode": {"type": ["integer", "null"]},
        "force": {"type": "boolean"}, "lines": {"type": "array"}, "ratio": {"type": "number"},
        "options": {"$ref": "#/$defs/options"}, "what": {},
        "either": {"anyOf": [{"type": "string"}, {"type": "number"}]},
    },
    "$defs": {"options": {"type": "object"}},
    "required": ["path"],
}  # fmt: skip
SCHEMAS = {"weather": WEATHER_TOOL.parameters, "write": WRITE, "note.take": None}
CALL = """<tool_call>
<function=weather>
<parameter=city>
Rome
</parameter>
<parameter=days>
3
</parameter>
</function>
</tool_call>"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return qwen.write(tmp_path_factory.mktemp("coder"), qwen.CODER_TEMPLATE)


@pytest.fixture(scope="session")
def tokenizer(folder) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def template(folder) -> ChatTemplate:
    return load_template(folder)


class CoderHouse(House):
    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.grammars = Grammars(tokenizer, self.vocab_size, [self.end], CallForm.XML)
        for token in range(tokenizer.vocab_size):
            self.ways_out[token] |= tokenizer.token_bytes(token) in (b"<", b"/", b"\n")


@pytest.fixture(scope="session")
def house(tokenizer) -> House:
    return CoderHouse(tokenizer)


def parse(tokenizer: Tokenizer, text: str) -> list[Event]:
    parser = region_parser(tokenizer, CallForm.XML, thinking=False, schemas=SCHEMAS)
    return parsed(parser, tokenizer.encode(text, True))


def call(index: int, name: str, arguments: str) -> list[Event]:
    start = ToolCallStart(index, f"functions.{name}:{index}", name)
    return [start, ToolCallArguments(index, arguments), ToolCallEnd(index)]


def value_of(tokenizer: Tokenizer, name: str, value: str) -> Any:
    """What the argument of one call comes to."""
    written = f"<tool_call>\n<function=write>\n<parameter={name}>\n{value}\n</parameter>\n</function>\n</tool_call>"
    start, arguments, end = parse(tokenizer, written)
    assert isinstance(start, ToolCallStart)
    assert isinstance(arguments, ToolCallArguments)
    assert isinstance(end, ToolCallEnd)
    return json.loads(arguments.text)[name]


def test_calls_one_after_the_other(tokenizer) -> None:
    note = "<tool_call>\n<function=note.take>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
    found = parse(tokenizer, f"Let me see.\n\n{CALL}\n{note}")
    weather = call(0, "weather", '{"city": "Rome", "days": 3}')
    assert found == [Content("Let me see."), *weather, *call(1, "note.take", '{"x": "1"}')]


def test_two_functions_between_one_pair_of_markers(tokenizer) -> None:
    both = CALL.replace("\n</tool_call>", "\n<function=note.take>\n</function>\n</tool_call>")
    assert parse(tokenizer, both) == [
        *call(0, "weather", '{"city": "Rome", "days": 3}'), *call(1, "note.take", "{}"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("text", "3", "3"), ("text", "true", "true"), ("text", '"a"', '"a"'), ("text", "", ""),
        ("text", "\n a\n\nb \n", "\n a\n\nb \n"), ("text", 'a "b" \\ \t中🙂', 'a "b" \\ \t中🙂'),
        ("text", "<a>\n</a>\n</function>\nx", "<a>\n</a>\n</function>\nx"),
        ("text", "a</parameter>b\n</parameter> c", "a</parameter>b\n</parameter> c"),
        ("text", "\n<parameter=odd>\n1", "\n<parameter=odd>\n1"),
        ("mode", "3", 3), ("mode", "3.0", 3), ("mode", "null", None), ("mode", "None", None), ("mode", "x", "x"),
        ("force", "True", True), ("force", "false", False), ("force", "yes", "yes"),
        ("lines", '["a", [1]]', ["a", [1]]), ("lines", '\n["a",\n 2]\n', ["a", 2]), ("lines", "[1", "[1"),
        ("ratio", "0.5", 0.5), ("ratio", "2", 2), ("ratio", "NaN", "NaN"), ("ratio", "1e9999", "1e9999"),
        ("options", '{"a": {"b": null}}', {"a": {"b": None}}), ("options", "{}", {}),
        ("what", "12", 12), ("what", "twelve", "twelve"), ("what", '{"a": 1}', {"a": 1}),
        ("either", "1.5", 1.5), ("either", "one", "one"), ("unknown", "1", "1"),
    ],
)  # fmt: skip
def test_values_have_the_types_of_their_schema(tokenizer, name, text, value) -> None:
    found = value_of(tokenizer, name, text)
    assert (found, type(found)) == (value, type(value))


def test_texts_are_passed_on_before_their_end(tokenizer) -> None:
    parser = region_parser(tokenizer, CallForm.XML, thinking=False, schemas=SCHEMAS)
    text = '<tool_call>\n<function=write>\n<parameter=mode>\n4\n</parameter>\n<parameter=text>\nx = "a"\nif x'
    events = [event for token in tokenizer.encode(text, True) for event in parser.push(token)]
    assert events[0] == ToolCallStart(0, "functions.write:0", "write")
    assert "".join(event.text for event in events[1:]) == '{"mode": 4, "text": "x = \\"a\\"\\nif x'
    assert parser.flush() == []  # broken off: no end


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (CALL.replace("</parameter>\n</function>\n", "</parameter>\n"), '{"city": "Rome", "days": 3}'),
        (CALL.replace("</parameter>\n</function>\n", ""), '{"city": "Rome", "days": 3}'),
        (CALL.replace("</parameter>\n</function>", "</function>"), '{"city": "Rome", "days": 3}'),
        (CALL.replace("</parameter>\n<parameter=days", "<parameter=days"), '{"city": "Rome", "days": 3}'),
        (CALL.replace("\n", ""), '{"city": "Rome", "days": 3}'),
        (CALL.replace("\n", "\n\n").replace("\n\nRome\n\n", "\nRome\n"), '{"city": "Rome", "days": 3}'),
        (CALL.removesuffix("\n</tool_call>"), '{"city": "Rome", "days": 3}'),
        ("<tool_call><function=weather></function></tool_call>", "{}"),
        ("<tool_call>\n<function=weather>\n</tool_call>", "{}"),
    ],
)
def test_other_ways_to_write_the_same_call(tokenizer, text, arguments) -> None:
    assert parse(tokenizer, text) == call(0, "weather", arguments)


@pytest.mark.parametrize("body", ["", "hm", "<function=>", "<function=a\n>", '{"name": "f"}', "<parameter=a>\n1"])
def test_text_that_is_not_a_call_becomes_content(tokenizer, body) -> None:
    text = f"a\n<tool_call>\n{body}\n</tool_call>b"
    assert parse(tokenizer, text) == [Content(text)]


def test_text_beside_the_tags_is_content(tokenizer) -> None:
    odd = CALL.replace("<parameter=city>", "why\n<parameter=city>").replace("</function>", "</function>\nhm")
    assert parse(tokenizer, odd) == [*call(0, "weather", '{"city": "Rome", "days": 3}'), Content("why\nhm\n")]


GAP = "\n" * 70  # so much white space after an end tag ends the value


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize(
    ("body", "arguments", "content"),
    [
        ("\nSorry, I should add", "", "Sorry, I should add"),
        (f"<parameter=city>\nRome\n</parameter>{GAP}Sorry, I should add", '{"city": "Rome"', "Sorry, I should add"),
        ("why<parameter=city>\nRome\n</parameter>\n<parameter=<b", '{"city": "Rome"', "why<parameter=<b"),
        ("why<parameter=days>\n3\n</parameter>", '{"days": 3', "why"),
    ],
)
def test_text_between_values_is_content_at_the_end_of_a_call(tokenizer, body, arguments, content, closed) -> None:
    found = parse(tokenizer, f"<tool_call>\n<function=weather>{body}{'</tool_call>' if closed else ''}")
    expected: list[Event] = [ToolCallStart(0, "functions.weather:0", "weather")]
    if closed:
        expected += [ToolCallArguments(0, arguments + "}" if arguments else "{}"), ToolCallEnd(0)]
    elif arguments:
        expected.append(ToolCallArguments(0, arguments))
    assert found == [*expected, Content(content)]


@pytest.mark.parametrize("cut", ["<", "<param", "<parameter=da", "</func"])
def test_tag_that_the_reply_cuts_is_not_content(tokenizer, cut) -> None:
    begun = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n"
    assert parse(tokenizer, begun + "<parameter=days>\n3\n</parameter>\n" + cut)[-1] == ToolCallArguments(
        0, '{"city": "Rome", "days": 3'
    )


PIECES = ("<tool_call>", "</tool_call>", "<function=write>", "</function>", "<parameter=text>", "<parameter=mode>",
          "</parameter>", "x", "\n", "7", '"')  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_nothing_raises_and_no_text_is_lost(tokenizer, pieces) -> None:
    events = parse(tokenizer, "".join(pieces))
    assert sum("x" in piece for piece in pieces) == sum(getattr(event, "text", "").count("x") for event in events)
    starts = [event.index for event in events if isinstance(event, ToolCallStart)]
    assert starts == list(range(len(starts)))
    for event in events:
        if isinstance(event, ToolCallEnd):
            texts = [each.text for each in events if isinstance(each, ToolCallArguments) and each.index == event.index]
            assert isinstance(json.loads("".join(texts)), dict)


@given(st.text(alphabet="a\n</>=parmetfuncio ", max_size=60))
def test_text_value_is_parsed_unchanged(tokenizer, value) -> None:
    """Unless a tag of the form follows an end tag in it."""
    if "</parameter>" not in value and "<parameter=" not in value:
        assert value_of(tokenizer, "text", value) == value


def test_a_conversation_goes_back_into_the_template_as_it_was_written(tokenizer, template) -> None:
    function = {"name": "weather", "arguments": '{"city": "Rome", "days": 3}'}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "a", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "a", "content": "sun"},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER_TOOL.parameters}}]
    text = tokenizer.decode(template.encode(tokenizer, messages, tools=tools))
    assert f"<|im_start|>assistant\n{CALL}<|im_end|>" in text
    assert text.endswith("<tool_response>\nsun\n</tool_response>\n<|im_end|>\n<|im_start|>assistant\n")
    function["arguments"] = '{"city": "Ro'  # broken off: the conversation goes on
    assert '<parameter=arguments>\n{"city": "Ro\n' in tokenizer.decode(template.encode(tokenizer, messages))
    function["arguments"] = '{"city": "\\u003ctool_call\\u003e"}'
    ids = template.encode(tokenizer, messages)
    assert ids.count(tokenizer.special_id("<tool_call>")) == 1  # the template's own


@pytest.mark.parametrize("choice", ["required", "named"])
@pytest.mark.parametrize("parallel", [True, False])
def test_forced_calls(house, choice, parallel) -> None:
    check_forced_calls(house, lambda ids: parse(house.tokenizer, house.tokenizer.decode(ids)), choice, parallel)


def test_offered_calls(house) -> None:
    grammar = house.compile(tools=(WEATHER_TOOL, FREE_TOOL))
    note = "<tool_call>\n<function=note.take>\n<parameter=x>\n</a>\n\n</parameter>\n</function>\n</tool_call>"
    assert house.follows(grammar, "It rains.")
    assert house.follows(grammar, f"Let me see.\n{CALL}\n{note}")
    assert house.follows(grammar, CALL.replace("</function>", "<parameter=unit>\nC\n</parameter>\n</function>"))
    for wrong in ("15", "three", "3.5", "3</parameter>", ""):
        assert not house.follows(grammar, CALL.replace("\n3\n", f"\n{wrong}\n"))
    assert not house.follows(grammar, CALL.replace("Rome", "Rome, Italy"))  # over 8 characters
    assert not house.follows(grammar, CALL.replace("=weather", "=other"))
    assert not house.follows(grammar, CALL.replace("city", "town"))
    assert not house.follows(grammar, CALL.replace("</function>", "<parameter=unit>\nK\n</parameter>\n</function>"))
    assert not house.follows(grammar, CALL[: -len("</tool_call>")])
    assert not house.follows(grammar, CALL + "more")
    single = house.compile(tools=(WEATHER_TOOL, FREE_TOOL), parallel=False)
    assert house.follows(single, CALL)
    assert not house.follows(single, f"{CALL}\n{note}")


def _strict(properties: dict[str, Any], **words: Any) -> ToolRule:
    schema = {"type": "object", "properties": properties, "required": list(properties), **words}
    return ToolRule("odd", schema, strict=True)


def _bare(**words: Any) -> ToolRule:
    return ToolRule("odd", {"type": "object", **words}, strict=True)


@pytest.mark.parametrize("others", [{}, {"description": "any"}, True])
def test_strict_tools_without_properties_take_any_argument(house, others) -> None:
    grammar = house.compile(tools=(_bare(additionalProperties=others, required=[]),), choice="required")
    made = "<tool_call>\n<function=odd>\n<parameter=v>\na\n</parameter>\n</function>\n</tool_call>"
    assert house.follows(grammar, made)


def test_a_pattern_is_never_read_as_grammar(house) -> None:
    """A slash after an escaped backslash would end the regex, and what follows it would permit `free`."""
    made = "<tool_call>\n<function=odd>\n<parameter=v>\n%s\n</parameter>\n</function>\n</tool_call>"
    tool = _strict({"v": {"type": "string", "pattern": r'a\\/ | "free" | /b'}})
    grammar = house.compile(tools=(tool,), choice="required")
    assert house.follows(grammar, made % r"a\/ ")
    assert not house.follows(grammar, made % "free")
    unbalanced = _strict({"v": {"type": "string", "pattern": r'a)\\/ | "free" | /(?:b'}})
    with pytest.raises(TextError, match="'pattern' can't be enforced"):
        house.compile(tools=(unbalanced,), choice="required")


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "string", "pattern": "^[a-c]+$"}, ["abc"], ["", "abd"]),
        ({"type": "string", "pattern": "[0-9]/x"}, ["a1/x b"], ["a/x"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "a\nb"], ["a", "abcd"]),
        ({"type": "string", "pattern": "^(?:ab|c[|)$^/])$"}, ["ab", "c|", "c)", "c$", "c/"], ["a", "c", "abc"]),
        ({"type": "string", "pattern": r"^a\\/b$"}, ["a\\/b"], ["a/b", "a\\\\/b"]),
        ({"type": "string", "pattern": r"^a\\\/$"}, ["a\\/"], ["a/"]),
        ({"type": "string", "minLength": 2.0, "pattern": "b"}, ["ab", "a\nb"], ["b", "ac"]),
        ({"const": "yes"}, ["yes"], ["no", '"yes"']),
        ({"enum": ["a", "bb", 'c"\nd'], "minLength": 2}, ["bb", 'c"\nd'], ["a", "ab", ""]),
        ({"enum": ["a", "bb"], "maxLength": 1}, ["a"], ["bb"]),
        ({"enum": ["a", "bb"], "const": "bb"}, ["bb"], ["a"]),
        ({"type": "string", "enum": ["ab", "b", 'a"\n/'], "pattern": "^a"}, ["ab", 'a"\n/'], ["b", "a", "abc"]),
        ({"enum": [1, 2]}, ["1"], ["3", '"1"']),
        ({"type": "boolean"}, ["true"], ["True", "yes"]),
        ({"type": "array", "items": {"type": "integer"}}, ["[1, 2]", "[1,2]", "[]"], ["[1, x]", "1"]),
        ({"$ref": "#/$defs/point"}, ['{"x": 1}'], ['{"x": "a"}', "1"]),
        ({"type": "object", "properties": {"p": {"$ref": "#/$defs/point"}}, "required": ["p"]},
         ['{"p": {"x": 1}}'], ['{"p": {}}']),
        ({"type": ["string", "null"]}, ["null", "anything\n<b>"], []),
    ],
)  # fmt: skip
def test_strict_values(house, schema, right, wrong) -> None:
    point = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    grammar = house.compile(tools=(_strict({"v": schema}, **{"$defs": {"point": point}}),), choice="required")
    made = "<tool_call>\n<function=odd>\n<parameter=v>\n%s\n</parameter>\n</function>\n</tool_call>"
    assert all(house.follows(grammar, made % text) for text in right)
    assert not any(house.follows(grammar, made % text) for text in wrong)


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (
            _strict({"v": {"type": "string", "format": "date"}}),
            "'format' can't be enforced in this model's tool-call format",
        ),
        (_strict({"v": {"type": "string", "pattern": "^a|b$"}}), "'pattern' can't be enforced"),
        (_strict({"v": {"type": ["string", "null"], "maxLength": 3}}), "'maxLength' can't be enforced"),
        (_strict({"v": {"type": "string"}}, minProperties=2), "'minProperties' can't be enforced"),
        (_bare(patternProperties={"^a": {"type": "string"}}), "'patternProperties' can't be enforced"),
        (_bare(propertyNames={"minLength": 2, "pattern": "a"}), "'propertyNames' can't be enforced"),
        (_bare(anyOf=[{"required": ["a"]}, {"required": ["b"]}]), "'anyOf' can't be enforced"),
        (_bare(allOf=[{"properties": {"a": {"type": "string"}}}]), "'allOf' can't be enforced"),
        (ToolRule("odd", {"$ref": "#/$defs/a", "$defs": {"a": {}}}, strict=True), "'\\$ref' can't be enforced"),
        (_bare(minProperties=1), "'minProperties' can't be enforced"),
        (_bare(required=["a"]), "'required' can't be enforced"),
        (_bare(additionalProperties={"type": "string"}), "'additionalProperties' can't be enforced"),
        (_strict({"v": {"enum": ["a", "b"], "minLength": 2}}), "no text fits 'enum' and 'minLength' together"),
        (_strict({"v": {"enum": ["a", "b"], "const": "c"}}), "no text fits 'enum' and 'const' together"),
        (_strict({"v": {"enum": ["a", "b"], "pattern": "^c"}}), "'pattern' with the keywords beside it can't be used"),
        (_strict({"v": {"type": "string", "enum": []}}), "'enum' can't be enforced"),
        (_strict({"v": {"type": "string", "maxLength": 1 << 20}}), "'maxLength' can't be enforced"),
        (_strict({"v": {"type": "string", "pattern": "^a)|(?:b$"}}), "'pattern' can't be enforced"),
        (_strict({"v": {"type": "string", "pattern": "a^b"}}), "'pattern' can't be enforced"),
        (_strict({"a>b": {"type": "string"}}), "the argument 'a>b', a name that this model's tool-call format can't"),
        (ToolRule("odd", {"type": "array"}, strict=True), 'must have the type "object"'),
    ],
)
def test_strict_schemas_that_this_form_can_not_hold_are_refused_by_name(house, tool, message) -> None:
    with pytest.raises(TextError, match=message):
        house.compile(tools=(tool,), choice="required")
    lenient = ToolRule(tool.name, tool.parameters)
    if "type" in message:
        return
    assert house.compile(tools=(lenient,), choice="required") is not None
