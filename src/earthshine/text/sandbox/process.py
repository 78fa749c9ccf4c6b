"""The parent's side of the child process that renders chat templates.

There is one child. It starts when it is first needed, and again after it has ended. A template is untrusted code; all
that it does happens in the child, within the limits of `worker`. Invariant: a rendering that fails or is interrupted
has no effect on the next one. Refused, as TextError: templates that don't compile, call raise_exception, fail or exceed
a limit.
"""

import atexit
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from earthshine.errors import TextError
from earthshine.settings import child_environment

_SECONDS = 2.0  # of processor time
_SECONDS_PER_MESSAGE = 1e-4  # Kimi's template takes about 4e-5
_WALL_SECONDS = 65.0  # after the child's own limit, which has no effect while it is stopped
_MAX_ANSWER_BYTES = 65 << 20  # 16 Mi characters of 4 bytes, and more
_KEPT_BYTES = 128 << 20  # of address space; a new child maps 24 MiB, and its limit is 256 MiB and more
_START = "import sys; sys.path += sys.argv[1:]; import worker; worker.main()"
_REASONS = {
    signal.SIGPROF: "it takes more processor time than a rendering may",
    signal.SIGALRM: "it takes longer than a rendering may",
}


class TemplateProcess:
    """Starts the child and sends it one request at a time; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def compile(self, source: str, add_preserve_thinking: bool) -> None:
        """Raises TextError for a template that can't be compiled. `add_preserve_thinking`: adds the flag of this name,
        see `worker`."""
        self._ask("compiled", {"source": source, "add_preserve_thinking": add_preserve_thinking, "variables": None})

    def render(self, source: str, add_preserve_thinking: bool, variables: Mapping[str, Any], now: datetime) -> str:
        """The template's text with these variables, which are JSON values; `now` is for strftime_now. Raises
        TextError."""
        request = {
            "source": source,
            "add_preserve_thinking": add_preserve_thinking,
            "variables": variables,
            "now": now.isoformat(),
        }
        return self._ask("rendered", request)

    def _ask(self, done: str, request: dict[str, Any]) -> str:
        n_messages = len((request["variables"] or {}).get("messages", ()))
        request["seconds"] = _SECONDS + n_messages * _SECONDS_PER_MESSAGE
        body = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")
        with self._lock:
            try:
                answer = self._exchange(body)
            except (OSError, EOFError, ValueError) as error:  # ValueError: the answer isn't UTF-8
                raise TextError(f"The chat template can't be {done}: {self.stop() or error}.") from error
            except BaseException:  # an interrupt: the next request would get this one's answer
                self.stop()
                raise
        kind, text = answer[:1], answer[1:]
        if kind == "t":
            return text
        if kind == "r":
            raise TextError(f"The chat template refuses these messages: {text}.")
        raise TextError(f"The chat template can't be {done}: {text}.")

    def _exchange(self, body: bytes) -> str:
        if self._child is None or self._child.poll() is not None:
            self.stop()
            self._child = _start()
        requests, answers = self._child.stdin, self._child.stdout
        assert requests is not None
        assert answers is not None
        end = threading.Timer(_WALL_SECONDS, self._child.kill)
        end.daemon = True
        end.start()
        try:
            requests.write(len(body).to_bytes(8, "little"))
            requests.write(body)
            requests.flush()
            size = int.from_bytes(_read(answers, 8), "little")
            if not 0 < size <= _MAX_ANSWER_BYTES:
                raise EOFError
            answer = str(_read(answers, size), "utf-8", "surrogatepass")
        finally:
            end.cancel()
        if _mapped_bytes(self._child.pid) > _KEPT_BYTES:  # or the next request's limit might leave it nothing
            self.stop()
        return answer

    def stop(self) -> str:
        """Ends the child; returns why it had ended, "" if there was none."""
        child, self._child = self._child, None
        if child is None:
            return ""
        child.kill()
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            with suppress(OSError):  # what a dead child has not read
                if pipe is not None:
                    pipe.close()
        return next((reason for number, reason in _REASONS.items() if code == -number), f"its process ended ({code})")

    def forget(self) -> None:
        """After a fork: the child and its pipes are the parent's."""
        self._lock = threading.Lock()
        child, self._child = self._child, None
        if child is None:
            return
        child.returncode = 0  # or Popen would warn that it still runs
        for pipe in (child.stdin, child.stdout):
            assert isinstance(pipe, io.BufferedWriter | io.BufferedReader)
            pipe.raw.close()  # without a flush: another thread may have been within a request


def _read(pipe: IO[bytes], n_bytes: int) -> bytes:
    data = pipe.read(n_bytes)
    if len(data) < n_bytes:
        raise EOFError
    return data


def _mapped_bytes(pid: int) -> int:
    """The address space of a process; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _start() -> subprocess.Popen[bytes]:
    """The child, isolated from variables, folders and site hooks of this process, and from its terminal's signals."""
    specs = [importlib.util.find_spec(name) for name in ("jinja2", "markupsafe")]
    folders = {str(Path(spec.origin).parents[1]) for spec in specs if spec is not None and spec.origin is not None}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _START, str(Path(__file__).parent), *sorted(folders)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
        start_new_session=True,
    )


TEMPLATE_PROCESS = TemplateProcess()
atexit.register(TEMPLATE_PROCESS.stop)
os.register_at_fork(after_in_child=TEMPLATE_PROCESS.forget)
