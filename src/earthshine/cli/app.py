"""The command line: one function per command, its options, and one place that turns errors into sentences.

Commands import what they need when they run, so that `inspect` on a config loads no torch. Exit codes: 0, 1 for a
failure, 2 for wrong use, 130 when interrupted (typer sees to that).
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from earthshine import __version__
from earthshine.errors import EarthshineError, UsageError

app = typer.Typer(
    help="Run open sparse mixture-of-experts models with latent attention on hardware you have.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

MODEL_HELP = "A folder, a Hugging Face id (downloaded first), or gleam, the small model inside and the default."
Model = Annotated[str | None, typer.Argument(help=MODEL_HELP)]
Dtype = Annotated[
    str, typer.Option(help="Activations: bf16 as published, or fp32; FP8 and INT4 weights decode to bf16 either way.")
]
Memory = Annotated[
    str | None, typer.Option(help="All the memory to use, such as 16GiB; default: most of what is free.")
]
Threads = Annotated[int | None, typer.Option(help="Processors to use; default: all. No result depends on it.")]
Trunk = Annotated[
    str, typer.Option(help="All but the experts: bf16 as published, or int8, which takes half the memory and is lossy.")
]

PlanFile = Annotated[
    Path | None,
    typer.Option(help="What earthshine plan --save wrote; then it alone says how the model is held."),
]


@app.command()
def chat(
    model: Model = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="One question, then exit; standard input is put before it."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message before the conversation.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest reply; without it, to the context's end.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; default: the model's own, else 0.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus; default: the model's own, else 1.")] = None,
    top_k: Annotated[int, typer.Option(help="Sample among the k likeliest tokens; 0 for all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest one.")] = 0.0,
    presence_penalty: Annotated[float, typer.Option(help="Off the logit of each token generated so far.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="The same, for each time it was generated.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Divides logits of tokens seen; 1 is off.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same reply.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the reply before this text; may be repeated.")] = None,
    thinking: Annotated[bool, typer.Option(help="Let the model reason before it answers.")] = True,
    stats: Annotated[bool, typer.Option(help="After each reply: rates, expert hits, bytes read.")] = False,
    context: Annotated[
        int | None, typer.Option(help="Tokens of room; default: what the memory allows, to 32768.")
    ] = None,
    memory: Memory = None,
    threads: Threads = None,
    trunk: Trunk = "bf16",
    dtype: Dtype = "bf16",
    plan: PlanFile = None,
) -> None:
    """Talk with a model: in a terminal a conversation; with -p, or with text on standard input, one answer."""
    from earthshine.cli.chat import ChatOptions, run_chat
    from earthshine.cli.options import plan_or_args

    held = plan_or_args(memory, context, threads, trunk, dtype, plan)
    options = ChatOptions(prompt, system, thinking, tuple(stop or ()), held, stats)
    sampling = {
        "max_tokens": max_tokens,
        "top_k": top_k,
        "min_p": min_p,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    chosen = {key: value for key, value in (("temperature", temperature), ("top_p", top_p)) if value is not None}
    run_chat(model, options, sampling | chosen)


app.command("run", hidden=True)(chat)  # the name that people know


@app.command()
def serve(
    model: Model = None,
    host: Annotated[str, typer.Option(help="The address to listen on; beyond this machine only with --api-keys.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 chooses one that is free.")] = 8000,
    name: Annotated[
        list[str] | None, typer.Option(help="What clients call the model; may be repeated; default: its own name.")
    ] = None,
    api_keys: Annotated[Path | None, typer.Option(help="A file of keys, one per line, that only you can read.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="A certificate and its chain in PEM; with --tls-key.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key in PEM, without a password.")] = None,
    memory: Memory = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of each conversation; default: what the memory allows, to 32768.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Replies that are computed at once; default: 8.")] = None,
    threads: Threads = None,
    trunk: Trunk = "bf16",
    dtype: Dtype = "bf16",
    plan: PlanFile = None,
    disk_cache: Annotated[
        str | None, typer.Option(help="Keep conversations on disk, up to this size such as 50GiB; default: not.")
    ] = None,
    disk_cache_folder: Annotated[
        Path | None, typer.Option(help="Where they lie; default: ~/.cache/earthshine/pages.")
    ] = None,
    max_stall: Annotated[float, typer.Option(help="Seconds that a new prompt may hold up replies under way.")] = 1.0,
    max_queue: Annotated[int, typer.Option(help="Replies that may wait; more are refused with 429.")] = 256,
    drain_seconds: Annotated[float, typer.Option(help="What replies get to finish in once it ends.")] = 30.0,
    hang_seconds: Annotated[float, typer.Option(help="Without progress for so long, /health says 503.")] = 120.0,
    log_text: Annotated[bool, typer.Option("--log-text", help="Log prompts and replies too.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name of this machine that requests may use; may be repeated.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Web pages that may ask, such as https://app.example; may be repeated.")
    ] = None,
) -> None:
    """Serve a model to OpenAI's and Anthropic's clients, and a page to this machine's browser, until Ctrl-C."""
    from earthshine.cli.options import plan_or_args
    from earthshine.cli.serve import ServeOptions, run_serve
    from earthshine.net.listen import ListenOptions

    at_once = (1, None) if plan is not None and batch is None else (8 if batch is None else batch, 0)
    held = plan_or_args(memory, context, threads, trunk, dtype, plan, *at_once)
    who = (tuple(name or ()), api_keys, tuple(allow_host or ()), tuple(allow_origin or ()))
    waits = (max_stall, max_queue, drain_seconds, hang_seconds)
    listen = ListenOptions(host, port, tls_cert, tls_key)
    run_serve(model, ServeOptions(listen, held, *who, disk_cache, disk_cache_folder, *waits, log_text))


