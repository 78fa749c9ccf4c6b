"""POST /v1/completions: texts or token ids to be continued, in OpenAI's form with vLLM's additions.

With `echo` and `logprobs` the prompt comes back with its log-probabilities, also at max_tokens 0, so that evaluations
can score texts. Control tokens that are typed are text. Refused: suffix, best_of other than n, and max_tokens 0
without echo.
"""

import codecs
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field

from earthshine.engine.sampling_params import MOST_CHOICES
from earthshine.generation.request import Delta, GenerationRequest, Piece, Reading, Scored, Started
from earthshine.server.api import Api, Served, ServerEvent, documented
from earthshine.server.openai.fields import (
    SamplingFields,
    includes_usage,
    limit_name,
    model_of,
    prompt_progress,
    sampling_params,
    token_limit,
    usage,
)
from earthshine.server.openai.formats import format_of
from earthshine.server.refusals import Refused, openai_error
from earthshine.text import Content

_MAX_TOKENS = 16  # OpenAI's default
_LEAST = -9999.0  # OpenAI's value for a token of probability 0; JSON has no infinity

# fail_fast: of a million wrong entries one is reported.
_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
_Texts = Annotated[list[str], Field(min_length=1, max_length=MOST_CHOICES, fail_fast=True)]
_ManyIds = Annotated[list[_Ids], Field(min_length=1, max_length=MOST_CHOICES, fail_fast=True)]


class CompletionBody(SamplingFields):
    """The request's body."""

    prompt: str | _Texts | _Ids | _ManyIds
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, documented("logprobs")] | None = None  # OpenAI takes 5
    best_of: int | None = None
    return_progress: bool | None = None  # llama.cpp's: a stream also has how far each prompt is


def _prompts(body: CompletionBody) -> list[str | list[int]]:
    if isinstance(body.prompt, str):
        return [body.prompt]
    ids = [entry for entry in body.prompt if isinstance(entry, int)]
    return [ids] if ids else [entry for entry in body.prompt if not isinstance(entry, int)]


def _requests(body: CompletionBody, served: Served) -> list[GenerationRequest]:
    echo, n, limit = bool(body.echo), body.n or 1, token_limit(body)
    if body.suffix:
        raise Refused("This model can't fill in before a suffix; leave it out.", param="suffix")
    if body.best_of not in (None, n):
        raise Refused(f"best_of is not implemented; leave it out or set it to n, {n}.", param="best_of")
    if limit == 0 and not echo:
        name = limit_name(body)
        raise Refused(f"{name} 0 needs echo; ask for at least one token.", param=name)
    scored = [k for k in (body.logprobs if echo else None, body.prompt_logprobs) if k is not None]
    params = sampling_params(
        body,
        served,
        max_tokens=_MAX_TOKENS if limit is None else 1 if limit == 0 else limit,
        logprobs=body.logprobs,
        prompt_logprobs=max(scored, default=None),
    )
    prompts = _prompts(body)
    if len(prompts) * n > MOST_CHOICES:
        raise Refused(f"{len(prompts)} prompts with n {n} make more than {MOST_CHOICES} choices; ask for fewer.")
    shared = GenerationRequest(
        prompt="",
        params=params,
        format=format_of(body),
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
        echo=echo,
        prompt_only=limit == 0,
    )
    return [replace(shared, prompt=prompt) for prompt in prompts]


def _name(raw: bytes) -> str:
    """A token's text; bytes that are not UTF-8 are written as OpenAI writes them."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _top(token: Scored, most: int) -> dict[str, float] | None:
    """The best tokens' texts, and the chosen one's."""
    if token.logprob is None:
        return None
    found: dict[str, float] = {}
    for raw, logprob in [*((raw, value) for _, raw, value in token.top[:most]), (token.raw, token.logprob)]:
        found.setdefault(_name(raw), max(logprob, _LEAST))
    return found


def _prompt_top(token: Scored, most: int) -> dict[str, dict[str, Any]] | None:
    """vLLM's form, by token id."""
    if token.logprob is None:
        return None
    ranked = [(*entry, rank) for rank, entry in enumerate(token.top[:most], 1)]
    if all(entry[0] != token.token for entry in ranked):
        ranked.append((token.token, token.raw, token.logprob, None))  # type: ignore[arg-type]
    return {
        str(each): {"logprob": max(logprob, _LEAST), "rank": rank, "decoded_token": raw.decode("utf-8", "replace")}
        for each, raw, logprob, rank in ranked
    }


