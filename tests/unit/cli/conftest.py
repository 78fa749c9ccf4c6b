"""A command as a person runs it, in this process."""

import functools
import io
import os
import sys
from pathlib import Path

import pytest

from earthshine import kernels
from earthshine.cli import main
from earthshine.cli.commands import Commands
from earthshine.cli.conversation import Choices, Conversation
from earthshine.engine import SamplingParams, load_model
from earthshine.engine import load as engine_load
from earthshine.engine.memory_limit import MemoryLimit
from earthshine.hub import GLEAM
from earthshine.plan import PlanArgs
from earthshine.plan.plan import PROCESS_BYTES
from earthshine.text import load_template, load_tokenizer

from .hub_server import HubServer
from .pseudo_terminal import Chat

_RUN = "from earthshine.cli import main; main()"


class Hub(HubServer):
    """A hub on loopback that holds gleam as team/gleam, and commands whose downloads go to `home`."""

    def __init__(self, forker, home: Path, folder: Path = GLEAM) -> None:
        super().__init__(folder)
        self._forker, self.home = forker, home
        self.model = home / "models--team--gleam"
        self.environment = os.environ | {
            "HF_ENDPOINT": self.url,
            "EARTHSHINE_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        self.environment.pop("HF_HUB_OFFLINE", None)

    def run(self, *arguments, before="", **options):
        """The command's end and output; `before` is Python that its process runs first."""
        return self._forker.run([*self._command(before), *arguments], text=True, env=self.environment, **options)

    def popen(self, *arguments, **options):
        return self._forker.popen([*self._command(""), *arguments], env=self.environment, **options)

    def _command(self, before: str) -> list[str]:
        return [sys.executable, "-c", f"{before}\n{_RUN}"]


@pytest.fixture
def no_profile(monkeypatch, tmp_path):
    """Whatever was measured on this machine stays out of it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def k2_6(shared_data):
    return shared_data / "configs/moonshotai--Kimi-K2.6_config.json"


@pytest.fixture
def hub(forker, tmp_path):
    made = Hub(forker, tmp_path / "models")
    yield made
    made.close()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder of downloads for commands in this process."""
    monkeypatch.setenv("EARTHSHINE_HOME", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def earthshine(monkeypatch, capsys):
    """Run a command in this process: (exit code, standard output, standard error). `stdin`: bytes, or a binary file.

    Its budget counts what a fresh process holds, not what earlier tests left in this one.
    """
    threads = kernels.threads()

    def resident() -> int:
        return PROCESS_BYTES

    monkeypatch.setattr(engine_load, "memory_resident", resident)
    monkeypatch.setattr(engine_load, "MemoryLimit", functools.partial(MemoryLimit, resident=resident))

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


@pytest.fixture
def start(forker, tmp_path):
    """Starts `earthshine chat` with these arguments on a pseudo-terminal; its history is in tmp_path / "state"."""
    started = []

    def begin(*arguments, environment=None, **options):
        environment = {"XDG_STATE_HOME": str(tmp_path / "state"), "EARTHSHINE_HISTORY": ""} | (environment or {})
        started.append(Chat(forker, arguments, environment=environment, **options))
        return started[-1]

    yield begin
    for each in started:
        each.close()


@pytest.fixture(scope="module")
def parts():
    return load_tokenizer(GLEAM), load_template(GLEAM)


@pytest.fixture(scope="module")
def model():
    return load_model(GLEAM, PlanArgs(context_tokens=512))


@pytest.fixture
def chat(model, parts):
    """Commands of a conversation with gleam: `chat(line)` runs one."""

    class Chat:
        def __init__(self):
            choices = Choices(SamplingParams(temperature=0, max_tokens=8), "Be brief.", thinking=False)
            self.conversation = Conversation(model, "gleam", *parts, choices)
            self.kept = True
            self.commands = Commands(self.conversation, self.history)

        def history(self, on):
            self.kept = self.kept if on is None else on
            return self.kept

        def __call__(self, line):
            return self.commands.run(line)

    made = Chat()
    yield made
    made.conversation.close()
