"""The answer of a chat: pieces to one ChatCompletion, or to ChatCompletionChunks as they come.

Invariant: the deltas of a stream add up to the message of the whole answer. Thoughts are sent in one field,
`reasoning_content`, which clients look for first; Kimi Code would show them once for each field. A tool call that the
end of the answer cut off is sent as it is.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

from earthshine.generation.request import Delta, Ended, GenerationRequest, Piece, Reading, Scored, Started
from earthshine.server.api import ServerEvent
from earthshine.server.openai.fields import prompt_progress, usage
from earthshine.server.openai.scores import score
from earthshine.server.openai.tools import custom_input
from earthshine.server.refusals import Refused, openai_error
from earthshine.text import Content, Event, Reasoning, ToolCallArguments, ToolCallEnd, ToolCallStart

_DONE = ServerEvent("[DONE]")


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    custom: bool
    arguments: list[str] = field(default_factory=list)
    sent: bool = False  # a custom tool's input, which is sent whole

    def whole(self) -> dict[str, Any]:
        if self.custom:
            return {"id": self.id, "type": "custom", "custom": {"name": self.name, "input": self.input()}}
        function = {"name": self.name, "arguments": "".join(self.arguments)}
        return {"id": self.id, "type": "function", "function": function}

    def input(self) -> str:
        return custom_input("".join(self.arguments))


@dataclass(slots=True)
class _Choice:
    """One choice so far. `unsent`: tokens whose text has not become an event yet."""

    custom: frozenset[str]
    content: list[str] = field(default_factory=list)
    thought: list[str] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)
    tokens: list[Scored] = field(default_factory=list)
    unsent: list[Scored] = field(default_factory=list)
    finish: str | None = None
    n_tokens: int = 0
    n_thought_tokens: int = 0

    def take(self, event: Event) -> dict[str, Any] | None:
        """Adds the event; returns its delta, if it has one."""
        if isinstance(event, Content):
            self.content.append(event.text)
            return {"content": event.text}
        if isinstance(event, Reasoning):
            self.thought.append(event.text)
            return {"reasoning_content": event.text}
        if isinstance(event, ToolCallStart):
            call = _Call(event.id, event.name, event.name in self.custom)
            self.calls.append(call)
            empty = {"name": event.name, "input" if call.custom else "arguments": ""}
            kind = "custom" if call.custom else "function"
            return {"tool_calls": [{"index": event.index, "id": event.id, "type": kind, kind: empty}]}
        call = self.calls[event.index]
        # A call without arguments gets {}, since clients parse its arguments as JSON.
        text = event.text if isinstance(event, ToolCallArguments) else "" if call.arguments else "{}"
        if text:
            call.arguments.append(text)
        if call.custom:  # its text is within an object that is not complete yet
            return self.input_of(event.index) if isinstance(event, ToolCallEnd) else None
        return {"tool_calls": [{"index": event.index, "function": {"arguments": text}}]} if text else None

    def input_of(self, index: int) -> dict[str, Any]:
        """The delta with a custom tool's whole input."""
        self.calls[index].sent = True
        return {"tool_calls": [{"index": index, "custom": {"input": self.calls[index].input()}}]}

    def cut_off(self) -> list[dict[str, Any]]:
        """Deltas of custom tools' calls that the end of the answer cut off."""
        return [self.input_of(at) for at, call in enumerate(self.calls) if call.custom and not call.sent]

    def message(self) -> dict[str, Any]:
        content, thought = "".join(self.content), "".join(self.thought)
        found: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self.calls:
            found["content"] = content or None
            found["tool_calls"] = [call.whole() for call in self.calls]
        if thought:
            found["reasoning_content"] = thought
        return found


