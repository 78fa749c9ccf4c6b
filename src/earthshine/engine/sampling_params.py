"""SamplingParams: how a request's tokens are chosen and when it ends, with vLLM's names and meanings.

The only check of these values: an API and a caller in Python get the same error. `RANGES` and `INTEGER_RANGES` are the
one statement of what each may be. Imports no torch.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from earthshine.errors import UsageError

MOST_LOGPROBS = 20
MOST_CHOICES = 128  # OpenAI's bound of n
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


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to stop. Raises UsageError, whose `param` is the field, for an invalid value."""

    n: int = 1  # choices for each prompt
    temperature: float = 1.0  # 0: the most likely token, the lower id among equals
    top_p: float = 1.0
    top_k: int = 0  # 0 and -1: all; tokens as likely as the last one kept are kept too
    min_p: float = 0.0  # of the most likely token's probability
    presence_penalty: float = 0.0  # off the logit of each token generated so far
    frequency_penalty: float = 0.0  # the same, times how often it was generated
    repetition_penalty: float = 1.0  # of tokens in the prompt or generated: divides positive logits, multiplies others
    seed: int | None = None  # None: different each time
    max_tokens: int | None = None  # None: until the context is full
    stop: Sequence[str] = ()  # texts that end the answer; one text, or several
    stop_token_ids: Sequence[int] = ()  # in addition to the model's own
    allowed_token_ids: Sequence[int] = ()  # no others come; empty: all may
    min_tokens: int = 0  # tokens that come before a stop token may
    ignore_eos: bool = False  # stop tokens, the model's and these, do not end the answer
    include_stop_str_in_output: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id to what is added to its logit
    logprobs: int | None = None  # alternatives to report for each token; 0: the chosen token alone
    prompt_logprobs: int | None = None  # the same for each token of the prompt but the first

    def __post_init__(self) -> None:
        for name in RANGES:
            if name != "logit_bias":
                _require_number(name, getattr(self, name))
        for name in ("n", "top_k", "min_tokens", "seed", "max_tokens", "logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None or name in ("n", "top_k", "min_tokens"):
                _require_integer(name, getattr(self, name))
        for name in ("ignore_eos", "include_stop_str_in_output"):
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
        stop = (self.stop,) if isinstance(self.stop, str) else _listed("stop", self.stop)
        if self.min_tokens and stop:
            raise UsageError("min_tokens holds back stop tokens and no stop texts; give it or stop.", "min_tokens")
        tokens, biases = _listed("stop_token_ids", self.stop_token_ids), self.logit_bias
        allowed = _listed("allowed_token_ids", self.allowed_token_ids)
        for token in tokens:
            _require_integer("stop_token_ids", token)
        for token in allowed:
            _require_integer("stop_token_ids", token, "An id of allowed_token_ids", "allowed_token_ids")
        if not isinstance(biases, Mapping):
            raise UsageError("logit_bias must map token ids to numbers.", "logit_bias")
        for token, bias in biases.items():
            _require_integer("stop_token_ids", token, "A token of logit_bias", "logit_bias")
            _require_number("logit_bias", bias)
        for name, value in (
            ("top_k", max(0, self.top_k)), ("stop", stop), ("stop_token_ids", tokens), ("logit_bias", dict(biases)),
            ("allowed_token_ids", allowed),
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    @property
    def penalizes(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)

    def choice_seed(self, choice: int) -> int | None:
        """The seed of choice number `choice`: each has its own, within 64 bits."""
        return None if self.seed is None else (self.seed + choice + _INT64) % (2 * _INT64) - _INT64


def _listed(name: str, values: Iterable[object]) -> tuple[object, ...]:
    if not isinstance(values, Iterable):
        raise UsageError(f"{name} must be a list, not {values!r}.", name)
    return tuple(values)


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
