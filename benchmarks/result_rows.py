"""A benchmark's figures as rows of docs/results: `python tools/results.py add docs/results/FILE.json` takes them."""

import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from earthshine.machine.probe import identity


def result_rows(figures: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """A row for each name, which may end in its unit: "gleam, decode (tokens/s)"."""
    rows = []
    for name, values in figures.items():
        what, unit = re.fullmatch(r"(.*?)(?: \(([^()]*)\))?", name, re.DOTALL).groups()  # type: ignore[union-attr]
        rows.append(result_row(what, statistics.median(values), min(values), max(values), unit or ""))
    return rows


def result_row(what: str, median: float, low: float, high: float, unit: str = "", **more: Any) -> dict[str, Any]:
    """One figure to four digits, with the command of this process, its processor and its commit."""
    row: dict[str, Any] = {"what": what, "median": _rounded(median)}
    row |= {"unit": unit} if unit else {}
    row |= {"low": _rounded(low), "high": _rounded(high), **more}
    return row | {"command": shlex.join(["python", *sys.argv]), "processor": processor(), "commit": commit()}


@cache
def processor() -> str:
    """Such as "Intel(R) Xeon(R) Processor (amx), 2 cores"."""
    found = identity()
    cores = f"{found['processors']} core{'' if found['processors'] == 1 else 's'}"
    return f"{found['cpu_model']} ({found['instruction_set']}), {cores}"


@cache
def commit() -> str:
    """This checkout's, with "-dirty" where files differ from it; "not recorded" outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=7"]
    try:
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not recorded"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
