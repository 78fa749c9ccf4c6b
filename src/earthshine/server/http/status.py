"""The application of a process that answers no prompts over HTTP: its health, version and metrics."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from starlette.applications import Starlette

from earthshine.errors import UnavailableError
from earthshine.generation.request import GenerationRequest, Piece
from earthshine.net.access import Access
from earthshine.prfaas.figures import Figure
from earthshine.server.api import Served
from earthshine.server.http.endpoints import Endpoints, Lifetime, Options
from earthshine.server.http.metrics import Engine, Metrics
from earthshine.server.http.pages import status_routes


class _NoText:
    """For endpoints without an API."""

    def answer(self, requests: Sequence[GenerationRequest], user: str) -> AsyncIterator[Piece]:
        raise UnavailableError("This process answers no prompts over HTTP.")

    async def count(self, requests: Sequence[GenerationRequest]) -> list[int]:
        raise UnavailableError("This process answers no prompts over HTTP.")


def make_status_app(
    engine: Engine,
    served: Served,
    access: Access,
    options: Options,
    lifetime: Lifetime,
    figures: Callable[[], Iterable[Figure]],
) -> Starlette:
    """The application. `figures`: as Metrics.add."""
    metrics = Metrics(engine, served.names[0])
    metrics.add(figures)
    endpoints = Endpoints(_NoText(), engine, served, (), access, options, lifetime, metrics)
    app = Starlette(routes=list(status_routes(endpoints)))
    app.router.redirect_slashes = False
    for status in (404, 405):
        app.add_exception_handler(status, endpoints.missing)
    return app
