"""What every route shares: access is checked, each request is counted and logged, and errors become answers.

An error has the form of the API that the request's path belongs to. An unexpected failure is a 500 with an id that is
also logged beside the traceback. With API keys, every path needs one, also one without a route, except the routes that
are open to all.
"""

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from earthshine.errors import (
    ContextError,
    EarthshineError,
    OverloadError,
    TextError,
    UnavailableError,
    UsageError,
)
from earthshine.generation.request import GenerationRequest, Piece
from earthshine.net.access import Access, Unauthorized
from earthshine.server.api import Api, Served
from earthshine.server.http.body import ClientGone, Limits
from earthshine.server.http.context import CLIENT_GONE, REPORT_SECONDS, RequestContext
from earthshine.server.http.events import EventStream
from earthshine.server.http.log import Log, request_id, shown_path
from earthshine.server.http.metrics import Engine, Metrics
from earthshine.server.refusals import Refused, plain_error
from earthshine.untrusted import shown

_LOGGER = logging.getLogger("earthshine.server")
_RETRY_SECONDS = 1
DRAIN_RETRY_SECONDS = 10
UNCROWDED = ("/health", "/ping", "/metrics")  # answered whatever the number of open connections

Handler = Callable[[Request, str, RequestContext], Awaitable[Response]]


class TextGenerator(Protocol):
    """The part of generator.TextGenerator that is used here."""

    def answer(self, requests: Sequence[GenerationRequest], user: str) -> AsyncIterator[Piece]:
        """Raises EarthshineError, at the first piece or later. Closing the iterator ends the replies."""
        ...

    async def count(self, requests: Sequence[GenerationRequest]) -> Sequence[int]:
        """The number of tokens of each prompt."""
        ...


@dataclass(eq=False, slots=True)
class Lifetime:
    """The shutdown: while draining nothing more is accepted, then `cut` ends what is left."""

    draining: bool = False
    requests: set[RequestContext] = field(default_factory=set)

    def cut(self) -> None:
        """End every reply that is still computed with an error."""
        for context in self.requests:
            context.end(Refused("The server was shut down before the reply ended.", "unavailable", None,
                                DRAIN_RETRY_SECONDS))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """`log` gets one line per request, with `log_text` also the texts; while a request is computed, a line every
    `report_seconds`. After `hang_seconds` without progress the server is reported as hung."""

    limits: Limits = field(default_factory=Limits)
    log: Log = field(default_factory=Log)
    log_text: bool = False
    hang_seconds: float = 120.0
    report_seconds: float = REPORT_SECONDS


