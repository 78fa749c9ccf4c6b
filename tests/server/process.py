"""`earthshine serve` as a process, reached over its socket."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .serving import HANG_SECONDS

SERVE = [sys.executable, "-c", "from earthshine.cli import main; main()", "serve"]


@dataclass(frozen=True)
class ServerProcess:
    """`url` has no path. `greeting`: all that it printed on its start; `log`: its standard error."""

    process: subprocess.Popen
    url: str
    greeting: str
    log: Path

    def stop(self) -> None:
        """An orderly end, as after a signal of the system's."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(HANG_SECONDS) == 0
        assert "Traceback" not in self.log.read_text()


@contextmanager
def serve_process(popen: Callable[..., subprocess.Popen], log: Path, *options: str) -> Iterator[ServerProcess]:
    """A server of gleam, unless `options` begin with another model; killed at the end where it still runs."""
    model = [] if options and not options[0].startswith("--") else ["gleam"]
    with log.open("a") as errors:
        process = popen([*SERVE, *model, "--port", "0", *options], stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        greeting = ""
        while "Ctrl-C" not in greeting:
            line = process.stdout.readline()
            assert line, log.read_text()
            greeting += line
        yield ServerProcess(process, re.search(r"OPENAI_BASE_URL=(\S+)/v1", greeting)[1], greeting, log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
