"""What an API is to the server: a path, the form of its request, and an exchange that turns pieces into its answer.

An exchange does no input or output and never waits, so each API is tested without a server or a model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import BaseModel

from earthshine.engine import SamplingParams
from earthshine.errors import EarthshineError
from earthshine.generation.request import GenerationRequest, Piece

Kind = Literal[
    "invalid",  # 400: the request has no meaning; the message says what to change
    "context",  # 400: more tokens than the context has room for
    "unauthorized",  # 401
    "not_found",  # 404: another path or model
    "method",  # 405
    "too_large",  # 413: more bytes than a body may have
    "rate",  # 429: the queue is full
    "internal",  # 500: this server's fault
    "unavailable",  # 503: it is about to end, or hangs
]
STATUS: dict[Kind, int] = {
    "invalid": 400,
    "context": 400,
    "unauthorized": 401,
    "not_found": 404,
    "method": 405,
    "too_large": 413,
    "rate": 429,
    "internal": 500,
    "unavailable": 503,
}


class Refused(EarthshineError):
    """A request that gets an error of `kind`. `param` names the field; `retry_seconds` becomes Retry-After."""

    def __init__(
        self, message: str, kind: Kind = "invalid", param: str | None = None, retry_seconds: int | None = None
    ) -> None:
        super().__init__(message)
        self.kind, self.param, self.retry_seconds = kind, param, retry_seconds

    @property
    def status(self) -> int:
        return STATUS[self.kind]


@dataclass(frozen=True, slots=True)
class Served:
    """What APIs say about the model. `names`: every name that clients may call it by, its own first; `created`: seconds
    since 1970 when this server began; `thinks`: `thinking` has a meaning for its template."""

    names: tuple[str, ...]
    created: int
    context_tokens: int
    thinks: bool
    can_preserve_thinking: bool
    decode: Callable[[Sequence[int]], str]  # token ids to text, for prompts that came as ids
    defaults: SamplingParams = field(default_factory=SamplingParams)  # where a request says nothing


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event: `event: name` if there is one, then `data:` with JSON, or with the text itself."""

    data: dict[str, Any] | str
    name: str | None = None


class Exchange(Protocol):
    """A client's request and its answer. Choices are numbered over all of `requests`, in their order."""

    requests: Sequence[GenerationRequest]
    stream: bool

    def push(self, piece: Piece) -> list[ServerEvent]:
        """What the client is to see of this piece, if it reads a stream; keeps it for `whole` in any case."""
        ...

    def end(self) -> list[ServerEvent]:
        """After the last piece."""
        ...

    def failed(self, problem: Refused) -> list[ServerEvent]:
        """Instead of the rest, once a stream has begun."""
        ...

    def whole(self) -> dict[str, Any]:
        """The whole answer, after the last piece."""
        ...

    def counted(self, tokens: Sequence[int]) -> dict[str, Any]:
        """The answer of an API that only counts: tokens of each prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Api:
    """`begin` raises Refused; `error` is the body of an answer that refuses; `counts`: no reply is computed."""

    path: str
    summary: str
    body: type[BaseModel]
    begin: Callable[[Any, Served], Exchange]
    error: Callable[[Refused], dict[str, Any]]
    counts: bool = False
