"""Two sides run alternately (A B B A), each run a fresh process under the same limit; the ratio is that of neighbours.

`Side` is who runs, `Measurement` what is asked of both, `Run` one process's answer, `Result` all of them. The ratio is
their seconds over ours, so above 1 Earthshine is faster; it is taken pair by pair of neighbouring runs, because a
virtual machine's rates drift within minutes. A run that fails is kept too, with its reason.
"""

import json
import os
import resource
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earthshine.errors import UsageError
from earthshine.units import format_bytes

from . import page_cache
from .memory_limit import memory_limit


@dataclass(frozen=True, slots=True)
class Side:
    """One engine in one setting: its Python, its worker script, the worker's `settings` in addition to the measurement
    (the path of its `model` among them), and environment variables (numbers of threads, say)."""

    name: str
    python: Path
    worker: Path
    settings: Mapping[str, Any]
    variables: Mapping[str, str] = field(default_factory=dict)
    setting: str = ""  # in words, for the table; empty where there is nothing to choose

    def request(self, measurement: "Measurement") -> dict[str, Any]:
        return {**measurement.request, **self.settings}

    def files(self) -> list[Path]:
        """What this side reads: its model, a file or a folder of files."""
        return [Path(self.settings["model"])]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What both sides measure. `request` must hold `what`; `tokens_each` are the tokens that one of the answer's
    `seconds` stands for. `cold` empties the page cache before each run; otherwise each worker warms itself, untimed.
    `limit_bytes` holds for the whole process and its share of the page cache, which is emptied first, because pages
    that others read earlier are not counted against it."""

    name: str
    request: Mapping[str, Any]
    tokens_each: int = 1
    cold: bool = False
    limit_bytes: int | None = None
    timeout_seconds: float = 1800.0


@dataclass(frozen=True, slots=True)
class Run:
    """One process's answer. `seconds` is empty where `failed` holds the reason."""

    side: str
    seconds: tuple[float, ...]
    peak_bytes: int | None
    group_peak_bytes: int | None  # of the control group, page cache counted, where there was a limit
    failed: str | None
    answer: Mapping[str, Any]
    others: float = 0.0  # processors that other processes kept busy during the run

    @property
    def figure(self) -> float:
        """Seconds of a piece of work: the median of the run's. Infinite where the run failed."""
        return statistics.median(self.seconds) if self.seconds else float("inf")


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement's runs in their order, and the machine's limits right before and after them."""

    measurement: Measurement
    ours: Side
    theirs: Side
    runs: tuple[Run, ...]
    limits: tuple[Mapping[str, Any], Mapping[str, Any]]
    tried: Mapping[str, float | None] = field(
        default_factory=dict
    )  # the peer's settings: seconds of each, None: failed

    def of(self, side: Side) -> list[Run]:
        return [run for run in self.runs if run.side == side.name]

    def seconds(self, side: Side) -> float:
        """The median over the side's runs; infinite where most failed."""
        return statistics.median(run.figure for run in self.of(side))

    def ratios(self) -> list[float]:
        """Their seconds over ours, of each pair of neighbours in which both answered."""
        pairs = zip(self.runs[0::2], self.runs[1::2], strict=True)
        ordered = (pair if pair[0].side == self.ours.name else pair[::-1] for pair in pairs)
        return [theirs.figure / ours.figure for ours, theirs in ordered if not (ours.failed or theirs.failed)]


def run(side: Side, measurement: Measurement) -> Run:
    """One fresh process. Raises UsageError where a limit is asked for that can't be set."""
    emptied = {}
    if measurement.cold or measurement.limit_bytes is not None:
        emptied["page_cache"] = page_cache.empty(side.files())
    began, busy = time.monotonic(), _others_seconds()
    with memory_limit(measurement.limit_bytes) as group:
        words = [*group.prefix, str(side.python), str(side.worker), json.dumps(side.request(measurement))]
        output, error = _output(words, side.variables, measurement.timeout_seconds)
        killed, group_peak = group.killed(), group.peak()
    others = max(0.0, _others_seconds() - busy) / (time.monotonic() - began)
    answer = _answer(output)
    failed = answer.get("failed") if answer else error
    if killed and not (answer and answer.get("seconds")):
        failed = f"killed: more than {format_bytes(measurement.limit_bytes or 0)} of memory were needed"
    if answer and not failed and not answer.get("seconds"):
        failed = "the worker gave no seconds"
    seconds = tuple(answer.get("seconds", ())) if answer and not failed else ()
    return Run(side.name, seconds, answer.get("peak_bytes"), group_peak, failed, answer | emptied, others)


def _output(words: Sequence[str], variables: Mapping[str, str], timeout: float) -> tuple[str, str]:
    """Standard output, and one line on how the process failed if it did. Its whole group is ended with it."""
    process = subprocess.Popen(
        words, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return output, f"no answer in {timeout:.0f} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    last = (errors.strip().splitlines() or ["no word"])[-1]
    return (
        output,
        f"exit code {process.returncode}: {last[:200]}" if process.returncode else "no answer on its last line",
    )


def _others_seconds() -> float:
    """Processor seconds since the machine started that went neither to idleness nor to this process's children."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + sum(interrupts)) / ticks - children.ru_utime - children.ru_stime


def _answer(output: str) -> dict[str, Any]:
    """The JSON object on the last line; empty where there is none."""
    try:
        found = json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def alternate(
    ours: Side,
    theirs: Side,
    measurement: Measurement,
    rounds: int = 1,
    *,
    limits: Callable[[], Mapping[str, Any]] = dict,
    tried: Mapping[str, float | None] | None = None,
    watch: Callable[[Run], None] = lambda run: None,
) -> Result:
    """`rounds` times A B B A with the machine's limits before and after; `watch` sees each run as it ends."""
    if rounds < 1:
        raise UsageError(f"--rounds is {rounds}; it must be at least 1.")
    before, runs = limits(), []
    for _ in range(rounds):
        for side in (ours, theirs, theirs, ours):
            runs.append(run(side, measurement))
            watch(runs[-1])
    return Result(measurement, ours, theirs, tuple(runs), (before, limits()), tried or {})
