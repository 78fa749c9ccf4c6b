"""Errors of the router in the form of the API whose path was asked: as an answer, or as the last events of a stream."""

import json
from typing import Any

from starlette.responses import JSONResponse, Response

from earthshine.server.refusals import Refused, anthropic_error, openai_error

RETRY_SECONDS = 1


def error_body(path: str, problem: Refused) -> dict[str, Any]:
    """The body of an error."""
    return anthropic_error(problem) if path.startswith("/v1/messages") else openai_error(problem)


def error_response(path: str, problem: Refused, headers: dict[str, str] | None = None) -> Response:
    """The answer for a refusal."""
    sent = dict(headers or {})
    if problem.kind in ("rate", "unavailable"):
        sent["retry-after"] = str(max(1, problem.retry_seconds or RETRY_SECONDS))
    if problem.kind == "unauthorized":
        sent["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(path, problem), problem.status, sent)


def error_events(path: str, problem: Refused) -> bytes:
    """The events that end a stream which can't be completed."""
    if path.startswith("/v1/messages"):
        return _event(anthropic_error(problem), "error")
    if path.startswith("/v1/responses"):
        error = openai_error(problem)["error"]
        return _event({"type": "error", "code": error["code"] or error["type"], "message": error["message"],
                       "param": error["param"], "sequence_number": 0}, "error")  # fmt: skip
    return _event(openai_error(problem)) + b"data: [DONE]\n\n"


def _event(data: dict[str, Any], name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
