"""Runs `earthshine serve` for the time of a measurement: started on a free port, ended by SIGTERM."""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(model: str, options: Sequence[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`earthshine serve` with `options`: its address, without a path, and its process.

    Raises SystemExit where it does not start, and where it does not end with exit code 0.
    """
    command = [str(Path(sys.executable).parent / "earthshine"), "serve", model, "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"OPENAI_BASE_URL=(\S+)/v1", line):
                yield found[1], process
                break
        else:
            raise SystemExit(f"The server did not start: exit code {process.wait()}.")
    finally:
        process.terminate()
        code = process.wait(120)
        process.stdout.close()
    if code:
        raise SystemExit(f"The server ended with exit code {code}.")
