"""A command as a person runs it, in this process."""

import io
import sys

import pytest

from earthshine import kernels
from earthshine.cli import main


@pytest.fixture
def earthshine(monkeypatch, capsys):
    """Run a command in this process: (exit code, standard output, standard error). `stdin`: bytes, or a binary file."""
    threads = kernels.threads()

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["earthshine", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin) if isinstance(stdin, bytes) else stdin))
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
        return (code, *capsys.readouterr())

    yield run
    kernels.set_threads(threads)
