"""Reasoning, content and tool calls from ids; malformed sections become content and nothing is lost."""

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earthshine.text import (
    Content,
    Event,
    Reasoning,
    RegionParser,
    Tokenizer,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    leaves_thinking_open,
)

SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"


def _text(event: Event) -> str:
    return getattr(event, "text", "")


def _parse(tokenizer: Tokenizer, text: str, thinking: bool = True) -> list[Event]:
    """The events of a text whose control tokens become ids, neighbouring pieces joined."""
    parser = RegionParser(tokenizer, thinking=thinking)
    events = [event for token_id in tokenizer.encode(text, True) for event in parser.push(token_id)] + parser.flush()
    joined: list[Event] = []
    for _, group in groupby(events, key=lambda event: (type(event), getattr(event, "index", None))):
        same = list(group)
        if isinstance(same[0], (Reasoning, Content)):
            same = [type(same[0])("".join(map(_text, same)))]
        elif isinstance(same[0], ToolCallArguments):
            same = [ToolCallArguments(same[0].index, "".join(map(_text, same)))]
        joined += same
    return joined


def test_reasoning_then_content(tiny: Tokenizer) -> None:
    assert _parse(tiny, "hm é</think>hello") == [Reasoning("hm é"), Content("hello")]
    assert _parse(tiny, "hello", thinking=False) == [Content("hello")]
    assert _parse(tiny, "<think>hm</think>x", thinking=False) == [Reasoning("hm"), Content("x")]
    assert _parse(tiny, "<think>hm</think>x", thinking=True) == [Reasoning("hm"), Content("x")]


def test_text_that_looks_like_a_marker_is_text(tiny: Tokenizer) -> None:
    parser = RegionParser(tiny, thinking=True)
    ids = tiny.encode("a</think>b" + SECTION, allow_special=False)
    events = [event for token_id in ids for event in parser.push(token_id)] + parser.flush()
    assert {type(event) for event in events} == {Reasoning}
    assert "".join(event.text for event in events if isinstance(event, Reasoning)) == "a</think>b" + SECTION


def test_tool_calls(tiny: Tokenizer) -> None:
    """Whitespace around ids and arguments is dropped, inside arguments it is kept."""
    first = f'{CALL} functions.get_weather:3 {ARGUMENTS}\n {{"a":  1}} \n{CALL_END}'
    second = f"{CALL}functions.ns.read-file:4{ARGUMENTS}{{}}{CALL_END}"
    events = _parse(tiny, f"hm</think>I look.{SECTION}\n{first}\n{second}{SECTION_END}done<|im_end|>")
    assert events == [
        Reasoning("hm"),
        Content("I look."),
        ToolCallStart(0, "functions.get_weather:3", "get_weather"),
        ToolCallArguments(0, '{"a":  1}'),
        ToolCallEnd(0),
        ToolCallStart(1, "functions.ns.read-file:4", "ns.read-file"),
        ToolCallArguments(1, "{}"),
        ToolCallEnd(1),
        Content("done"),
    ]


def test_a_section_ends_reasoning(tiny: Tokenizer) -> None:
    events = _parse(tiny, f"hm{SECTION}{CALL}f:0{ARGUMENTS}{{}}{CALL_END}{SECTION_END}")
    assert events == [
        Reasoning("hm"),
        ToolCallStart(0, "functions.f:0", "f"),
        ToolCallArguments(0, "{}"),
        ToolCallEnd(0),
    ]


def test_arguments_are_streamed(tiny: Tokenizer) -> None:
    parser = RegionParser(tiny, thinking=False)
    for token_id in tiny.encode(f"{SECTION}{CALL}functions.f:0{ARGUMENTS}", True):
        started = parser.push(token_id)
    assert started == [ToolCallStart(0, "functions.f:0", "f")]
    assert parser.push(ord("{")) == [ToolCallArguments(0, "{")]
    assert parser.push(ord(" ")) == []
    assert parser.push(ord("}")) == [ToolCallArguments(0, " }")]


def test_missing_ends_are_supplied(tiny: Tokenizer) -> None:
    start = f"{SECTION}{CALL}f:0{ARGUMENTS}{{}}"
    begun = [ToolCallStart(0, "functions.f:0", "f"), ToolCallArguments(0, "{}")]
    assert _parse(tiny, start + SECTION_END + "x", False) == [*begun, ToolCallEnd(0), Content("x")]
    assert _parse(tiny, start + CALL + "g:1" + ARGUMENTS + CALL_END, False) == [
        *begun,
        ToolCallEnd(0),
        ToolCallStart(1, "functions.g:1", "g"),
        ToolCallEnd(1),
    ]


