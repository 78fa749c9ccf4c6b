"""Earthshine beside transformers on the same values: decoding, prompts and long contexts.

    python benchmarks/versus_transformers.py MODEL
    python benchmarks/versus_transformers.py MODEL --what decode decode:4096 decode:16384 prompt:512 prompt:4096 same
    python benchmarks/versus_transformers.py --short

MODEL is a published INT4 checkpoint of DeepSeek-V3's shape (tools/synthesize.py makes one, at any depth with --layers).
transformers has no INT4 experts for the CPU, so it gets a copy in bf16 with the same values, made once in the work
folder, about 3.3 times the size; both must fit on the disk, and the copy in memory. Each side is thus in the best
format that it supports. Its attention (sdpa, eager), experts (eager, grouped_mm) and cache (dynamic,
static) are tried for each measurement and the fastest taken. Contexts are filled with random latents on both sides.
`same` compares logits and greedy tokens first: transformers in fp32, which takes twice the copy's memory, so a model of
few layers, and Earthshine in bf16, both with Earthshine in fp32.
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

TRANSFORMERS = Environment("transformers-5.23.0", (("torch==2.13.0",), ("transformers==5.23.0",)))
WHAT = ("decode", "decode:4096", "decode:16384", "prompt:512", "prompt:4096")
NOTE = "Earthshine reads the published INT4 experts; transformers a bf16 copy with the same values."


def knobs(options: argparse.Namespace, python: Path, copy: Path) -> Knobs:
    """transformers' settings, the likeliest first. Its `batched_mm` copies each pair's matrices and is left out: at 13
    layers of Moonlight's shape the untimed prompt of 512 tokens alone was not done after four minutes.
    """
    variables = {"OMP_NUM_THREADS": str(options.threads)}

    def make(choice: Mapping[str, Any]) -> Side:
        words = f"attention {choice['attention']}, experts {choice['experts']}, {choice['cache']} cache"
        settings = {"model": str(copy), "threads": options.threads, **choice}
        return Side("transformers", python, HERE / "transformers_side.py", settings, variables, words)

    def values(measurement: Measurement) -> dict[str, list[Any]]:
        prompt = measurement.request["what"] == "prompt"
        found = {
            "experts": ["eager", "grouped_mm"],
            "attention": ["sdpa", "eager"] if prompt else ["eager", "sdpa"],
            "cache": ["dynamic"] if prompt else ["dynamic", "static"],
        }
        return {name: choices[:1] for name, choices in found.items()} if options.fixed else found

    return Knobs(make, values)


def course(options: argparse.Namespace) -> None:
    model = model_options.chosen_model(options)
    wanted = model_options.measurements(options, model)
    python = TRANSFORMERS.python(options.work)
    copy = model_options.bf16_copy(options, model)
    ours, theirs = earthshine(options, model), knobs(options, python, copy)
    more: dict[str, Any] = {"model": str(model), "versions": list(TRANSFORMERS.steps)}
    if "same" in options.what:
        precise = replace(ours, name="Earthshine in fp32", settings={**ours.settings, "dtype": "fp32"})
        side = theirs.make({"experts": "eager", "attention": "eager", "cache": "dynamic", "dtype": "fp32"})
        more["same"] = agreement.against(precise, [ours, replace(side, name="transformers in fp32")], options.work)
        print(agreement.table(more["same"]), flush=True)
    if wanted:
        Comparison("transformers", ours, theirs, options, (NOTE,), more).run(wanted)
    else:
        print(json.dumps(more), flush=True)


def main(words: Iterable[str] | None = None) -> int:
    parser = arguments(__doc__)
    model_options.add_arguments(parser, WHAT, ("same", "decode", "decode:4096", "prompt:512"))
    options = model_options.parsed(parser, None if words is None else list(words))
    return finished(lambda: course(options))


if __name__ == "__main__":
    sys.exit(main())
