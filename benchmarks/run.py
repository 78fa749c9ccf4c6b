"""What Earthshine does on this machine, in a minute: each figure a median of repeats, the last line one JSON document.

    python benchmarks/run.py [--short]

Times are this machine's and noisy; only ratios taken in one run mean something elsewhere.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from earthshine import kernels
from earthshine.engine import LoadedModel, SamplingParams, load_model
from earthshine.kernels import reference

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


def decoding(repeats: int) -> dict[str, list[float]]:
    """GB/s of bf16 written when the gate of one K2.6 expert is decoded, natively and by the reference in turns."""
    packed = torch.randint(-(2**31), 2**31 - 1, (2048, 896), dtype=torch.int32)
    scale = torch.rand(2048, 224).bfloat16()
    written = 2048 * 7168 * 2 / 1e9
    rates: dict[str, list[float]] = {"decode int4, served (GB/s)": [], "decode int4, reference (GB/s)": []}
    ways = [kernels.decode_int4, reference.decode_int4]
    for _ in range(repeats):
        for name, way in [*zip(rates, ways, strict=True), *zip(reversed(rates), reversed(ways), strict=True)]:
            rates[name] += [written / taken for taken in seconds(lambda way=way: way(packed, scale), 1)]
    return rates


def same_bits(repeats: int) -> dict[str, list[float]]:
    """Time of a product that does not depend on its batch over the library's own, 2048x7168, in turns A B B A."""
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
    """Tokens a second of a prompt of 256 tokens, and of 32 tokens generated after it."""
    prompt = [(37 * i) % 5000 for i in range(256)]
    session = model.session(512)

    def prefill() -> None:
        session.close()
        session.sync(prompt)

    def generate() -> None:
        list(session.generate(SamplingParams(temperature=0, max_tokens=32, ignore_stop=True)))
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
    rows = decoding(repeats) | same_bits(repeats) | gleam_rates(load_model(GLEAM), repeats) | starting(repeats)
    for name, values in rows.items():
        print(f"{name:42} {statistics.median(values):10.1f}   {min(values):.1f} to {max(values):.1f}")
    served = next(entry.name for entry in kernels.implementations() if entry.operation == "decode_int4")
    machine = {"processors": len(os.sched_getaffinity(0)), "system": platform.platform(), "decode_int4": served}
    print(json.dumps({"machine": machine} | {name: statistics.median(values) for name, values in rows.items()}))


if __name__ == "__main__":
    main()
