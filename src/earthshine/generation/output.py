"""One choice of a reply: the engine's events to pieces of text, calls and scores, until it ends.

Stop strings act on content alone, and nothing after one is emitted. Calls get the ids that Kimi's templates want,
functions.NAME:INDEX, counted over the whole conversation whatever the model wrote. A reply that ends by itself with
nothing but a thought gives the thought's text once more as content: clients take a reply without content for a fault
and ask again. No input or output, no waiting; raises nothing.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from earthshine.engine import Admitted, Finished, PromptScores, TokenEvent
from earthshine.errors import TextError
from earthshine.generation.prompts import Prepared
from earthshine.generation.request import Delta, Ended, Piece, Scored
from earthshine.text import (
    Content,
    Detokenizer,
    Event,
    Reasoning,
    RegionParser,
    StopStrings,
    Tokenizer,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    region_parser,
)

_Reason = Literal["stop", "length", "context", "tool_calls"]


class _PlainText:
    """What RegionParser is to conversations, for plain completions: content only."""

    thinking = False

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._detokenizer = Detokenizer(tokenizer)

    def push(self, token_id: int) -> list[Event]:
        return [Content(self._detokenizer.push(token_id))]

    def flush(self) -> list[Event]:
        return [Content(self._detokenizer.flush())]


class Choice:
    """`number` counts the choices of all requests. Once `ended`, further events of the engine are ignored."""

    def __init__(self, number: int, prepared: Prepared, tokenizer: Tokenizer) -> None:
        self.number, self.ended = number, False
        self._prepared, self._params, self._tokenizer = prepared, prepared.params, tokenizer
        self._parser: RegionParser | _PlainText = _PlainText(tokenizer)
        if prepared.regions:
            self._parser = region_parser(
                tokenizer,
                prepared.call_form,
                thinking=prepared.thinking,
                calls=bool(prepared.tools),
                schemas={tool.name: tool.parameters for tool in prepared.tools},
            )
        self._stops = StopStrings(prepared.params.stop)
        self._written = self._shown = 0  # characters of content: by the model, and emitted
        self._waiting: deque[tuple[int, int, Scored]] = deque()  # content before and after a token; its score
        self._thoughts: list[str] | None = []  # None once there was anything else
        self._n_tokens = self._n_reasoning = self._n_calls = 0
        self._prompt: list[Scored] = []
        self._events: list[Event] = []  # these two are the next Delta
        self._scores: list[Scored] = []
        self._pieces: list[Piece] = []
        self._last: Ended | None = None

    def take(self) -> list[Piece]:
        """The pieces since the last call. The prompt, where it was asked for, is a piece of its own."""
        self._release()
        pieces, self._pieces = self._pieces, []
        if self._events or self._scores:
            pieces.append(Delta(self.number, self._events, self._scores))
            self._events, self._scores = [], []
        if self._last is not None:
            pieces.append(self._last)
            self._last = None
        return pieces

    def push(self, event: Admitted | PromptScores | TokenEvent | Finished) -> None:
        """The engine's next event, until `ended`. Not Finished by cancellation: who cancels reads no further."""
        if isinstance(event, Admitted):
            if self._params.prompt_logprobs is None or len(self._prepared.tokens) == 1:
                self._emit_prompt()
        elif isinstance(event, PromptScores):
            self._prompt += [self._scored(score) for score in event.scores]
            if len(self._prompt) == len(self._prepared.tokens) - 1:
                self._emit_prompt()
        elif isinstance(event, TokenEvent):
            self._token(event)
        else:
            self._n_tokens += event.reason == "stop"
            full = event.reason == "context" or (event.reason == "length" and self._prepared.fills_context)
            self._finish("context" if full else "stop" if event.reason == "stop" else "length")

    def _emit_prompt(self) -> None:
        first, text, scores = self._prepared.tokens[0], self._prepared.prompt_text, self._prompt
        if self._params.prompt_logprobs is not None:
            scores = [Scored(first, self._raw(first), None), *scores]
        if text or scores:
            self._pieces.append(Delta(self.number, [Content(text)] if text else [], scores))
        self._prompt = []
        if self._prepared.request.prompt_only:
            self._end("length")

    def _token(self, event: TokenEvent) -> None:
        before, stops = self._written, event.token in self._prepared.noticed_stops
        self._n_tokens += 1
        self._n_reasoning += self._parser.thinking
        self._take_events(() if stops else self._parsed(event.token))
        if self._params.logprobs is not None:
            self._waiting.append((before, self._written, self._scored(event)))
        if stops:
            self._finish("stop")

    def _parsed(self, token: int) -> Sequence[Event]:
        try:
            return self._parser.push(token)
        except TextError:  # a model may have more ids than its tokenizer has texts
            return ()

    def _finish(self, reason: _Reason) -> None:
        self._take_events(self._parser.flush())
        if reason == "stop" and self._thoughts:
            self._take_events([Content("".join(self._thoughts))])
        if not self.ended:
            self._show(self._stops.flush())
            self._end("tool_calls" if reason == "stop" and self._n_calls else reason)

    def _take_events(self, events: Sequence[Event]) -> None:
        for event in events:
            if self.ended:
                return
            if isinstance(event, Content):
                self._content(event.text)
            else:
                self._show(self._stops.flush())  # no stop string reaches across what is not content
                self._other(event)

    def _content(self, text: str) -> None:
        if text.strip():
            self._thoughts = None
        self._written += len(text)
        text, met = self._stops.push(text)
        self._show(text)
        if met:
            self._show(self._stops.met if self._params.include_stop_str_in_output else "")
            self._end("stop", self._stops.met)

    def _other(self, event: Event) -> None:
        if isinstance(event, Reasoning) and self._thoughts is not None:
            self._thoughts.append(event.text)
        elif isinstance(event, ToolCallStart):
            self._thoughts = None
            event = replace(event, id=f"functions.{event.name}:{self._prepared.n_calls + event.index}")
        self._emit(event)
        if isinstance(event, ToolCallEnd):
            self._n_calls += 1
            if not self._prepared.request.parallel_tool_calls:
                self._end("tool_calls")

    def _show(self, text: str) -> None:
        if text:
            self._shown += len(text)
            self._emit(Content(text))

    def _emit(self, event: Event) -> None:
        """Neighbours of one kind become one event."""
        last = self._events[-1] if self._events else None
        if isinstance(event, Content) and isinstance(last, Content):
            self._events[-1] = Content(last.text + event.text)
        elif isinstance(event, Reasoning) and isinstance(last, Reasoning):
            self._events[-1] = Reasoning(last.text + event.text)
        elif isinstance(event, ToolCallArguments) and isinstance(last, ToolCallArguments):
            self._events[-1] = ToolCallArguments(event.index, last.text + event.text)
        else:
            self._events.append(event)

    def _release(self) -> None:
        """Scores wait for their text while it may become a stop string; those that begin in one are never emitted."""
        while self._waiting:
            begin, end, score = self._waiting[0]
            if end > self._shown and not (self.ended and begin < self._shown):
                return
            self._waiting.popleft()
            self._scores.append(score)

    def _end(self, reason: _Reason, stop_text: str | None = None) -> None:
        self.ended = True
        self._last = Ended(self.number, reason, self._n_tokens, self._n_reasoning, stop_text)

    def _scored(self, event: TokenEvent) -> Scored:
        top = tuple((token, self._raw(token), logprob) for token, logprob in event.top)
        return Scored(event.token, self._raw(event.token), event.logprob, top)

    def _raw(self, token: int) -> bytes:
        try:
            return self._tokenizer.token_bytes(token)
        except TextError:
            return b""
