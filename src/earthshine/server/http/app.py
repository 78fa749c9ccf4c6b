"""The web application: one POST route per API, all handled in the same way.

A request is authorized, read within limits, parsed and checked before anything is computed; then its answer is sent
whole or as events. Errors that are found before the first event get an HTTP status of their own.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from earthshine.generation.request import Piece
from earthshine.net.access import Access
from earthshine.prfaas.figures import Figure
from earthshine.server.api import Api, Exchange, Served
from earthshine.server.http.body import Bodies, as_sent, unknown_fields
from earthshine.server.http.context import RequestContext
from earthshine.server.http.documents import DocumentedRoute, document_route, get_operation, post_operation
from earthshine.server.http.endpoints import DRAIN_RETRY_SECONDS, Endpoints, Handler, Lifetime, Options, TextGenerator
from earthshine.server.http.events import EventStream, follow, stream_events
from earthshine.server.http.metrics import Engine, Metrics
from earthshine.server.http.pages import page_routes
from earthshine.server.http.resumable import HEADER, PATH, ResumableStreams
from earthshine.server.refusals import Refused
from earthshine.untrusted import shown

_MOST_UNKNOWN = 100  # names that are logged
_FIELD = "an unknown field was ignored"
_TOOL = "a tool that this server can't run was left out"
_GRAMMAR = "a tool's Lark grammar is shown to the model but not enforced"


class _Origins(CORSMiddleware):
    """Also answers preflights of private network access, under both names that browsers use."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200 and "access-control-request-local-network" in request_headers:
            response.headers["access-control-allow-local-network"] = "true"
        return response


class _ApiRoutes:
    """The handlers of the APIs' routes. One per server."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints, self._bodies = endpoints, Bodies(endpoints.options.limits)
        self.streams = ResumableStreams(endpoints.options.limits, endpoints.refusal)
        self._unknown: set[str] = set()

    def route(self, api: Api) -> Handler:
        """The handler of an API's route."""

        async def answer(request: Request, user: str, context: RequestContext) -> Response:
            if self._endpoints.lifetime.draining:
                raise Refused("The server is shutting down.", "unavailable", None, DRAIN_RETRY_SECONDS)
            checked, body = await self._bodies.read(request, api.body)
            context.model = body["model"] if isinstance(body.get("model"), str) else self._endpoints.served.names[0]
            self._endpoints.check_model(body.get("model"))
            try:
                exchange = api.begin(checked, self._endpoints.served)
            except Refused as problem:
                raise as_sent(problem, body, api.body) from None
            self._mention(context, unknown_fields(body, api.body))
            self._mention(context, [kind for each in exchange.requests for kind in each.left_out], _TOOL)
            self._mention(context, [name for each in exchange.requests for name in each.unenforced], _GRAMMAR)
            self._check_choices(exchange)
            context.body, context.exchange = body, exchange
            context.report_later()
            if exchange.stream and not api.counts:
                return await self._stream(request, user, exchange, context)
            context.watch(request.receive)
            if api.counts:
                return JSONResponse(exchange.counted(await self._endpoints.generator.count(exchange.requests)))
            return await self._whole(exchange, self._endpoints.generator.answer(exchange.requests, user), context)

        return answer

    def _check_choices(self, exchange: Exchange) -> None:
        limits = self._endpoints.options.limits
        asked = [each.params.n for each in exchange.requests]
        n, choices = max(asked, default=0), sum(asked)
        if n > limits.n:
            raise Refused(f"n is {n}; this server computes up to {limits.n} choices of a prompt.", "invalid", "n")
        if choices > limits.choices:
            raise Refused(f"The request asks for {choices} choices in all; {limits.choices} is the limit.")

    def _mention(self, context: RequestContext, names: Sequence[str], sentence: str = _FIELD) -> None:
        for name in names:
            line = f"{sentence}: {shown(name)}"
            if line not in self._unknown and len(self._unknown) < _MOST_UNKNOWN:
                self._unknown.add(line)
                context.notice(line)

    async def _whole(self, exchange: Exchange, pieces: AsyncIterator[Piece], context: RequestContext) -> Response:
        limits = self._endpoints.options.limits
        async with aclosing(follow(pieces, context, limits.first_seconds, limits.ping_seconds)) as followed:
            async for piece in followed:
                if piece is not None:
                    exchange.push(piece)
        return JSONResponse(exchange.whole())

    async def _stream(self, request: Request, user: str, exchange: Exchange, context: RequestContext) -> Response:
        pieces = self._endpoints.generator.answer(exchange.requests, user)
        events = stream_events(exchange, pieces, context, self._endpoints.options.limits, self._endpoints.refusal)
        name = request.headers.get(HEADER)
        if name is not None:
            return await self.streams.begin(name, user, request, events, context)
        context.watch(request.receive)
        first = await anext(events)  # an error before it still gets an HTTP status
        return EventStream(first, events, context, self._endpoints.options.limits)


def make_app(
    generator: TextGenerator,
    engine: Engine,
    served: Served,
    apis: Sequence[Api],
    access: Access,
    options: Options | None = None,
    lifetime: Lifetime | None = None,
    figures: Callable[[], Iterable[Figure]] | None = None,
) -> Starlette:
    """The application that serves `apis`. The caller ends it through `lifetime`. `figures`: as Metrics.add."""
    options = options or Options()
    metrics = Metrics(engine, served.names[0])
    if figures is not None:
        metrics.add(figures)
    endpoints = Endpoints(generator, engine, served, apis, access, options, lifetime or Lifetime(), metrics)
    routes = _ApiRoutes(endpoints)
    app = Starlette()
    app.router.redirect_slashes = False
    app.state.streams = routes.streams
    for api in apis:
        app.routes.append(DocumentedRoute(api.path, endpoints.wrap(routes.route(api)), "POST", post_operation(api)))
    for method, handler, summary in (
        ("GET", routes.streams.read, "A reply that began with X-Conversation-Id: its events from the first on."),
        ("DELETE", routes.streams.end, "Ends such a reply and forgets it."),
    ):
        app.routes.append(DocumentedRoute(PATH, endpoints.wrap(handler), method, get_operation(PATH, summary, True)))
    app.routes.extend(page_routes(endpoints))
    app.routes.append(document_route(app, endpoints.wrap, apis, bool(access.keys)))
    for status in (404, 405):
        app.add_exception_handler(status, endpoints.missing)
    if access.origins:
        app.add_middleware(
            _Origins,
            allow_origins=access.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            allow_private_network=True,
        )
    return app
