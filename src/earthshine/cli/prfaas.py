"""`earthshine prfaas`: the commands of prefill as a service and their options. None of them loads torch."""

from pathlib import Path
from typing import Annotated

import typer

from earthshine.prfaas.workload import PAPER_LENGTHS, PAPER_OUTPUT_TOKENS

app = typer.Typer(
    help="Prefill as a service: compute long prompts where compute is cheap.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

FleetName = Annotated[
    str, typer.Argument(help="A fleet's file, or the name of one that ships: paper, paper-homogeneous or paper-naive.")
]
Links = Annotated[float | None, typer.Option(help="Rate of every link in Gb/s; default: from the file. 0: no link.")]
Mu = Annotated[float, typer.Option(help="Mean of the logarithm of a prompt's tokens: lengths are log-normal.")]
Sigma = Annotated[float, typer.Option(help="Its standard deviation.")]
Shortest = Annotated[int, typer.Option(help="Shortest prompt in tokens.")]
Longest = Annotated[int, typer.Option(help="Longest prompt in tokens.")]
Trace = Annotated[
    Path | None,
    typer.Option(
        help="Take lengths from a trace in Mooncake's JSON lines or Azure's CSV instead: what is left of each prompt "
        "after the prefixes that earlier ones had."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


@app.command()
def solve(
    fleet: FleetName = "paper",
    link: Links = None,
    mu: Mu = PAPER_LENGTHS.mu,
    sigma: Sigma = PAPER_LENGTHS.sigma,
    shortest: Shortest = int(PAPER_LENGTHS.least),
    longest: Longest = int(PAPER_LENGTHS.most),
    trace: Trace = None,
    output_tokens: Annotated[
        float | None, typer.Option(help=f"Mean tokens of a reply; default: {PAPER_OUTPUT_TOKENS}, or the trace's mean.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Keep this threshold in tokens and the file's roles, instead of the best ones.")
    ] = None,
    at_means: Annotated[
        bool,
        typer.Option(
            "--at-means",
            help="Compute as the paper does: every request at its stage's mean length, thresholds on a grid.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Find the threshold and the roles with the highest throughput, what limits it and what would raise it."""
    from earthshine.cli.prfaas_solve import SolveOptions, Workload, run_solve

    workload = Workload(mu, sigma, shortest, longest, trace, output_tokens)
    run_solve(SolveOptions(fleet, link, workload, threshold, at_means, json))


@app.command()
def borrow(
    model: Annotated[str, typer.Argument(help="A folder, a Hugging Face id, gleam, or the path of a config.json.")],
    machine: Annotated[
        list[str] | None,
        typer.Option(
            help="The machine that decodes: a file, a shipped name such as mini-24gb, or this; default: this. May be "
            "repeated."
        ),
    ] = None,
    lender: Annotated[str, typer.Option(help="The machine that prefills for it, likewise.")] = "8xh200",
    link: Annotated[
        list[float] | None, typer.Option(help="Rate in Gb/s from there; default: 0.1, 1 and 10. May be repeated.")
    ] = None,
    prompt: Annotated[
        list[int] | None,
        typer.Option(help="Tokens of a prompt; default: 8192, 32768 and 131072. May be repeated."),
    ] = None,
    usd_per_hour: Annotated[
        float | None,
        typer.Option(help="US dollars per hour of the lender; default: its price over four years, and its power."),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Save the fleet of one machine and one link to this file.")] = None,
    json: Json = False,
) -> None:
    """Forecast the first token with a prompt computed here, and with another machine's prefill over a link."""
    from earthshine.cli.prfaas_borrow import BorrowOptions, run_borrow

    machines, links, prompts = tuple(machine or ("this",)), tuple(link or (0.1, 1, 10)), tuple(prompt or ())
    run_borrow(BorrowOptions(model, machines, lender, links, prompts, usd_per_hour, save, json))


@app.command()
def profile(
    url: Annotated[str, typer.Argument(help="The server's address, such as http://127.0.0.1:8000.")],
    model: Annotated[
        str,
        typer.Argument(
            help="A folder, a Hugging Face id, gleam, or the path of a config.json: it has the size of the cache."
        ),
    ],
    served_as: Annotated[
        str | None, typer.Option(help="The model's name on the server; default: the first that it lists.")
    ] = None,
    api: Annotated[str, typer.Option(help="completions (prompts of token ids) or chat.")] = "completions",
    api_key_file: Annotated[Path | None, typer.Option(help="A file with the server's API key.")] = None,
    longest: Annotated[int, typer.Option(help="Longest prompt in tokens, within the server's context.")] = 32768,
    batch: Annotated[int, typer.Option(help="Most sequences to decode at once.")] = 8,
    seconds: Annotated[float, typer.Option(help="Most seconds for prompts; longer ones are then left out.")] = 180.0,
    usd_per_hour: Annotated[float, typer.Option(help="US dollars per hour of such an instance.")] = 0.0,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the prompts; default: another each time, since servers cache prompts.")
    ] = None,
) -> None:
    """Measure a running server's prefill and decode steps, and print them as a profile for a fleet's file."""
    from earthshine.cli.prfaas_profile import ProfileOptions, run_profile

    who = (url, model, served_as, api, api_key_file)
    run_profile(ProfileOptions(*who, longest, batch, seconds, usd_per_hour, seed))


@app.command()
def simulate(
    fleet: FleetName = "paper",
    scenario: Annotated[
        str, typer.Option(help="steady, burst, wave, outage, drift, or prefix, which needs --trace.")
    ] = "steady",
    link: Links = None,
    trace: Annotated[
        Path | None, typer.Option(help="A trace in Mooncake's JSON lines, whose prompts share prefixes.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="How long requests arrive; default: the scenario's own, an hour for most.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same requests and the same result.")] = 0,
    json: Json = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the table as a picture: a PNG, SVG or PDF file.")] = None,
) -> None:
    """Compare policies where requests queue, come in bursts, share prefixes, and links slow down or fail."""
    from earthshine.cli.prfaas_simulate import SimulateOptions, run_simulate

    run_simulate(SimulateOptions(fleet, scenario, link, trace, seconds, seed, json, plot))
