"""The GET routes: models, health, metrics, gauges, version, and the page at /.

Only /health, /ping and the page's files need no API key; they hold no user's data.
"""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from earthshine import __version__
from earthshine.server.http.context import RequestContext
from earthshine.server.http.documents import DocumentedRoute, get_operation
from earthshine.server.http.endpoints import Endpoints, Handler
from earthshine.server.http.metrics import CONTENT_TYPE
from earthshine.server.http.page_files import PageFile, page_files


def page_routes(endpoints: Endpoints) -> Iterator[DocumentedRoute]:
    """The GET routes. The path of each of the page's files is its name; index.html is also at /."""
    handlers = _Handlers(endpoints)
    for path, handler, summary in (
        ("/v1/models", handlers.models, "The model that is served."),
        ("/v1/models/{model_id:path}", handlers.model, "The model, by one of its names."),
        ("/v1/gauges", handlers.gauges, "The gauges and rates that the page shows."),
    ):
        yield DocumentedRoute(path, endpoints.wrap(handler), "GET", get_operation(path, summary, True))
    yield from status_routes(endpoints)
    for path, file in page_files().items():
        yield DocumentedRoute(path, endpoints.wrap(_page(file), open_to_all=True), "GET")


def status_routes(endpoints: Endpoints) -> Iterator[DocumentedRoute]:
    """Those of them that say how the process does."""
    handlers = _Handlers(endpoints)
    for path, handler, summary in (
        ("/version", handlers.version, "The version of this software."),
        ("/metrics", handlers.metrics, "Metrics for Prometheus."),
    ):
        yield DocumentedRoute(path, endpoints.wrap(handler), "GET", get_operation(path, summary, True))
    health = endpoints.wrap(handlers.health, open_to_all=True)
    summary = "200 while requests can be computed; else 503 with the reason."
    for path in ("/health", "/ping"):
        yield DocumentedRoute(path, health, "GET", get_operation(path, summary, False))


def _page(file: Path) -> Handler:
    page = PageFile(file)

    async def answer(request: Request, user: str, context: RequestContext) -> Response:
        status, headers, content = page.answer(request.headers.get("if-none-match"))
        return Response(content, status, headers)

    return answer


class _Handlers:
    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints

    async def models(self, request: Request, user: str, context: RequestContext) -> Response:
        served = self._endpoints.served
        if "anthropic-version" in request.headers:
            data = [self._for_anthropic(name) for name in served.names]
            ends = {"has_more": False, "first_id": served.names[0], "last_id": served.names[-1]}
            return JSONResponse({"data": data, **ends})
        return JSONResponse({"object": "list", "data": [self._for_openai(name) for name in served.names]})

    async def model(self, request: Request, user: str, context: RequestContext) -> Response:
        name = request.path_params["model_id"]
        self._endpoints.check_model(name)
        anthropic = "anthropic-version" in request.headers
        return JSONResponse(self._for_anthropic(name) if anthropic else self._for_openai(name))

    def _for_openai(self, name: str) -> dict[str, Any]:
        served = self._endpoints.served
        return {
            "id": name,
            "object": "model",
            "created": served.created,
            "owned_by": "earthshine",
            "max_model_len": served.context_tokens,
        }

    def _for_anthropic(self, name: str) -> dict[str, Any]:
        served = self._endpoints.served
        created = datetime.datetime.fromtimestamp(served.created, datetime.UTC)
        return {
            "type": "model",
            "id": name,
            "display_name": name,
            "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "max_input_tokens": served.context_tokens,
        }

    async def health(self, request: Request, user: str, context: RequestContext) -> Response:
        endpoints = self._endpoints
        if endpoints.lifetime.draining:
            return _unwell("draining", "The server is shutting down and accepts no more requests.")
        if not endpoints.engine.alive:
            return _unwell("failed", "The engine has ended; restart the server.")
        seconds = endpoints.engine.stalled_seconds()
        if seconds > endpoints.options.hang_seconds:
            return _unwell("hung", f"There has been no progress for {seconds:.0f} seconds.")
        return JSONResponse({"status": "ok"})

    async def version(self, request: Request, user: str, context: RequestContext) -> Response:
        return JSONResponse({"version": __version__})

    async def metrics(self, request: Request, user: str, context: RequestContext) -> Response:
        return Response(self._endpoints.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def gauges(self, request: Request, user: str, context: RequestContext) -> Response:
        known = {"context_tokens": self._endpoints.served.context_tokens}
        return JSONResponse(self._endpoints.metrics.summary() | known)


def _unwell(status: str, message: str) -> Response:
    return JSONResponse({"status": status, "message": message}, 503, {"retry-after": "10"})
