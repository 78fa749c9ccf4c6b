"""Refusals: their kinds, their HTTP status, and the body that each API gives them.

Without torch, since the router uses them too.
"""

from typing import Any, Literal

from earthshine.errors import EarthshineError

Kind = Literal[
    "invalid",  # 400: the request is not valid; the message says what to change
    "context",  # 400: more tokens than the context has room for
    "unauthorized",  # 401
    "not_found",  # 404: an unknown path or model
    "method",  # 405
    "too_large",  # 413: the body has too many bytes
    "rate",  # 429: the queue is full
    "internal",  # 500: a fault of this server
    "unavailable",  # 503: the server is shutting down, hangs or has no room
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
_OPENAI: dict[Kind, tuple[str, str | None]] = {  # type, code
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
_ANTHROPIC: dict[Kind, str] = {
    "invalid": "invalid_request_error",
    "context": "invalid_request_error",
    "unauthorized": "authentication_error",
    "not_found": "not_found_error",
    "method": "invalid_request_error",
    "too_large": "request_too_large",
    "rate": "rate_limit_error",
    "internal": "api_error",
    "unavailable": "overloaded_error",
}


class Refused(EarthshineError):
    """A request that gets an error of `kind`. `param` names the field; `retry_seconds` becomes Retry-After; `figures`
    are for the log."""

    def __init__(
        self,
        message: str,
        kind: Kind = "invalid",
        param: str | None = None,
        retry_seconds: int | None = None,
        figures: str = "",
    ) -> None:
        super().__init__(message)
        self.kind, self.param, self.retry_seconds, self.figures = kind, param, retry_seconds, figures

    @property
    def status(self) -> int:
        return STATUS[self.kind]

    def named(self, name: str) -> "Refused":
        """The same refusal where the client calls the field `name`."""
        return Refused(self.message_with(name), self.kind, name, self.retry_seconds)


def openai_error(problem: Refused) -> dict[str, Any]:
    """The body of an error, and the data of the event that ends a stream early."""
    kind, code = _OPENAI[problem.kind]
    if problem.kind == "not_found" and problem.param == "model":
        code = "model_not_found"
    return {"error": {"message": str(problem), "type": kind, "param": problem.param, "code": code}}


def anthropic_error(problem: Refused) -> dict[str, Any]:
    """The body of an error. Claude Code recognizes a full context by the words "prompt is too long"."""
    message = str(problem)
    if problem.kind == "context":
        message = f"prompt is too long: {message}"
    elif problem.param and problem.param not in message:
        message = f"{problem.param}: {message}"
    return {"type": "error", "error": {"type": _ANTHROPIC[problem.kind], "message": message}}


def plain_error(problem: Refused) -> dict[str, Any]:
    """The body of an error on a path that belongs to no API."""
    return {"error": {"message": str(problem), "type": problem.kind, "param": problem.param, "code": None}}
