"""What an API is to the server: a path, the form of its request, and an exchange that turns pieces into its answer.

An exchange does no input or output and never waits, so each API is tested without a server or a model.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pydantic import BaseModel, Field

from earthshine.engine import SamplingParams
from earthshine.engine.sampling_params import INTEGER_RANGES, RANGES
from earthshine.errors import UsageError
from earthshine.generation.request import GenerationRequest, Piece
from earthshine.server.refusals import Refused

_ABOVE_ZERO = ("top_p", "repetition_penalty")


def make_params(defaults: SamplingParams, names: Mapping[str, str], **values: Any) -> SamplingParams:
    """The defaults with these values in their place. Raises Refused for an invalid value. `names`: what the API calls a
    parameter, where it has another name for it."""
    try:
        return replace(defaults, **values)
    except UsageError as error:
        problem, param = Refused(str(error), param=error.param), error.param
        raise (problem.named(names[param]) if param is not None and param in names else problem) from None


def documented(name: str) -> Any:
    """The range of a SamplingParams field for the OpenAPI document. It is checked by SamplingParams alone."""
    least, most = (RANGES | INTEGER_RANGES)[name]
    shown: dict[str, Any] = {"exclusiveMinimum" if name in _ABOVE_ZERO else "minimum": least}
    return Field(json_schema_extra=shown if most == math.inf else shown | {"maximum": most})


@dataclass(frozen=True, slots=True)
class Served:
    """What APIs say about the model. `names`: every name that clients may use for it, its own first; `created`: seconds
    since 1970 when this server started; `thinks`: `thinking` changes what its template asks for."""

    names: tuple[str, ...]
    created: int
    context_tokens: int
    thinks: bool
    can_preserve_thinking: bool
    decode: Callable[[Sequence[int]], str]  # token ids to text, for prompts that came as ids
    defaults: SamplingParams = field(default_factory=SamplingParams)  # for fields that a request leaves out


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event: `event: name` if it has one, then `data:` with JSON, or with the text itself."""

    data: dict[str, Any] | str
    name: str | None = None


class Exchange(Protocol):
    """A client's request and its answer. Choices are numbered over all of `requests`, in their order."""

    requests: Sequence[GenerationRequest]
    stream: bool

    def push(self, piece: Piece) -> list[ServerEvent]:
        """Adds the piece to the answer; returns the events that a stream has for it."""
        ...

    def end(self) -> list[ServerEvent]:
        """The events after the last piece."""
        ...

    def failed(self, problem: Refused) -> list[ServerEvent]:
        """The events that end a stream that has begun and can't be completed."""
        ...

    def whole(self) -> dict[str, Any]:
        """The whole answer, after the last piece."""
        ...

    def counted(self, tokens: Sequence[int]) -> dict[str, Any]:
        """The answer of an API that only counts; `tokens`: of each prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Api:
    """`begin` raises Refused; `error` makes the body of an error; `counts`: prompts are counted and not answered."""

    path: str
    summary: str
    body: type[BaseModel]
    begin: Callable[[Any, Served], Exchange]
    error: Callable[[Refused], dict[str, Any]]
    counts: bool = False
