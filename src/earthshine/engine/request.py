"""What the scheduler takes and returns: token ids and events, never text.

Every reply's events come in one order: Admitted, PromptProgress and PromptScores if they were asked for, TokenEvents,
then exactly one Finished or Failed, after which nothing more comes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from earthshine.engine.sampling_params import SamplingParams
from earthshine.errors import EarthshineError


class Constraint(Protocol):
    """What a reply may say next. One object serves one reply; the engine's thread alone calls it."""

    def allowed(self, likeliest: int | None = None) -> np.ndarray | None:
        """int32 [ceil(vocab_size / 32)]: bit i of word w permits token 32 w + i. None: every token may come.
        `likeliest`: what would be chosen without this constraint, so that it is known whether the model would end."""
        ...

    def accept(self, token: int) -> None:
        """The token that was chosen, stop tokens included."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """One choice to compute. The submitter acts on `params.n` and `params.stop`. `tenant` separates caches: only
    requests of the same tenant share pages; `priority`: lower comes first; `progress`: PromptProgress is sent."""

    tokens: Sequence[int]
    params: SamplingParams
    tenant: str = ""
    priority: int = 0
    constraint: Constraint | None = None
    progress: bool = False


@dataclass(frozen=True, slots=True)
class Admitted:
    """The prompt is about to be computed; the first `reused` of its tokens were found."""

    reused: int


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """Of a prompt's `total` tokens, `processed` have been computed or found, `cached` of these found. `seconds` since
    its admission; `seconds_left`: expected until all have been computed, None where nothing is known yet."""

    total: int
    cached: int
    processed: int
    seconds: float
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A token that is part of the answer, or in PromptScores of the prompt."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class PromptScores:
    """The log-likelihoods of the prompt's next tokens, from the second on; several such events may come."""

    scores: tuple[TokenEvent, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event. `token` is the stop token for "stop", and None otherwise."""

    reason: Literal["stop", "length", "context", "cancelled"]
    token: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a reply that can't go on; other replies do."""

    error: EarthshineError


ReplyEvent = Admitted | PromptProgress | PromptScores | TokenEvent | Finished | Failed
Sink = Callable[[ReplyEvent], None]  # called on the engine's thread: must return at once and raise nothing
