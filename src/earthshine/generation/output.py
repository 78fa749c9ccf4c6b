"""One choice of an answer: the engine's events as pieces of text, calls and scores, until it ends.

Stop strings act on content alone, and nothing after one is emitted. Calls get the ids that Kimi's templates expect,
functions.NAME:INDEX, counted over the whole conversation whatever the model wrote. Does no input or output and never
waits.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from earthshine.engine import Admitted, Finished, PromptScores, Request, TokenEvent
from earthshine.errors import TextError
from earthshine.generation.request import Delta, Ended, GenerationRequest, Piece, Scored
from earthshine.text import (
    CallForm,
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
    ToolRule,
    region_parser,
)

_Reason = Literal["stop", "length", "context", "tool_calls"]


class _PlainText:
    """The parser of plain completions: content only."""

    thinking = False

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        self._detokenizer = Detokenizer(tokenizer, skip_special)

    def push(self, token_id: int) -> list[Event]:
        return [Content(self._detokenizer.push(token_id))]

    def flush(self) -> list[Event]:
        return [Content(self._detokenizer.flush())]


class Choice:
    """One of the choices that `asked` wants.

    `request`: what the engine computes, with this choice's seed and max_tokens within the context. `call_form`: how the
    model writes calls; `tools`: those that were offered; `thinking`: the answer begins within a thought; `n_calls`:
    calls in the conversation so far; `prompt_text` comes before the answer; `noticed_stops`: tokens that end the
    answer, though the engine continues; `repeat_thought`: an answer that the model ends with nothing but a thought
    gives the thought's text once more as content.

    `number` counts the choices of a submission. Once `ended`, further events of the engine are ignored.
    """

    def __init__(
        self,
        asked: GenerationRequest,
        request: Request,
        tokenizer: Tokenizer,
        *,
        call_form: CallForm | None = None,
        tools: Sequence[ToolRule] = (),
        thinking: bool = False,
        n_calls: int = 0,
        prompt_text: str = "",
        noticed_stops: frozenset[int] = frozenset(),
        repeat_thought: bool = False,
    ) -> None:
        self.asked, self.request, self._tokenizer = asked, request, tokenizer
        self.params, self.number, self.ended = request.params, 0, False
        self._prompt_text, self._noticed_stops = prompt_text, noticed_stops
        self._first_call = n_calls
        self._parser = _parser(asked, tokenizer, call_form, tools, thinking)
        self._stops = StopStrings(self.params.stop)
        self._written = self._shown = 0  # characters of content: by the model, and emitted
        self._waiting: deque[tuple[int, int, Scored]] = deque()  # content before and after a token; its score
        self._thoughts: list[str] | None = [] if repeat_thought else None  # None once there was anything else
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
            pieces.append(Delta(self.number, self._events, self._scores, self._n_tokens))
            self._events, self._scores = [], []
        if self._last is not None:
            pieces.append(self._last)
            self._last = None
        return pieces

    def push(self, event: Admitted | PromptScores | TokenEvent | Finished) -> None:
        """The engine's next event, until `ended`; not Finished by cancellation, after which nothing is read."""
        if isinstance(event, Admitted):
            if self.params.prompt_logprobs is None or len(self.request.tokens) == 1:
                self._emit_prompt()
        elif isinstance(event, PromptScores):
            self._prompt += [self._scored(score) for score in event.scores]
            if len(self._prompt) == len(self.request.tokens) - 1:
                self._emit_prompt()
        elif isinstance(event, TokenEvent):
            self._token(event)
        else:
            self._n_tokens += event.reason == "stop"
            cut = self.params.max_tokens != self.asked.params.max_tokens  # by the end of the context
            full = event.reason == "context" or (event.reason == "length" and cut)
            self._finish("context" if full else "stop" if event.reason == "stop" else "length")

    def _emit_prompt(self) -> None:
        first, text, scores = self.request.tokens[0], self._prompt_text, self._prompt
        if self.params.prompt_logprobs is not None:
            scores = [Scored(first, self._raw(first), None), *scores]
        if text or scores:
            self._pieces.append(Delta(self.number, [Content(text)] if text else [], scores))
        self._prompt = []
        if self.asked.prompt_only:
            self._end("length")

    def _token(self, event: TokenEvent) -> None:
        before, stops = self._written, event.token in self._noticed_stops
        self._n_tokens += 1
        self._n_reasoning += self._parser.thinking
        self._take_events(() if stops else self._parsed(event.token))
        if self.params.logprobs is not None:
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
        text, met = self._stops.push(text, may_end=self._n_tokens > self.params.min_tokens)
        self._show(text)
        if met:
            self._show(self._stops.met if self.params.include_stop_str_in_output else "")
            self._end("stop", self._stops.met)

    def _other(self, event: Event) -> None:
        if isinstance(event, Reasoning) and self._thoughts is not None:
            self._thoughts.append(event.text)
        elif isinstance(event, ToolCallStart):
            self._thoughts = None
            event = replace(event, id=f"functions.{event.name}:{self._first_call + event.index}")
        self._emit(event)
        if isinstance(event, ToolCallEnd):
            self._n_calls += 1
            if not self.asked.parallel_tool_calls:
                self._end("tool_calls")

    def _show(self, text: str) -> None:
        if text:
            self._shown += len(text)
            self._emit(Content(text))

    def _emit(self, event: Event) -> None:
        """Consecutive events of one kind become one."""
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
        """A score is emitted with its token's text, which is held back while it may become a stop string; the scores of
        tokens that begin in a stop string are never emitted."""
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


def _parser(
    asked: GenerationRequest,
    tokenizer: Tokenizer,
    call_form: CallForm | None,
    tools: Sequence[ToolRule],
    thinking: bool,
) -> RegionParser | _PlainText:
    skip_special = asked.params.skip_special_tokens
    if not asked.is_conversation:
        return _PlainText(tokenizer, skip_special)
    return region_parser(
        tokenizer,
        call_form,
        thinking=thinking,
        calls=bool(tools),
        schemas={tool.name: tool.parameters for tool in tools},
        skip_special=skip_special,
    )