@dataclass(eq=False, slots=True)
class Endpoints:
    """The state that all routes share, and the wrapper around each route's handler. One per server."""

    generator: TextGenerator
    engine: Engine
    served: Served
    apis: Sequence[Api]
    access: Access
    options: Options
    lifetime: Lifetime
    metrics: Metrics

    def wrap(self, handler: Handler, *, open_to_all: bool = False) -> Callable[[Request], Awaitable[Response]]:
        """The function of a route: checks access, calls `handler`, and turns an exception into an answer."""

        async def answer(request: Request) -> Response:
            context = self._context(request)
            self.lifetime.requests.add(context)
            response: Response | None = None
            try:
                if request.scope["path"] not in UNCROWDED:
                    self._check_connection(request)
                self.access.check_caller(request.headers)
                user = "" if open_to_all else self.access.user(request.headers)
                response = await handler(request, user, context)
            except ClientGone:
                context.status = CLIENT_GONE
                response = Response(status_code=CLIENT_GONE)
            except Exception as error:
                context.refused = self.refusal(error)
                response = self.error_response(request, context.refused)
                context.status = response.status_code
            finally:
                if context.computing is not None:
                    context.computing.add_done_callback(lambda task: self._ended(context, True))
                elif isinstance(response, EventStream):
                    response.finally_do(lambda: self._ended(context, True))
                else:
                    self._ended(context, request.method == "POST" or (context.status >= 400 and not open_to_all))
            for name in request_id_headers(request.scope["path"]):
                response.headers[name] = context.id
            return response

        return answer

    def _context(self, request: Request) -> RequestContext:
        client = request.client.host if request.client else "-"
        path = f"{request.method} {shown_path(request.scope['path'])}"
        options = self.options
        return RequestContext(path, client, self.metrics, options.log, options.log_text, request_id(request.headers),
                              options.report_seconds)  # fmt: skip

    def _ended(self, context: RequestContext, logged: bool) -> None:
        self.lifetime.requests.discard(context)
        if logged:
            context.close()
            for sentence in self.metrics.news():
                self.options.log(sentence)

    def _check_connection(self, request: Request) -> None:
        if request.scope.get("state", {}).get("crowded"):
            raise Refused("Too many connections are open; try again.", "unavailable", None, _RETRY_SECONDS)

    def refusal(self, error: Exception) -> Refused:
        """The refusal that the client gets for an error."""
        if isinstance(error, Refused):
            return error
        if isinstance(error, Unauthorized):
            return Refused(str(error), "unauthorized")
        if isinstance(error, OverloadError):
            if self.lifetime.draining or not self.engine.alive:
                return Refused(str(error), "unavailable", None, DRAIN_RETRY_SECONDS)
            return Refused(str(error), "rate", None, error.retry_seconds)
        if isinstance(error, UnavailableError):
            _LOGGER.error("%s", error)
            return Refused(str(error), "unavailable")
        if isinstance(error, ContextError):
            return Refused(str(error), "context", figures=error.figures)
        if isinstance(error, (UsageError, TextError)):
            return Refused(str(error), param=getattr(error, "param", None))
        known = isinstance(error, EarthshineError)
        name = secrets.token_hex(6)
        _LOGGER.error("error %s: %s", name, error, exc_info=None if known else error)
        return Refused(f"An internal error occurred; the server's log has it under {name}.", "internal")

    def error_response(self, request: Request, problem: Refused, headers: dict[str, str] | None = None) -> Response:
        """The answer for a refusal, in the form of the API of this path, or of the one whose paths are most similar."""
        sent = dict(headers or {})
        if problem.kind in ("rate", "unavailable"):
            sent["retry-after"] = str(max(1, problem.retry_seconds or _RETRY_SECONDS))
        if problem.kind == "unauthorized":
            sent["www-authenticate"] = "Bearer"
        return JSONResponse(self._shape(request.scope["path"])(problem), problem.status, sent)

    def _shape(self, path: str) -> Callable[[Refused], dict[str, Any]]:
        family = "/v1/messages" if path == "/v1/messages" or path.startswith("/v1/messages/") else "/v1/chat/"
        nearest = (api for api in self.apis if api.path.startswith(family))
        found = next((api for api in self.apis if api.path == path), None) or next(nearest, None)
        return found.error if found is not None else plain_error

    async def missing(self, request: Request, error: Exception) -> Response:
        """The answer where no route matches. It needs a key too, so as not to show which routes exist."""

        async def refuse(request: Request, user: str, context: RequestContext) -> Response:
            path = shown_path(request.scope["path"])
            if not isinstance(error, HTTPException) or error.status_code != 405:
                meant = _meant(request)
                hint = f"; {shown_path(meant)} is probably meant, so correct the base URL" if meant else ""
                raise Refused(f"The path {path} does not exist{hint}.", "not_found")
            allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
            problem = Refused(f"{path} takes {allowed}, not {shown(request.method)}.", "method")
            context.status, context.refused = problem.status, problem
            return self.error_response(request, problem, {"allow": allowed})

        return await self.wrap(refuse)(request)

    def check_model(self, name: Any) -> None:
        """Raises Refused for a model that is not served; None means the one that is."""
        if name is not None and name not in self.served.names:
            listed = ", ".join(self.served.names)
            raise Refused(
                f"The model {shown(name)} is not served here; this server has {listed}.", "not_found", "model"
            )


def request_id_headers(path: str) -> tuple[str, ...]:
    """The headers of an answer that clients read its id from: OpenAI's, and on Anthropic's paths also theirs."""
    return ("x-request-id", "request-id") if path.startswith("/v1/messages") else ("x-request-id",)


def _meant(request: Request) -> str | None:
    """The path of a route that differs only in slashes and in the number of leading /v1."""
    parts = [part for part in request.scope["path"].split("/") if part]
    while parts[:1] == ["v1"]:
        del parts[0]
    for path in ("/v1/" + "/".join(parts), "/" + "/".join(parts)):
        scope = {**request.scope, "path": path, "root_path": ""}
        if path != request.scope["path"] and any(route.matches(scope)[0] != Match.NONE for route in request.app.routes):
            return path
    return None
