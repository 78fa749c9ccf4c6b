"""A minute's benchmark of this machine: each figure a median of repeats, the last line one JSON document.

    python benchmarks/run.py [--short] [| python tools/results.py add docs/results/run.json]

Times are this machine's and noisy; only ratios taken in one run can be compared with those of other machines.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from result_rows import result_rows
from torch.nn import functional

from earthshine import kernels
from earthshine.engine import LoadedModel, SamplingParams, load_model
from earthshine.machine import processors

GLEAM = Path(__file__).parents[1] / "src" / "earthshine" / "gleam"


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Each of `repeats` runs after one that is not counted."""
    work()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return taken


def products(repeats: int) -> dict[str, list[float]]:
    """GB/s of INT4 that products of one row read, and the same over what a plain copy reads and writes, A B B A.

    The matrices are 16 of Kimi-K2.6's gates, 132 MB, so that they come from memory.
    """
    shape, groups = (2048, 896), (2048, 224)
    gates = [
        kernels.int4_matrix(torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32), torch.rand(groups).bfloat16())
        for _ in range(16)
    ]
    x, source = torch.randn(1, 7168).bfloat16(), torch.ones(sum(gate.nbytes for gate in gates) // 4)
    target = torch.empty_like(source)
    rates: list[float] = []
    ratios: list[float] = []
    for _ in range(repeats):
        taken = [
            seconds(work, 1)[0]
            for work in (
                lambda: [kernels.linear(x, gate) for gate in gates],
                lambda: target.copy_(source),
                lambda: target.copy_(source),
                lambda: [kernels.linear(x, gate) for gate in gates],
            )
        ]
        rates.append(2 * source.nbytes / (taken[0] + taken[3]) / 1e9)
        ratios.append((taken[1] + taken[2]) / (taken[0] + taken[3]) / 2)
    return {"int4 products, one row (GB/s)": rates, "the same over a plain copy (times)": ratios}


def same_bits(repeats: int) -> dict[str, list[float]]:
    """Time of a product that does not depend on its batch over the library's own, 2048x7168, alternating A B B A."""
    ratios: dict[str, list[float]] = {}
    for dtype, n_rows in ((d, n) for d in (torch.bfloat16, torch.float32) for n in (1, 256)):
        weight, x = torch.randn(2048, 7168).to(dtype), torch.randn(n_rows, 7168).to(dtype)
        ways = [functional.linear, kernels.linear]
        name = f"same bits, {str(dtype)[6:]}, {n_rows} rows (times plain)"
        for _ in range(repeats):
            taken: list[float] = []
            for way in (*ways, *reversed(ways)):
                taken.append(statistics.median(seconds(lambda way=way, x=x, weight=weight: way(x, weight), 5)))
            ratios.setdefault(name, []).append((taken[1] + taken[2]) / (taken[0] + taken[3]))
    return ratios


def gleam_rates(model: LoadedModel, repeats: int) -> dict[str, list[float]]:
    """Tokens per second of a prompt of 256 tokens, and of 32 tokens generated after it."""
    prompt = [(37 * i) % 5000 for i in range(256)]
    session = model.session(512)

    def prefill() -> None:
        session.clear()
        session.sync(prompt)

    def generate() -> None:
        list(session.generate(SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)))
        session.sync(prompt)

    return {
        "gleam, prompt of 256 (tokens/s)": [256 / taken for taken in seconds(prefill, repeats)],
        "gleam, decode (tokens/s)": [32 / taken for taken in seconds(generate, repeats)],
    }


def starting(repeats: int) -> dict[str, list[float]]:
    """Milliseconds of whole processes."""
    python = [sys.executable, "-c", "from earthshine.cli import main; main()"]
    commands = {
        "inspect a config (ms)": [*python, "inspect", str(GLEAM / "config.json")],
        "chat -p, one answer (ms)": [*python, "chat", "-p", "list all files"],
    }
    return {
        name: [1e3 * t for t in seconds(lambda c=c: subprocess.run(c, capture_output=True, check=True), repeats)]
        for name, c in commands.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="three repeats instead of ten")
    repeats = 3 if parser.parse_args().short else 10
    kernels.set_threads(processors())
    rows = products(repeats) | same_bits(repeats) | gleam_rates(load_model(GLEAM), repeats) | starting(repeats)
    for name, values in rows.items():
        print(f"{name:42} {statistics.median(values):10.1f}   {min(values):.1f} to {max(values):.1f}")
    served = next(entry.name for entry in kernels.implementations() if entry.operation == "linear")
    machine = {"system": platform.platform(), "linear": served}
    print(json.dumps({"machine": machine, "rows": result_rows(rows)}))


if __name__ == "__main__":
    main()