class ChatExchange:
    """One chat and its answer. `custom`: names of the custom tools, which take one text."""

    def __init__(
        self,
        request: GenerationRequest,
        model: str,
        custom: frozenset[str],
        *,
        stream: bool,
        with_usage: bool,
        with_thoughts: bool,
        with_progress: bool = False,
    ) -> None:
        self.requests: Sequence[GenerationRequest] = (request,)
        self.stream = stream
        self._with_usage, self._with_thoughts, self._with_progress = with_usage, with_thoughts, with_progress
        self._with_tokens = request.params.logprobs is not None
        self._head = {"id": f"chatcmpl-{token_hex(16)}", "created": int(time.time()), "model": model}
        self._choices = [_Choice(custom) for _ in range(request.params.n)]
        self._prompt_tokens = self._cached_tokens = 0

    def push(self, piece: Piece) -> list[ServerEvent]:
        if isinstance(piece, Started):
            self._prompt_tokens, self._cached_tokens = piece.prompt_tokens, piece.cached_tokens
            return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(len(self._choices))]
        if isinstance(piece, Reading):
            return [self._progressed(piece)] if self._with_progress else []
        choice = self._choices[piece.choice]
        if isinstance(piece, Delta):
            return self._extended(piece, choice)
        return self._ended(piece, choice)

    def _extended(self, piece: Delta, choice: _Choice) -> list[ServerEvent]:
        events = [event for event in piece.events if self._with_thoughts or not isinstance(event, Reasoning)]
        if events or not piece.events:  # the tokens of a hidden thought are hidden too
            choice.tokens += piece.tokens
            choice.unsent += piece.tokens
        chunks: list[ServerEvent] = []
        for event in events:
            delta = choice.take(event)
            if delta is not None:
                chunks.append(self._chunk(piece.choice, delta))
        return chunks

    def _ended(self, piece: Ended, choice: _Choice) -> list[ServerEvent]:
        inputs = [self._chunk(piece.choice, delta) for delta in choice.cut_off()]
        choice.finish = "length" if piece.reason == "context" else piece.reason
        choice.n_tokens, choice.n_thought_tokens = piece.completion_tokens, piece.reasoning_tokens
        return [*inputs, self._chunk(piece.choice, {})]

    def _chunk(self, index: int, delta: dict[str, Any]) -> ServerEvent:
        choice = self._choices[index]
        entry = {"index": index, "delta": delta, "logprobs": None, "finish_reason": choice.finish}
        if choice.unsent:
            entry["logprobs"] = {"content": [score(token) for token in choice.unsent], "refusal": None}
            choice.unsent = []
        return self._event([entry], None)

    def _progressed(self, piece: Reading) -> ServerEvent:
        entry = {"index": piece.choice, "delta": {}, "logprobs": None, "finish_reason": None}
        return self._event([entry], None, prompt_progress=prompt_progress(piece.progress))

    def _event(self, choices: list[dict[str, Any]], used: dict[str, Any] | None, **more: Any) -> ServerEvent:
        data = {**self._head, "object": "chat.completion.chunk", "choices": choices, **more}
        return ServerEvent(data | {"usage": used} if self._with_usage else data)

    def _usage(self) -> dict[str, Any]:
        tokens = sum(choice.n_tokens for choice in self._choices)
        thought = sum(choice.n_thought_tokens for choice in self._choices)
        return usage(self._prompt_tokens, self._cached_tokens, tokens, thought)

    def end(self) -> list[ServerEvent]:
        return [self._event([], self._usage()), _DONE] if self._with_usage else [_DONE]

    def failed(self, problem: Refused) -> list[ServerEvent]:
        return [ServerEvent(openai_error(problem)), _DONE]

    def whole(self) -> dict[str, Any]:
        choices = [self._whole_choice(index, choice) for index, choice in enumerate(self._choices)]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage()}

    def _whole_choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        logprobs = None
        if self._with_tokens:
            logprobs = {"content": [score(token) for token in choice.tokens], "refusal": None}
        return {"index": index, "message": choice.message(), "logprobs": logprobs, "finish_reason": choice.finish}

    def counted(self, tokens: Sequence[int]) -> dict[str, Any]:
        return usage(sum(tokens), 0, 0, 0)
