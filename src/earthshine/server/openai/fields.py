"""What OpenAI's three APIs have in common: sampling fields, stop strings, usage and the form of errors.

Fields that are unknown are ignored, as OpenAI's servers do; dialects.py has those that other servers know. For
completions.py, chat.py and responses.py: each inherits SamplingFields and gives `turn_fields` to its Turn.
"""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from earthshine.server.api import Kind, Refused, Served
from earthshine.server.dialects import OBEYED_AS, own_words, require_obeyed
from earthshine.server.openai.formats import FormatFields, TextFormat, format_of
from earthshine.untrusted import shown

MOST_CHOICES = 128  # of one request, over all its prompts: OpenAI's bound of n
MOST_STOPS = 16  # OpenAI takes 4, Kimi's own API 5
_MAX_STOP_CHARS = 1024
_INT64 = 1 << 63


class StreamOptions(BaseModel):
    """`include_usage`: a last chunk without choices tells the usage."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None


class SamplingFields(FormatFields):
    """Fields of OpenAI's and, below, of vLLM's. Ranges are those that engine.SamplingParams has a meaning for."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)  # the others: for require_obeyed
    also_read: ClassVar[dict[str, str]] = OBEYED_AS

    model: Annotated[str, StringConstraints(max_length=1024)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = (
        None  # token ids as texts
    )
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None  # counts if both are there
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None  # the caller's own word for a person; keeps no cache apart

    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None  # -1 and 0: all
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=128)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    cache_salt: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    priority: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)] | None = None  # lower comes first
    options: Any = None  # Ollama's: dialects.py has read it
    usage: Any = None  # OpenRouter's: {"include": true} is stream_options.include_usage

    @model_validator(mode="before")
    @classmethod
    def _in_own_words(cls, body: Any) -> Any:
        return own_words(body)


def model_of(fields: SamplingFields, served: Served) -> str:
    """The name that the answer bears; Refused for one that is not served here."""
    if fields.model is None:
        return served.names[0]
    if fields.model not in served.names:
        message = f"The model {shown(fields.model)} does not exist here; ask for {shown(served.names[0])}."
        raise Refused(message, "not_found", "model")
    return fields.model


def sampling_of(fields: SamplingFields) -> dict[str, Any]:
    """Those fields of engine.SamplingParams that were given."""
    limit = fields.max_completion_tokens if fields.max_completion_tokens is not None else fields.max_tokens
    names = ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed"]
    found: dict[str, Any] = {name: getattr(fields, name) for name in names}
    found |= {
        "top_k": None if fields.top_k is None else max(0, fields.top_k),
        "max_tokens": limit,
        "stop_tokens": tuple(fields.stop_token_ids or ()) or None,
        "ignore_stop": fields.ignore_eos,
        "logit_bias": _biases(fields.logit_bias),
    }
    return {name: value for name, value in found.items() if value is not None}


def _biases(given: dict[str, float] | None) -> tuple[tuple[int, float], ...] | None:
    biases: dict[int, float] = {}
    for key, bias in (given or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise Refused(f"logit_bias maps token ids to numbers; {shown(key)} is no token id.", param="logit_bias")
        biases[int(key)] = bias
    return tuple(biases.items()) or None


def stops_of(fields: SamplingFields) -> tuple[str, ...]:
    """The stop strings; Refused for ones that are empty, very long or very many."""
    stops = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ())
    if len(stops) > MOST_STOPS or not all(0 < len(stop) <= _MAX_STOP_CHARS for stop in stops):
        raise Refused(f"stop takes up to {MOST_STOPS} texts of 1 to {_MAX_STOP_CHARS} characters.", param="stop")
    return stops


def turn_fields(fields: SamplingFields, text: TextFormat | None = None) -> dict[str, Any]:
    """Arguments of Turn: sampling, stop, keep_stop, n, priority, salt, format, prompt_logprobs. `text` is the
    responses' text.format. Raises Refused."""
    penalties = (fields.presence_penalty, fields.frequency_penalty, (fields.repetition_penalty or 1) - 1)
    require_obeyed(fields.model_extra or {}, penalizes=any(penalties))
    return {
        "sampling": sampling_of(fields),
        "stop": stops_of(fields),
        "keep_stop": bool(fields.include_stop_str_in_output),
        "n": fields.n or 1,
        "priority": fields.priority or 0,
        "salt": fields.cache_salt or "",
        "format": format_of(fields, text),
        "prompt_logprobs": fields.prompt_logprobs,
    }


def includes_usage(fields: SamplingFields) -> bool:
    """Whether a stream ends with a chunk that tells the usage."""
    asked = fields.stream_options is not None and bool(fields.stream_options.include_usage)
    return asked or (isinstance(fields.usage, dict) and fields.usage.get("include") is True)


def usage(prompt: int, cached: int, completion: int, reasoning: int) -> dict[str, Any]:
    """OpenAI's object, and `cached_tokens` beside it, where Kimi's clients look first."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
        "cached_tokens": cached,
    }


_ERRORS: dict[Kind, tuple[str, str | None]] = {  # type, code
    "invalid": ("invalid_request_error", None),
    "context": ("invalid_request_error", "context_length_exceeded"),
    "unauthorized": ("authentication_error", "invalid_api_key"),
    "not_found": ("invalid_request_error", "not_found"),
    "method": ("invalid_request_error", "method_not_allowed"),
    "too_large": ("invalid_request_error", "request_too_large"),
    "rate": ("rate_limit_error", "rate_limit_exceeded"),
    "internal": ("server_error", None),
    "unavailable": ("server_error", "service_unavailable"),
}


def error_body(problem: Refused) -> dict[str, Any]:
    """The body of an answer that refuses, and the data of an event that ends a stream early."""
    kind, code = _ERRORS[problem.kind]
    if problem.kind == "not_found" and problem.param == "model":
        code = "model_not_found"
    return {"error": {"message": str(problem), "type": kind, "param": problem.param, "code": code}}
