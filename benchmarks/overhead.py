"""What a decoded token costs beside the kernels: seconds outside native calls, native calls, and Python's own calls.

    python benchmarks/overhead.py MODEL [--memory SIZE] [--contexts 0,4096] [--tokens N] [--repeats N]

One thread computes, and seconds are its processor time, so that what else runs matters little. Each repeat decodes N
tokens. Python's calls are counted in a run of their own: functions written in Python, and those of C that they call.
Prints a line a figure, per token, and last one JSON document with rows for docs/results.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import fill, prompt, steps
from result_rows import result_rows

from earthshine.engine import Session, load_model
from earthshine.kernels import library
from earthshine.plan import PlanArgs
from earthshine.units import parse_bytes


class NativeCalls:
    """Counts and times the library's calls from when it is made; `cost`: what that adds to a call, in seconds."""

    def __init__(self) -> None:
        loaded = library.library()
        bare = loaded.es_threads
        for name in library._SIGNATURES:
            setattr(loaded, name, self._timed(getattr(loaded, name)))
        self.count, self.seconds, began = 0, 0.0, time.thread_time()
        for _ in range(20_000):
            loaded.es_threads()
        timed = time.thread_time() - began - self.seconds
        self.cost, self.count, self.seconds = timed / 20_000, 0, 0.0
        loaded.es_threads = bare

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: object) -> Any:
            began = time.thread_time()
            result = function(*arguments)
            self.seconds += time.thread_time() - began
            self.count += 1
            return result

        return call


def measure(session: Session, native: NativeCalls, tokens: int, repeats: int) -> dict[str, list[float]]:
    """Of the session's next tokens, each figure per token."""
    cpu, outside, wall = [], [], []
    for _ in range(repeats):
        native.count, native.seconds, began = 0, 0.0, time.thread_time()
        wall.append(1e3 * sum(steps(session, tokens)) / tokens)
        cpu.append((time.thread_time() - began - native.count * native.cost) * 1e3 / tokens)
        outside.append(cpu[-1] - 1e3 * native.seconds / tokens)
    count = native.count / tokens
    return {
        "processor time (ms)": cpu,
        "processor time outside native calls (ms)": outside,
        "share outside native calls": [part / whole for part, whole in zip(outside, cpu, strict=True)],
        "wall time (ms)": wall,
        "native calls": [count],
        **python_calls(session, tokens, count),
    }


def python_calls(session: Session, tokens: int, timed: float) -> dict[str, list[float]]:
    """`timed`: calls that the measurement itself has put around the library's."""
    counts: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, argument: counts.update((event,)))
    try:
        steps(session, tokens)
    finally:
        sys.setprofile(None)
    found = {"calls of Python": counts["call"] / tokens - timed, "calls of C": counts["c_call"] / tokens - 2 * timed}
    return {name: [count] for name, count in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--memory", type=parse_bytes)
    parser.add_argument("--contexts", type=lambda text: [int(part) for part in text.split(",")], default=[0, 4096])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    room = max(arguments.contexts) + (arguments.repeats + 2) * (arguments.tokens + 1) + 16
    model = load_model(arguments.model, PlanArgs(arguments.memory, room, 1, 1))
    native, session, figures = NativeCalls(), model.session(), {}
    for context in arguments.contexts:
        session.clear()
        if context:
            fill(session, context)
        else:
            session.sync(prompt(16))
        steps(session, 4)
        for name, values in measure(session, native, arguments.tokens, arguments.repeats).items():
            figures[f"{arguments.model.name} at {context} tokens: {name}"] = values
            print(f"{list(figures)[-1]:64} {statistics.median(values):10.3f}", flush=True)
    print(json.dumps({"what": "overhead", "rows": result_rows(figures)}))


if __name__ == "__main__":
    main()
