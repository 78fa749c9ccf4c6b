"""What OpenAI's three APIs have in common: sampling fields, stop strings, usage and the form of errors.

Fields that are unknown are ignored, as OpenAI's servers do. Known fields that would change the answer and have no
implementation here are refused by name, so that nobody takes the answer for another. For completions.py, chat.py and
responses.py: each inherits SamplingFields and gives `turn_fields` to its Turn.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from earthshine.errors import TextError
from earthshine.server.api import Kind, Refused, Served
from earthshine.server.turn import Format
from earthshine.untrusted import parse_object, shown

MOST_CHOICES = 128  # of one request, over all its prompts: OpenAI's bound of n
MOST_STOPS = 16  # OpenAI takes 4, Kimi's own API 5
_MAX_STOP_CHARS = 1024
_INT64 = 1 << 63
_LEFT_OUT = ("allowed_token_ids", "bad_words", "min_tokens", "truncate_prompt_tokens", "use_beam_search")


class StreamOptions(BaseModel):
    """`include_usage`: a last chunk without choices tells the usage."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None


class StructuredOutputs(BaseModel):
    """vLLM's way to say what the answer must be; exactly one field."""

    model_config = ConfigDict(extra="ignore", strict=True)

    json_: str | dict[str, Any] | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=1024)] | None = None
    grammar: str | None = None
    structural_tag: Any = None


class SamplingFields(BaseModel):
    """Fields of OpenAI's and, below, of vLLM's. Ranges are those that engine.SamplingParams has a meaning for."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

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
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(min_length=1, max_length=1024)] | None = None
    guided_grammar: str | None = None  # in Lark's notation
    structured_outputs: StructuredOutputs | None = None

    allowed_token_ids: Any = None  # these five are refused unless they say nothing
    bad_words: Any = None
    min_tokens: Any = None
    truncate_prompt_tokens: Any = None
    use_beam_search: Any = None


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


def format_of(fields: SamplingFields) -> Format | None:
    """What vLLM's guided_* or structured_outputs ask for; Refused for more than one of them."""
    outputs = fields.structured_outputs or StructuredOutputs.model_validate({})
    if outputs.structural_tag is not None:
        raise Refused("structural_tag is not implemented; use json, regex, choice or grammar.", param="structural_tag")
    given = [
        Format("json_schema", _schema(fields.guided_json)) if fields.guided_json is not None else None,
        Format("regex", fields.guided_regex) if fields.guided_regex is not None else None,
        Format("choice", fields.guided_choice) if fields.guided_choice is not None else None,
        Format("grammar", fields.guided_grammar) if fields.guided_grammar is not None else None,
        Format("json_schema", _schema(outputs.json_)) if outputs.json_ is not None else None,
        Format("json_object") if outputs.json_object else None,
        Format("regex", outputs.regex) if outputs.regex is not None else None,
        Format("choice", outputs.choice) if outputs.choice is not None else None,
        Format("grammar", outputs.grammar) if outputs.grammar is not None else None,
    ]
    formats = [form for form in given if form is not None]
    if len(formats) > 1:
        raise Refused("The answer can have one form only; give one of guided_* or of structured_outputs' fields.")
    return formats[0] if formats else None


def _schema(given: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(given, str):
        try:
            return parse_object(given.encode("utf-8", "replace"), "The JSON schema", TextError)
        except TextError as error:
            raise Refused(str(error), param="guided_json") from None
    return given


def turn_fields(fields: SamplingFields) -> dict[str, Any]:
    """Arguments of Turn: sampling, stop, keep_stop, n, priority, salt, format, prompt_logprobs."""
    for name in _LEFT_OUT:
        if getattr(fields, name):
            raise Refused(f"{name} is not implemented; leave it out.", param=name)
    return {
        "sampling": sampling_of(fields),
        "stop": stops_of(fields),
        "keep_stop": bool(fields.include_stop_str_in_output),
        "n": fields.n or 1,
        "priority": fields.priority or 0,
        "salt": fields.cache_salt or "",
        "format": format_of(fields),
        "prompt_logprobs": fields.prompt_logprobs,
    }


def includes_usage(fields: SamplingFields) -> bool:
    """Whether a stream ends with a chunk that tells the usage."""
    return fields.stream_options is not None and bool(fields.stream_options.include_usage)


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
