"""`earthshine eval`: the commands of evaluation and their options. None of them loads torch."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Published claims and evaluations, with their error bars.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


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


@app.command()
def compare(
    first: Annotated[
        Path,
        typer.Argument(help="Results as JSON lines, a log of inspect-ai as JSON, or a folder of such files."),
    ],
    second: Annotated[Path, typer.Argument(help="Results of another model on the same questions.")],
    margin: Annotated[float, typer.Option(help="Points within which two scores count as the same.")] = 2.0,
    common: Annotated[
        bool, typer.Option("--common", help="Leave out questions that only one has, instead of refusing them.")
    ] = False,
    scorer: Annotated[
        str | None, typer.Option(help="The scorer whose scores to compare, where a log has several.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Compare two models' saved results question by question: which is better, and could both be one model?"""
    from earthshine.cli.eval_compare import CompareOptions, run_compare

    run_compare(CompareOptions(first, second, margin, common, scorer, json))
