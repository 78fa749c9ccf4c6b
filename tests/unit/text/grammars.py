"""A tokenizer with its grammars, random replies under their masks, and the tools that several tests offer."""

import random
from pathlib import Path
from typing import Any

import numpy as np

import earthshine
from earthshine.text import Grammar, Grammars, OutputRule, Tokenizer, ToolRule

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
