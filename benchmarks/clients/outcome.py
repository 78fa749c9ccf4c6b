"""What the client scripts have in common: the server they use, the result of a check, and a command in a bare home.

A command gets an empty home and no variable of this process but PATH, so that no login, key or proxy of the person who
runs it is used or sent anywhere.
"""

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_END_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Server:
    """`url` without /v1; `tokenizer`: a folder with a tokenizer.json of the model, for clients that count tokens."""

    url: str
    model: str
    context_tokens: int
    tokenizer: Path


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table."""

    client: str
    what: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended; `code` is None where it did not within its time."""

    code: int | None
    out: str
    err: str

    @property
    def end(self) -> str:
        """The last words, on one line."""
        if self.code is None:
            return "it did not end in its time"
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.err.strip() or self.out.strip())
        return f"exit {self.code}: " + " ".join(text.split())[-_END_CHARACTERS:]


def command(
    words: Sequence[str | Path],
    seconds: float,
    variables: Mapping[str, str] | None = None,
    home: Path | None = None,
    folder: Path | None = None,
) -> Done:
    """Runs a command, and ends it with all its children after `seconds`. Its home is an empty folder where none is
    given, and it works there where no other `folder` is."""
    with contextlib.ExitStack() as stack:
        home = home or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bare = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "TERM": "dumb"}
        with subprocess.Popen(
            [str(word) for word in words],
            cwd=folder or home,
            env=bare | dict(variables or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=seconds)
                return Done(process.returncode, out, err)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                out, err = process.communicate()
                return Done(None, out, err)
