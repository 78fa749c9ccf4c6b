"""A tokenizer with its grammars, random replies under their masks, and the tools that several tests offer."""

import json
import random
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

import earthshine
from earthshine.text import (
    Content,
    Event,
    Grammar,
    Grammars,
    OutputRule,
    Reasoning,
    RegionParser,
    Tokenizer,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    ToolRule,
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
SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"


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


def parsed(parser: RegionParser, ids: list[int]) -> list[Event]:
    """The events of a reply; neighbours of one kind are joined."""
    events = [event for token in ids for event in parser.push(token)] + parser.flush()
    joined: list[Event] = []
    for (kind, index), group in groupby(events, key=lambda event: (type(event), getattr(event, "index", None))):
        same = list(group)
        text = "".join(getattr(event, "text", "") for event in same)
        if kind in (Reasoning, Content):
            same = [kind(text)]
        elif kind is ToolCallArguments:
            same = [ToolCallArguments(index, text)]
        joined += same
    return joined


def check_forced_calls(
    house: House, parse: Callable[[list[int]], list[Event]], choice: str, parallel: bool, **rule: Any
) -> list[list[ToolCallStart]]:
    """Checks random replies that must call tools, read by `parse`: calls of permitted tools with valid arguments, each
    of them complete, and no content. Returns the starts of each reply's calls."""
    grammar = house.compile(tools=(WEATHER_TOOL, FREE_TOOL), choice=choice, name="weather", parallel=parallel, **rule)
    replies = [ids for seed in range(10) if (ids := house.reply(grammar, seed, hurry=0.75)) is not None]
    assert len(replies) >= 5, "too few replies came to an end to show anything"
    return [_checked_calls(parse(ids), choice, parallel) for ids in replies]


def _checked_calls(events: list[Event], choice: str, parallel: bool) -> list[ToolCallStart]:
    starts = [event for event in events if isinstance(event, ToolCallStart)]
    texts = {event.index: event.text for event in events if isinstance(event, ToolCallArguments)}
    assert starts
    assert [event.index for event in events if isinstance(event, ToolCallEnd)] == list(range(len(starts)))
    assert not any(isinstance(event, Content) for event in events)
    assert parallel or len(starts) == 1
    for index, start in enumerate(starts):
        value = json.loads(texts[index])
        assert is_weather(value) if start.name == "weather" else isinstance(value, dict)
        assert choice == "required" or start.name == "weather"
    return starts


def is_weather(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and {"city", "days"} <= set(value) <= {"city", "days", "unit"}
        and isinstance(value["city"], str)
        and len(value["city"]) <= 8
        and type(value["days"]) is int
        and 1 <= value["days"] <= 14
        and value.get("unit", "C") in ("C", "F")
    )
