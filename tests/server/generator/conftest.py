"""Requests to pieces, with an engine that follows a script and gleam's real tokenizer and template."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import earthshine
from earthshine.engine import SamplingParams
from earthshine.generation.prompts import Prompts
from earthshine.generation.request import Delta, Ended, GenerationRequest, Scored
from earthshine.server.generator import TextGenerator
from earthshine.text import (
    ChatTemplate,
    Content,
    Tokenizer,
    load_template,
    load_tokenizer,
)

from ..fake_engine import FakeEngine

GLEAM = Path(earthshine.__file__).parent / "gleam"
END, EOS = 5890, 5889  # <|im_end|>, [EOS]
VOCAB, CONTEXT = 6144, 4096
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALLED = [
    *HELLO,
    {"role": "assistant", "tool_calls": [{"id": "call_abc", "function": {"name": "look", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "call_abc", "content": "nothing"},
]
SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"


def call(text: str, arguments: str) -> str:
    return f"<|tool_call_begin|>{text}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(GLEAM)


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return load_template(GLEAM)


_SAMPLING = {each.name for each in dataclasses.fields(SamplingParams)}


def wanted(prompt: Any, **fields: Any) -> GenerationRequest:
    """A greedy request; `fields` are those of GenerationRequest and of SamplingParams."""
    sampling = {name: fields.pop(name) for name in list(fields) if name in _SAMPLING}
    return GenerationRequest(prompt, SamplingParams(**({"temperature": 0.0} | sampling)), **fields)


class Asker:
    """Asks TextGenerator with an engine of scripted answers; all that was started is ended with the test."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.engine = FakeEngine(stop_tokens=(END,))
        self.engines = [self.engine]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, True)

    def says(self, *answers: Any, **options: Any) -> FakeEngine:
        """The engine's answers: texts with control tokens, or lists of events."""
        scripts = [self.ids(answer) if isinstance(answer, str) else answer for answer in answers]
        self.engine = FakeEngine(scripts, stop_tokens=(END,), **options)
        self.engines.append(self.engine)
        return self.engine

    def replies(self, **changed: Any) -> TextGenerator:
        facts = {"vocab_size": VOCAB, "stop_tokens": (END,), "context_tokens": CONTEXT} | changed
        return TextGenerator(self.engine, Prompts(self.tokenizer, self.template, **facts))

    def with_replies(self, work: Callable[[TextGenerator], Awaitable[Any]], **changed: Any) -> Any:
        async def run() -> Any:
            replies = self.replies(**changed)
            try:
                return await work(replies)
            finally:
                replies.close()

        return asyncio.run(run())

    def __call__(self, *requests: GenerationRequest, user: str = "", **changed: Any) -> list[Any]:
        async def work(replies: TextGenerator) -> list[Any]:
            return [piece async for piece in replies.answer(requests, user)]

        return self.with_replies(work, **changed)


@pytest.fixture
def asker(tokenizer: Tokenizer, template: ChatTemplate) -> Iterator[Asker]:
    asker = Asker(tokenizer, template)
    yield asker
    for engine in asker.engines:
        engine.close()


def joined(pieces: list[Any], kind: type = Content, choice: int = 0) -> str:
    deltas = [piece for piece in pieces if isinstance(piece, Delta) and piece.choice == choice]
    return "".join(event.text for piece in deltas for event in piece.events if isinstance(event, kind))


def events(pieces: list[Any]) -> list[Any]:
    """All events, arguments joined."""
    return [event for piece in pieces if isinstance(piece, Delta) for event in piece.events]


def ended(pieces: list[Any], choice: int = 0) -> Ended:
    (last,) = [piece for piece in pieces if isinstance(piece, Ended) and piece.choice == choice]
    return last


def scores(pieces: list[Any]) -> list[Scored]:
    return [score for piece in pieces if isinstance(piece, Delta) for score in piece.tokens]
