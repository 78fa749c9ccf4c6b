"""The questions of earlier sessions: JSON texts, one a line, in a file that its owner alone can read.

Sessions may append at the same time. A line that is no JSON text is left out. Beyond MOST_ENTRIES or MOST_BYTES the
oldest go when a session starts, and once the file has twice as many bytes. A file that can't be read or written costs
the history and never the conversation.
"""

import json
import os
import stat
from pathlib import Path

from earthshine.errors import UsageError
from earthshine.files import written_whole
from earthshine.untrusted import open_regular, shown

MOST_ENTRIES = 1000
MOST_BYTES = 4 << 20
MOST_CHARACTERS = 64 << 10  # a longer question is not kept; one takes at most 12 bytes for each


class History:
    """Raises UsageError for a file that can't be read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[str]:
        """The questions, oldest first. A file that others can read is made private."""
        if not os.path.lexists(self._path):
            return []
        real = Path(os.path.realpath(self._path))
        try:
            with open(open_regular(real, shown(self._path), UsageError), "rb") as file:
                cut = file.seek(max(os.fstat(file.fileno()).st_size - MOST_BYTES, 0)) > 0
                lines = file.read(MOST_BYTES).splitlines()[cut:]
        except OSError as error:
            raise UsageError(f"{shown(self._path)} can't be read: {error.strerror}.") from None
        kept = [entry for line in lines if (entry := _entry(line)) is not None][-MOST_ENTRIES:]
        try:
            if cut or len(lines) > len(kept):
                with written_whole(real) as rewritten:
                    rewritten.write(b"".join(map(_line, kept)))
            else:
                _make_private(real)
        except OSError as error:
            raise self._unwritable(error) from None
        return kept

    def add(self, question: str) -> None:
        """Raises UsageError where it can't be written."""
        if len(question) > MOST_CHARACTERS:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            with open(os.open(self._path, flags, 0o600), "ab", buffering=0) as file:
                _make_private(file.fileno())
                file.write(_line(question))  # in one call, so that two sessions do not mix
                full = os.fstat(file.fileno()).st_size > 2 * MOST_BYTES
        except OSError as error:
            raise self._unwritable(error) from None
        if full:
            self.read()

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(f"{shown(self._path)} can't be written: {error.strerror}.")


def _make_private(file: Path | int) -> None:
    mode = os.stat(file).st_mode
    if stat.S_ISREG(mode) and mode & 0o077:
        os.chmod(file, 0o600)


def _line(question: str) -> bytes:
    return json.dumps(question).encode() + b"\n"


def _entry(line: bytes) -> str | None:
    """The question in a line; None where there is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, str) and entry and len(entry) <= MOST_CHARACTERS else None
