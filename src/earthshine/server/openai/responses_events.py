"""The answer of a response: pieces to one Response, or to its semantic events as they come.

Invariant: each item is opened, filled and closed before the next one, and the last event has all that the events before
it had. An item that the end of the answer cut off is incomplete.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, Literal

from earthshine.generation.request import Ended, GenerationRequest, Piece, Reading, Started
from earthshine.server.api import ServerEvent
from earthshine.server.openai.fields import prompt_progress
from earthshine.server.openai.scores import score
from earthshine.server.openai.tools import Known, custom_input
from earthshine.server.refusals import Kind, Refused
from earthshine.text import Content, Event, Reasoning, ToolCallArguments, ToolCallStart

_ItemKind = Literal["reasoning", "message", "function_call", "custom_tool_call"]
_Status = Literal["in_progress", "completed", "incomplete"]
_PREFIX = {"reasoning": "rs", "message": "msg", "function_call": "fc", "custom_tool_call": "ctc"}
_TEXT = {
    "reasoning": "reasoning_text",
    "message": "output_text",
    "function_call": "function_call_arguments",
    "custom_tool_call": "custom_tool_call_input",
}
_CALLS = ("function_call", "custom_tool_call")
_CODES: dict[Kind, str] = {"rate": "rate_limit_exceeded", "internal": "server_error", "unavailable": "server_error"}


@dataclass(slots=True)
class _Item:
    """An item that is being written. `fixed`: the fields that were known at its beginning."""

    kind: _ItemKind
    index: int
    fixed: dict[str, Any]
    texts: list[str] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    id: str = ""

    def __post_init__(self) -> None:
        self.id = f"{_PREFIX[self.kind]}_{token_hex(16)}"

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def input(self) -> str:
        """The input of a custom tool."""
        return custom_input(self.text)

    def part(self) -> dict[str, Any]:
        """The item's only content part."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.scores[:]}

    def done(self) -> dict[str, Any]:
        """The fields of the event that repeats the item's text."""
        if self.kind == "function_call":
            return {"arguments": self.text, "name": self.fixed["name"]}
        if self.kind == "custom_tool_call":
            return {"input": self.input}
        return {"text": self.text} | ({"logprobs": self.scores[:]} if self.kind == "message" else {})

    def whole(self, status: _Status) -> dict[str, Any]:
        found = {"id": self.id, "type": self.kind, "status": status, **self.fixed}
        if self.kind == "function_call":
            return found | {"arguments": self.text}
        if self.kind == "custom_tool_call":
            return found | {"input": self.input if status != "in_progress" else ""}
        return found | {"content": [self.part()] if status != "in_progress" else []}