def test_a_call_that_is_broken_off_has_no_end(tiny: Tokenizer) -> None:
    events = _parse(tiny, f'{SECTION}{CALL}f:0{ARGUMENTS}{{"a": " ', False)
    assert events == [ToolCallStart(0, "functions.f:0", "f"), ToolCallArguments(0, '{"a": " ')]


@pytest.mark.parametrize(
    "text",
    [
        f"{SECTION}{CALL}no number{ARGUMENTS}{{}}{CALL_END}{SECTION_END}",
        f"{SECTION}{CALL}a b:0{ARGUMENTS}{{}}{CALL_END}{SECTION_END}",
        f"{SECTION}{CALL}f:0{CALL_END}{SECTION_END}",
        f"{SECTION}{CALL}f:0{SECTION_END}",
        f"{SECTION}{CALL}f:0",
        f"{SECTION}{CALL}f{CALL}g:0{ARGUMENTS}{{}}{CALL_END}",
        f"{SECTION}only text{SECTION_END}",
        f"{SECTION}only text",
        f"{SECTION}{CALL}{'f' * 600}:0{ARGUMENTS}{{}}{CALL_END}{SECTION_END}",
        f"{SECTION}{ARGUMENTS}x",
        f"{CALL}f:0{ARGUMENTS}{{}}{CALL_END}",
        f"x{SECTION_END}",
        "x</think>y<think>",
    ],
)
def test_malformed_sections_are_content(tiny: Tokenizer, text: str) -> None:
    """All of it, markers included."""
    assert _parse(tiny, text, thinking=False) == [Content(text)]


def test_a_malformed_call_leaves_its_neighbours_alone(tiny: Tokenizer) -> None:
    good = f"{CALL}f:0{ARGUMENTS}{{}}{CALL_END}"
    events = _parse(tiny, f"{SECTION}{good} note {CALL}bad{CALL_END}{good}{SECTION_END}", False)
    call = [ToolCallArguments(0, "{}"), ToolCallEnd(0)]
    assert events == [
        ToolCallStart(0, "functions.f:0", "f"),
        *call,
        Content(f" note {CALL}bad{CALL_END}"),
        ToolCallStart(1, "functions.f:0", "f"),
        ToolCallArguments(1, "{}"),
        ToolCallEnd(1),
        Content(SECTION_END),
    ]


def test_an_empty_section_says_nothing(tiny: Tokenizer) -> None:
    assert _parse(tiny, f"a{SECTION} \n{SECTION_END}b{SECTION}", thinking=False) == [Content("ab")]


PARTS = st.sampled_from(
    [SECTION, SECTION_END, CALL, ARGUMENTS, CALL_END, "<think>", "</think>", "f:0", "functions.g:1", "{}", "x", "中"]
)


@given(parts=st.lists(PARTS, max_size=12), thinking=st.booleans(), broken=st.booleans())
def test_no_text_is_lost(tiny: Tokenizer, parts: list[str], thinking: bool, broken: bool) -> None:
    """Every letter that is not part of a marker comes out, in order, in some event; starts and ends alternate."""
    events = _parse(tiny, "".join(parts), thinking)
    out = "".join(event.id if isinstance(event, ToolCallStart) else _text(event) for event in events)
    kept = "".join(part for part in parts if not part.startswith("<"))
    for marker in (SECTION, SECTION_END, CALL, ARGUMENTS, CALL_END, "<think>", "</think>", "functions."):
        out, kept = out.replace(marker, ""), kept.replace(marker, "")
    assert out == kept
    opened = [event for event in events if isinstance(event, (ToolCallStart, ToolCallEnd))]
    assert all(isinstance(event, ToolCallStart) == (number % 2 == 0) for number, event in enumerate(opened))


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<think>", True),
        ("<think></think>answer<|im_end|>question<think>\n", True),
        ("<think></think>", False),
        ("a question", False),
        ("", False),
    ],
)
def test_a_prompt_may_leave_its_thinking_open(tiny: Tokenizer, prompt: str, opened: bool) -> None:
    assert leaves_thinking_open(tiny, tiny.encode(prompt, True)) is opened


def test_typed_markers_open_nothing(tiny: Tokenizer) -> None:
    assert leaves_thinking_open(tiny, tiny.encode("<think>", False)) is False