@app.command()
def inspect(
    model: Model = None,
    context: Annotated[
        int | None, typer.Option(help="Where FLOPs per token are given; default: the model's, to 32768.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
    make_hashes: Annotated[
        bool, typer.Option("--hash", help="Read all weights and write checksums beside them; loading checks them.")
    ] = False,
) -> None:
    """Show a model's architecture, size and stored formats; from a config.json alone too."""
    from earthshine.cli.inspect import run_inspect

    run_inspect(model, context, json, make_hashes)


@app.command()
def score(
    model: Annotated[str, typer.Argument(help="A folder, a Hugging Face id, or gleam.")],
    file: Annotated[Path, typer.Argument(help="UTF-8 text; - for standard input.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON document, with each token's log-likelihood.")] = False,
    context: Annotated[
        int | None, typer.Option(help="Tokens a window; default: what the memory allows, to 32768.")
    ] = None,
    memory: Memory = None,
    threads: Threads = None,
    trunk: Trunk = "bf16",
    dtype: Dtype = "bf16",
    plan: PlanFile = None,
) -> None:
    """Log-likelihood, perplexity and bits per byte of a text under a model."""
    from earthshine.cli.options import plan_or_args
    from earthshine.cli.score import run_score

    run_score(model, file, json, plan_or_args(memory, context, threads, trunk, dtype, plan))


@app.command()
def plan(
    model: Model = None,
    memory: Memory = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of each conversation; default: what the memory allows, to 32768.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences decoded together; serve takes up to 8.")] = 1,
    machine: Annotated[
        str | None,
        typer.Option(help="A machine's file, or mini-24gb, desktop-128gb, server-768gb, 8xh200; default: this one."),
    ] = None,
    threads: Threads = None,
    trunk: Trunk = "bf16",
    skew: Annotated[float, typer.Option(help="How unevenly experts are chosen (Zipf's exponent): 0 is even.")] = 0.9,
    watts: Annotated[float | None, typer.Option(help="Of the machine under load; default: its file's.")] = None,
    kwh_price: Annotated[float, typer.Option(help="US dollars for a kilowatt hour.")] = 0.25,
    machine_price: Annotated[float | None, typer.Option(help="US dollars; default: its file's.")] = None,
    life_years: Annotated[float, typer.Option(help="Years over which the machine pays off.")] = 4.0,
    prices: Annotated[Path | None, typer.Option(help="A table of services' prices instead of the one inside.")] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Write the plan, for --plan of chat, score and serve (8 conversations: --batch 8)."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the forecasts: a .png, .svg or .pdf.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")] = False,
) -> None:
    """Forecast what goes where, how fast it will be and why, and what it costs; from a config.json alone too."""
    from earthshine.cli.plan import PlanOptions, run_plan

    money = (watts, kwh_price, machine_price, life_years, prices)
    run_plan(model, PlanOptions(memory, context, batch, threads, trunk, machine, skew, *money, save, plot, json))