@dataclass(eq=False, slots=True)
class _Choice:
    """One choice so far. `logprobs`: the number of alternatives that were asked for, None for no scores at all."""

    logprobs: int | None
    prompt_logprobs: int | None
    echo: bool
    text: list[str] = field(default_factory=list)
    scores: dict[str, list[Any]] | None = None
    prompt_scores: list[Any] | None = None
    finish_reason: str | None = None
    _decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))
    _offset: int = 0  # characters of the scored tokens so far

    def __post_init__(self) -> None:
        if self.logprobs is not None:
            self.scores = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def add(self, piece: Delta) -> tuple[str, dict[str, list[Any]] | None]:
        """The new text and its scores."""
        text = "".join(event.text for event in piece.events if isinstance(event, Content))
        tokens = piece.tokens
        if tokens and tokens[0].logprob is None:  # the prompt, whole
            if self.prompt_logprobs is not None:
                self.prompt_scores = [_prompt_top(token, self.prompt_logprobs) for token in tokens]
            tokens = tokens if self.echo else ()
        self.text.append(text)
        scores = None if self.logprobs is None else self._scores(tokens, self.logprobs)
        for name, values in (scores or {}).items():
            assert self.scores is not None
            self.scores[name] += values
        return text, scores

    def _scores(self, tokens: Sequence[Scored], most: int) -> dict[str, list[Any]]:
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(token.raw))
        return {
            "tokens": [_name(token.raw) for token in tokens],
            "token_logprobs": [None if token.logprob is None else max(token.logprob, _LEAST) for token in tokens],
            "top_logprobs": [_top(token, most) for token in tokens],
            "text_offset": offsets,
        }


class CompletionExchange:
    """One request and its answer."""

    def __init__(self, body: CompletionBody, served: Served) -> None:
        self.requests: Sequence[GenerationRequest] = _requests(body, served)
        self.stream = bool(body.stream)
        self._usage_asked, self._progress_asked = includes_usage(body), bool(body.return_progress)
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model_of(body, served),
        }
        n_choices = len(self.requests) * self.requests[0].params.n
        self._choices = [_Choice(body.logprobs, body.prompt_logprobs, bool(body.echo)) for _ in range(n_choices)]
        self._prompt = self._cached = self._completion = 0

    def push(self, piece: Piece) -> list[ServerEvent]:
        if isinstance(piece, Started):
            self._prompt += piece.prompt_tokens
            self._cached += piece.cached_tokens
            return []
        choice = self._choices[piece.choice]
        if isinstance(piece, Reading):
            more = {"prompt_progress": prompt_progress(piece.progress)}
            return [self._chunk(piece.choice, "", None, more)] if self._progress_asked else []
        if isinstance(piece, Delta):
            text, scores = choice.add(piece)
        else:
            choice.finish_reason = "stop" if piece.reason == "stop" else "length"
            self._completion += piece.completion_tokens
            text, scores = "", None
        return [self._chunk(piece.choice, text, scores, {})]

    def _chunk(self, index: int, text: str, scores: dict[str, Any] | None, more: dict[str, Any]) -> ServerEvent:
        finish = self._choices[index].finish_reason
        entry = {"index": index, "text": text, "logprobs": scores, "finish_reason": finish}
        unknown = {"usage": None} if self._usage_asked else {}
        return ServerEvent({**self._head, "choices": [entry], **unknown, **more})

    def end(self) -> list[ServerEvent]:
        last = [ServerEvent({**self._head, "choices": [], "usage": self._usage()})] if self._usage_asked else []
        return [*last, ServerEvent("[DONE]")]

    def failed(self, problem: Refused) -> list[ServerEvent]:
        return [ServerEvent(openai_error(problem)), ServerEvent("[DONE]")]

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "text": "".join(choice.text),
                "logprobs": choice.scores,
                "finish_reason": choice.finish_reason,
                **({} if choice.prompt_scores is None else {"prompt_logprobs": choice.prompt_scores}),
            }
            for index, choice in enumerate(self._choices)
        ]
        return {**self._head, "choices": choices, "usage": self._usage()}

    def counted(self, tokens: Sequence[int]) -> dict[str, Any]:
        return {"prompt_tokens": sum(tokens)}

    def _usage(self) -> dict[str, Any]:
        return usage(self._prompt, self._cached, self._completion, 0)


COMPLETIONS = Api(
    path="/v1/completions",
    summary="Continue a text, or token ids.",
    body=CompletionBody,
    begin=CompletionExchange,
    error=openai_error,
)
