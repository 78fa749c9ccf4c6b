"""The router as a web application: access, the paths that are forwarded, and its own: health, metrics, page, fleet.

With API keys every path needs one, except /health, /ping and the page's files. Errors have the form of the path's API.
"""

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from earthshine.errors import EarthshineError, UsageError
from earthshine.net.access import Access, Unauthorized
from earthshine.prfaas.router.live import LiveFleet
from earthshine.prfaas.router.setup import RouterSetup
from earthshine.server.http.body import Bodies, ClientGone, Limits
from earthshine.server.http.log import Log, request_id, shown_path
from earthshine.server.http.page_files import CHAT_PAGE, PageFile, page_files
from earthshine.server.refusals import Refused
from earthshine.server.route.answers import RETRY_SECONDS, error_response
from earthshine.server.route.forward import Forwarded, Shared
from earthshine.server.route.metrics import RouterMetrics
from earthshine.server.route.probes import Probes, ProbeTimes
from earthshine.server.route.prompt import allowed_methods, is_forwarded, require_no_peer_header
from earthshine.server.route.record import CLIENT_GONE, Record
from earthshine.server.route.upstream import Pool

_LOGGER = logging.getLogger("earthshine.server")
_DRAIN_RETRY_SECONDS = 10
_SHARED_FILES = ("/icon.svg", "/page.css", "/theme.js", "/dom.js")  # of the chat page
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OPEN = ("/health", "/ping")
_CONVERSATION, _STREAM = "x-conversation-id", "/v1/stream/"


@dataclass(eq=False, slots=True)
class Lifetime:
    """The router's end: while draining nothing more is accepted, then `cut` ends what is left."""

    draining: bool = False
    requests: set[Forwarded] = field(default_factory=set)

    def cut(self) -> None:
        for forwarded in list(self.requests):
            forwarded.end(Refused("The router was shut down before the reply ended.", "unavailable", None,
                                  _DRAIN_RETRY_SECONDS))  # fmt: skip


