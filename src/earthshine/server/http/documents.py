"""/openapi.json: every route with the form of its request, and each status that it answers with.

Request forms come from the models that check them, so the document can't say other than what is taken.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from earthshine import __version__
from earthshine.server.api import Api

_REFUSALS = {
    400: "The request has no meaning here; the message says what to change.",
    401: "A key is missing or wrong.",
    404: "There is no such model or path.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    429: "As many requests wait as may; Retry-After says when to ask again.",
    500: "A fault of the server.",
    503: "The server is about to end, or has no room; Retry-After says when to ask again.",
}
_OBJECT = {"application/json": {"schema": {"type": "object"}}}
_STREAM: dict[str, Any] = {"text/event-stream": {}}  # tools take a schema here for that of each event
_TEMPLATE = "#/components/schemas/{model}"

Wrap = Callable[..., Callable[[Request], Awaitable[Response]]]


def post_documents(api: Api) -> dict[str, Any]:
    """What the document says about an API's route."""
    content = {"application/json": {"schema": {"$ref": _TEMPLATE.format(model=api.body.__name__)}}}
    answered = _OBJECT if api.counts else _OBJECT | _STREAM
    return {
        "summary": api.summary,
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
        "responses": {200: {"description": "The answer.", "content": answered}} | _refusals(*_REFUSALS),
    }


def get_documents(path: str, summary: str, open_to_all: bool) -> dict[str, Any]:
    """What the document says about a route that is looked up; pages of the browser are left out."""
    content = {"text/plain": {"schema": {"type": "string"}}} if path == "/metrics" else _OBJECT
    refusals = (400, 503) if open_to_all else (400, 401, 500, 503)
    named = {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {
        "summary": summary,
        "include_in_schema": not open_to_all or path in ("/health", "/ping"),
        "openapi_extra": {"parameters": [named]} if "{" in path else {},
        "responses": {200: {"description": "What was looked up.", "content": content}}
        | _refusals(*refusals, *((404,) if "{" in path else ())),
    }


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": _REFUSALS[status], "content": _OBJECT} for status in sorted(statuses)}


def add_documents(app: FastAPI, endpoint: Wrap, apis: Sequence[Api], keys: bool) -> None:
    """The route /openapi.json, made at its first use."""
    made: dict[str, Any] = {}

    async def answer(request: Request, user: str, call: Any) -> Response:
        if not made:
            made.update(_document(app, apis, keys))
        return JSONResponse(made)

    app.add_api_route("/openapi.json", endpoint(answer), methods=["GET"], include_in_schema=False, response_model=None)


def _document(app: FastAPI, apis: Sequence[Api], keys: bool) -> dict[str, Any]:
    document = get_openapi(title="Earthshine", version=__version__, routes=app.routes)
    _, forms = models_json_schema([(api.body, "validation") for api in apis], ref_template=_TEMPLATE)
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(forms.get("$defs", {}))
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        for path in ("/health", "/ping"):
            document["paths"][path]["get"]["security"] = []
    return document
