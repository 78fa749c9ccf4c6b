"""A comparison from its command line to its table: the options and the steps that all scripts share.

For each measurement the peer's settings are tried and the fastest taken, then both sides run alternately, with the
machine's limits measured before and after. The output is a table, a picture if requested, and one line of JSON.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earthshine.errors import EarthshineError, UsageError
from earthshine.units import parse_bytes

from . import report
from .alternation import Measurement, Result, Run, Side, alternate, run
from .environment import DEFAULT_WORK
from .settings import Knobs, fastest

HERE = Path(__file__).resolve().parent


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every comparison has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="peers' environments and converted models")
    parser.add_argument("--rounds", type=int, default=2, help="how many times A B B A (default 2)")
    parser.add_argument("--threads", type=int, default=2, help="of both sides (default 2)")
    parser.add_argument("--limit", help="of memory, by the kernel, page cache counted, for both sides, such as 12GiB")
    parser.add_argument("--memory", help="Earthshine's own --memory; by default 0.5 GiB below --limit")
    parser.add_argument("--png", type=Path, help="write the picture here (needs matplotlib)")
    parser.add_argument("--short", action="store_true", help="a small model and few measurements, about two minutes")
    return parser


def limit_bytes(options: argparse.Namespace) -> int | None:
    return None if options.limit is None else parse_bytes(options.limit)


def earthshine(options: argparse.Namespace, model: Path, memory: str | None = None) -> Side:
    """Earthshine as it stands in this Python. `memory` as `--memory`, by default from the options."""
    limit = limit_bytes(options)
    budget = memory or options.memory or (None if limit is None else f"{(limit >> 20) - 512}MiB")
    settings = {"model": str(model), "threads": options.threads, "memory": budget}
    return Side("Earthshine", Path(sys.executable), HERE / "earthshine_side.py", settings, setting=budget or "")


@dataclass(frozen=True, slots=True)
class Comparison:
    """`theirs`: the peer's settings to choose from, a list of sides or knobs. `notes` go below the table."""

    peer: str
    ours: Side
    theirs: Sequence[Side] | Knobs
    options: argparse.Namespace
    notes: Sequence[str] = ()
    more: Mapping[str, Any] = field(default_factory=dict)  # what else the JSON holds

    def run(self, measurements: Iterable[Measurement]) -> list[Result]:
        """Measures, prints the table and the JSON, draws the picture. Raises EarthshineError.

        What has been measured is reported also where a later measurement fails or is interrupted.
        """
        refuse_no_picture(self.options)
        results: list[Result] = []
        try:
            for measurement in measurements:
                results.append(self._measured(measurement))
        finally:
            if results:
                print(report.table(results, self.notes), flush=True)
                if self.options.png is not None:
                    report.picture(results, self.options.png)
                document = {"peer": self.peer, **report.document(results), **self.more}
                print(json.dumps(document), flush=True)
        return results

    def _measured(self, measurement: Measurement) -> Result:
        say(measurement.name)
        best, tried = fastest(self.theirs, measurement)
        return alternate(
            self.ours, best, measurement, self.options.rounds, limits=self._limits, tried=tried, watch=report.watched
        )

    def _limits(self) -> Mapping[str, Any]:
        return limits_now(self.ours, self.options.threads)


def limits_now(ours: Side, threads: int) -> dict[str, Any]:
    """The machine's limits at this moment (limits_now.py). Raises UsageError where that fails."""
    request = json.dumps({"threads": threads, "model": ours.settings["model"]})
    words = [str(ours.python), str(HERE / "limits_now.py"), request]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(
            "The machine's limits could not be measured: " + (done.stderr.strip().splitlines() or ["?"])[-1]
        )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert isinstance(found, dict)
    return found


def peaks(ours: Iterable[Side], measurement: Measurement) -> list[Run]:
    """One run of each of Earthshine's sides, for their peak memory over their budgets."""
    found = []
    for side in ours:
        found.append(run(side, measurement))
        report.watched(found[-1])
    return found


def refuse_no_picture(options: argparse.Namespace) -> None:
    """Refuses --png without matplotlib before hours of measuring, not after."""
    if options.png is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            f"--png needs matplotlib in Earthshine's own environment: {sys.executable} -m pip install matplotlib"
        )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def finished(course: Any) -> int:
    """Runs `course()` as a script's main: errors are sentences. Returns the exit code."""
    try:
        course()
    except EarthshineError as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("Interrupted.")
        return 130
    return 0
