"""`earthshine route`: a front for several servers. Prints where it listens; the log is on standard error."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from earthshine.cli.greeting import address_of
from earthshine.cli.log import configure_log, write_line
from earthshine.errors import UsageError
from earthshine.loadgen.client import read_key
from earthshine.net.access import make_access
from earthshine.net.listen import ListenOptions, bind, tls_context
from earthshine.prfaas.fleet import read_fleet
from earthshine.prfaas.router.setup import RouterSetup, place_from, read_setup
from earthshine.server.http.log import Log
from earthshine.server.http.run import Service
from earthshine.server.route.app import Router, with_origins

_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """The options of the command. Either `config` names the places, or the other options do."""

    listen: ListenOptions
    decode: tuple[str, ...] = ()
    prefill: tuple[str, ...] = ()
    config: Path | None = None
    fleet: Path | None = None
    place_key_file: Path | None = None
    deadline: float | None = None
    link: float | None = None
    api_keys: Path | None = None
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    drain_seconds: float = 30.0
    log_json: bool = False


class _Nothing:
    """What a router has to end: it computes nothing itself."""

    def drain(self, seconds: float) -> None: ...

    def close(self) -> None: ...


def run_route(options: RouteOptions) -> None:
    """Route until a signal; SIGHUP reads the configuration again."""
    if not 0 <= options.drain_seconds <= _SECONDS:
        raise UsageError(f"--drain-seconds must be between 0 and {_SECONDS:g}, not {options.drain_seconds:g}.")
    access = make_access(options.listen.host, options.api_keys, options.allow_hosts, options.allow_origins)
    again = _reader(options)
    setup = again()
    configure_log(options.log_json)
    tls, bound = tls_context(options.listen), bind(options.listen)
    with bound:
        log = Log(write_line, options.log_json)
        router = Router(setup, access, log, setup_again=again if options.config is not None else None)
        service = Service(with_origins(router), _Nothing(), router.lifetime, options.drain_seconds, tls, log=log)
        service.hang_up = router.reload

        def ready() -> None:
            router.start()
            gc.freeze()  # what was imported stays: each full collection would look at all of it, for 10 ms
            print(_greeting(options, setup, bound.getsockname()[1]), flush=True)

        service.ready = ready
        service.run(bound)


def _reader(options: RouteOptions) -> Callable[[], RouterSetup]:
    """What reads the setup, of the file or of the other options. Raises UsageError for both."""
    if options.config is None:
        return lambda: _setup(options)
    others = (options.decode, options.prefill, options.fleet, options.place_key_file, options.deadline, options.link)
    if any(each for each in others):
        raise UsageError("--config names the places and what concerns them; leave out the other options for that.")
    path = options.config
    return lambda: read_setup(path)


def _setup(options: RouteOptions) -> RouterSetup:
    if not options.decode:
        raise UsageError("Which servers? Give --decode URL for each, or --config FILE.")
    if options.deadline is not None and not 0 < options.deadline <= _SECONDS:
        raise UsageError(f"--deadline must be above 0 and at most {_SECONDS:g} seconds, not {options.deadline:g}.")
    if options.link is not None and not 0 < options.link <= 1e6:
        raise UsageError(f"--link must be a rate in Gb/s above 0, not {options.link:g}.")
    key = "" if options.place_key_file is None else read_key(options.place_key_file)
    setup = RouterSetup(
        tuple(place_from(text, key) for text in options.decode),
        tuple(place_from(text, key, prefill=True) for text in options.prefill),
        deadline_seconds=options.deadline,
    )
    if options.fleet is not None:
        setup = replace(setup, fleet=read_fleet(options.fleet))
    return setup if options.link is None else replace(setup, link_bytes_per_second=options.link * 1e9 / 8)


def _greeting(options: RouteOptions, setup: RouterSetup, port: int) -> str:
    address, key = address_of(options.listen, port), "YOUR-KEY" if options.api_keys else "none"
    lenders = f", which may borrow from {', '.join(each.name for each in setup.prefill)}" if setup.prefill else ""
    return (
        f"The router listens at {address} for {', '.join(each.name for each in setup.decode)}{lenders}.\n\n"
        f"# for OpenAI's clients\nexport OPENAI_BASE_URL={address}/v1 OPENAI_API_KEY={key}\n"
        f"# for Anthropic's\nexport ANTHROPIC_BASE_URL={address} ANTHROPIC_AUTH_TOKEN={key}\n\n"
        f"Open {address} in a browser to see the fleet. Ctrl-C ends the router after running requests."
    )
