"""The web application: one POST route an API, the same care for each.

A request is authorised, read within bounds, parsed, checked and begun before anything is computed; then its answer goes
out whole or as events. What is wrong with it is said before the answer begins wherever it can be known by then.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from earthshine.generation.request import Piece
from earthshine.net.access import Access
from earthshine.server.api import Api, Exchange, Refused, Served
from earthshine.server.http.body import Bodies, unknown_fields
from earthshine.server.http.call import Call
from earthshine.server.http.documents import DocumentedRoute, document_route, post_operation
from earthshine.server.http.events import EventStream, follow, stream_events
from earthshine.server.http.front import DRAIN_RETRY_SECONDS, Front, Handler, Lifetime, Options, Replies
from earthshine.server.http.metrics import Engine, Metrics
from earthshine.server.http.pages import page_routes
from earthshine.untrusted import shown

_MOST_UNKNOWN = 100  # names that the log mentions
_FIELD = "a field that is not known was ignored"
_TOOL = "a tool that this server can't run was left out"
_GRAMMAR = "a tool's Lark grammar is told to the model and not enforced"


class _Origins(CORSMiddleware):
    """Allowed origins may also ask from the internet for a server of a local network, by both names that this has."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200 and "access-control-request-local-network" in request_headers:
            response.headers["access-control-allow-local-network"] = "true"
        return response


class _Asked:
    """Answers APIs. One for a server."""

    def __init__(self, front: Front) -> None:
        self._front, self._bodies = front, Bodies(front.options.limits)
        self._unknown: set[str] = set()

    def route(self, api: Api) -> Handler:
        """The route of an API."""

        async def answer(request: Request, user: str, call: Call) -> Response:
            if self._front.lifetime.draining:
                raise Refused("The server is about to end.", "unavailable", None, DRAIN_RETRY_SECONDS)
            checked, body = await self._bodies.read(request, api.body)
            self._front.check_model(body.get("model"))
            exchange = api.begin(checked, self._front.served)
            self._mention(unknown_fields(body, api.body))  # what is left once nothing was refused
            self._mention([kind for each in exchange.requests for kind in each.left_out], _TOOL)
            self._mention([name for each in exchange.requests for name in each.unenforced], _GRAMMAR)
            self._check_choices(exchange)
            call.body, call.exchange = body, exchange
            call.watch(request.receive)
            if api.counts:
                return JSONResponse(exchange.counted(await self._front.replies.count(exchange.requests)))
            pieces = self._front.replies.answer(exchange.requests, user)
            return await (self._stream if exchange.stream else self._whole)(exchange, pieces, call)

        return answer

    def _check_choices(self, exchange: Exchange) -> None:
        limits = self._front.options.limits
        asked = [each.params.n for each in exchange.requests]
        n, choices = max(asked, default=0), sum(asked)
        if n > limits.n:
            raise Refused(f"n is {n}, and this server computes up to {limits.n} choices.", "invalid", "n")
        if choices > limits.choices:
            raise Refused(f"The request asks for {choices} choices in all; ask for up to {limits.choices} at once.")

    def _mention(self, names: Sequence[str], sentence: str = _FIELD) -> None:
        for name in names:
            line = f"{sentence}: {shown(name)}"
            if line not in self._unknown and len(self._unknown) < _MOST_UNKNOWN:
                self._unknown.add(line)
                self._front.options.log(line)

    async def _whole(self, exchange: Exchange, pieces: AsyncIterator[Piece], call: Call) -> Response:
        limits = self._front.options.limits
        async with aclosing(follow(pieces, call, limits.first_seconds, limits.ping_seconds)) as followed:
            async for piece in followed:
                if piece is not None:
                    exchange.push(piece)
        return JSONResponse(exchange.whole())

    async def _stream(self, exchange: Exchange, pieces: AsyncIterator[Piece], call: Call) -> Response:
        events = stream_events(exchange, pieces, call, self._front.options.limits, self._front.refusal)
        first = await anext(events)  # what is refused before it still gets a status of its own
        return EventStream(first, events, call, self._front.options.limits)


def make_app(
    replies: Replies,
    engine: Engine,
    served: Served,
    apis: Sequence[Api],
    access: Access,
    options: Options | None = None,
    lifetime: Lifetime | None = None,
) -> Starlette:
    """The application that serves `apis`. Ending it is the caller's: through `lifetime`."""
    options = options or Options()
    metrics = Metrics(engine, served.names[0])
    front = Front(replies, engine, served, apis, access, options, lifetime or Lifetime(), metrics)
    asked = _Asked(front)
    app = Starlette()
    app.router.redirect_slashes = False
    for api in apis:
        app.routes.append(DocumentedRoute(api.path, front.endpoint(asked.route(api)), "POST", post_operation(api)))
    app.routes.extend(page_routes(front))
    app.routes.append(document_route(app, front.endpoint, apis, bool(access.keys)))
    for status in (404, 405):
        app.add_exception_handler(status, front.missing)
    if access.origins:
        app.add_middleware(
            _Origins,
            allow_origins=access.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            allow_private_network=True,
        )
    return app
