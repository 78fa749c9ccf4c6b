"""`earthshine prefill`: a worker that prefills prompts for other machines and sends them the cache.

Both sockets are bound before the model is loaded. Prompts and caches cross the one of `--listen`; `/health` and
`/metrics` are on another, as `serve` has them. The log is on standard error, one line for each request.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from earthshine.cli.log import configure_log, write_line
from earthshine.cli.models import announce_download
from earthshine.cli.options import load_with_progress
from earthshine.cli.place import forecast_of
from earthshine.cli.serve import check_seconds, engine_options, model_names
from earthshine.engine import Engine, EngineOptions, LoadedModel
from earthshine.hub import find_readable
from earthshine.net.access import Access, make_access
from earthshine.net.listen import ListenOptions, address_of, bind
from earthshine.plan import Plan, PlanArgs
from earthshine.prfaas.announce import announcement
from earthshine.prfaas.wire import Limits, PeerAddress, WireServer
from earthshine.prfaas.wire.address import require_plain_allowed
from earthshine.prfaas.worker import PrefillWorker
from earthshine.server.api import Served
from earthshine.server.http.endpoints import Lifetime, Options
from earthshine.server.http.log import Log
from earthshine.server.http.run import Service
from earthshine.server.http.status import make_status_app


@dataclass(frozen=True, slots=True)
class PrefillOptions:
    """The options of the command. `listen` and `status`: HOST:PORT."""

    listen: str
    status: str
    plan: Plan | PlanArgs
    api_keys: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    allow_plain: tuple[str, ...] = ()
    disk_cache: str | None = None
    disk_cache_folder: Path | None = None
    max_queue: int = 64
    drain_seconds: float = 30.0
    hang_seconds: float = 120.0
    log_json: bool = False


class _Worker:
    """What a shutdown ends, in order."""

    def __init__(self, wire: WireServer, worker: PrefillWorker, engine: Engine) -> None:
        self._wire, self._worker, self._engine = wire, worker, engine

    def drain(self, seconds: float) -> object:
        return self._worker.drain(seconds)

    def close(self) -> None:
        self._engine.drain(0)
        self._wire.close()
        self._engine.close()


def run_prefill(model: str | None, options: PrefillOptions) -> None:
    """Serve until a signal. Invalid options are refused before a model is loaded."""
    listen = ListenOptions(*address_of(options.listen, "--listen"), options.tls_cert, options.tls_key)
    status = ListenOptions(*address_of(options.status, "--status"))
    access = make_access(listen.host, options.api_keys)
    require_plain_allowed(listen.host, listen.tls_cert is None, options.allow_plain)
    status_access = make_access(status.host, options.api_keys)
    check_seconds(options.drain_seconds, options.hang_seconds)
    configured = engine_options(options.disk_cache, options.disk_cache_folder, options.max_queue)
    configure_log(options.log_json)
    bind(listen).close()  # an address that can't be used is refused now
    with bind(status) as bound:
        folder, _ = find_readable(model, announce_download)
        loaded = load_with_progress(folder, options.plan)
        try:
            service, url = _service(loaded, folder, configured, (listen, access), status_access, options)
            name, (host, port) = model_names((), folder)[0], bound.getsockname()[:2]
            service.ready = lambda: print(
                f"Prefills {name} for others; give `earthshine serve` --prefill {url}\n"
                f"Its health and metrics: http://{host}:{port}/health and /metrics. Ctrl-C ends it.\n"
                f"With vLLM: its connector's setting `model` is {loaded.fingerprint}.",
                flush=True,
            )
            service.run(bound)
        finally:
            loaded.close()


def _service(
    loaded: LoadedModel,
    folder: Path,
    configured: EngineOptions,
    wire_side: tuple[ListenOptions, Access],
    status_access: Access,
    options: PrefillOptions,
) -> tuple[Service, str]:
    """The worker as a service, and its URL."""
    log, lifetime, (listen, access) = Log(write_line, options.log_json), Lifetime(), wire_side
    engine = Engine(loaded, configured)
    worker = PrefillWorker(engine, most_waiting=options.max_queue, log=log.event)
    try:
        wire = WireServer(
            listen,
            worker,
            access=access,
            fingerprint=loaded.fingerprint,
            allow_plain=options.allow_plain,
            limits=Limits(most_requests=options.max_queue, most_tokens=engine.context_tokens),
            about=announcement(forecast_of(loaded, folder)),
        )
    except BaseException:
        engine.close()
        raise
    served = Served(model_names((), folder), int(time.time()), engine.context_tokens, False, False, lambda ids: "")
    shared = Options(log=log, hang_seconds=options.hang_seconds)
    app = make_status_app(engine, served, status_access, shared, lifetime, worker.figures)
    address = PeerAddress(listen.host, wire.port, listen.tls_cert is None)
    return Service(app, _Worker(wire, worker, engine), lifetime, options.drain_seconds, log=log), str(address)
