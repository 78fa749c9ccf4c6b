"""What every route shares: access is checked, each request is counted and logged, and errors become answers.

Every refusal has the form of the API that was asked. Any other failure is a 500 with an id that the log repeats beside
the traceback. If there are keys, every route asks for one except those opened by name; so does a path without a route.
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

from earthshine.errors import ContextError, EarthshineError, OverloadError, TextError, UsageError
from earthshine.generation.request import GenerationRequest, Piece
from earthshine.net.access import Access, Unauthorized
from earthshine.server.api import Api, Refused, Served
from earthshine.server.http.body import ClientGone, Limits
from earthshine.server.http.context import CLIENT_GONE, Log, RequestContext, shown_path
from earthshine.server.http.events import EventStream
from earthshine.server.http.metrics import Engine, Metrics
from earthshine.untrusted import shown

_LOGGER = logging.getLogger("earthshine.server")
_RETRY_SECONDS = 1
DRAIN_RETRY_SECONDS = 10
UNCROWDED = ("/health", "/ping", "/metrics")  # answered however many connections are open

Handler = Callable[[Request, str, RequestContext], Awaitable[Response]]


class TextGenerator(Protocol):
    """What the server asks of generator.TextGenerator."""

    def answer(self, requests: Sequence[GenerationRequest], user: str) -> AsyncIterator[Piece]:
        """Raises Refused or another EarthshineError, at the first piece or later. Closing it ends the replies."""
        ...

    async def count(self, requests: Sequence[GenerationRequest]) -> Sequence[int]:
        """Tokens of each prompt."""
        ...


@dataclass(eq=False, slots=True)
class Lifetime:
    """How the server ends: first it drains, then `cut` ends what is left."""

    draining: bool = False
    requests: set[RequestContext] = field(default_factory=set)

    def cut(self) -> None:
        """Ends every reply that is under way, with an error that says so."""
        for context in self.requests:
            context.end(Refused("The server has ended before the reply did.", "unavailable", None, DRAIN_RETRY_SECONDS))


@dataclass(frozen=True, slots=True)
class Options:
    """`log` gets one line per request; `log_text`: the text too. After `hang_seconds` without a sign of progress the
    server counts as hung."""

    limits: Limits = field(default_factory=Limits)
    log: Log = lambda line: None
    log_text: bool = False
    hang_seconds: float = 120.0


@dataclass(eq=False, slots=True)
class Endpoints:
    """State that all routes share, one per server, and the wrapper around each route's handler."""

    generator: TextGenerator
    engine: Engine
    served: Served
    apis: Sequence[Api]
    access: Access
    options: Options
    lifetime: Lifetime
    metrics: Metrics

    def wrap(self, handler: Handler, *, open_to_all: bool = False) -> Callable[[Request], Awaitable[Response]]:
        """A route's function: access is checked, then `handler` answers, and what it raises becomes an answer."""

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
                response = self.error_response(request, self.refusal(error))
                context.status = response.status_code
            finally:
                if isinstance(response, EventStream):
                    response.finally_do(lambda: self._ended(context, True))
                else:
                    self._ended(context, request.method == "POST" or (context.status >= 400 and not open_to_all))
            return response

        return answer

    def _context(self, request: Request) -> RequestContext:
        client = request.client.host if request.client else "-"
        path = f"{request.method} {shown_path(request.scope['path'])}"
        return RequestContext(path, client, self.metrics, self.options.log, self.options.log_text)

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
        """The refusal that a client gets for an error."""
        if isinstance(error, Refused):
            return error
        if isinstance(error, Unauthorized):
            return Refused(str(error), "unauthorized")
        if isinstance(error, OverloadError):
            if self.lifetime.draining or not self.engine.alive:
                return Refused(str(error), "unavailable", None, DRAIN_RETRY_SECONDS)
            return Refused(str(error), "rate", None, error.retry_seconds)
        if isinstance(error, ContextError):
            return Refused(str(error), "context")
        if isinstance(error, (UsageError, TextError)):
            return Refused(str(error), param=getattr(error, "param", None))
        known = isinstance(error, EarthshineError)
        name = secrets.token_hex(6)
        _LOGGER.error("error %s: %s", name, error, exc_info=None if known else error)
        return Refused(f"Something went wrong in this server; its log has more under {name}.", "internal")

    def error_response(self, request: Request, problem: Refused, headers: dict[str, str] | None = None) -> Response:
        """A refusal in the shape of the API that was asked, or of the one whose paths are nearest."""
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
        """The answer if no route fits. Without a key nobody learns which routes exist."""

        async def refuse(request: Request, user: str, context: RequestContext) -> Response:
            path = shown_path(request.scope["path"])
            if not isinstance(error, HTTPException) or error.status_code != 405:
                meant = _meant(request)
                hint = f"; {shown_path(meant)} is meant, so correct the base URL" if meant else ""
                raise Refused(f"There is nothing at {path}{hint}.", "not_found")
            context.status = 405
            allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
            problem = Refused(f"{path} takes {allowed}, not {shown(request.method)}.", "method")
            return self.error_response(request, problem, {"allow": allowed})

        return await self.wrap(refuse)(request)

    def check_model(self, name: Any) -> None:
        """Raises Refused for a model that is not the one served; no name means it."""
        if name is not None and name not in self.served.names:
            listed = ", ".join(self.served.names)
            raise Refused(f"There is no model {shown(name)} here; this server has {listed}.", "not_found", "model")


def _meant(request: Request) -> str | None:
    """The path of a route that differs only in slashes, and in how often it begins with /v1."""
    parts = [part for part in request.scope["path"].split("/") if part]
    while parts[:1] == ["v1"]:
        del parts[0]
    for path in ("/v1/" + "/".join(parts), "/" + "/".join(parts)):
        scope = {**request.scope, "path": path, "root_path": ""}
        if path != request.scope["path"] and any(route.matches(scope)[0] != Match.NONE for route in request.app.routes):
            return path
    return None


def plain_error(problem: Refused) -> dict[str, Any]:
    """A refusal where no API's shape is at hand."""
    return {"error": {"message": str(problem), "type": problem.kind, "param": problem.param, "code": None}}
