"""What OpenAI's three APIs have in common: sampling fields, stop strings, usage and the form of errors.

Fields that are unknown are ignored, as OpenAI's servers do; dialects.py has those that other servers know. For
completions.py, chat.py and responses.py: each inherits SamplingFields and calls `sampling_params`.
"""

import math
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from earthshine.engine import SamplingParams
from earthshine.engine.sampling_params import INTEGER_RANGES, RANGES
from earthshine.server.api import Kind, Refused, Served
from earthshine.server.dialects import OBEYED_AS, own_words, require_obeyed
from earthshine.server.openai.formats import FormatFields
from earthshine.untrusted import shown

MOST_STOPS = 16  # OpenAI takes 4, Kimi's own API 5
_MAX_STOP_CHARS = 1024
_T = TypeVar("_T")


def within(name: str) -> Any:
    """The range of a SamplingParams field, for the request's form and its description."""
    least, most = (RANGES | INTEGER_RANGES)[name]
    return Field(ge=least) if most == math.inf else Field(ge=least, le=most)


class StreamOptions(BaseModel):
    """`include_usage`: a last chunk without choices tells the usage."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None


class SamplingFields(FormatFields):
    """Fields of OpenAI's and, below, of vLLM's. Ranges are those that engine.SamplingParams has a meaning for."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)  # the others: for require_obeyed
    also_read: ClassVar[dict[str, str]] = OBEYED_AS

    model: Annotated[str, StringConstraints(max_length=1024)] | None = None
    temperature: Annotated[float, within("temperature")] | None = None
    top_p: Annotated[float, within("top_p")] | None = None
    presence_penalty: Annotated[float, within("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, within("frequency_penalty")] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, within("logit_bias")]], Field(max_length=1024)] | None = (
        None  # token ids as texts
    )
    seed: Annotated[int, within("seed")] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None  # counts if both are there
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    n: Annotated[int, within("n")] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None  # the caller's own word for a person; keeps no cache apart

    top_k: Annotated[int, within("top_k")] | None = None  # -1 and 0: all
    min_p: Annotated[float, within("min_p")] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=128)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    allowed_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=1 << 16)] | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: Annotated[int, within("prompt_logprobs")] | None = None
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


def _either(given: _T | None, default: _T) -> _T:
    return default if given is None else given


def sampling_params(
    fields: SamplingFields,
    served: Served,
    *,
    max_tokens: int | None = None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """The request's fields, and the model's defaults for those that it leaves out. Raises Refused."""
    penalties = (fields.presence_penalty, fields.frequency_penalty, (fields.repetition_penalty or 1) - 1)
    require_obeyed(fields.model_extra or {}, penalizes=any(penalties))
    default = served.defaults
    return SamplingParams(
        n=_either(fields.n, 1),
        temperature=_either(fields.temperature, default.temperature),
        top_p=_either(fields.top_p, default.top_p),
        top_k=_either(fields.top_k, default.top_k),
        min_p=_either(fields.min_p, default.min_p),
        presence_penalty=_either(fields.presence_penalty, default.presence_penalty),
        frequency_penalty=_either(fields.frequency_penalty, default.frequency_penalty),
        repetition_penalty=_either(fields.repetition_penalty, default.repetition_penalty),
        seed=fields.seed,
        max_tokens=max_tokens,
        stop=stops_of(fields),
        stop_token_ids=fields.stop_token_ids or (),
        ignore_eos=bool(fields.ignore_eos),
        min_tokens=fields.min_tokens or 0,
        allowed_token_ids=fields.allowed_token_ids or (),
        include_stop_str_in_output=bool(fields.include_stop_str_in_output),
        logit_bias=_biases(fields.logit_bias),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def token_limit(fields: SamplingFields) -> int | None:
    """max_completion_tokens, or the older max_tokens; None where the request has neither."""
    return fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens


def _biases(given: dict[str, float] | None) -> dict[int, float]:
    biases: dict[int, float] = {}
    for key, bias in (given or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise Refused(f"logit_bias maps token ids to numbers; {shown(key)} is not a token id.", param="logit_bias")
        biases[int(key)] = bias
    return biases


def stops_of(fields: SamplingFields) -> tuple[str, ...]:
    """The stop strings; Refused for ones that are empty, very long or very many."""
    stops = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ())
    if len(stops) > MOST_STOPS or not all(0 < len(stop) <= _MAX_STOP_CHARS for stop in stops):
        raise Refused(f"stop takes up to {MOST_STOPS} texts of 1 to {_MAX_STOP_CHARS} characters.", param="stop")
    return stops


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
