"""A message written in the person's own editor, $VISUAL or $EDITOR, of a length that the prompt can hold."""

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from earthshine.cli.terminal import decoded
from earthshine.errors import UsageError
from earthshine.settings import read_settings
from earthshine.untrusted import read_file, shown

MOST_CHARACTERS = 1 << 18  # the prompt lays its whole text out at each key: as one line, this many take 2 s
_MOST_BYTES_EACH = 4  # of a character in UTF-8
_OTHERS = ("editor", "nano", "vi")


def require_short(n_characters: int) -> None:
    """Raises UsageError for more than a message at the prompt may have."""
    if n_characters > MOST_CHARACTERS:
        raise UsageError(
            f"The message would have over {MOST_CHARACTERS} characters, more than can be edited here; it stays as it "
            "was. /read FILE takes a longer text."
        )


def edited(text: str) -> str:
    """The text as the editor leaves it, without its last line break. Raises UsageError where there is no editor, where
    it fails, and for what it leaves that is no text or too long."""
    with tempfile.TemporaryDirectory(prefix="earthshine-") as folder:
        path = Path(os.path.realpath(folder)) / "message.markdown"
        path.write_bytes(decoded(text).encode("utf-8", "surrogateescape"))
        _run(path)
        if path.is_file():
            require_short(path.stat().st_size // _MOST_BYTES_EACH)
        raw = read_file(path, "The text of the editor", _MOST_BYTES_EACH * MOST_CHARACTERS + 3, UsageError)
    try:
        found = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"The text of the editor is not UTF-8: byte {error.start} can't be decoded.") from None
    found = found.replace("\r\n", "\n").removesuffix("\n")
    require_short(len(found))
    return found


def _run(path: Path) -> None:
    name = read_settings().editor or next(filter(shutil.which, _OTHERS), None)
    if name is None:
        raise UsageError("There is no editor; name one in $VISUAL.")
    try:
        code = subprocess.call([*shlex.split(name), str(path)])
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"The editor {shown(name)} can't be started: {reason}.") from None
    if code:
        raise UsageError(f"The editor {shown(name)} failed with code {code}; the message stays as it was.")
