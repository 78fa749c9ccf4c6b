"""`earthshine serve`: a model behind OpenAI's and Anthropic's APIs.

The socket is bound first, so that a port in use is reported before a model is loaded. The settings for clients are
printed on standard output. The log is on standard error: a line for each request, and more while one takes long.
Refused: model names that clients can't use, and addresses that other machines can reach without API keys.
"""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from earthshine.cli.greeting import Server, greeting
from earthshine.cli.log import configure_log, write_line
from earthshine.cli.models import announce_download
from earthshine.cli.options import load_with_progress
from earthshine.cli.peers import PeerOptions, borrowing, open_peers
from earthshine.engine import Engine, EngineOptions, LoadedModel, sampling_defaults
from earthshine.errors import UsageError
from earthshine.generation.prompts import Prompts
from earthshine.generation.submission import Computes
from earthshine.hub import GLEAM, find_readable
from earthshine.net.access import Access, make_access
from earthshine.net.listen import ListenOptions, bind, tls_context
from earthshine.plan import Plan, PlanArgs
from earthshine.prfaas.client import RemotePrefill
from earthshine.server.anthropic import COUNT_TOKENS, MESSAGES
from earthshine.server.api import Served
from earthshine.server.generator import TextGenerator
from earthshine.server.http.app import make_app
from earthshine.server.http.endpoints import Lifetime, Options
from earthshine.server.http.log import Log
from earthshine.server.http.run import Service
from earthshine.server.openai.chat import CHAT
from earthshine.server.openai.completions import COMPLETIONS
from earthshine.server.openai.responses import RESPONSES
from earthshine.settings import read_settings
from earthshine.text import (
    ChatTemplate,
    Tokenizer,
    call_form,
    can_think,
    has_template,
    load_template,
)
from earthshine.units import parse_bytes
from earthshine.untrusted import shown

APIS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT_TOKENS)
_NAME = re.compile(r"(?=.{1,128}$)[A-Za-z0-9][A-Za-z0-9._:-]*(/[A-Za-z0-9][A-Za-z0-9._:-]*)*")
_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The options of the command: address, access, how the model is loaded, and limits."""

    listen: ListenOptions
    plan: Plan | PlanArgs
    names: tuple[str, ...] = ()
    api_keys: Path | None = None
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    disk_cache: str | None = None
    disk_cache_folder: Path | None = None
    max_stall: float = 1.0
    max_queue: int = 256
    drain_seconds: float = 30.0
    hang_seconds: float = 120.0
    log_text: bool = False
    log_json: bool = False
    peers: PeerOptions = field(default_factory=PeerOptions)


def run_serve(model: str | None, options: ServeOptions) -> None:
    """Serve until a signal. Invalid options are refused before a model is loaded."""
    access = make_access(options.listen.host, options.api_keys, options.allow_hosts, options.allow_origins)
    check_seconds(options.drain_seconds, options.hang_seconds)
    configured = engine_options(options.disk_cache, options.disk_cache_folder, options.max_queue, options.max_stall)
    peers = open_peers(options.peers)
    configure_log(options.log_json)
    tls, bound = tls_context(options.listen), bind(options.listen)
    with bound:
        folder, tokenizer = find_readable(model, announce_download)
        names = model_names(options.names, folder)
        template = load_template(folder) if has_template(folder) else None  # a base model completes texts alone
        loaded = load_with_progress(folder, options.plan)
        try:
            engine = Engine(loaded, configured)
            log = Log(write_line, options.log_json)
            remote = borrowing(engine, loaded, folder, peers, options.peers, log) if peers else None
            generator = _generator(loaded, remote or engine, engine.context_tokens, tokenizer, template)
            thinks = template is not None and can_think(tokenizer, template)
            keeps = template is not None and template.can_preserve_thinking
            defaults = sampling_defaults(folder)
            served = Served(names, int(time.time()), engine.context_tokens, thinks, keeps, tokenizer.decode, defaults)
            service = _service(generator, engine, remote, served, access, options, log)
            service.tls = tls
            server = Server(
                names,
                bound.getsockname()[1],
                options.listen,
                options.api_keys,
                plan=loaded.plan,
                given=options.plan,
                max_context=loaded.spec.max_context,
                chats=template is not None,
                calls_tools=template is not None and call_form(tokenizer, template) is not None,
            )
            service.ready = lambda: print(greeting(server), flush=True)
            try:
                service.run(bound)
            finally:
                generator.close()
        finally:
            loaded.close()


def check_seconds(drain: float, hang: float) -> None:
    """Raises UsageError for a value out of range."""
    for name, seconds in (("drain", drain), ("hang", hang)):
        if not 0 <= seconds <= _SECONDS:
            raise UsageError(f"--{name}-seconds must be between 0 and {_SECONDS:g}, not {seconds:g}.")


def engine_options(
    disk_cache: str | None, disk_cache_folder: Path | None, max_queue: int, max_stall: float = 1.0
) -> EngineOptions:
    """Raises UsageError for values out of range."""
    size = 0 if disk_cache is None else parse_bytes(disk_cache)
    if not size and disk_cache_folder is not None:
        raise UsageError("--disk-cache-folder needs --disk-cache with a size, such as 50GiB.")
    folder = None
    if size:
        folder = disk_cache_folder or read_settings().pages
    return EngineOptions(max_stall, max_queue, size, folder)


def model_names(given: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """The names of the model for clients: those of --name, or else the model's own."""
    for name in given:
        if not _NAME.fullmatch(name):
            raise UsageError(f"--name must be up to 128 letters, digits and . _ : - /, not {shown(name)}.")
    if given:
        return tuple(dict.fromkeys(given))
    whole = folder.resolve()
    if whole == GLEAM:
        return ("gleam",)
    above = whole.parent.parent.name if whole.parent.name == "snapshots" else ""  # in Hugging Face's cache
    plain = above.rpartition("--")[2] if above.startswith("models--") else whole.name
    return (re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:128] or "model",)


def _generator(
    loaded: LoadedModel,
    engine: Computes,
    context_tokens: int,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
) -> TextGenerator:
    spec = loaded.spec
    return TextGenerator(engine, Prompts(tokenizer, template, spec.vocab_size, spec.stop_tokens, context_tokens))


def _service(
    generator: TextGenerator,
    engine: Engine,
    remote: RemotePrefill | None,
    served: Served,
    access: Access,
    options: ServeOptions,
    log: Log,
) -> Service:
    lifetime = Lifetime()
    shared = Options(log=log, log_text=options.log_text, hang_seconds=options.hang_seconds)
    figures = None if remote is None else remote.figures
    app = make_app(generator, engine, served, APIS, access, shared, lifetime, figures)
    return Service(app, remote or engine, lifetime, options.drain_seconds, log=log)
