"""One request to the Messages API and its answer: pieces to content blocks, as a stream of events or as one message.

Invariant: each block is closed before the next begins, and the deltas of a stream add up to the whole message. Ids of
tool calls are random and unique: clients accept only [a-zA-Z0-9_-] and identify calls by them, so Kimi's
`functions.NAME:N` can't be used. A thought's signature is "unsigned": this server does not verify thoughts.
"""

import json
import secrets
from collections.abc import Sequence
from typing import Any

from earthshine.errors import EarthshineError
from earthshine.generation.request import Ended, GenerationRequest, Piece, Reading, Started
from earthshine.server.anthropic.body import CountBody, MessagesBody
from earthshine.server.anthropic.conversation import generation_request
from earthshine.server.api import Api, Served, ServerEvent
from earthshine.server.refusals import Refused, anthropic_error
from earthshine.text import Content, Reasoning, ToolCallArguments, ToolCallStart
from earthshine.text import Event as TextEvent
from earthshine.untrusted import parse_object

SIGNATURE = "unsigned"
_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "context": "model_context_window_exceeded",
    "tool_calls": "tool_use",
}


def _event(kind: str, **fields: Any) -> ServerEvent:
    return ServerEvent({"type": kind, **fields}, kind)


def _input(text: str) -> dict[str, Any]:
    """A call's arguments as the object that SDKs expect. Text that is not an object, because the answer was cut or the
    model made a mistake, is kept under "unparsed": the tool refuses it, and the model sees what it wrote."""
    try:
        value = parse_object(text.strip().encode() or b"{}", "The input", Refused)
        json.dumps(value, ensure_ascii=False).encode()  # JSON can spell half a surrogate pair, UTF-8 can't
    except (EarthshineError, UnicodeError):
        return {"unparsed": text}
    return value


class MessagesExchange:
    """Implements Exchange for one message. `named`: the model's name in the answer."""

    def __init__(self, asked: GenerationRequest, named: str, stream: bool) -> None:
        self.requests: Sequence[GenerationRequest] = (asked,)
        self.stream = stream
        self._token = secrets.token_hex(12)
        self._named = named
        self._blocks: list[dict[str, Any]] = []
        self._parts: list[str] = []  # of the open block's text, thought or arguments
        self._open = ""  # the type of the open block
        self._prompt = Started(0, 0)
        self._ended: Ended | None = None

    def push(self, piece: Piece) -> list[ServerEvent]:
        if isinstance(piece, Started):
            self._prompt = piece
            return [_event("message_start", message=self.whole()), _event("ping")]
        if isinstance(piece, Ended):
            self._ended = piece
            stopped = {key: value for key, value in self._stopped().items() if key != "usage"}
            return [*self._close(), _event("message_delta", delta=stopped, usage=self._usage())]
        if isinstance(piece, Reading):
            return []
        return [event for each in piece.events for event in self._events(each)]

    def end(self) -> list[ServerEvent]:
        return [_event("message_stop")]

    def failed(self, problem: Refused) -> list[ServerEvent]:
        return [ServerEvent(anthropic_error(problem), "error")]

    def whole(self) -> dict[str, Any]:
        return {
            "id": f"msg_{self._token}",
            "type": "message",
            "role": "assistant",
            "model": self._named,
            "content": list(self._blocks),
            **self._stopped(),
        }

    def counted(self, tokens: Sequence[int]) -> dict[str, Any]:
        return {"input_tokens": sum(tokens)}

    def _stopped(self) -> dict[str, Any]:
        ended, reason = self._ended, None
        if ended is not None:
            reason = "stop_sequence" if ended.stop_text is not None else _STOP_REASONS[ended.reason]
        sequence = ended.stop_text if ended is not None else None
        return {"stop_reason": reason, "stop_sequence": sequence, "usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        """Anthropic's input_tokens do not include the tokens that were found in the cache."""
        ended = self._ended
        return {
            "input_tokens": self._prompt.prompt_tokens - self._prompt.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self._prompt.cached_tokens,
            "output_tokens": ended.completion_tokens if ended else 0,
            "output_tokens_details": {"thinking_tokens": ended.reasoning_tokens if ended else 0},
        }

    def _events(self, event: TextEvent) -> list[ServerEvent]:
        if isinstance(event, Content):
            begun = [] if self._open == "text" else self._begin({"type": "text", "text": ""})
            return [*begun, self._delta("text_delta", "text", event.text)]
        if isinstance(event, Reasoning):
            thought = {"type": "thinking", "thinking": "", "signature": ""}
            begun = [] if self._open == "thinking" else self._begin(thought)
            return [*begun, self._delta("thinking_delta", "thinking", event.text)]
        if isinstance(event, ToolCallStart):
            name = f"toolu_{self._token}_{event.index}"
            return self._begin({"type": "tool_use", "id": name, "name": event.name, "input": {}})
        if isinstance(event, ToolCallArguments):
            return [self._delta("input_json_delta", "partial_json", event.text)]
        return self._close()

    def _begin(self, block: dict[str, Any]) -> list[ServerEvent]:
        closed = self._close()
        self._blocks.append(block)
        self._open = block["type"]
        return [*closed, _event("content_block_start", index=len(self._blocks) - 1, content_block=dict(block))]

    def _delta(self, kind: str, field: str, text: str) -> ServerEvent:
        if kind != "signature_delta":
            self._parts.append(text)
        return _event("content_block_delta", index=len(self._blocks) - 1, delta={"type": kind, field: text})

    def _close(self) -> list[ServerEvent]:
        """Closes the open block, if there is one. A call without arguments gets an empty object."""
        if not self._open:
            return []
        events, block = [], self._blocks[-1]
        if self._open == "tool_use" and not self._parts:
            events.append(self._delta("input_json_delta", "partial_json", "{}"))
        text = "".join(self._parts)
        if self._open == "thinking":
            events.append(self._delta("signature_delta", "signature", SIGNATURE))
            block |= {"thinking": text, "signature": SIGNATURE}
        else:
            block |= {"input": _input(text)} if self._open == "tool_use" else {"text": text}
        self._open, self._parts = "", []
        return [*events, _event("content_block_stop", index=len(self._blocks) - 1)]


def _begin(body: CountBody, served: Served) -> MessagesExchange:
    stream = isinstance(body, MessagesBody) and bool(body.stream)
    return MessagesExchange(generation_request(body, served), body.model, stream)


MESSAGES = Api("/v1/messages", "Continue a conversation, in Anthropic's form.", MessagesBody, _begin, anthropic_error)
COUNT_TOKENS = Api(
    "/v1/messages/count_tokens", "Count a conversation's tokens.", CountBody, _begin, anthropic_error, counts=True
)
