"""The command line: one function per command with its options, and the one place that prints errors.

Commands import what they need when they run, so that `inspect` on a config loads no torch. Exit codes: 0; 1 for a
failure; 2 for invalid options; 130 when interrupted (by typer).
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from earthshine import __version__
from earthshine.cli import evals, models, prfaas
from earthshine.cli.arguments import (
    AllowPlain,
    ApiKeys,
    Context,
    Described,
    DiskCache,
    DiskCacheFolder,
    Dtype,
    Memory,
    Model,
    PlanFile,
    PrefillAbove,
    PrefillCa,
    PrefillLink,
    PrefillPeers,
    PrefillPins,
    PrefillToken,
    Threads,
    TlsCert,
    TlsKey,
    Trunk,
)
from earthshine.cli.chat_command import chat
from earthshine.cli.instead import Commands
from earthshine.cli.prefill_command import prefill
from earthshine.cli.words import KWH_USD, LIFE_YEARS, SERVE_BATCH
from earthshine.errors import EarthshineError, UsageError

app = typer.Typer(
    cls=Commands,
    help="Run large sparse mixture-of-experts models on the hardware you have.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command()(chat)
app.command("run", hidden=True)(chat)  # the name that other tools use


@app.command()
def serve(
    model: Model = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. One that other machines can reach needs --api-keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.")] = 8000,
    name: Annotated[
        list[str] | None, typer.Option(help="Name of the model for clients; default: its own. May be repeated.")
    ] = None,
    api_keys: ApiKeys = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    memory: Memory = None,
    context: Context = None,
    batch: Annotated[int | None, typer.Option(help=f"Most requests computed at once; default: {SERVE_BATCH}.")] = None,
    threads: Threads = None,
    trunk: Trunk = "bf16",
    dtype: Dtype = "bf16",
    plan: PlanFile = None,
    disk_cache: DiskCache = None,
    disk_cache_folder: DiskCacheFolder = None,
    max_stall: Annotated[float, typer.Option(help="Most seconds that a new prompt may delay running replies.")] = 1.0,
    max_queue: Annotated[int, typer.Option(help="Most requests that wait. More are refused with status 429.")] = 256,
    drain_seconds: Annotated[float, typer.Option(help="Seconds for running requests to finish at shutdown.")] = 30.0,
    hang_seconds: Annotated[float, typer.Option(help="Seconds without progress until /health answers 503.")] = 120.0,
    log_text: Annotated[bool, typer.Option("--log-text", help="Also log prompts and replies.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON objects, one per line.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another host name that requests may use. May be repeated.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin of web pages that may send requests, such as https://app.example. May be repeated."),
    ] = None,
    prefill: PrefillPeers = None,
    prefill_token: PrefillToken = None,
    prefill_ca: PrefillCa = None,
    prefill_pin: PrefillPins = None,
    prefill_link: PrefillLink = 1.0,
    prefill_above: PrefillAbove = None,
    allow_plain: AllowPlain = None,
) -> None:
    """Serve a model through OpenAI's and Anthropic's APIs, with a chat page for the browser, until Ctrl-C."""
    from earthshine.cli.options import plan_or_args
    from earthshine.cli.peers import PeerOptions
    from earthshine.cli.serve import ServeOptions, run_serve
    from earthshine.net.listen import ListenOptions

    at_once = batch if batch is not None else 1 if plan is not None else SERVE_BATCH
    held = plan_or_args(memory, context, threads, trunk, dtype, plan, at_once)
    who = (tuple(name or ()), api_keys, tuple(allow_host or ()), tuple(allow_origin or ()))
    waits = (max_stall, max_queue, drain_seconds, hang_seconds)
    listen = ListenOptions(host, port, tls_cert, tls_key)
    trust = (prefill_token, prefill_ca, tuple(prefill_pin or ()), tuple(allow_plain or ()))
    peers = PeerOptions(tuple(prefill or ()), *trust, prefill_link, prefill_above)
    logs = (log_text, log_json)
    run_serve(model, ServeOptions(listen, held, *who, disk_cache, disk_cache_folder, *waits, *logs, peers))


app.command()(prefill)


@app.command()
def route(
    decode: Annotated[
        list[str] | None,
        typer.Option(help="A server that answers: http://host:port, or NAME=URL. May be repeated."),
    ] = None,
    prefill: Annotated[
        list[str] | None,
        typer.Option(
            help="A server that computes prompts for the others, by the name that their configuration has for it: "
            "NAME=earthshine://host:port. May be repeated."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A JSON file with the places instead; it is read again at SIGHUP.")
    ] = None,
    fleet: Annotated[
        Path | None, typer.Option(help="A fleet's file with the places' profiles and links; default: they are learned.")
    ] = None,
    link: Annotated[float | None, typer.Option(help="Rate in Gb/s of links that the fleet lacks; default: 1.")] = None,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds within which a first token should come; default: as soon as possible.")
    ] = None,
    place_key_file: Annotated[
        Path | None, typer.Option(help="A file with the API key that the servers ask for.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. One that other machines can reach needs --api-keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.")] = 8080,
    api_keys: Annotated[
        Path | None, typer.Option(help="File of clients' API keys, one per line, readable by you only.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate with its chain, in PEM. Needs --tls-key.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key, in PEM without a password.")] = None,
    drain_seconds: Annotated[float, typer.Option(help="Seconds for running requests to finish at shutdown.")] = 30.0,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON objects, one per line.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another host name that requests may use. May be repeated.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin of web pages that may send requests, such as https://app.example. May be repeated."),
    ] = None,
) -> None:
    """Be one address for several servers: each request goes where its first token comes soonest."""
    from earthshine.cli.route import RouteOptions, run_route
    from earthshine.net.listen import ListenOptions

    listen = ListenOptions(host, port, tls_cert, tls_key)
    places = (tuple(decode or ()), tuple(prefill or ()), config, fleet, place_key_file, deadline, link)
    who = (api_keys, tuple(allow_host or ()), tuple(allow_origin or ()))
    run_route(RouteOptions(listen, *places, *who, drain_seconds, log_json))


@app.command()
def inspect(
    model: Described = None,
    context: Annotated[
        int | None, typer.Option(help="Context for the FLOPs per token; default: the model's, up to 32768.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
    make_hashes: Annotated[
        bool,
        typer.Option(
            "--hash",
            help="Read all weights (of an id, download them first) and write their checksums beside them. Loading then "
            "verifies them.",
        ),
    ] = False,
) -> None:
    """Show a model's architecture, size and stored formats. A config.json alone is enough."""
    from earthshine.cli.inspect import run_inspect

    run_inspect(model, context, json, make_hashes)


