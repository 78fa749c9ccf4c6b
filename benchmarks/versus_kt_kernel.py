"""Earthshine's routed experts beside kt-kernel's, alone: the same INT4 codes and scales, one token and many.

    python benchmarks/versus_kt_kernel.py
    python benchmarks/versus_kt_kernel.py --what 1 8 512 --experts 64 --rounds 3
    python benchmarks/versus_kt_kernel.py --short

Experts have Kimi-K2.6's shape (7168 by 2048, top 8, INT4 in groups of 32 as published) and are fewer than its 384: 64
take 1.6 GB, so the eight experts of a token, which differ in each call, come from memory. kt-kernel 0.7.2 chooses its
build by the processor; which of its backends for these codes is fastest is tried for each measurement. It rounds
activations to int8 in groups of 32 and keeps scales in fp32 (0.63 bytes per weight); Earthshine multiplies in bf16
(0.56 bytes). That both compute the same is checked first. kt-kernel's threads wait in busy loops: its times double
while other work runs.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from versus.alternation import Measurement, Side, run
from versus.comparison import HERE, Comparison, arguments, finished, say
from versus.environment import Environment

from earthshine.errors import UsageError

# kt-kernel asks for torch 2.9.1 and much that its experts do not use; with 2.13 they run as well.
KT_KERNEL = Environment(
    "kt-kernel-0.7.2",
    (
        ("torch==2.13.0", "numpy", "safetensors", "tqdm", "pyyaml", "requests"),
        ("--no-deps", "kt-kernel==0.7.2", "gguf"),
    ),
)
BACKENDS = ("AMXInt4_KGroup_MOE", "AMXInt4_KGroupBlocked_MOE", "AVXVNNI256RawInt4_MOE")
FLOPS = 8 * 3 * 2 * 7168 * 2048  # of a token
LEAST_COSINE = 0.999


def measurement(word: str, options: argparse.Namespace) -> Measurement:
    if not word.isdecimal() or not 1 <= int(word) <= 4096:
        raise UsageError(f"--what {word!r} is not a number of tokens between 1 and 4096.")
    tokens = int(word)
    repeats = 200 if tokens == 1 else max(3, 2048 // tokens)
    request = {"what": "experts", "experts": options.experts, "tokens": tokens, "repeats": repeats}
    return Measurement(f"experts of {tokens} token{'s' * (tokens > 1)}", request, tokens, timeout_seconds=600)


def sides(options: argparse.Namespace, python: Path, settings: Mapping[str, Any]) -> list[Side]:
    """kt-kernel's backends, the first also with one worker fewer, since the calling thread works too."""
    choices = [(backend, options.threads) for backend in BACKENDS]
    if options.threads > 1:
        choices.insert(1, (BACKENDS[0], options.threads - 1))
    return [
        Side(
            "kt-kernel",
            python,
            HERE / "kt_kernel_side.py",
            {**settings, "backend": backend, "threads": workers},
            setting=f"{backend}, {workers} workers and the caller",
        )
        for backend, workers in (choices[:1] if options.fixed else choices)
    ]


def cosine(ours: Side, theirs: Side, asked: Measurement) -> float:
    """The least cosine of any token between both sides' outputs. Raises UsageError where they are not the same
    computation."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = []
        for number, side in enumerate((ours, theirs)):
            out = Path(folder) / f"{number}.npy"
            answer = run(replace(side, settings={**side.settings, "out": str(out), "repeats": 1}), asked)
            if answer.failed:
                raise UsageError(f"{side.name} gave no output: {answer.failed}")
            outputs.append(np.load(out, allow_pickle=False).astype(np.float64))
    a, b = outputs
    least = float(((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))).min())
    if not least >= LEAST_COSINE:
        raise UsageError(f"The outputs differ: a cosine of {least:.5f} where {LEAST_COSINE} is the least.")
    return least


def course(options: argparse.Namespace) -> None:
    wanted = [measurement(word, options) for word in dict.fromkeys(options.what)]
    python = KT_KERNEL.python(options.work)
    settings = {"model": "", "threads": options.threads}
    ours = Side("Earthshine", Path(sys.executable), HERE / "experts_side.py", settings)
    theirs = sides(options, python, settings)
    cosines = {asked.name: cosine(ours, theirs[0], asked) for asked in wanted}
    notes = [f"{name}: cosine of both sides' outputs, at least {least:.5f}" for name, least in cosines.items()]
    more: dict[str, Any] = {"least_cosine": cosines, "flops_of_a_token": FLOPS}
    for result in Comparison("kt-kernel", ours, theirs, options, notes, more).run(wanted):
        tokens = result.measurement.tokens_each
        for side in (result.ours, result.theirs):
            figures = [r.figure for r in result.of(side) if not r.failed]
            if figures:
                say(f"{result.measurement.name}, {side.name}: {FLOPS * tokens / median(figures) / 1e9:.0f} GFLOP/s")


def main(words: Iterable[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--what", nargs="+", default=["1", "512"], metavar="TOKENS", help="by default 1 and 512")
    parser.add_argument("--experts", type=int, default=64, help="in memory (default 64)")
    parser.add_argument("--fixed", action="store_true", help="kt-kernel's own choice of backend, without trying others")
    options = parser.parse_args(None if words is None else list(words))
    if options.short:
        options.rounds, options.fixed, options.experts = 1, True, 16
    if not 8 <= options.experts <= 384:
        parser.error("--experts must be between 8 and 384.")
    return finished(lambda: course(options))


if __name__ == "__main__":
    sys.exit(main())
