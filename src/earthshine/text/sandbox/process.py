"""The parent's side of the child process that renders chat templates.

There is one child. It starts when it is first needed, and again after it has ended. A template is untrusted code; all
that it does happens in the child, within the limits of `worker`. Invariant: a rendering that fails or is interrupted
has no effect on the next one. Refused, as TextError: templates that don't compile, call raise_exception, fail or exceed
a limit. Where the child ended for another reason, such as the system's lack of memory, the request is sent to a new one
once.
"""

import atexit
import importlib.util
import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from earthshine.errors import TextError, UnavailableError
from earthshine.settings import child_environment

_SECONDS = 2.0  # of processor time
_SECONDS_PER_MESSAGE = 1e-4  # Kimi's template takes about 4e-5
_WALL_SECONDS = 65.0  # after the child's own limit
_CHECK_SECONDS = 1.0  # a longer rendering is rare; while a child is stopped (SIGSTOP), its own limits have no effect
_TRIES = 2
_MAX_ANSWER_BYTES = 65 << 20  # 16 Mi characters of 4 bytes, and more
_KEPT_BYTES = 128 << 20  # of address space; a new child maps 24 MiB, and its limit is 256 MiB and more
_START = "import sys; sys.path += sys.argv[1:]; import worker; worker.main()"
_REASONS: dict[int, str] = {
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
        """The template's text with these variables, which are JSON values; `now` is for strftime_now.

        Raises TextError, and UnavailableError where the child ended twice for no reason that the template has.
        """
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
            answer = self._answer(body, done)
        kind, text = answer[:1], answer[1:]
        if kind == "t":
            return text
        if kind == "r":
            raise TextError(f"The chat template refuses these messages: {text.rstrip('.')}.")
        raise TextError(f"The chat template can't be {done}: {text.rstrip('.')}.")

    def _answer(self, body: bytes, done: str) -> str:
        for _ in range(_TRIES):
            try:
                return self._exchange(body)
            except (OSError, EOFError) as error:
                code = self.stop()
                if code is not None and -code in _REASONS:
                    raise TextError(f"The chat template can't be {done}: {_REASONS[-code]}.") from error
                ended = f"{error}" if code is None else f"it ended with {code}"
            except ValueError as error:  # the answer has no sound length or isn't UTF-8
                self.stop()
                raise TextError(f"The chat template can't be {done}: its process gave an invalid answer.") from error
            except BaseException:  # an interrupt: the next request would get this one's answer
                self.stop()
                raise
        raise UnavailableError(f"The process that renders chat templates does not work ({ended}); try again later.")

    def _exchange(self, body: bytes) -> str:
        if self._child is None or self._child.poll() is not None:
            self.stop()
            self._child = _start()
        requests, answers = self._child.stdin, self._child.stdout
        assert requests is not None
        assert answers is not None
        with _killed_if_stuck(self._child):
            requests.write(len(body).to_bytes(8, "little"))
            requests.write(body)
            requests.flush()
            size = int.from_bytes(_read(answers, 8), "little")
            if not 0 < size <= _MAX_ANSWER_BYTES:
                raise ValueError
            answer = str(_read(answers, size), "utf-8", "surrogatepass")
        if _mapped_bytes(self._child.pid) > _KEPT_BYTES:  # or the next request's limit might leave it nothing
            self.stop()
        return answer

    def stop(self) -> int | None:
        """Ends the child. Returns its exit code, which may be its own, or None if there was no child."""
        child, self._child = self._child, None
        if child is None:
            return None
        child.kill()
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            with suppress(OSError):  # what a dead child has not read
                if pipe is not None:
                    pipe.close()
        return code

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


@contextmanager
def _killed_if_stuck(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kills the child when it is found stopped, or after _WALL_SECONDS, unless the block ends before."""
    done = threading.Event()

    def watch() -> None:
        for _ in range(math.ceil(_WALL_SECONDS / _CHECK_SECONDS)):
            if done.wait(_CHECK_SECONDS):
                return
            if _is_stopped(child.pid):
                break
        child.kill()

    threading.Thread(target=watch, name="template-watch", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process; False if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


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
