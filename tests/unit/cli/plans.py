"""What the tests of `plan` share: machines that ship, a machine as a file, the JSON of a run."""

import json
from pathlib import Path

from earthshine.machine import Machine, described, machine_json, read_machine

MACHINES = sorted(described())
MINI = read_machine(described()["mini-24gb"])


def written(folder: Path, machine: Machine) -> Path:
    path = folder / "machine.json"
    path.write_text(machine_json(machine))
    return path


def facts(run) -> dict:
    code, out, err = run
    assert (code, err) == (0, "")
    return json.loads(out)
