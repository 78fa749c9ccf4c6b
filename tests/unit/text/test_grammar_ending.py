"""JSON that a model would end too early is completed as its schema requires."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from earthshine.text import Grammar, ToolRule

from .grammars import FREE_TOOL, SECTION, WEATHER, House

TEXT: dict[str, Any] = {"type": "string"}


def _closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


CHAIN = {"$ref": "#/$defs/link", "$defs": {"link": _closed(
    before={"anyOf": [{"$ref": "#/$defs/link"}, {"type": "null"}]}, weight={"type": "number"},
)}}  # fmt: skip
TREE = {"$ref": "#/$defs/node", "$defs": {"node": _closed(
    kind={"enum": ["leaf", "branch"]}, marks={"type": "array", "items": _closed(key=TEXT, text=TEXT)},
    below={"type": "array", "items": {"$ref": "#/$defs/node"}},
)}}  # fmt: skip
RECORD = {"type": "object", "properties": {"size": {"type": "integer"}}, "additionalProperties": {
    "type": "object", "properties": {"size": TEXT}, "additionalProperties": True,
}}  # fmt: skip
EITHER = {"type": "array", "minItems": 2, "items": {"anyOf": [_closed(a=TEXT, n={"type": "number"}), _closed(b=TEXT)]}}
NESTED = {"type": "array", "items": {"type": "array", "items": {"anyOf": [{"type": "object"}, TEXT]}}}
COUNTED = _closed(
    n={"type": "integer", "minimum": 100}, name={"type": "string", "minLength": 3}, more={"type": "array"}
)

_Check = Callable[[Any], bool]
KINDS: list[tuple[dict[str, Any], _Check]] = [
    (CHAIN, lambda value: set(value) == {"before", "weight"}),
    (TREE, lambda value: set(value) == {"kind", "marks", "below"} and value["kind"] in ("leaf", "branch")),
    (RECORD, lambda value: all(isinstance(inner, dict) or name == "size" for name, inner in value.items())),
    (EITHER, lambda value: len(value) >= 2 and all(set(item) in ({"a", "n"}, {"b"}) for item in value)),
    (NESTED, lambda value: all(isinstance(inner, list) for inner in value)),
    (COUNTED, lambda value: value["n"] >= 100 and len(value["name"]) >= 3),
    ({"type": "object"}, lambda value: isinstance(value, dict)),
]


def _drawn(house: House, grammar: Grammar, seed: int, args: range, limit: int = 300) -> list[int]:
    """Random tokens; at those of these numbers, the model itself would end its reply."""
    draw, constraint = random.Random(seed), grammar.start()
    ids: list[int] = []
    while len(ids) < args.start + limit:
        mask = constraint.allowed(house.end if len(ids) in args else None)
        token = draw.choice(house.allowed(mask))
        constraint.accept(token)
        if token == house.end:
            return ids
        ids.append(token)
    raise AssertionError(house.tokenizer.decode(ids))


@pytest.mark.parametrize(("schema", "check"), KINDS)
def test_what_is_open_is_closed(house: House, schema: dict[str, Any], check: _Check) -> None:
    grammar = house.compile(format="json_schema", value=schema, strict=True)
    for seed in range(12):
        at = 1 + 3 * seed
        ids = _drawn(house, grammar, seed, range(at, at + 1))
        assert check(json.loads(house.tokenizer.decode(ids)))


@pytest.mark.parametrize("parallel", [True, False])
def test_a_call_is_closed_and_no_other_follows(house: House, parallel: bool) -> None:
    parameters = _closed(root={"$ref": "#/$defs/node"}) | {"$defs": TREE["$defs"]}
    tool = ToolRule("grow", parameters, strict=True)
    grammar = house.compile(tools=(tool,), choice="required", parallel=parallel)
    for seed in range(8):
        text = house.tokenizer.decode(_drawn(house, grammar, seed, range(5 * seed, 1000)))
        assert text.startswith(SECTION)
        assert text.count("functions.grow:") == 1
        arguments = text.partition("<|tool_call_argument_begin|>")[2].partition("<|tool_call_end|>")[0]
        assert set(json.loads(arguments)["root"]) == {"kind", "marks", "below"}


def test_what_the_model_must_choose_stays_its_choice(house: House) -> None:
    grammar = house.compile(
        format="json_schema", value=_closed(way={"enum": ["left", "right"]}, far={"type": "boolean"})
    )
    found = {house.tokenizer.decode(_drawn(house, grammar, seed, range(1, 2))) for seed in range(60)}
    assert {json.dumps(json.loads(text)) for text in found} == {
        json.dumps({"way": way, "far": far}) for way in ("left", "right") for far in (True, False)
    }


def test_model_that_does_not_end_is_not_constrained(house: House) -> None:
    """Nor one that may end where it wishes to, one that ends a thought, and forms that are not JSON."""
    constraint = house.compile(format="json_schema", value=WEATHER).start()
    comma = house.tokenizer.encode(",", allow_special=False)[0]
    for token in house.tokenizer.encode('{"city": "Rome', allow_special=False):
        assert constraint.allowed(comma) is constraint.allowed()
        constraint.accept(token)
    assert len(house.allowed(constraint.allowed(comma))) > 100
    assert {house.tokenizer.token_bytes(token)[:1] for token in house.allowed(constraint.allowed(house.end))} == {b'"'}

    thinking = house.compile(format="json_object", thinking=True).start()
    words = house.compile(format="regex", value="[a-z]{3,}").start()
    for each in (thinking, words):
        mask = each.allowed()
        assert each.allowed(house.end) is mask
    offered = house.compile(tools=(FREE_TOOL,), always=True).start()
    assert offered.allowed(house.end) is offered.allowed()