@app.command()
def score(
    model: Annotated[str, typer.Argument(help="A folder, a Hugging Face id, or gleam.")],
    file: Annotated[Path, typer.Argument(help="A file of UTF-8 text; - for standard input.")],
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document, with each token's log-likelihood.")
    ] = False,
    context: Annotated[
        int | None, typer.Option(help="Tokens per window; default: what the memory allows, up to 32768.")
    ] = None,
    memory: Memory = None,
    threads: Threads = None,
    trunk: Trunk = "bf16",
    dtype: Dtype = "bf16",
    plan: PlanFile = None,
) -> None:
    """Compute the log-likelihood, perplexity and bits per byte of a text under a model."""
    from earthshine.cli.options import plan_or_args
    from earthshine.cli.score import run_score

    run_score(model, file, json, plan_or_args(memory, context, threads, trunk, dtype, plan))


@app.command()
def plan(
    model: Described = None,
    memory: Memory = None,
    context: Context = None,
    batch: Annotated[int, typer.Option(help=f"Sequences decoded together; serve takes up to {SERVE_BATCH}.")] = 1,
    machine: Annotated[
        list[str] | None,
        typer.Option(
            help="A machine's file, or laptop-64gb, mini-24gb, desktop-128gb, server-768gb, 8xh200 or this; default: "
            "this machine. May be repeated, to compare machines."
        ),
    ] = None,
    threads: Threads = None,
    trunk: Trunk = "bf16",
    skew: Annotated[float, typer.Option(help="Zipf exponent of the choice of experts; 0 for even routing.")] = 0.9,
    watts: Annotated[
        float | None, typer.Option(help="Power of the machine under load; default: from its file.")
    ] = None,
    kwh_price: Annotated[float, typer.Option(help="US dollars per kilowatt hour.")] = KWH_USD,
    machine_price: Annotated[
        float | None, typer.Option(help="Price of the machine in US dollars; default: from its file.")
    ] = None,
    life_years: Annotated[float, typer.Option(help="Years over which the machine pays off.")] = LIFE_YEARS,
    prices: Annotated[Path | None, typer.Option(help="A table of services' prices; default: the included one.")] = None,
    save: Annotated[
        Path | None,
        typer.Option(help=f"Save the plan, for --plan of chat, score and serve (serve: with --batch {SERVE_BATCH})."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the forecasts to a .png, .svg or .pdf file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Forecast the memory, speed and cost of a model on a machine. A config.json alone is enough."""
    from earthshine.cli.plan import PlanOptions, run_plan

    money = (watts, kwh_price, machine_price, life_years, prices)
    held = (memory, context, batch, threads, trunk, tuple(machine or ()))
    run_plan(model, PlanOptions(*held, skew, *money, save, plot, json))


@app.command()
def doctor() -> None:
    """Show what this machine offers and which implementation is used for each operation."""
    from earthshine.cli.doctor import run_doctor

    run_doctor()


app.command("list")(models.list_models)
app.command("pull")(models.pull)
app.command("rm")(models.remove)


bench = typer.Typer(help="Measure this machine or a server.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench, name="bench")
app.add_typer(prfaas.app, name="prfaas")
app.add_typer(evals.app, name="eval")


@bench.command()
def machine(
    save: Annotated[
        Path | None, typer.Option(help="File to save the profile to; default: the one that earthshine plan reads.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Measure the disk of this folder, with a file of up to 2 GiB; default: the folder of --save."
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Measure the disk with this large file, which is only read.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
    threads: Annotated[int | None, typer.Option(help="Threads to measure with; default: all processors.")] = None,
) -> None:
    """Measure disk, memory, matrix products and network in under a minute, and save the profile."""
    from earthshine.cli.bench import BenchOptions, run_bench_machine

    run_bench_machine(BenchOptions(save, folder, file, threads), json)


@bench.command("serve")
def bench_serve(
    url: Annotated[str, typer.Argument(help="The server's address.")] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option(help="The model's name on the server; default: the first that it lists.")
    ] = None,
    api: Annotated[str, typer.Option(help="completions (prompts of token ids) or chat.")] = "completions",
    api_key_file: Annotated[Path | None, typer.Option(help="A file with the server's API key.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="A trace in Mooncake's JSON lines or Azure's CSV; default: a synthetic one.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Number of the trace's requests to send, from its start.")] = 64,
    concurrency: Annotated[int | None, typer.Option(help="Requests at a time; default: 8 without --speed.")] = None,
    speed: Annotated[
        float | None, typer.Option(help="Send at the trace's times, sped up by this factor, instead of --concurrency.")
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="Factor for all lengths; default: such that the longest fits the context.")
    ] = None,
    seed: Annotated[
        int,
        typer.Option(help="Seed of the prompts. Use another for each run, since a server may have cached prompts."),
    ] = 0,
    timeout: Annotated[float, typer.Option(help="Most seconds that a reply may take.")] = 600.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the latencies to a .png, .svg or .pdf file.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the figures of each request to this file, as JSON.")] = None,
) -> None:
    """Send a trace's requests to a running server and measure latency and throughput."""
    from earthshine.cli.bench_serve import BenchServeOptions, run_bench_serve

    load = (trace, requests, concurrency, speed, scale, seed, timeout)
    run_bench_serve(BenchServeOptions(url, model, api, api_key_file, *load, json, plot, save))


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"earthshine {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


def _fail(message: str, code: int) -> NoReturn:
    if sys.stdout is not None:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
    safe = "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in message)
    typer.echo(f"earthshine: {safe}", err=True)
    sys.exit(code)


def main() -> None:
    """The entry point. EarthshineErrors are printed as one or two sentences on standard error."""
    if sys.stdout is None:  # closed by the caller
        _fail("standard output is closed", 1)
    try:
        app(prog_name="earthshine")
        sys.stdout.flush()
    except UsageError as error:
        _fail(str(error) if error.param is None else error.message_with(f"--{error.param.replace('_', '-')}"), 2)
    except EarthshineError as error:
        _fail(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # torch's message
            raise
        _fail("there is not enough memory for this model; see its size with earthshine inspect", 1)
    except BrokenPipeError:  # the reader of the output has gone
        _abandon_output()
        sys.exit(1)
    except OSError as error:
        if error.filename is not None:
            _fail(f"{error.filename}: {error.strerror}", 1)
        _abandon_output()
        _fail(f"the output can't be written: {error.strerror}", 1)


def _abandon_output() -> None:
    """Redirect standard output, so that flushing it at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
