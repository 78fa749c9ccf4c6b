"""A text file that becomes part of a message. Refused by name: what can't be read, and what is not text."""

import io
from dataclasses import dataclass
from pathlib import Path

from earthshine.cli.options import MAX_TEXT_BYTES, read_text
from earthshine.cli.terminal import printable
from earthshine.errors import UsageError
from earthshine.untrusted import read_file, real_path, shown


@dataclass(frozen=True, slots=True)
class Attached:
    """`text`: without control characters, of which `removed` were left out."""

    name: str
    text: str
    removed: int

    @property
    def message(self) -> str:
        """What is sent: the name, so that the model and its reader know where the text begins, and the text."""
        return f"--- {self.name} ---\n{self.text}"


def attached(path: Path) -> Attached:
    """The text of a file of UTF-8. Raises UsageError and TextError."""
    where = shown(path)
    raw = read_file(real_path(path, UsageError), where, MAX_TEXT_BYTES, UsageError)
    if (at := raw.find(b"\0")) >= 0:
        raise UsageError(f"{where} is not a text file: its byte {at} is 0.")
    text = read_text(io.BytesIO(raw), where).removeprefix("\ufeff").replace("\r\n", "\n")
    if not text.strip():
        raise UsageError(f"{where} is empty.")
    kept = printable(text)
    return Attached(printable(path.name).replace("\n", " "), kept.strip("\n"), len(text) - len(kept))
