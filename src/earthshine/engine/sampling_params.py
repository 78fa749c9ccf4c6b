"""SamplingParams: how a request's tokens are chosen and when it ends, with vLLM's names and meanings.

The values are checked here and nowhere else, so the server's APIs and a caller in Python get the same error. `RANGES`
and `INTEGER_RANGES` hold the permitted values; the server's OpenAPI document repeats them. Parameters of vLLM that are
not implemented are refused by name. Imports no torch.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from earthshine.errors import UsageError

MOST_LOGPROBS = 20
MOST_CHOICES = 128  # OpenAI's limit for n
MOST_STOPS, MOST_STOP_CHARS = 64, 1024
_LARGEST = sys.float_info.max
_INT64 = 1 << 63
RANGES: dict[str, tuple[float, float]] = {  # least and most, both included
    "temperature": (0, math.inf),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0, math.inf),
    "logit_bias": (-100, 100),
}
INTEGER_RANGES: dict[str, tuple[int, float]] = {
    "n": (1, MOST_CHOICES),
    "top_k": (-1, (1 << 31) - 1),
    "min_tokens": (0, (1 << 31) - 1),
    "seed": (-_INT64, _INT64 - 1),
    "max_tokens": (1, math.inf),
    "logprobs": (0, MOST_LOGPROBS),
    "prompt_logprobs": (0, MOST_LOGPROBS),
    "stop_token_ids": (0, math.inf),
}
_FLAGS = ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens")
_BEAMS = "beam search is not implemented; use n for several answers"
_INSTEAD = {  # vLLM's parameters that are not implemented, with what to do instead
    "bad_words": "words can't be banned; use logit_bias for tokens",
    "best_of": "use n for several answers",
    "use_beam_search": _BEAMS,
    "length_penalty": _BEAMS,
    "early_stopping": _BEAMS,
    "logits_processors": "use logit_bias or allowed_token_ids",
    "detokenize": "answers have text and token ids",
    "output_kind": "generate returns whole answers, and stream what is new",
    "structured_outputs": "give structured_outputs to generate or chat",
    "guided_decoding": "give structured_outputs to generate or chat",
    "truncate_prompt_tokens": "a prompt that is too long is refused and never cut",
    "spaces_between_special_tokens": "special tokens are written without spaces between them",
}


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to stop.

    Raises UsageError, whose `param` is the parameter's name, for an invalid value and for a parameter that is not
    implemented. Where a sequence or a mapping is expected, None means an empty one.
    """

    n: int = 1  # answers to each prompt
    temperature: float = 1.0  # 0: the most likely token, the lower id among equals
    top_p: float = 1.0
    top_k: int = 0  # 0 and -1: all; tokens as likely as the last one kept are kept too
    min_p: float = 0.0  # of the most likely token's probability
    presence_penalty: float = 0.0  # subtracted from the logit of each token generated so far
    frequency_penalty: float = 0.0  # the same, times the number of times that the token was generated
    repetition_penalty: float = 1.0  # of tokens in the prompt or generated: divides positive logits, multiplies others
    seed: int | None = None  # None: different each time
    max_tokens: int | None = None  # None: until the context is full (vLLM's default is 16)
    stop: Sequence[str] = ()  # texts that end the answer; one text, or several
    stop_token_ids: Sequence[int] = ()  # in addition to the model's own
    allowed_token_ids: Sequence[int] = ()  # only these are generated; empty: all
    min_tokens: int = 0  # tokens before stop tokens may be generated and stop texts are looked for
    ignore_eos: bool = False  # stop tokens, the model's and these, do not end the answer
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True  # special tokens are left out of the text
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id to what is added to its logit
    logprobs: int | None = None  # alternatives to report for each token; 0: the chosen token alone
    prompt_logprobs: int | None = None  # the same for each token of the prompt but the first

    def __new__(cls, *values: Any, **named: Any) -> Self:
        for name in named:
            if name not in cls.__dataclass_fields__:
                instead = _INSTEAD.get(name, f"it has {', '.join(cls.__dataclass_fields__)}")
                raise UsageError(f"SamplingParams has no parameter {name}: {instead}.", name)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        for name in RANGES:
            if name != "logit_bias":
                _require_number(name, getattr(self, name))
        for name in ("n", "top_k", "min_tokens", "seed", "max_tokens", "logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None or name in ("n", "top_k", "min_tokens"):
                _require_integer(name, getattr(self, name))
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} must be True or False, not {getattr(self, name)!r}.", name)
        if self.top_p == 0:
            raise UsageError("top_p must be above 0; a temperature of 0 chooses the most likely token.", "top_p")
        if self.repetition_penalty == 0:
            raise UsageError("repetition_penalty must be above 0; 1 turns it off.", "repetition_penalty")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise UsageError(
                f"min_tokens is {self.min_tokens}, and at most {self.max_tokens} tokens can come.", "min_tokens"
            )
        tokens, biases = _listed("stop_token_ids", self.stop_token_ids), self.logit_bias
        allowed = _listed("allowed_token_ids", self.allowed_token_ids)
        for token in tokens:
            _require_integer("stop_token_ids", token)
        for token in allowed:
            _require_integer("stop_token_ids", token, "An id of allowed_token_ids", "allowed_token_ids")
        biases = {} if biases is None else biases
        if not isinstance(biases, Mapping):
            raise UsageError("logit_bias must map token ids to numbers.", "logit_bias")
        for token, bias in biases.items():
            _require_integer("stop_token_ids", token, "A token of logit_bias", "logit_bias")
            _require_number("logit_bias", bias)
        for name, value in (
            ("top_k", max(0, self.top_k)), ("stop", _stops(self.stop)), ("stop_token_ids", tokens),
            ("logit_bias", dict(biases)), ("allowed_token_ids", allowed),
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    @property
    def penalizes(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)

    def choice_seed(self, choice: int) -> int | None:
        """The seed of choice number `choice`: each has its own, within 64 bits."""
        return None if self.seed is None else (self.seed + choice + _INT64) % (2 * _INT64) - _INT64


def _listed(name: str, values: Iterable[object] | None) -> tuple[object, ...]:
    if values is not None and not isinstance(values, Iterable):
        raise UsageError(f"{name} must be a list, not {values!r}.", name)
    return () if values is None else tuple(values)


def _stops(given: str | Iterable[object] | None) -> tuple[object, ...]:
    stops = (given,) if isinstance(given, str) else _listed("stop", given)
    sound = all(isinstance(stop, str) and 0 < len(stop) <= MOST_STOP_CHARS for stop in stops)
    if len(stops) > MOST_STOPS or not sound:
        raise UsageError(f"stop must be up to {MOST_STOPS} texts of 1 to {MOST_STOP_CHARS} characters.", "stop")
    return stops


def _require_number(name: str, value: object) -> None:
    least, most = RANGES[name]
    sound = isinstance(value, int | float) and not isinstance(value, bool)
    if not sound or not least <= value <= min(most, _LARGEST):  # type: ignore[operator]
        raise UsageError(f"{name} must be a number {_span(least, most)}, not {value!r}.", name)


def _require_integer(name: str, value: object, what: str | None = None, param: str | None = None) -> None:
    least, most = INTEGER_RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{what or name} must be a whole number {_span(least, most)}, not {value!r}.", param or name)


def _span(least: float, most: float) -> str:
    return f"{least} or more" if most == math.inf else f"between {least} and {most}"
