"""`earthshine prfaas`: the commands of prefill as a service and their options. None of them loads torch."""

from pathlib import Path
from typing import Annotated

import typer

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
    mu: Mu = 9.9,
    sigma: Sigma = 1.0,
    shortest: Shortest = 128,
    longest: Longest = 131072,
    trace: Trace = None,
    output_tokens: Annotated[
        float | None, typer.Option(help="Mean tokens of a reply; default: 1024, or the trace's mean.")
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
