"""/openapi.json: every route with the schema of its request and the statuses of its answers.

Schemas are made from the pydantic models that check requests, so the document agrees with what is accepted.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from earthshine import __version__
from earthshine.server.api import Api

_VERSION = "3.1.0"  # of OpenAPI
_REFUSALS = {
    400: "The request is not valid; the message says what to change.",
    401: "The API key is missing or wrong.",
    404: "The model or the path does not exist.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "The queue is full; Retry-After says when to try again.",
    500: "A fault of the server.",
    503: "The server is shutting down or has no room; Retry-After says when to try again.",
}
_OBJECT = {"application/json": {"schema": {"type": "object"}}}
_STREAM: dict[str, Any] = {"text/event-stream": {}}  # tools would read a schema here as that of each event
_TEMPLATE = "#/components/schemas/{model}"

Endpoint = Callable[[Request], Awaitable[Response]]


class DocumentedRoute(Route):
    """A route of one method (GET answers HEAD too) and its OpenAPI operation; None leaves it out of the document."""

    def __init__(self, path: str, endpoint: Endpoint, method: str, operation: dict[str, Any] | None = None) -> None:
        super().__init__(path, endpoint, methods=[method])
        self.method, self.operation = method.lower(), operation


def post_operation(api: Api) -> dict[str, Any]:
    """The operation of an API's route."""
    content = {"application/json": {"schema": {"$ref": _TEMPLATE.format(model=api.body.__name__)}}}
    answered = _OBJECT if api.counts else _OBJECT | _STREAM
    return {
        "summary": api.summary,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": "The answer.", "content": answered}} | _refusals(*_REFUSALS),
    }


def get_operation(path: str, summary: str, needs_key: bool) -> dict[str, Any]:
    """The operation of a route whose request has no body."""
    content = {"text/plain": {"schema": {"type": "string"}}} if path == "/metrics" else _OBJECT
    refusals = (400, 401, 500, 503) if needs_key else (400, 503)
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "The answer.", "content": content}}
        | _refusals(*refusals, *((404,) if "{" in path else ())),
    }
    if name := re.search(r"\{(\w+)", path):
        schema = {"type": "string", "minLength": 1}
        operation["parameters"] = [{"name": name[1], "in": "path", "required": True, "schema": schema}]
    return operation if needs_key else operation | {"security": []}


def _refusals(*statuses: int) -> dict[str, dict[str, Any]]:
    return {str(status): {"description": _REFUSALS[status], "content": _OBJECT} for status in sorted(statuses)}


def document_route(app: Starlette, wrap: Callable[..., Endpoint], apis: Sequence[Api], keys: bool) -> DocumentedRoute:
    """The route /openapi.json; the document is made at its first use."""
    made: dict[str, Any] = {}

    async def answer(request: Request, user: str, context: Any) -> Response:
        if not made:
            made.update(document(app, apis, keys))
        return JSONResponse(made)

    return DocumentedRoute("/openapi.json", wrap(answer), "GET")


def document(app: Starlette, apis: Sequence[Api], keys: bool) -> dict[str, Any]:
    """The OpenAPI document of the application's routes. `keys`: they need an API key."""
    paths: dict[str, dict[str, Any]] = {}
    for route in app.routes:
        if isinstance(route, DocumentedRoute) and route.operation is not None:
            name = re.sub(r"\W", "_", f"answer{route.path_format}")
            paths.setdefault(route.path_format, {})[route.method] = {
                "operationId": f"{name}_{route.method}",
                **{key: value for key, value in route.operation.items() if keys or key != "security"},
            }
    _, forms = models_json_schema([(api.body, "validation") for api in apis], ref_template=_TEMPLATE)
    found: dict[str, Any] = {
        "openapi": _VERSION,
        "info": {"title": "Earthshine", "version": __version__},
        "paths": paths,
        "components": {"schemas": forms.get("$defs", {})},
    }
    if keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found
