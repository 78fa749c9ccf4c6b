"""`earthshine list`, `pull` and `rm`: the models in the folder of downloads; and what completes MODEL in a shell."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from earthshine.cli.words import plain
from earthshine.errors import SourceError, UsageError
from earthshine.units import format_bytes

if TYPE_CHECKING:
    from earthshine.hub import Downloaded, Pending


def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> None:
    """List the models in the folder of downloads, with size, family, and whether all files are there."""
    from earthshine.cli.layout import Report
    from earthshine.hub import GLEAM, downloaded
    from earthshine.settings import read_settings

    models = downloaded()
    if as_json:
        print(json.dumps([_facts(model) for model in models], indent=2))
        return
    rows = [(model.name, format_bytes(model.nbytes), model.family or "-", _state(model)) for model in models]
    included = format_bytes(sum(file.stat().st_size for file in GLEAM.iterdir()))
    rows = [("gleam", included, "kimi_k25", "included"), *rows]
    Report(whole_lines=not sys.stdout.isatty()).table(("model", "size", "family", "state"), rows, ("family",))
    print(f"\nDownloads are in {plain(read_settings().downloads)}.", file=sys.stderr)


def pull(model: Annotated[str, typer.Argument(help="A Hugging Face id, such as moonshotai/Kimi-K2.6.")]) -> None:
    """Download a model, or the rest of it: only the files that are needed, after a check of the free disk space."""
    from earthshine.hub import find_downloaded, find_readable

    if model == "gleam" or os.path.exists(model):
        print(f"{plain(model)} is on this machine already.")
        return
    find_readable(model, announce_download)
    found = find_downloaded(model)
    if not found.whole:
        raise SourceError(f"{model} in {found.folder} is not whole: {_state(found)}. Run the same command again.")
    print(f"{model} is whole: {format_bytes(found.nbytes)} in {plain(found.folder)}.")


def announce_download(pending: "Pending") -> None:
    """Say on standard error what is about to be downloaded, and that the disk holds it."""
    print(f"{pending.name}, to download: {pending.size.sentence()}.", file=sys.stderr)
    print("Ctrl-C stops; run the same command again to resume.", file=sys.stderr, flush=True)


def remove(
    model: Annotated[str, typer.Argument(help="The id of a downloaded model, as earthshine list shows it.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a model from the folder of downloads, after a question. Refused while a process reads it."""
    from earthshine import hub

    if model == "gleam":
        raise SourceError("gleam is part of the package and stays.")
    found = hub.find_downloaded(model)
    gain = f"which frees {format_bytes(hub.freed_bytes(found))}"
    if found.elsewhere is not None:
        gain = f"without {plain(found.elsewhere)}"
    what = f"{model} ({_state(found)}) from {plain(found.folder.parent)}, {gain}"
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"This removes {what}. Add --yes, since there is no terminal to ask on.")
        if not _confirmed(f"Remove {what}? [y/N] "):
            print("Nothing was removed.")
            raise typer.Exit(1)
    hub.remove(found)
    print(f"Removed {what}.")


def _confirmed(question: str) -> bool:
    """Only y and yes confirm; the end of input does not."""
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def complete_model(incomplete: str) -> Iterator[str]:
    """What MODEL may become in a shell, beside the paths that the shell completes itself."""
    from earthshine.hub import model_folders

    names = ["gleam"]
    with suppress(SourceError):
        names += [name for name, _ in model_folders()]
    for name in names:
        if name.startswith(incomplete):
            yield name


def _state(model: "Downloaded") -> str:
    if model.unreadable:
        return "can't be read: Permission denied"
    if model.elsewhere is not None and not os.path.exists(model.elsewhere):
        return f"link to {plain(model.elsewhere)}, which is not there"
    if model.damage:
        return f"damaged: {model.damage.rstrip('.')}"
    if model.family is None:
        return "not read by Earthshine"
    if model.whole:
        return "whole"
    if model.n_absent == model.n_shards:
        return "without weights"
    return f"{model.n_shards - model.n_absent} of {model.n_shards} weight files"


def _facts(model: "Downloaded") -> dict[str, Any]:
    return {
        "name": model.name,
        "folder": str(model.folder),
        "bytes": model.nbytes,
        "family": model.family,
        "weight_files": model.n_shards,
        "absent_weight_files": model.n_absent,
        "damage": model.damage or None,
        "unreadable": model.unreadable,
        "whole": model.whole,
    }