class Router:
    """One router's state. `setup_again` reads the setup again; `reload` applies what it returns."""

    def __init__(
        self, setup: RouterSetup, access: Access, log: Log, limits: Limits | None = None,
        setup_again: Callable[[], RouterSetup] | None = None, times: ProbeTimes | None = None,
    ) -> None:  # fmt: skip
        self.access, self.log, self.limits = access, log, limits or Limits()
        self.fleet, self.pool, self.lifetime = LiveFleet(setup), Pool(), Lifetime()
        at_places: dict[str, set[Forwarded]] = {}
        self.shared = Shared(self.fleet, self.pool, Bodies(self.limits), self.limits, at_places)
        self.probes = Probes(self.fleet, at_places, log, times or ProbeTimes())
        self.metrics = RouterMetrics(self.fleet)
        self._setup_again = setup_again
        self._ticking: asyncio.Task[None] | None = None
        shared = page_files(CHAT_PAGE)
        files = page_files(Path(__file__).with_name("page")) | {path: shared[path] for path in _SHARED_FILES}
        self._files = {path: PageFile(file) for path, file in files.items()}

    def start(self) -> None:
        """Begins to probe places and to adapt the threshold; called in the event loop."""
        self.probes.start()
        self._ticking = asyncio.get_running_loop().create_task(self._tick())

    async def _tick(self) -> None:
        try:
            while True:
                controller = self.fleet.controller
                await asyncio.sleep(controller.period_seconds if controller else 30.0)
                why = await asyncio.to_thread(self.fleet.tick, time.monotonic())
                if why:
                    self.log(why)
        finally:  # the event loop ends
            self.pool.close()

    def reload(self) -> None:
        """Takes places from the setup as it is now; one that can't be read is logged, and the old one stays."""
        if self._setup_again is None:
            self.log("there is no configuration file to read again; start with --config to change places")
            return
        try:
            setup = self._setup_again()
        except EarthshineError as error:
            self.log(f"the places stay as they are: {error}")
            return
        before = self.fleet.places.keys()
        self.fleet.replace(setup, time.monotonic())
        self.probes.start()
        after = self.fleet.places.keys()
        changes = [f"added {name}" for name in after - before] + [f"removed {name}" for name in before - after]
        self.log(f"the configuration was read again: {', '.join(changes) or 'the same places'}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive, send)
        path = scope["path"]
        record = Record(request.client.host if request.client else "-", request.method, path, _id(request.headers))
        forwarded: Forwarded | None = None
        response: Response | None = None
        try:
            self._check_connection(request)
            self.access.check_caller(request.headers)
            response = self._open(request)
            if response is None:
                user = self.access.user(request.headers)
                response = self._own(request)
                if response is None:
                    forwarded = self._forwarded(request, record, user)
                    self.lifetime.requests.add(forwarded)
                    await forwarded.run(request, send)
        except ClientGone:
            record.status = CLIENT_GONE
            _cut(scope)
        except Exception as error:
            problem = _refusal(error)
            record.status, record.problem = problem.status, record.problem or str(problem)
            if forwarded is not None and forwarded.began:
                _cut(scope)
            else:
                response = error_response(path, problem, _more(path, problem))
        finally:
            if forwarded is not None:
                self.lifetime.requests.discard(forwarded)
        if response is not None:
            response.headers["x-request-id"] = record.id
            await response(scope, receive, send)
        if forwarded is not None or record.status >= 400:
            record.end(self.log)
        if forwarded is not None:
            self.metrics.ended(record)

    def _check_connection(self, request: Request) -> None:
        if request.scope.get("state", {}).get("crowded") and request.url.path not in (*_OPEN, "/metrics"):
            raise Refused("Too many connections are open; try again.", "unavailable", None, RETRY_SECONDS)

    def _open(self, request: Request) -> Response | None:
        """The answer of a path that needs no key."""
        path = request.scope["path"]
        if request.method not in ("GET", "HEAD"):
            return None
        if path in _OPEN:
            return self._health()
        file = self._files.get(path)
        if file is None:
            return None
        status, headers, content = file.answer(request.headers.get("if-none-match"))
        return Response(content, status, headers)

    def _health(self) -> Response:
        now, places = time.monotonic(), self.fleet.places.values()
        working = [place.name for place in places if place.decodes and not place.problem(now)]
        if self.lifetime.draining:
            return _unwell("draining", "The router is shutting down and accepts no more requests.")
        if not working:
            return _unwell("failed", "No place works.")
        return JSONResponse({"status": "ok", "places": len(working)})

    def _own(self, request: Request) -> Response | None:
        """The answer of a path of the router's own."""
        path = request.scope["path"]
        if request.method not in ("GET", "HEAD"):
            return None
        if path == "/metrics":
            return Response(self.metrics.text(), headers={"content-type": _METRICS_TYPE})
        return JSONResponse(self.metrics.summary()) if path == "/v1/fleet" else None

    def _forwarded(self, request: Request, record: Record, user: str) -> Forwarded:
        """What forwards the request. Raises Refused for one that is not for a place."""
        path = request.scope["path"]
        if not is_forwarded(request.method, path):
            allowed = allowed_methods(path)
            if allowed is None:
                raise Refused(f"The path {shown_path(path)} does not exist.", "not_found")
            raise Refused(f"{shown_path(path)} takes {allowed}, not {shown_path(request.method)}.", "method")
        if self.lifetime.draining:
            raise Refused("The router is shutting down.", "unavailable", None, _DRAIN_RETRY_SECONDS)
        require_no_peer_header(request.headers)
        target = path  # which is_forwarded has checked; not the client's spelling of it
        given = request.headers.get(_CONVERSATION)
        conversation = None if given is None else _conversation(user, given)
        near = conversation
        if path.startswith(_STREAM):
            near = _conversation(user, path.removeprefix(_STREAM))
            target = _STREAM + near
        query = request.scope["query_string"].decode("latin-1")
        target += f"?{query}" if query else ""
        return Forwarded(self.shared, record, target, user, near, conversation)


def _conversation(user: str, name: str) -> str:
    """The id by which places know a client's conversation: no other client of the router can name it."""
    return hashlib.sha256(f"{user}\0{name}".encode("utf-8", "surrogateescape")).hexdigest()[:40]


def _id(headers: Headers) -> str:
    """The request's id. Some servers read addresses of peers from it, so one that could have some is replaced."""
    found = request_id(headers)
    return found if "addr" not in found.lower() else request_id({})


def _refusal(error: Exception) -> Refused:
    """The refusal that the client gets for an error."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Unauthorized):
        return Refused(str(error), "unauthorized")
    if isinstance(error, UsageError):
        return Refused(str(error), param=error.param)
    name = secrets.token_hex(6)
    _LOGGER.error("error %s: %s", name, error, exc_info=error)
    return Refused(f"An internal error occurred; the router's log has it under {name}.", "internal")


def _more(path: str, problem: Refused) -> dict[str, str]:
    allowed = allowed_methods(path) if problem.kind == "method" else None
    return {} if allowed is None else {"allow": allowed}


def _unwell(status: str, message: str) -> Response:
    return JSONResponse({"status": status, "message": message}, 503, {"retry-after": "10"})


def _cut(scope: Scope) -> None:
    """Aborts the client's connection."""
    abort: Any = scope.get("state", {}).get("abort")
    if abort is not None:
        abort()


def with_origins(router: Router) -> ASGIApp:
    """The application, for web pages of other origins too where some are allowed."""
    if not router.access.origins:
        return router
    return CORSMiddleware(
        router, allow_origins=router.access.origins, allow_methods=["GET", "POST", "DELETE"], allow_headers=["*"]
    )
