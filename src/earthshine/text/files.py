"""Bounded reads of the small files beside a model: tokenizer and template files.

A file is read only if it is a regular file inside the model's folder after links are followed (or in the `blobs`
folder of the hub cache that the folder belongs to) and not longer than the caller's bound. All else is a TextError.
"""

import json
from pathlib import Path
from typing import Any

from earthshine.errors import TextError


def _inside(path: Path, folder: Path) -> bool:
    home = folder.resolve()
    roots = [home]
    if home.parent.name == "snapshots":  # the hub cache: snapshots/<revision>/name links to ../../blobs/<hash>
        roots.append(home.parent.parent / "blobs")
    target = path.resolve()
    return any(target.is_relative_to(root) for root in roots)


def present(folder: Path, name: str) -> bool:
    """Whether the folder has an entry of that name, even one that `read_bytes` would refuse."""
    path = folder / name
    return path.is_symlink() or path.exists()


def read_bytes(folder: Path, name: str, limit_bytes: int) -> bytes:
    """The whole content of `folder/name`; TextError if it is unreadable, leaves the folder or is over the limit."""
    path = folder / name
    try:
        if not _inside(path, folder):
            raise TextError(f"{path} is a link that leaves the model's folder; put the file itself there.")
        if not path.is_file():
            raise TextError(f"{path} is not a readable file.")
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise TextError(f"{path} could not be read: {error}.") from error
    if len(data) > limit_bytes:
        raise TextError(f"{path} is over {limit_bytes} bytes, more than such a file can have.")
    return data


def read_text(folder: Path, name: str, limit_bytes: int) -> str:
    """`read_bytes`, decoded as UTF-8."""
    try:
        return read_bytes(folder, name, limit_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"{folder / name} is not UTF-8 text (byte {error.start}).") from error


def read_object(folder: Path, name: str, limit_bytes: int) -> dict[str, Any]:
    """The JSON object in `folder/name`."""
    try:
        value = json.loads(read_text(folder, name, limit_bytes))
    except (ValueError, RecursionError) as error:
        raise TextError(f"{folder / name} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise TextError(f"{folder / name} must hold a JSON object.")
    return value
