"""Which folder a person means by MODEL: one on disk, one to download, or gleam."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from earthshine.errors import SourceError
from earthshine.hub.download import Announce, Unreachable, download, pending_download
from earthshine.hub.place import is_id, model_folder, part_bytes
from earthshine.plan.download import Download, download_of
from earthshine.settings import expanded, read_settings
from earthshine.spec import ModelSpec, load_spec
from earthshine.untrusted import read_file, real_path, shown

if TYPE_CHECKING:
    from earthshine.text import Tokenizer

GLEAM = Path(__file__).resolve().parents[1] / "gleam"
_GGUF = "GGUF is not read; use the published safetensors."


def find_model(name: str | None, *, weights: bool = True, announce: Announce | None = None) -> Path:
    """The folder of a model, downloaded (and resumed, with progress) if `name` is a Hugging Face id.

    A path to a config.json is returned as it is. `weights` False fetches an id's small files only. `announce` is
    called with what has to be fetched before weights are. Raises SourceError for what is neither, for GGUF, and for a
    download that fails.
    """
    if name is None or name == "gleam":
        return GLEAM
    if not name:
        raise SourceError("MODEL is empty; give a folder, a Hugging Face id such as moonshotai/Kimi-K2.6, or gleam.")
    try:
        path = expanded(name)
    except RuntimeError:
        raise SourceError(f"{shown(name)} names the home folder of an unknown user.") from None
    if path.suffix.lower() == ".gguf":
        raise SourceError(_GGUF)
    if os.path.exists(path):
        found = snapshot(path)
        if weights or not os.path.lexists(found / "config.json"):
            _refuse_gguf(found)
        return found
    if not is_id(name):
        raise SourceError(f"{shown(name)} is neither a folder here nor a Hugging Face id such as moonshotai/Kimi-K2.6.")
    return download(name, weights=weights, announce=announce)


def find_config(name: str | None) -> Path:
    """As `find_model` without weights, for what needs a config alone; says so if the hub does not answer."""
    try:
        return find_model(name, weights=False)
    except Unreachable as error:
        raise SourceError(f"{str(error).removesuffix('.')}, or give the path of its config.json.") from None


def _refuse_gguf(folder: Path) -> None:
    """Raises SourceError for a folder whose only weights are GGUF files."""
    names = os.listdir(folder) if folder.is_dir() and os.access(folder, os.R_OK) else []
    endings = {os.path.splitext(name)[1].lower() for name in names}
    if ".gguf" in endings and ".safetensors" not in endings:
        raise SourceError(_GGUF)


def find_readable(name: str | None, announce: Announce | None = None) -> "tuple[Path, Tokenizer]":
    """The folder of a model with its weights, and its tokenizer; `announce` as in `find_model`.

    A family that is not implemented and a tokenizer that does not fit are refused first, as SpecError, Unsupported and
    TextError: before a weight is downloaded or read.
    """
    from earthshine.text import load_tokenizer

    folder = find_model(name, weights=False)
    spec = load_spec(folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.require_fit(spec.vocab_size, spec.stop_tokens)
    return find_model(name, announce=announce), tokenizer


def size_on_disk(name: str | None, folder: Path, spec: ModelSpec) -> Download:
    """What MODEL, whose small files are in `folder`, takes on disk and still has to be fetched.

    Of an id as the hub lists it; of any other, or while the hub can't be reached, as the config and the files here say.
    """
    arrived = 0
    if name is not None and name != "gleam" and not os.path.exists(name):
        with suppress(SourceError):
            return pending_download(name).size
        arrived = sum(map(part_bytes, (model_folder(name) / "blobs").glob("*")))
    return download_of(spec, folder, read_settings().downloads, arrived_bytes=arrived)


def snapshot(path: Path) -> Path:
    """The snapshot to use where `path` is a repository's root in the hub's cache; else `path`.

    `refs/main` chooses among several. Raises SourceError where nothing does.
    """
    try:
        found = sorted(entry for entry in (path / "snapshots").iterdir() if entry.is_dir())
        if os.path.lexists(path / "config.json"):
            return path
    except OSError:
        return path
    try:
        chosen_by = real_path(path / "refs" / "main", SourceError)
        main = read_file(chosen_by, "refs/main", 4096, SourceError).decode("ascii").strip() if len(found) > 1 else ""
    except (SourceError, ValueError):
        main = ""
    chosen = found if len(found) == 1 else [entry for entry in found if entry.name == main]
    if not chosen:
        state = f"one of {', '.join(shown(entry) for entry in found[:4])}" if found else "a snapshot; it holds none"
        raise SourceError(f"{shown(path)} is a model's place in the hub's cache; name {state}.")
    return chosen[0]
