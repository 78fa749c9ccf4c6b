"""Python processes without the cost of their imports: forks of one that has imported Earthshine and torch.

A process takes three seconds of processor time for these imports before it does anything, a fork a third of a second
in all. It has a process id, descriptors, an environment, signals and an end of its own like any process, and begins
where `python -c CODE` would run its code. Tests of the start itself (what is imported, standard streams that are
closed) start Python itself.

This file is run as the process that is forked; `Forker` starts it.
"""

import ctypes
import gc
import importlib
import inspect
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

_CHILD_SUBREAPER = 36  # of <linux/prctl.h>
_AHEAD = ("earthshine.cli", "earthshine.engine", "earthshine.server", "earthshine.llm")


class Forker:
    """Makes forks for `Popen`. Its process starts with the first, and ends with `close`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None

    def _start(self) -> socket.socket:
        # Orphans come to this process, which then waits for forks as for children.
        if ctypes.CDLL(None, use_errno=True).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._orders = ours
        return ours

    def fork(self, order: dict[str, Any], streams: list[int]) -> int:
        """The process id of a child of this process, whose standard streams are `streams`."""
        with self._lock:
            orders = self._orders or self._start()
            with os.fdopen(os.memfd_create("order"), "wb") as file:  # a message could hold no more than wmem_max
                file.write(json.dumps(order).encode())
                file.flush()
                socket.send_fds(orders, [b"order"], [*streams, file.fileno()])
                return int(orders.recv(64))

    def close(self) -> None:
        if self._process is not None and self._orders is not None:
            self._orders.close()
            self._process.wait()

    def popen(self, command: list[str], **options: Any) -> "Popen":
        """As `subprocess.Popen`; `command` is `[sys.executable, "-c", code, *arguments]`."""
        return Popen(self, command, **options)

    def run(self, command: list[str], *, input: bytes | str | None = None, timeout: float = 300, **options: Any) -> Any:
        """As `subprocess.run` with `capture_output`; TimeoutExpired once the process is killed for its time."""
        options = {"stdin": subprocess.PIPE} | options if input is not None else options
        process = self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        with process:
            try:
                out, err = process.communicate(input, timeout=timeout)
            except BaseException:
                process.kill()  # or the end of the block would wait for it
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """A `subprocess.Popen` whose child is a fork. Only the start differs, for which `subprocess` has no public hook:
    its private `_execute_child` is replaced."""

    def __init__(self, forker: Forker, command: list[str], **options: Any) -> None:
        assert command[:2] == [sys.executable, "-c"], command
        self._forker = forker
        super().__init__(command, **options)

    def _execute_child(self, *arguments: Any) -> None:
        given = SimpleNamespace(**inspect.signature(super()._execute_child).bind(*arguments).arguments)
        unheeded = (given.preexec_fn, given.pass_fds, given.shell, given.start_new_session)
        assert not any(unheeded), unheeded
        ours = [(given.p2cread, 0), (given.c2pwrite, 1), (given.errwrite, 2)]
        streams = [standard if stream < 0 else stream for stream, standard in ours]
        environment = dict(os.environ if given.env is None else given.env)
        order = {"arguments": list(given.args)[2:], "environment": environment, "folder": str(given.cwd or os.getcwd())}
        self.pid = self._forker.fork(order, streams)
        self._child_created = True
        self._close_pipe_fds(*(getattr(given, name) for name in _PIPES))


_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


def _import_ahead() -> None:
    for name in _AHEAD:
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(package.__path__, f"{name}."):
            importlib.import_module(module.name)
    importlib.import_module("uvicorn.protocols.http.h11_impl")
    importlib.import_module("earthshine.engine.load").processors = lambda: 1  # as in the tests' own process
    gc.freeze()  # or each fork would copy everything at its end, to look for garbage


def _become(orders: socket.socket) -> str | None:
    """Waits for an order. In the fork that carries it out: the code to run; at the end, None."""
    while True:
        raw, descriptors, *_ = socket.recv_fds(orders, 64, 4)
        if not raw:
            return None
        if pid := _orphan():
            orders.send(str(pid).encode())
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        orders.close()
        *streams, order = descriptors
        with open(order, "rb") as file:
            file.seek(0)
            raw = file.read()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        return _begin(json.loads(raw))


def _orphan() -> int:
    """Forks: 0 in the fork, whose parent has ended, so that another adopts it; its process id here."""
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        pid = os.fork()
        if pid:
            os.write(writing, str(pid).encode())
            os._exit(0)
    os.close(writing)
    pid = int(os.read(reading, 64)) if between else 0
    os.close(reading)
    if between:
        os.waitpid(between, 0)
    return pid


def _begin(order: dict[str, Any]) -> str:
    """Surroundings as `python -c` finds them; the code to run there."""
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        errors = getattr(sys, name).errors
        stream = open(number, mode, 1 if name == "stderr" else -1, errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    code, *arguments = order["arguments"]
    sys.argv = ["-c", *arguments]
    return str(code)


if __name__ == "__main__":
    _import_ahead()
    _code = _become(socket.socket(fileno=int(sys.argv[1])))
    if _code is not None:
        exec(compile(_code, "<string>", "exec"), {"__name__": "__main__"})
