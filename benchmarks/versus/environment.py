"""A peer's own environment: a Python with the peer at a pinned version, made once in a cache folder and used again.

A folder counts as complete only when its stamp holds exactly the requirements asked for. The peer comes from
the package registry that pip is set up with; nothing is installed into Earthshine's own environment.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from earthshine.errors import UsageError

DEFAULT_WORK = Path.home() / ".cache" / "earthshine-benchmarks"
_STAMP = "requirements.txt"


@dataclass(frozen=True, slots=True)
class Environment:
    """What to install: `steps` are the words of one `pip install` each, in order, with `variables` around them."""

    name: str
    steps: tuple[tuple[str, ...], ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def python(self, work: Path) -> Path:
        """The environment's Python, after making what is not there. Takes minutes the first time.

        A folder that already holds a Python but no stamp was made by hand: it is used as it is.

        Raises UsageError with the end of pip's own words where an installation fails.
        """
        folder = work / self.name
        python, stamp, wanted = folder / "bin" / "python", folder / _STAMP, self._recipe()
        if python.exists() and (not stamp.exists() or stamp.read_text() == wanted):
            return python
        _say(f"Making {folder} for {self.name}; this happens once.")
        if folder.is_symlink():
            raise UsageError(f"{folder} is a link to an environment of another recipe; remove the link.")
        shutil.rmtree(folder, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        making = folder.with_name(folder.name + ".making")
        _checked([sys.executable, "-m", "venv", "--clear", str(folder)], {})
        making.write_text(wanted)
        for step in self.steps:
            _checked([str(python), "-m", "pip", "--disable-pip-version-check", "install", *step], self.variables)
        making.rename(stamp)
        return python

    def _recipe(self) -> str:
        variables = "".join(f"{key}={value}\n" for key, value in sorted(self.variables.items()))
        return variables + "".join(" ".join(step) + "\n" for step in self.steps)


def _checked(words: list[str], variables: Mapping[str, str]) -> None:
    done = subprocess.run(words, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise UsageError(f"`{' '.join(words)}` failed:\n{end}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
