"""What the scheduler takes and returns: token ids and events, never text.

Events of a reply come in this order: Admitted; PromptProgress and PromptScores if they were asked for; TokenEvents;
then exactly one Finished or Failed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from earthshine.engine.export import PieceSink
from earthshine.engine.sampling_params import SamplingParams
from earthshine.errors import EarthshineError


class Constraint(Protocol):
    """Restricts the tokens of a reply. One object serves one reply; only the engine's thread calls it."""

    def allowed(self, likeliest: int | None = None) -> np.ndarray | None:
        """The permitted tokens: int32 [ceil(vocab_size / 32)], where bit i of word w permits token 32 w + i. None: all.

        `likeliest`: the token that would be chosen without this constraint, which shows whether the model would end
        here.
        """
        ...

    def accept(self, token: int) -> None:
        """Advance by the chosen token, which may be a stop token."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """One choice to compute. The submitter acts on `params.n` and `params.stop`. `tenant` separates caches: only
    requests of the same tenant share pages; `priority`: lower comes first; `progress`: PromptProgress is sent.

    `pieces`: takes what is kept of the prompt, which fills whole pages; then nothing is sampled."""

    tokens: Sequence[int]
    params: SamplingParams
    tenant: str = ""
    priority: int = 0
    constraint: Constraint | None = None
    progress: bool = False
    pieces: PieceSink | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """The prompt is about to be computed. The first `reused` of its tokens were found in the prefix cache."""

    reused: int


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """How far a prompt is.

    processed: of its `total` tokens, those computed or found in the prefix cache; `cached`: of these, those found.
    seconds: since its admission.
    seconds_left: expected until all have been computed; None where it is unknown.
    """

    total: int
    cached: int
    processed: int
    seconds: float
    seconds_left: float | None

    @property
    def ended(self) -> bool:
        return self.processed >= self.total


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A token that is part of the answer, or in PromptScores of the prompt."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Log-likelihoods of the next tokens of the prompt, from its second on. Several such events may come."""

    scores: tuple[TokenEvent, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event. `token` is the stop token for "stop", and None otherwise."""

    reason: Literal["stop", "length", "context", "cancelled"]
    token: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a reply that failed. Other replies continue."""

    error: EarthshineError


ReplyEvent = Admitted | PromptProgress | PromptScores | TokenEvent | Finished | Failed
Sink = Callable[[ReplyEvent], None]  # called on the engine's thread: must return at once and raise nothing
