"""The folder of downloads: where a model is in it.

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
from earthshine.untrusted import shown

_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*", re.ASCII)
_PREFIX = "models--"
_PART = re.compile(
    r"(?:[0-9a-f]{40}|[0-9a-f]{64})\.incomplete"
)  # huggingface_hub adds a random number to the names of its own


def is_id(name: str) -> bool:
    """Whether `name` has the form of a Hugging Face id, ORG/NAME."""
    return _ID.fullmatch(name) is not None and "--" not in name and ".." not in name


def model_folder(name: str) -> Path:
    """The folder of an id's files, which need not exist."""
    return read_settings().downloads / (_PREFIX + name.replace("/", "--"))


def model_folders() -> list[tuple[str, Path]]:
    """Id and folder of every model in the folder of downloads, in the order of ids. A link may lead nowhere.

    Raises SourceError for a folder of downloads that can't be read.
    """
    root = read_settings().downloads
    try:
        entries = [entry for entry in root.iterdir() if entry.name.startswith(_PREFIX) and _may_hold(entry)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SourceError(f"The folder of downloads, {shown(root)}, can't be read: {error.strerror}.") from None
    named = ((entry.name.removeprefix(_PREFIX).replace("--", "/"), entry) for entry in entries)
    return sorted((name, entry) for name, entry in named if is_id(name))


def _may_hold(entry: Path) -> bool:
    return os.path.isdir(entry) or (os.path.islink(entry) and not os.path.exists(entry))


def part_bytes(part: Path) -> int:
    """Bytes of the part of a file among the blobs that the next download goes on from; 0 for any other path."""
    if not _PART.fullmatch(part.name) or part.with_suffix("").exists():
        return 0
    with suppress(OSError):
        found = os.lstat(part)
        return found.st_size if stat.S_ISREG(found.st_mode) else 0
    return 0
