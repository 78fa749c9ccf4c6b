"""Every command of README runs as written, over small things: gleam is MODEL, and what a hub on loopback calls K2.6.

`bench machine` measures a thousandth (see test_bench_machine.py for it), `serve` gets a free port.
"""

import json
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:\w*)\n(.*?)```", README, re.DOTALL)
LINES = "\n".join(BLOCKS).replace("\\\n", " ").splitlines()
COMMANDS = [shlex.split(line, comments=True)[1:] for line in LINES if line.startswith("earthshine ")]
SMALL = """
from earthshine.cli import bench
from earthshine.kernels import measure
from earthshine.machine import disk, network
bench.REPEATS, bench._MEMORY_BYTES, bench._LAYER_TOKENS = 2, 2 << 20, 12
bench.last_cache_bytes = lambda: 0
bench.measure_folder = lambda *given, **named: disk.measure_folder(*given, **named, most_bytes=512 << 10)
measure.HIDDEN, measure.INTERMEDIATE, measure.CONTEXT_TOKENS, measure._SAMPLE_SECONDS = 256, 128, 512, 0.0005
disk.BLOCKS, disk.LEAST_BYTES, disk._TARGET_BYTES = (4 << 10, 64 << 10), 256 << 10, 256 << 10
disk._refuse_memory = lambda *_: None
network._ROUND_BYTES, network._QUESTIONS = 2 << 20, 5
"""


@pytest.fixture
def reader(hub, monkeypatch, tmp_path):
    """The hub has gleam as Kimi-K2.6; MODEL is a copy of gleam's folder, TEXT a text."""
    hub.repository = "moonshotai/Kimi-K2.6"
    model = Path(shutil.copytree(hub.folder, tmp_path / "MODEL"))
    for name in ("STATE", "CACHE", "CONFIG"):
        hub.environment[f"XDG_{name}_HOME"] = str(tmp_path / name)
    hub.words = {"MODEL": str(model), "TEXT": str(ROOT / "LICENSE"), "16GiB": "1GiB"}
    return hub


def _given(command, words):
    return [words.get(word, word) for word in command]


def test_the_page_shows_every_command_that_a_new_user_needs():
    assert {command[0] for command in COMMANDS} >= {"plan", "bench", "pull", "chat", "serve", "inspect", "doctor"}
    assert len(COMMANDS) >= 9


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] != "serve"], ids=" ".join)
def test_commands_run(reader, command):
    before = SMALL if command[:2] == ["bench", "machine"] else ""
    done = reader.run(*_given(command, reader.words), before=before, input="list all files\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr


def test_the_table_of_machines_is_what_plan_prints(earthshine, shared_data):
    rows = re.findall(r"^\| `([\w-]+)`[^|]*\|(.*)\|$", README, re.MULTILINE)
    machines = [part for name, _ in rows for part in ("--machine", name)]
    code, out, err = earthshine("plan", shared_data / "configs" / "moonshotai--Kimi-K2.6_config.json", *machines)
    assert (code, err, len(rows)) == (0, "", 5)
    for name, cells in rows:
        assert re.search(rf"^{name} +{' +'.join(cell.strip() for cell in cells.split('|'))}$", out, re.MULTILINE), out


def test_what_another_drive_or_more_memory_brings_is_what_plan_prints(earthshine, shared_data):
    config = shared_data / "configs" / "moonshotai--Kimi-K2.6_config.json"
    names = ("mini-24gb", "laptop-64gb", "desktop-128gb")
    machines = [part for name in names for part in ("--machine", name)]
    found = json.loads(earthshine("plan", config, *machines, "--json")[1])["machines"]
    mini, laptop, desktop = (one["times_quicker"] for one in found)
    (drive,) = (change for change in mini if "a second one" in change)
    (line,) = re.findall(r"^- \*\*A fast NVMe drive.*$", README, re.MULTILINE)
    assert f"{mini[drive]:.1f} times as fast on `mini-24gb` and {laptop[drive]:.1f} times on `laptop-64gb`, " in line
    assert f"but {desktop[drive]:.1f} times on `desktop-128gb`, where faster memory would help most." in line
    assert max(desktop, key=desktop.get) == "memory twice as fast"


def test_a_request_is_answered_by_the_server_as_shown(reader):
    command = next(c for c in COMMANDS if c[0] == "serve")
    request = next(shlex.split(line) for line in LINES if line.startswith("curl "))
    server = reader.popen(*_given(command, reader.words), "--port", "0", stdout=subprocess.PIPE)
    with server:
        address = re.search(rb"http://127\.0\.0\.1:\d+", _until(server.stdout, b"http://"))[0].decode()
        path = request[1].removeprefix("http://127.0.0.1:8000")
        body = json.loads(request[request.index("-d") + 1])
        reply = httpx.post(address + path, json=body, timeout=300)
        server.send_signal(signal.SIGTERM)
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"].startswith("ls")
    assert server.returncode == 0


def _until(stream, mark):
    for line in stream:
        if mark in line:
            return line
    raise AssertionError("the server ended")