@app.command()
def doctor() -> None:
    """Say what this machine offers and which implementation serves each operation."""
    from earthshine.cli.doctor import run_doctor

    run_doctor()


bench = typer.Typer(help="Measure this machine, or a server.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench, name="bench")


@bench.command()
def machine(
    save: Annotated[
        Path | None, typer.Option(help="Where the profile goes; default: the place that earthshine plan reads.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Measure the disk of this folder, by a file of up to 2 GiB; default: of --save.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Measure the disk by this large file, which is only read.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
    threads: Annotated[int | None, typer.Option(help="Processors to measure with; default: all.")] = None,
) -> None:
    """Measure disk, memory, products and network in under a minute, and save the dated profile."""
    from earthshine.cli.bench import BenchOptions, run_bench_machine

    run_bench_machine(BenchOptions(save, folder, file, threads), json)


@bench.command("serve")
def bench_serve(
    url: Annotated[str, typer.Argument(help="Where the server is.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="By its name there; default: the first that it lists.")] = None,
    api: Annotated[str, typer.Option(help="completions, whose prompts are token ids, or chat.")] = "completions",
    api_key_file: Annotated[Path | None, typer.Option(help="A file with the server's key.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Mooncake's JSON lines or Azure's CSV; default: a synthetic one.")
    ] = None,
    requests: Annotated[int, typer.Option(help="How many of its requests to send, from its start.")] = 64,
    concurrency: Annotated[int | None, typer.Option(help="Requests at once; default: 8 without --speed.")] = None,
    speed: Annotated[
        float | None, typer.Option(help="Send at the trace's times, this many times as fast, instead of --concurrency.")
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="Multiply all lengths; default: so that the longest fits the context.")
    ] = None,
    seed: Annotated[
        int,
        typer.Option(help="Of the prompts; take another for each run, since a server finds prompts that it has seen."),
    ] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds that a reply may take.")] = 600.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the waits: a .png, .svg or .pdf.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write each request's figures to this file, as JSON.")] = None,
) -> None:
    """Send a trace's requests to a running server, and say how long people would have waited."""
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
    typer.echo(f"earthshine: {message}", err=True)
    sys.exit(code)


def main() -> None:
    """Entry point. Errors raised on purpose become one or two plain sentences on standard error."""
    if sys.stdout is None:  # closed by the caller; there is nowhere to say so but standard error
        _fail("standard output is closed", 1)
    try:
        app()
        sys.stdout.flush()
    except UsageError as error:
        _fail(str(error), 2)
    except EarthshineError as error:
        _fail(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # torch's way to say it
            raise
        _fail("there is not enough memory for this model; see its size with: earthshine inspect", 1)
    except BrokenPipeError:  # the reader has gone, which is no news to it
        _abandon_output()
        sys.exit(1)
    except OSError as error:
        if error.filename is not None:
            _fail(f"{error.filename}: {error.strerror}", 1)
        _abandon_output()
        _fail(f"the output can't be written: {error.strerror}", 1)


def _abandon_output() -> None:
    """What Python still holds for standard output must not fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
