"""Masks: every reply drawn under them has the requested form."""

import json
import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from earthshine.errors import TextError
from earthshine.text import Grammars, OutputRule, load_tokenizer

from .grammars import FREE_TOOL, WEATHER, WEATHER_TOOL, House, is_weather


def test_schema(each: House) -> None:
    grammar = each.compile(format="json_schema", value=WEATHER)
    values = [json.loads(text) for text in each.texts(grammar, 8)]
    assert all(map(is_weather, values)), values
    assert len({json.dumps(value) for value in values}) > 1
    assert each.follows(grammar, '{"city": "Rome", "days": 3, "unit": "C"}')
    assert not each.follows(grammar, '{"city": "Rome", "days": 15}')
    assert not each.follows(grammar, '{"city": "Rome"}')


def test_json_object(each: House) -> None:
    grammar = each.compile(format="json_object")
    assert all(isinstance(json.loads(text), dict) for text in each.texts(grammar, 8, hurry=0.8))
    assert each.follows(grammar, '{"a": [1, {"b":null}], "é":"中\\n"}')
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
    replies = {house.tokenizer.decode(house.reply(grammar, seed) or []) for seed in range(4)}
    assert replies <= set(choices)
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


def test_a_thought_may_be_opened(house: House) -> None:
    """Some templates leave it to the model to write the marker itself."""
    grammar = house.compile(format="choice", value=["yes"], may_think=True)
    assert house.follows(grammar, "yes")
    assert house.follows(grammar, "<think>Hm, no.</think>yes")
    assert not house.follows(grammar, "<think>Hm.</think><think>Hm.</think>yes")
    assert not house.follows(house.compile(format="choice", value=["yes"]), "<think></think>yes")


def test_a_thought_has_its_bound(house: House) -> None:
    thought = house.tokenizer.encode("One, two.", allow_special=False)
    for rule in ({"thinking": True}, {"may_think": True}):
        begin = "" if "thinking" in rule else "<think>"
        grammar = house.compile(**rule, thought_tokens=len(thought))
        assert house.follows(grammar, begin + "One, two.</think>Three, as long as it likes to be.")
        assert house.follows(grammar, begin + "One</think>")
        assert not house.follows(grammar, begin + "One, two. </think>")
    assert not house.follows(house.compile(may_think=True, thought_tokens=0), "<think></think>yes")
    assert house.follows(house.compile(thinking=True, thought_tokens=0), "</think>yes")


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


def test_tokens_outside_the_grammar_are_refused(house: House) -> None:
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
