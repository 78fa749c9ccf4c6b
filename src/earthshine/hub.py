"""Which folder a person means by MODEL: one on disk, one to download, or gleam. The only module that downloads."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from earthshine.errors import SourceError
from earthshine.settings import read_settings
from earthshine.spec import load_spec
from earthshine.untrusted import shown

if TYPE_CHECKING:
    from earthshine.text import Tokenizer

GLEAM = Path(__file__).resolve().parent / "gleam"
_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
# No Python, no pickles: only what Earthshine reads.
_FILES = [
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "tokenizer*",
    "tiktoken.model",
    "chat_template.jinja",
]
_GGUF = "GGUF is not read; use the published safetensors."
_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]


def find_model(name: str | None, *, weights: bool = True) -> Path:
    """The folder of a model, downloaded (and resumed, with progress) if `name` is a Hugging Face id.

    A path to a config.json is returned as it is. `weights` False fetches an id's small files only. Raises SourceError
    for what is neither, for GGUF, and for a download that fails.
    """
    if name is None or name == "gleam":
        return GLEAM
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise SourceError(f"{name} is in the home folder of nobody known here.") from None
    if path.suffix.lower() == ".gguf":
        raise SourceError(_GGUF)
    if os.path.exists(path):
        found = _snapshot(path)
        if weights or not os.path.lexists(found / "config.json"):
            _refuse_gguf(found)
        return found
    if not _ID.fullmatch(name):
        raise SourceError(f"{shown(name)} is neither a folder here nor a Hugging Face id such as moonshotai/Kimi-K2.6.")
    return _download(name, _FILES + (_WEIGHTS if weights else []))


def _refuse_gguf(folder: Path) -> None:
    """Raises SourceError for a folder whose only weights are GGUF files."""
    names = os.listdir(folder) if folder.is_dir() and os.access(folder, os.R_OK) else []
    endings = {os.path.splitext(name)[1].lower() for name in names}
    if ".gguf" in endings and ".safetensors" not in endings:
        raise SourceError(_GGUF)


def find_readable(name: str | None) -> "tuple[Path, Tokenizer]":
    """The folder of a model with its weights, and its tokenizer.

    A family that is not implemented and a tokenizer that does not fit are refused first, as SpecError, Unsupported and
    TextError: before a weight is downloaded or read.
    """
    from earthshine.text import load_tokenizer

    folder = find_model(name, weights=False)
    spec = load_spec(folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.require_fit(spec.vocab_size, spec.stop_tokens)
    return find_model(name), tokenizer


def _snapshot(path: Path) -> Path:
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
        main = (path / "refs" / "main").read_text(encoding="ascii").strip() if len(found) > 1 else ""
    except (OSError, ValueError):
        main = ""
    chosen = found if len(found) == 1 else [entry for entry in found if entry.name == main]
    if not chosen:
        state = f"one of {', '.join(shown(entry) for entry in found[:4])}" if found else "a snapshot; it holds none"
        raise SourceError(f"{shown(path)} is a model's place in the hub's cache; name {state}.")
    return chosen[0]


def _download(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    settings = read_settings()
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, cache_dir=settings.home, token=settings.token))
    except Exception as error:  # the library raises errors of several others for what a network can do
        first = str(error).strip().splitlines()
        reason = (first[0] if first else type(error).__name__).removeprefix("Got: ").rstrip(".")
        raise SourceError(
            f"{name} is not a folder here and could not be downloaded: {reason}. Check the id and the network; "
            "what has arrived is kept, and the same command goes on from there."
        ) from None
