"""Masks: whatever a reply draws from them has the form that was asked for, and hostile forms are refused in time."""

import json
import random
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import earthshine
from earthshine.errors import OverloadError, TextError
from earthshine.text import (
    Content,
    Grammar,
    Grammars,
    OutputRule,
    RegionParser,
    Tokenizer,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    ToolRule,
    grammar_compile,
    grammar_tokens,
    load_tokenizer,
)

GLEAM = Path(earthshine.__file__).parent / "gleam"
SPARE = 100  # a model may have more ids than its tokenizer
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER_TOOL = ToolRule("weather", WEATHER, strict=True)
FREE_TOOL = ToolRule("note.take", None)


class House:
    """A tokenizer with its grammars, and random replies under their masks."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        end = tokenizer.special_id("<|im_end|>")
        assert end is not None
        self.end = end
        self.vocab_size = tokenizer.vocab_size + SPARE
        self.grammars = Grammars(tokenizer, self.vocab_size, [end])
        closing = (b'"', b"}", b"]", b'"}', b'"]', b"}}", b",")
        self.ways_out = np.zeros((self.vocab_size + 31) // 32 * 32, np.bool_)
        for token in range(tokenizer.vocab_size):
            self.ways_out[token] = token in tokenizer.controls.by_id or tokenizer.token_bytes(token) in closing

    def compile(self, **rule: Any) -> Grammar:
        grammar = self.grammars.compile(OutputRule(**rule))
        assert grammar is not None
        return grammar

    def bits(self, mask: Any) -> Any:
        """A flag for each id, up to the end of the mask's last word."""
        assert mask.dtype == np.int32
        assert mask.shape == ((self.vocab_size + 31) // 32,)
        return np.unpackbits(mask.view(np.uint8), bitorder="little").view(np.bool_)

    def allowed(self, mask: Any) -> list[int]:
        ids: list[int] = np.flatnonzero(self.bits(mask)).tolist()
        return ids

    def reply(self, grammar: Grammar, seed: int, hurry: float = 0.5, limit: int = 400) -> list[int] | None:
        """Random allowed tokens up to the stop token, which is left out; None where the limit comes first."""
        draw, constraint = random.Random(seed), grammar.start()
        ids: list[int] = []
        for _ in range(limit):
            bits = self.bits(constraint.allowed())
            assert not bits[self.tokenizer.vocab_size :].any()
            ways_out = np.flatnonzero(bits & self.ways_out)
            allowed = ways_out if len(ways_out) and draw.random() < hurry else np.flatnonzero(bits)
            token = int(allowed[draw.randrange(len(allowed))])
            constraint.accept(token)
            if token == self.end:
                return ids
            ids.append(token)
        return None

    def texts(self, grammar: Grammar, n: int, hurry: float = 0.5) -> list[str]:
        found = [self.reply(grammar, seed, hurry) for seed in range(n)]
        texts = [self.tokenizer.decode(ids) for ids in found if ids is not None]
        assert len(texts) >= n // 2, "too few replies came to an end to show anything"
        return texts

    def follows(self, grammar: Grammar, text: str) -> bool:
        """Whether this reply, its markers as control tokens, is allowed to its end."""
        constraint = grammar.start()
        for token in [*self.tokenizer.encode(text, allow_special=True), self.end]:
            if not self.bits(constraint.allowed())[token]:
                return False
            constraint.accept(token)
        return True


@pytest.fixture(scope="module")
def house() -> House:
    return House(load_tokenizer(GLEAM))


@pytest.fixture(scope="module", params=["gleam", "kimi"])
def each(request: pytest.FixtureRequest) -> House:
    return House(load_tokenizer(GLEAM) if request.param == "gleam" else request.getfixturevalue("kimi"))


def _is_weather(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and {"city", "days"} <= set(value) <= {"city", "days", "unit"}
        and isinstance(value["city"], str)
        and len(value["city"]) <= 8
        and type(value["days"]) is int
        and 1 <= value["days"] <= 14
        and value.get("unit", "C") in ("C", "F")
    )


def test_schema(each: House) -> None:
    grammar = each.compile(format="json_schema", value=WEATHER)
    values = [json.loads(text) for text in each.texts(grammar, 8)]
    assert all(map(_is_weather, values)), values
    assert len({json.dumps(value) for value in values}) > 1
    assert each.follows(grammar, '{"city": "Rome", "days": 3, "unit": "C"}')
    assert not each.follows(grammar, '{"city": "Rome", "days": 15}')
    assert not each.follows(grammar, '{"city": "Rome"}')


def test_json_object(each: House) -> None:
    grammar = each.compile(format="json_object")
    assert all(isinstance(json.loads(text), dict) for text in each.texts(grammar, 8, hurry=0.8))
    assert each.follows(grammar, '{\n  "a": [1, {"b": null}],\n  "é": "中\\n"\n}')
    assert not each.follows(grammar, "[1]")


LEAVES: list[tuple[dict[str, Any], Callable[[Any], bool]]] = [
    ({"type": "boolean"}, lambda value: isinstance(value, bool)),
    ({"type": "integer", "minimum": -3, "maximum": 300}, lambda value: type(value) is int and -3 <= value <= 300),
    ({"enum": ["a", 1, None]}, lambda value: value in ("a", 1, None)),
    ({"const": "x y"}, lambda value: value == "x y"),
    ({"type": "string", "pattern": "^[a-c]{2,3}$"}, lambda value: re.fullmatch("[a-c]{2,3}", value) is not None),
    ({"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 4}, lambda value: 2 <= len(value) <= 4),
    ({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 99}, lambda value: value % 7 == 0),
]
Checked = tuple[dict[str, Any], Callable[[Any], bool]]


def _array(item: Checked) -> Checked:
    schema, check = item
    right = {"type": "array", "items": schema, "minItems": 1, "maxItems": 2}
    return right, lambda value: 1 <= len(value) <= 2 and all(map(check, value))


def _object(first: Checked, second: Checked) -> Checked:
    schema = {
        "type": "object", "properties": {"a": first[0], "b": second[0]}, "required": ["a"],
        "additionalProperties": False,
    }  # fmt: skip
    return schema, lambda value: first[1](value["a"]) and ("b" not in value or second[1](value["b"]))


SCHEMAS = st.recursive(
    st.sampled_from(LEAVES), lambda inner: inner.map(_array) | st.tuples(inner, inner).map(lambda two: _object(*two)),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(SCHEMAS, st.integers(0, 1 << 20))
def test_any_schema_is_kept(house: House, checked: Checked, seed: int) -> None:
    ids = house.reply(house.compile(format="json_schema", value=checked[0]), seed, hurry=0.8)
    if ids is not None:
        assert checked[1](json.loads(house.tokenizer.decode(ids)))


@pytest.mark.parametrize("regex", [r"[a-f]{3}-\d{2}", r"(yes|no)(, (yes|no)){0,3}", r"a/b\.c?", r"^x+$", "é中|\\\\\n"])
def test_regex(house: House, regex: str) -> None:
    for text in house.texts(house.compile(format="regex", value=regex), 8, hurry=0.9):
        assert re.fullmatch(regex, text)


def test_lark(house: House) -> None:
    grammar = house.compile(format="grammar", value='start: SUM ("+" SUM)*\nSUM: /[0-9]{1,3}/')
    for text in house.texts(grammar, 8, hurry=0.9):
        assert re.fullmatch(r"\d{1,3}(\+\d{1,3})*", text)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), min_size=1, max_size=5))
def test_choice(house: House, choices: list[str]) -> None:
    choices = [*choices, choices[0] + "<|im_end|>"]
    grammar = house.compile(format="choice", value=choices)
    said = {house.tokenizer.decode(house.reply(grammar, seed) or []) for seed in range(4)}
    assert said <= set(choices)
    for choice in choices:
        ids, constraint = house.tokenizer.encode(choice, allow_special=False), grammar.start()
        for token in [*ids, house.end]:
            constraint.accept(token)


def test_thoughts_come_first(house: House) -> None:
    unthink = house.tokenizer.special_id("</think>")
    grammar = house.compile(format="choice", value=["yes"], thinking=True)
    constraint = grammar.start()
    free = house.allowed(constraint.allowed())
    assert set(free) & set(house.tokenizer.controls.by_id) == {unthink}
    assert len(free) == house.tokenizer.vocab_size - 256 + 1
    assert house.follows(grammar, "Hm, {no}.\n</think>yes")
    assert house.follows(grammar, "</think>yes")
    assert not house.follows(grammar, "yes")
    assert not house.follows(grammar, "hm</think>no")


def _calls(house: House, ids: list[int], thinking: bool = False) -> tuple[list[tuple[str, str, str]], str]:
    """(id, name, arguments) of each complete call, and the content, as the parser of replies sees them."""
    parser = RegionParser(house.tokenizer, thinking=thinking)
    events = [event for token in ids for event in parser.push(token)] + parser.flush()
    starts = [event for event in events if isinstance(event, ToolCallStart)]
    assert [event.index for event in events if isinstance(event, ToolCallEnd)] == list(range(len(starts)))
    arguments = [""] * len(starts)
    for event in events:
        if isinstance(event, ToolCallArguments):
            arguments[event.index] += event.text
    calls = [(start.id, start.name, text) for start, text in zip(starts, arguments, strict=True)]
    return calls, "".join(event.text for event in events if isinstance(event, Content))


@pytest.mark.parametrize("choice", ["required", "named"])
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("thinking", [True, False])
def test_forced_calls(house: House, choice: Literal["required", "named"], parallel: bool, thinking: bool) -> None:
    grammar = house.compile(
        tools=(WEATHER_TOOL, FREE_TOOL),
        choice=choice,
        name="weather",
        parallel=parallel,
        thinking=thinking,
        first_index=9,
    )
    ended = 0
    for seed in range(10):
        ids = house.reply(grammar, seed, hurry=0.75)
        if ids is None:
            continue
        ended += 1
        calls, content = _calls(house, ids, thinking)
        assert calls
        assert content == ""
        assert parallel or len(calls) == 1
        for index, (call_id, name, text) in enumerate(calls, 9):
            assert call_id == f"functions.{name}:{index}"
            assert _is_weather(json.loads(text)) if name == "weather" else isinstance(json.loads(text), dict)
            assert choice == "required" or name == "weather"
    assert ended >= 5


SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL = '<|tool_call_begin|>functions.weather:%d<|tool_call_argument_begin|>{"city":"Rome","days":3}<|tool_call_end|>'
NOTE = '<|tool_call_begin|>functions.note.take:%d<|tool_call_argument_begin|>{"x":[1]}<|tool_call_end|>'


def test_offered_calls(house: House) -> None:
    grammar = house.compile(tools=(WEATHER_TOOL, FREE_TOOL))
    assert house.follows(grammar, "It rains.")
    assert house.follows(grammar, "Let me see." + SECTION + CALL % 0 + NOTE % 1 + SECTION_END)
    assert house.follows(grammar, SECTION + NOTE % 0 + SECTION_END)
    assert not house.follows(grammar, SECTION + CALL % 1 + SECTION_END)
    assert not house.follows(grammar, SECTION + SECTION_END)
    assert not house.follows(grammar, SECTION + CALL % 0)
    assert not house.follows(grammar, SECTION + CALL % 0 + SECTION_END + "more")
    assert not house.follows(grammar, SECTION + (CALL % 0).replace("3", "15") + SECTION_END)
    assert not house.follows(grammar, SECTION + (CALL % 0).replace("weather", "other") + SECTION_END)
    single = house.compile(tools=(WEATHER_TOOL, FREE_TOOL), parallel=False)
    assert house.follows(single, SECTION + CALL % 0 + SECTION_END)
    assert not house.follows(single, SECTION + CALL % 0 + NOTE % 1 + SECTION_END)


def test_a_format_or_calls(house: House) -> None:
    grammar = house.compile(format="choice", value=["yes", "no"], tools=(FREE_TOOL,))
    assert house.follows(grammar, "yes")
    assert house.follows(grammar, SECTION + NOTE % 0 + SECTION_END)
    assert not house.follows(grammar, "yes" + SECTION + NOTE % 0 + SECTION_END)
    without = house.compile(format="choice", value=["yes", "no"], tools=(FREE_TOOL,), choice="none")
    assert not house.follows(without, SECTION + NOTE % 0 + SECTION_END)


def test_plain_chat_costs_nothing(house: House) -> None:
    for rule in (
        OutputRule(), OutputRule(thinking=True), OutputRule(tools=(FREE_TOOL,)),
        OutputRule(tools=(WEATHER_TOOL,), choice="none"),
    ):  # fmt: skip
        assert house.grammars.compile(rule) is None


def test_none_can_be_enforced(house: House) -> None:
    grammar = house.compile(tools=(FREE_TOOL,), choice="none", always=True)
    assert house.follows(grammar, "any text")
    controls = set(house.tokenizer.controls.by_id) - {house.end}
    assert not controls & set(house.allowed(grammar.start().allowed()))


@pytest.mark.parametrize(
    "rule",
    [
        {"format": "json_object"},
        {"format": "regex", "value": "(?s:.*)"},
        {"format": "grammar", "value": "start: A\nA: ~/(?s:.*)abc(?s:.*)/"},
        {"choice": "none", "always": True},
    ],
)
def test_text_holds_no_control_token(house: House, rule: dict[str, Any]) -> None:
    controls = set(house.tokenizer.controls.by_id) - {house.end}
    constraint, draw = house.compile(**rule).start(), random.Random(1)
    for _ in range(40):
        allowed = house.allowed(constraint.allowed())
        assert not controls & set(allowed)
        token = draw.choice(allowed)
        constraint.accept(token)
        if token == house.end:
            break


def test_what_is_not_allowed_is_refused(house: House) -> None:
    constraint = house.compile(format="choice", value=["yes"]).start()
    for token in (house.end, -1, house.vocab_size, 1 << 40):
        with pytest.raises(TextError, match="not one that"):
            constraint.accept(token)
    mask = constraint.allowed()
    assert constraint.allowed() is mask
    constraint.accept(house.allowed(mask)[0])


def test_replies_do_not_disturb_each_other(house: House) -> None:
    grammar = house.compile(format="json_schema", value=WEATHER)
    assert [house.reply(grammar, 5) for _ in range(2)] == [house.reply(grammar, 5)] * 2
    assert house.compile(format="json_schema", value=WEATHER)._body is grammar._body  # kept


def test_threads_share_the_grammars(house: House) -> None:
    grammars = Grammars(house.tokenizer, house.vocab_size, [house.end])
    rules = [OutputRule(format="json_schema", value={**WEATHER, "title": str(number)}) for number in (1, 2, 1, 2)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(grammars.compile, rules))
    assert len({str(house.reply(grammar, 5)) for grammar in made if grammar is not None}) == 1


def test_unasked_schemas_give_way(house: House) -> None:
    """Without `strict`, what can't be enforced is left out; with it, it is refused."""
    odd = {"type": "object", "properties": {"a": {"const": 1}}, "not": {"required": ["z"]}, "required": ["a"]}
    grammar = house.compile(tools=(ToolRule("f", odd),), choice="required")
    call = "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>%s<|tool_call_end|>"
    assert house.follows(grammar, SECTION + call % '{"a": 1}' + SECTION_END)
    assert not house.follows(grammar, SECTION + call % "{}" + SECTION_END)
    remote = house.compile(tools=(ToolRule("f", {"$ref": "http://x.y/z"}),), choice="required")
    assert house.follows(remote, SECTION + call % '{"b": []}' + SECTION_END)
    with pytest.raises(TextError, match='not supported: "not"'):
        house.compile(tools=(ToolRule("f", odd, strict=True),), choice="required")


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def _chain(length: int) -> dict[str, Any]:
    links = {str(link): {"items": {"items": {"$ref": f"#/$defs/{link + 1}"}}} for link in range(length)}
    return {"$ref": "#/$defs/0", "$defs": links | {str(length): {"type": "string"}}}


@pytest.mark.parametrize(
    ("format_", "value", "said"),
    [
        ("json_schema", 5, "must be an object"),
        ("json_schema", _nested(2000), "nests more than 32"),
        ("json_schema", _chain(4000), "fewer"),
        ("json_schema", {"enum": [f"v{number}" for number in range(100_000)]}, "characters"),
        ("json_schema", {"const": "x" * 200_000}, "'const'"),
        ("json_schema", {"$ref": "#"}, "nothing can match"),
        ("json_schema", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "nothing can match"),
        ("json_schema", {"$ref": "https://example.com/a.json"}, "nothing is fetched"),
        ("json_schema", {"properties": {"a": {"$ref": "other.json#/b"}}}, "nothing is fetched"),
        ("json_schema", {"$ref": "#/$defs/no"}, "does not exist"),
        ("json_schema", {"not": {}}, 'not supported: "not"'),
        ("json_schema", {"type": "array", "uniqueItems": True}, 'not supported: "uniqueItems"'),
        ("json_schema", {"type": "string", "format": "color"}, "format color is not supported"),
        ("json_schema", {"oneOf": [{"type": "string"}, {"minLength": 3}]}, "anyOf"),
        ("json_schema", {"x-guidance": {"lenient": True}, "not": {}}, 'not supported: "not"'),
        ("json_schema", {"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ("json_schema", {"type": "string", "pattern": "(.*a){100000}", "minLength": 10**6}, "length bounds"),
        ("json_schema", {"const": "\ud800"}, "no form"),
        ("json_schema", {"const": float("nan")}, "no form"),
        ("json_schema", {"minimum": 10**5000, "type": "integer"}, "no form"),
        ("json_schema", {"type": "integer", "multipleOf": 1_000_003}, "multipleOf"),
        ("json_schema", {"type": "integer", "multipleOf": 10**5000}, "multipleOf"),
        ("json_schema", {"type": "integer", "multipleOf": float("inf")}, "multipleOf"),
        ("json_schema", {"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}, "multipleOf"),
        ("regex", "a{1000000000}", "too complex"),
        ("regex", "(" * 3000 + "a" + ")" * 3000, "nested"),
        ("regex", "(a", "unclosed group"),
        ("regex", r"(a)\1", "backreferences"),
        ("regex", r"\ba", "look-ahead"),
        ("regex", "[^\\x00-\\U0010FFFF]", "nothing can match"),
        ("regex", "x" * 9000, "8192"),
        ("regex", "\udfff", "surrogate"),
        ("regex", None, "must be a text"),
        ("grammar", "start: nowhere", "nowhere"),
        ("grammar", "begin: /a/", "no start rule"),
        ("grammar", "start: " + "\n".join(f"r{n}\nr{n}: r{n + 1}" for n in range(1500)), "characters|lines"),
        ("grammar", "start: R0\n" + "\n".join(f"R{n}: R{n + 1} R{n + 1}" for n in range(60)) + '\nR60: "a"', "complex"),
        ("grammar", "start: " + "(" * 5000 + '"a"' + ")" * 5000, "too complex"),
        ("grammar", 'start: "x" start', "too complex"),
        ("grammar", 'start: <|im_end|> "a"', "control tokens"),
        ("grammar", "start: <[*]>", "control tokens"),
        ("grammar", "start: <|nothing|>", "control token"),
        ("grammar", 'start: %json {"multipleOf": 1000003}', "json_schema"),
        ("grammar", 'start: "\ud800"', "surrogate"),
        ("choice", [], "1 to 4096"),
        ("choice", "yes", "1 to 4096"),
        ("choice", ["a", ""], "1 to 4096"),
        ("choice", ["a", 5], "1 to 4096"),
        ("choice", ["\ud800"], "surrogate"),
        ("choice", ["x" * 70_000], "characters"),
        ("choice", [str(number) for number in range(5000)], "1 to 4096"),
    ],
)  # fmt: skip
def test_hostile_forms(house: House, format_: Any, value: Any, said: str) -> None:
    with pytest.raises(TextError, match=said) as caught:
        house.compile(format=format_, value=value)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"choice": "required"}, "no tools are given"),
        ({"choice": "named", "name": "other", "tools": (FREE_TOOL,)}, "'other', is not among"),
        ({"tools": (FREE_TOOL, FREE_TOOL)}, "same name"),
        ({"tools": (ToolRule("a b", None),)}, "can't name a tool"),
        ({"tools": (ToolRule("", None),)}, "can't name a tool"),
        ({"tools": tuple(ToolRule(f"f{number}") for number in range(513))}, "at most 512"),
        ({"tools": (ToolRule("f", {"type": "string"}, strict=True),)}, 'type "object"'),
        ({"tools": (ToolRule("f", {"anyOf": 5}, strict=True),)}, "tool 'f' can't be used"),
    ],
)
def test_hostile_tools(house: House, rule: dict[str, Any], said: str) -> None:
    with pytest.raises(TextError, match=said):
        house.compile(**rule)


def test_slow_grammars_are_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = house.compile(format="json_schema", value=WEATHER)
    monkeypatch.setattr(grammar_tokens, "_SLOW_SECONDS", -1.0)
    monkeypatch.setattr(grammar_tokens, "_SLOW_TOTAL_SECONDS", 0.0)
    with pytest.raises(TextError, match="too long to follow"):
        house.reply(grammar, 0)


def test_long_chains_do_not_exhaust_the_stack(house: House) -> None:
    """As long as their size allows; on the usual stack of 8 MiB they ended the process."""
    grammar = house.compile(format="json_schema", value=_chain(2200))
    assert house.follows(grammar, "[[[[[[]]]]]]")
    rules = "start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(490)) + '\nr490: "a"'
    assert house.follows(house.compile(format="grammar", value=rules), "a")


def test_a_reply_fails_alone(house: House) -> None:
    """What exceeds the parser's limits on the way ends that reply with an error."""
    constraint = house.compile(format="regex", value="(.{1,1000}x){1,1000}").start()
    draw = random.Random(0)

    def go_on() -> None:
        for _ in range(5000):
            constraint.accept(draw.choice(house.allowed(constraint.allowed())[1:]))

    with pytest.raises(TextError, match="too complex"):
        go_on()
    assert house.follows(house.compile(format="choice", value=["a"]), "a")


def test_tokenizers_without_markers(tmp_path: Path, ranks: Callable[[Path, list[bytes]], Path]) -> None:
    end = {"256": {"content": "<|im_end|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": end}))
    bare = House(load_tokenizer(ranks(tmp_path, [bytes([byte]) for byte in range(256)])))
    with pytest.raises(TextError, match="no form for tool calls"):
        bare.compile(tools=(WEATHER_TOOL,), choice="required")
    assert bare.grammars.compile(OutputRule(tools=(WEATHER_TOOL,))) is None
    grammar = bare.compile(format="json_schema", value=WEATHER, thinking=True, tools=(WEATHER_TOOL,))
    assert bare.follows(grammar, '{"city": "Rome", "days": 3}')


def test_tokenizers_without_fixed_bytes_are_refused(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.save(str(tmp_path / "tokenizer.json"))
    grammars = Grammars(load_tokenizer(tmp_path), 2, [1])
    assert grammars.compile(OutputRule()) is None
    with pytest.raises(TextError, match="no fixed bytes"):
        grammars.compile(OutputRule(format="json_object"))
    with pytest.raises(TextError, match="below 2"):
        Grammars(load_tokenizer(tmp_path), 2, [2])


def test_a_compilation_that_takes_too_long_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, tokenizer = threading.Event(), house.tokenizer
    grammars = Grammars(tokenizer, house.vocab_size, [house.end])
    monkeypatch.setattr(grammar_compile, "_SECONDS", 0.05)
    monkeypatch.setattr(grammar_compile, "_build", lambda *_: stuck.wait(20))
    for _ in range(2):
        with pytest.raises(TextError, match="simpler"):
            grammars.compile(OutputRule(format="json_object"))
    with pytest.raises(OverloadError, match="try again"):
        grammars.compile(OutputRule(format="json_object"))
    stuck.set()
