"""Tool calls under a mask: which function, how many, and with what arguments."""

from typing import Any, Literal

import pytest

from earthshine.errors import TextError
from earthshine.text import Event, RegionParser, ToolRule
from earthshine.text.grammar_compile import Compiler, CompileTimeout

from .grammars import FREE_TOOL, SECTION, SECTION_END, WEATHER_TOOL, House, check_forced_calls, parsed


@pytest.mark.parametrize("choice", ["required", "named"])
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("thinking", [True, False])
def test_forced_calls(house: House, choice: Literal["required", "named"], parallel: bool, thinking: bool) -> None:
    def read(ids: list[int]) -> list[Event]:
        return parsed(RegionParser(house.tokenizer, thinking=thinking), ids)

    for starts in check_forced_calls(house, read, choice, parallel, thinking=thinking, first_index=9):
        assert [start.id for start in starts] == [f"functions.{each.name}:{n}" for n, each in enumerate(starts, 9)]


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


def test_schemas_without_strict_are_enforced_as_far_as_possible(house: House) -> None:
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


@pytest.mark.parametrize(
    ("rule", "refusal"),
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
def test_hostile_tools(house: House, rule: dict[str, Any], refusal: str) -> None:
    with pytest.raises(TextError, match=refusal):
        house.compile(**rule)


def test_a_named_call_comes_once(house: House) -> None:
    named = house.compile(tools=(WEATHER_TOOL, FREE_TOOL), choice="named", name="note.take")
    assert house.follows(named, SECTION + NOTE % 0 + SECTION_END)
    assert not house.follows(named, SECTION + NOTE % 0 + NOTE % 1 + SECTION_END)
    thinking = house.compile(tools=(FREE_TOOL,), choice="named", name="note.take", may_think=True)
    assert house.follows(thinking, "<think>Hm.</think>" + SECTION + NOTE % 0 + SECTION_END)
    assert not house.follows(thinking, "<think>Hm.</think>Well" + SECTION + NOTE % 0 + SECTION_END)


@pytest.mark.parametrize("kind", ["object", ["object"], ["null", "object"]])
def test_arguments_are_an_object(house: House, kind: Any) -> None:
    grammar = house.compile(tools=(ToolRule("note.take", {"type": kind}, strict=True),))
    assert house.follows(grammar, SECTION + NOTE % 0 + SECTION_END)
    assert not house.follows(grammar, SECTION + (NOTE % 0).replace('{"x":[1]}', "null") + SECTION_END)


@pytest.mark.parametrize("kind", ["lenient schema", "schema"])
def test_schema_that_takes_too_long_is_refused_and_not_left_out(
    house: House, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """How busy a machine is decides nothing about an answer."""
    compiled = Compiler.compile

    def compile_(self: Compiler, what: str, kind_: Any, text: str) -> Any:
        if kind_ == kind:
            raise CompileTimeout(f"{what} takes over 2 seconds to compile; make it simpler.")
        return compiled(self, what, kind_, text)

    monkeypatch.setattr(Compiler, "compile", compile_)
    tool = ToolRule("weather", {"type": "object"}, strict=kind == "schema")
    with pytest.raises(TextError, match="takes over 2 seconds"):
        house.compile(tools=(tool,), choice="required")
