"""Reads tokenizer and template files of a model's folder.

The files are untrusted: `earthshine.untrusted` checks path, size and JSON. Whatever is wrong is raised as TextError.
"""

import os
from pathlib import Path
from typing import Any

from earthshine.errors import TextError
from earthshine.untrusted import parse_object, read_file, resolve_in


def present(folder: Path, name: str) -> bool:
    """Whether the folder has an entry of that name, even one that `read_bytes` would refuse."""
    return os.path.lexists(folder / name)


def read_bytes(folder: Path, name: str, limit_bytes: int) -> bytes:
    """The whole content of `folder/name`; TextError if it is unreadable, leaves the folder or is over the limit."""
    return read_file(resolve_in(folder, name, TextError), str(folder / name), limit_bytes, TextError)


def read_text(folder: Path, name: str, limit_bytes: int) -> str:
    """`read_bytes`, decoded as UTF-8."""
    try:
        return read_bytes(folder, name, limit_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"{folder / name} is not UTF-8 text: byte {error.start} can't be decoded.") from None


def read_object(folder: Path, name: str, limit_bytes: int) -> dict[str, Any]:
    """The JSON object in `folder/name`."""
    return parse_object(read_bytes(folder, name, limit_bytes), str(folder / name), TextError)
