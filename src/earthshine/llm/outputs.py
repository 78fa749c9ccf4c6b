"""What `LLM` returns: a RequestOutput for each prompt, with a CompletionOutput for each choice, as in vLLM.

Unlike in vLLM, `text` is the answer alone; thoughts are in `reasoning` and tool calls in `tool_calls`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from earthshine.engine import Admitted, Finished, PromptScores, ReplyEvent, TokenEvent
from earthshine.errors import TextError
from earthshine.generation.output import Choice
from earthshine.generation.request import Delta, Ended, Piece
from earthshine.text import Content, Reasoning, Tokenizer, ToolCallArguments, ToolCallStart
from earthshine.text import Event as TextEvent


@dataclass(frozen=True, slots=True)
class Logprob:
    """`rank`: 1 for the most likely token; None for a generated token that is not among the reported alternatives."""

    logprob: float
    rank: int | None
    decoded_token: str


@dataclass(slots=True)
class ToolCall:
    """A call of the function `name`. `arguments`: JSON, as the model wrote it."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class CompletionOutput:
    """One choice. In a stream, what is new since the previous output.

    `text`: the answer, without thoughts and tool calls; `token_ids`: all tokens, the stop token included;
    `cumulative_logprob`: the sum of their log-probabilities without the stop token's; `logprobs`: for each token a map
    from token id to Logprob. `finish_reason`: "stop": the model ended the answer, or a stop text or token came;
    "tool_calls": the model ended it after a tool call; "length": max_tokens or the end of the context was reached; None
    while it is not finished. `stop_reason`: the stop text, or the one of stop_token_ids, that ended it.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None
    stop_reason: int | str | None = None
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """One prompt and its choices. `prompt`: its text, None for messages and token ids; `prompt_logprobs`: of each token
    of the prompt, None for the first; `num_cached_tokens`: tokens of the prompt found in the prefix cache."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int


class OutputBuilder:
    """Builds one prompt's output from the engine's events and the pieces of text that follow from them.

    `first`: the request's first choice.
    """

    def __init__(self, request_id: str, first: Choice, tokenizer: Tokenizer) -> None:
        self._id, self._first, self._tokenizer = request_id, first, tokenizer
        self._params = first.params
        self._outputs: dict[int, CompletionOutput] = {}
        self._ended: set[int] = set()
        self._cached = 0
        self._admitted = False
        self._prompt_scores: list[dict[int, Logprob] | None] | None = None
        if self._params.prompt_logprobs is not None:
            self._prompt_scores = [None]

    @property
    def finished(self) -> bool:
        return len(self._ended) == self._params.n

    def add(self, choice: int, event: ReplyEvent, pieces: Iterable[Piece]) -> None:
        """Add an event of choice `choice`, and its pieces."""
        if choice in self._ended:
            return  # the engine computed a little more before it was cancelled
        if isinstance(event, Admitted) and not self._admitted:
            self._admitted, self._cached = True, event.reused
        elif isinstance(event, PromptScores) and choice == 0 and self._prompt_scores is not None:
            self._prompt_scores += [self._logprobs(score) for score in event.scores]
        elif isinstance(event, TokenEvent):
            output = self._output(choice)
            output.token_ids.append(event.token)
            output.cumulative_logprob += event.logprob
            if output.logprobs is not None:
                output.logprobs.append(self._logprobs(event))
        elif isinstance(event, Finished) and event.token is not None:
            self._output(choice).token_ids.append(event.token)
            if event.token in self._params.stop_token_ids:
                self._output(choice).stop_reason = event.token
        for piece in pieces:
            self._add_piece(choice, piece)

    def take(self) -> RequestOutput:
        """The output since the last call."""
        outputs, self._outputs = self._outputs, {}
        prompt = self._first.asked.prompt
        return RequestOutput(
            request_id=self._id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=list(self._first.request.tokens),
            prompt_logprobs=self._prompt_scores,
            outputs=[outputs[choice] for choice in sorted(outputs)],
            finished=self.finished,
            num_cached_tokens=self._cached,
        )

    @property
    def has_news(self) -> bool:
        return bool(self._outputs)

    def _output(self, choice: int) -> CompletionOutput:
        if choice not in self._outputs:
            self._outputs[choice] = CompletionOutput(choice, logprobs=None if self._params.logprobs is None else [])
        return self._outputs[choice]

    def _add_piece(self, choice: int, piece: Piece) -> None:
        if isinstance(piece, Delta):
            for event in piece.events:
                self._add_text(self._output(choice), event)
        elif isinstance(piece, Ended):
            output = self._output(choice)
            output.finish_reason = "length" if piece.reason == "context" else piece.reason
            if piece.stop_text is not None:
                output.stop_reason = piece.stop_text
            self._ended.add(choice)

    @staticmethod
    def _add_text(output: CompletionOutput, event: TextEvent) -> None:
        if isinstance(event, Content):
            output.text += event.text
        elif isinstance(event, Reasoning):
            output.reasoning += event.text
        elif isinstance(event, ToolCallStart):
            output.tool_calls.append(ToolCall(event.id, event.name))
        elif isinstance(event, ToolCallArguments):
            if not output.tool_calls:  # its beginning was in the previous output
                output.tool_calls.append(ToolCall("", ""))
            output.tool_calls[-1].arguments += event.text

    def _logprobs(self, event: TokenEvent) -> dict[int, Logprob]:
        found = {token: Logprob(logprob, rank, self._text(token)) for rank, (token, logprob) in enumerate(event.top, 1)}
        found.setdefault(event.token, Logprob(event.logprob, None, self._text(event.token)))
        return found

    def _text(self, token: int) -> str:
        try:
            return self._tokenizer.decode([token])
        except TextError:  # a model may have more ids than its tokenizer has texts
            return ""
