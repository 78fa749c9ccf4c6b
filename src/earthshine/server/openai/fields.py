"""What OpenAI's three APIs have in common: sampling fields, usage and the form of errors.

Unknown fields are ignored, as OpenAI's servers do; dialects.py lists the fields of other servers. The bodies of
completions.py, chat.py and responses.py inherit SamplingFields. Types are checked here, values by SamplingParams.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from earthshine.engine import PromptProgress, SamplingParams
from earthshine.server.api import Served, documented, make_params
from earthshine.server.dialects import OBEYED_AS, READ_OPTIONS, own_names, require_obeyed
from earthshine.server.openai.formats import FormatFields
from earthshine.server.refusals import Refused
from earthshine.untrusted import shown

_SAMPLING = ("n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
             "repetition_penalty", "seed", "stop", "stop_token_ids", "allowed_token_ids", "ignore_eos", "min_tokens",
             "include_stop_str_in_output", "skip_special_tokens")  # fmt: skip


class StreamOptions(BaseModel):
    """`include_usage`: a last chunk without choices has the usage."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None


class SamplingFields(FormatFields):
    """OpenAI's fields and, below them, vLLM's."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)  # the others: for require_obeyed
    also_read: ClassVar[dict[str, str]] = OBEYED_AS
    read_options: ClassVar[frozenset[str]] = READ_OPTIONS

    model: Annotated[str, StringConstraints(max_length=1024)] | None = None
    temperature: Annotated[float, documented("temperature")] | None = None
    top_p: Annotated[float, documented("top_p")] | None = None
    presence_penalty: Annotated[float, documented("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, documented("frequency_penalty")] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, documented("logit_bias")]], Field(max_length=1024)] | None = (
        None  # token ids as texts
    )
    seed: Annotated[int, documented("seed")] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None  # the limit if both are given
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    n: Annotated[int, documented("n")] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None  # the caller's name for a person; caches are not separated by it

    top_k: Annotated[int, documented("top_k")] | None = None  # -1 and 0: all
    min_p: Annotated[float, documented("min_p")] | None = None
    repetition_penalty: Annotated[float, documented("repetition_penalty")] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=128)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, documented("min_tokens")] | None = None
    allowed_token_ids: Annotated[list[int], Field(max_length=1 << 16)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: Annotated[int, documented("prompt_logprobs")] | None = None
    cache_salt: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    priority: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)] | None = None  # lower ones are computed first
    options: Any = None  # Ollama's: dialects.py has read it
    usage: Any = None  # OpenRouter's: {"include": true} is stream_options.include_usage

    @model_validator(mode="before")
    @classmethod
    def _with_own_names(cls, body: Any) -> Any:
        return own_names(body)


def model_of(fields: SamplingFields, served: Served) -> str:
    """The model's name in the answer. Raises Refused for a model that is not served here."""
    if fields.model is None:
        return served.names[0]
    if fields.model not in served.names:
        message = f"The model {shown(fields.model)} does not exist here; ask for {shown(served.names[0])}."
        raise Refused(message, "not_found", "model")
    return fields.model


def sampling_params(
    fields: SamplingFields, served: Served, names: Mapping[str, str] | None = None, **limits: int | None
) -> SamplingParams:
    """The request's fields, and the model's defaults for those that it leaves out. Raises Refused.

    `limits`: max_tokens, logprobs and prompt_logprobs, which each API has its own fields for; `names`: what it calls
    them.
    """
    penalties = (fields.presence_penalty, fields.frequency_penalty, (fields.repetition_penalty or 1) - 1)
    require_obeyed(fields.model_extra or {}, penalizes=any(penalties))
    given = {name: value for name in _SAMPLING if (value := getattr(fields, name)) is not None}
    names = {"max_tokens": limit_name(fields)} | dict(names or {})
    return make_params(served.defaults, names, **given, **limits, logit_bias=_biases(fields.logit_bias))


def token_limit(fields: SamplingFields) -> int | None:
    """max_completion_tokens, or the older max_tokens; None where the request has neither."""
    return fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens


def limit_name(fields: SamplingFields) -> str:
    """The field that `token_limit` comes from."""
    return "max_tokens" if fields.max_completion_tokens is None else "max_completion_tokens"


def _biases(given: dict[str, float] | None) -> dict[int, float]:
    biases: dict[int, float] = {}
    for key, bias in (given or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise Refused(f"logit_bias maps token ids to numbers; {shown(key)} is not a token id.", param="logit_bias")
        biases[int(key)] = bias
    return biases


def includes_usage(fields: SamplingFields) -> bool:
    """Whether a stream ends with a chunk that has the usage."""
    asked = fields.stream_options is not None and bool(fields.stream_options.include_usage)
    return asked or (isinstance(fields.usage, dict) and fields.usage.get("include") is True)


def usage(prompt: int, cached: int, completion: int, reasoning: int) -> dict[str, Any]:
    """OpenAI's object, with `cached_tokens` at its top too, where Kimi's clients look first."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
        "cached_tokens": cached,
    }


def prompt_progress(known: PromptProgress) -> dict[str, Any]:
    """llama.cpp's object for `return_progress`: `processed` counts the tokens that were found too. `left_ms`, which is
    not llama.cpp's: expected milliseconds until the prompt has been computed, where they are known."""
    found = {
        "total": known.total,
        "cache": known.cached,
        "processed": known.processed,
        "time_ms": round(known.seconds * 1000),
    }
    return found if known.seconds_left is None else found | {"left_ms": round(known.seconds_left * 1000)}
