"""The folder of downloads: where a model is in it, and which of its files are needed.

The layout is that of Hugging Face's cache, which other programs share: `models--ORG--NAME` with `blobs` (the files,
named by digest), `snapshots/COMMIT` (links to them under their own names) and `refs/main` (the newest commit).
"""

import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from earthshine.errors import SourceError
from earthshine.settings import read_settings
from earthshine.untrusted import parse_object, read_file, resolve_in, shown

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*", re.ASCII)
_PREFIX = "models--"
_PART = re.compile(r"[0-9a-f]{64}\.incomplete")  # huggingface_hub adds a random number to the names of its own
_MOST_INDEX_BYTES = 1 << 28  # Kimi-K2.6's has 25 MB


def is_id(name: str) -> bool:
    """Whether `name` has the form of a Hugging Face id, ORG/NAME."""
    return _ID.fullmatch(name) is not None and "--" not in name and ".." not in name


def model_folder(name: str) -> Path:
    """The folder of an id's files, which need not exist."""
    return read_settings().downloads / (_PREFIX + name.replace("/", "--"))


def model_folders() -> list[tuple[str, Path]]:
    """Id and folder of every model in the folder of downloads, in the order of ids."""
    root = read_settings().downloads
    try:
        entries = [entry for entry in root.iterdir() if entry.name.startswith(_PREFIX) and entry.is_dir()]
    except FileNotFoundError:
        return []
    named = ((entry.name.removeprefix(_PREFIX).replace("--", "/"), entry) for entry in entries)
    return sorted((name, entry) for name, entry in named if is_id(name))


def part_bytes(part: Path) -> int:
    """Bytes of the part of a file among the blobs that the next download goes on from; 0 for any other path."""
    if not _PART.fullmatch(part.name) or part.with_suffix("").exists():
        return 0
    with suppress(OSError):
        found = os.lstat(part)
        return found.st_size if stat.S_ISREG(found.st_mode) else 0
    return 0


def shard_names(snapshot: Path) -> list[str]:
    """The weight files that a folder's index names, or `model.safetensors` where there is no index.

    Raises SourceError for an index that is damaged or names anything but plain safetensors files.
    """
    if not os.path.lexists(snapshot / INDEX):
        return [SINGLE]
    raw = read_file(resolve_in(snapshot, INDEX, SourceError), INDEX, _MOST_INDEX_BYTES, SourceError)
    weight_map = parse_object(raw, INDEX, SourceError).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) and _all_texts(weight_map) else set()
    if not names or any("/" in name or not name.endswith(".safetensors") for name in names):
        raise SourceError(f"{INDEX} of {shown(snapshot)} should map each tensor to the name of a .safetensors file.")
    return sorted(names)


def _all_texts(weight_map: dict[str, object]) -> bool:
    return all(isinstance(name, str) for name in weight_map.values())