class ResponsesExchange:
    """One response. `echo`: fields of its request that it repeats; `tools`: the client's tools, by declared name."""

    def __init__(
        self,
        request: GenerationRequest,
        echo: dict[str, Any],
        tools: Mapping[str, Known],
        *,
        stream: bool,
        with_thoughts: bool,
        with_progress: bool = False,
    ) -> None:
        self.requests: Sequence[GenerationRequest] = (request,)
        self.stream, self._tools = stream, tools
        self._with_thoughts, self._with_progress = with_thoughts, with_progress
        self._head = {"id": f"resp_{token_hex(16)}", "object": "response", "created_at": int(time.time()), **echo}
        self._output: list[dict[str, Any]] = []
        self._item: _Item | None = None
        self._unsent: list[dict[str, Any]] = []  # scores of tokens whose text has not become an event yet
        self._started = Started(0, 0)
        self._ended: Ended | None = None
        self._n_events = 0

    def push(self, piece: Piece) -> list[ServerEvent]:
        if isinstance(piece, Started):
            self._started = piece
            return self._begin()
        if isinstance(piece, Ended):
            self._ended = piece
            return self._close("completed" if piece.reason in ("stop", "tool_calls") else "incomplete")
        if isinstance(piece, Reading):
            return [self._in_progress(prompt_progress=prompt_progress(piece.progress))] if self._with_progress else []
        self._unsent += map(score, piece.tokens)
        return [found for event in piece.events for found in self._on(event)]

    def end(self) -> list[ServerEvent]:
        whole = self.whole()
        return [self._event(f"response.{whole['status']}", response=whole)]

    def failed(self, problem: Refused) -> list[ServerEvent]:
        begun = [] if self._n_events else self._begin()
        error = {"code": _CODES.get(problem.kind, "invalid_prompt"), "message": str(problem)}
        return [*begun, self._event("response.failed", response=self._response("failed") | {"error": error})]

    def whole(self) -> dict[str, Any]:
        cut = self._ended is not None and self._ended.reason in ("length", "context")
        return self._response("incomplete" if cut else "completed")

    def counted(self, tokens: Sequence[int]) -> dict[str, Any]:
        return {"object": "response.input_tokens", "input_tokens": sum(tokens)}

    def _begin(self) -> list[ServerEvent]:
        return [self._event("response.created", response=self._response("in_progress")), self._in_progress()]

    def _in_progress(self, **more: Any) -> ServerEvent:
        return self._event("response.in_progress", response=self._response("in_progress"), **more)

    def _event(self, name: str, /, **fields: Any) -> ServerEvent:
        data = {"type": name, "sequence_number": self._n_events, **fields}
        self._n_events += 1
        return ServerEvent(data, name)

    def _response(self, status: str) -> dict[str, Any]:
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        over = status == "completed"
        return {
            **self._head,
            "status": status,
            "completed_at": int(time.time()) if over else None,
            "error": None,
            "incomplete_details": cut,
            "output": self._output[:],
            "usage": self._usage(),
        }

    def _usage(self) -> dict[str, Any] | None:
        if self._ended is None:
            return None
        generated = self._ended.completion_tokens
        return {
            "input_tokens": self._started.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self._started.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": generated,
            "output_tokens_details": {"reasoning_tokens": self._ended.reasoning_tokens},
            "total_tokens": self._started.prompt_tokens + generated,
        }

    def _on(self, event: Event) -> list[ServerEvent]:
        if isinstance(event, Reasoning):
            if not self._with_thoughts:
                self._unsent = []
                return []
            return [*self._enter("reasoning"), *self._write(event.text)]
        if isinstance(event, Content):
            return [*self._enter("message"), *self._write(event.text)]
        if isinstance(event, ToolCallStart):
            return [*self._close(), *self._open_call(event)]
        if isinstance(event, ToolCallArguments):
            return self._write(event.text)
        empty = self._item is not None and not self._item.texts
        return [*(self._write("{}") if empty else ()), *self._close()]  # clients parse arguments as JSON

    def _enter(self, kind: _ItemKind) -> list[ServerEvent]:
        """Opens an item of this kind, unless one is open."""
        if self._item is not None and self._item.kind == kind:
            return []
        fixed: dict[str, Any] = {"summary": []} if kind == "reasoning" else {"role": "assistant"}
        return [*self._close(), *self._open(kind, fixed)]

    def _open(self, kind: _ItemKind, fixed: dict[str, Any]) -> list[ServerEvent]:
        self._item = item = _Item(kind, len(self._output), fixed)
        added = self._event("response.output_item.added", output_index=item.index, item=item.whole("in_progress"))
        if kind in _CALLS:
            return [added]
        return [added, self._event("response.content_part.added", **self._place(item), part=item.part())]

    def _open_call(self, event: ToolCallStart) -> list[ServerEvent]:
        known = self._tools.get(event.name, Known(event.name))
        fixed = {"call_id": event.id, "name": known.name}
        if known.namespace:
            fixed["namespace"] = known.namespace
        return self._open("custom_tool_call" if known.custom else "function_call", fixed)

    def _place(self, item: _Item) -> dict[str, Any]:
        at = {"item_id": item.id, "output_index": item.index}
        return at if item.kind in _CALLS else at | {"content_index": 0}

    def _write(self, text: str) -> list[ServerEvent]:
        item, scores = self._item, self._unsent
        self._unsent = []
        if item is None or not text:
            return []
        item.texts.append(text)
        if item.kind == "custom_tool_call":  # its text is within an object that is not complete yet
            return []
        extra: dict[str, Any] = {}
        if item.kind == "message":  # OpenAI reports log-probabilities for text only
            item.scores += scores
            extra = {"logprobs": scores}
        return [self._event(f"response.{_TEXT[item.kind]}.delta", **self._place(item), delta=text, **extra)]

    def _close(self, status: _Status = "completed") -> list[ServerEvent]:
        item, self._item = self._item, None
        if item is None:
            return []
        place, whole = self._place(item), item.whole(status)
        self._output.append(whole)
        events = []
        if item.kind == "custom_tool_call":
            events.append(self._event(f"response.{_TEXT[item.kind]}.delta", **place, delta=item.input))
        events.append(self._event(f"response.{_TEXT[item.kind]}.done", **place, **item.done()))
        if item.kind not in _CALLS:
            events.append(self._event("response.content_part.done", **place, part=item.part()))
        events.append(self._event("response.output_item.done", output_index=item.index, item=whole))
        return events
