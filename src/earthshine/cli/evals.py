"""`earthshine eval`: the commands of evaluation and their options. None of them loads torch."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Published claims and evaluations, with their error bars.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def _group() -> None: ...


@app.command()
def claims(
    file: Annotated[
        str, typer.Argument(help="A file of claims, or the name of one that ships: kimi-k2.5 or kimi-k2.6.")
    ] = "kimi-k2.6",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the differences with their intervals: a PNG, SVG or PDF file.")
    ] = None,
) -> None:
    """Say which of a model's published scores differ from its rivals' by more than chance. Nothing is run."""
    from earthshine.cli.eval_claims import run_claims

    run_claims(file, json, plot)
