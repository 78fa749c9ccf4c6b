"""Earthshine beside llama.cpp on the same values: decoding, prompts, long contexts, under a memory limit or without.

    python benchmarks/versus_llama_cpp.py MODEL --what decode decode:16384 prompt:512 prompt:4096
    python benchmarks/versus_llama_cpp.py MODEL --what context --png context.png
    python benchmarks/versus_llama_cpp.py MODEL --limit 12GiB --what decode prompt:2048 prompt:8192
    python benchmarks/versus_llama_cpp.py MODEL --what same
    python benchmarks/versus_llama_cpp.py MODEL --what peaks --budgets 6GiB,8GiB,12GiB
    python benchmarks/versus_llama_cpp.py --short

MODEL is a published INT4 checkpoint of DeepSeek-V3's shape (tools/synthesize.py makes one). It is written once as GGUF
into the work folder: the experts' nibbles and scales unchanged as Q4_0, the trunk in bf16. llama.cpp is
llama-cpp-python 0.3.36 built from source for this processor. Its load mode, repacking, micro-batch and flash attention
are tried for each measurement and the fastest taken. It rounds activations to int8 before products with Q4_0, where
Earthshine multiplies in bf16, and keeps latents in float16, where Earthshine keeps bf16.

`decode:N` decodes after N tokens of context; `context` does so at 0, 1K, 4K, 16K and what the model has room for.
Contexts are filled with random latents on both sides. `same` compares logits and greedy tokens instead of times.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from versus import agreement
from versus.alternation import Measurement, Side, run
from versus.comparison import HERE, Comparison, arguments, earthshine, finished, limit_bytes, peaks, say
from versus.environment import Environment
from versus.report import over_budgets, run_entry
from versus.settings import Knobs

from earthshine.errors import UsageError
from earthshine.spec import load_spec
from earthshine.storage.index import INDEX_NAME
from earthshine.units import format_bytes

LLAMA = Environment(
    "llama-cpp-python-0.3.36",
    (("gguf==0.19.0",), ("--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36")),
    {"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
)
CONTEXTS = (0, 1024, 4096, 16384, 32768, 65536, 131072)
TOUCH = 512  # tokens of an untimed prompt, after which every expert has been used
ROOM = 64  # tokens that a context needs on top of its own
SHORT = ("--like", "moonlight.json", "--expert-storage", "int4", "--context", "8192", "--layers", "4",
         "--vocab", "8192", "--experts", "24")  # fmt: skip


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("model", type=Path, nargs="?", help="a published INT4 checkpoint; not needed with --short")
    parser.add_argument("--what", nargs="+", default=["decode", "prompt:512"], metavar="WHAT")
    parser.add_argument("--tokens", type=int, default=32, help="decoded in each process (default 32)")
    parser.add_argument("--repeats", type=int, default=2, help="prompts in each process (default 2)")
    parser.add_argument("--budgets", default="", help="sizes for `peaks`, separated by commas")
    parser.add_argument("--fixed", action="store_true", help="llama.cpp's first setting, without trying others")
    options = parser.parse_args(words)
    if options.short:
        options.rounds, options.repeats, options.fixed, options.tokens = 1, 1, True, 16
        options.what = ["same", "decode", "decode:4096", "prompt:512"]
    return options


def measurements(options: argparse.Namespace, max_context: int) -> list[Measurement]:
    """Raises UsageError for a word that names no measurement, and for a context that the model does not have."""
    words = [word for word in options.what if word not in ("same", "peaks")]
    room = max_context - options.tokens - ROOM
    contexts = sorted({min(context, room) for context in CONTEXTS}) if "context" in words else []
    expanded = [word for word in words if word != "context"] + [f"decode:{context}" for context in contexts]
    return [measurement(word, options, room) for word in dict.fromkeys(expanded)]


def measurement(word: str, options: argparse.Namespace, room: int) -> Measurement:
    kind, _, number = word.partition(":")
    if kind not in ("decode", "prompt") or not (number.isdecimal() or (kind == "decode" and not number)):
        raise UsageError(f"--what {word!r} must be one of decode, decode:N, prompt:N, context, same, peaks.")
    size, limit = int(number or 0), limit_bytes(options)
    if size > room or (kind == "prompt" and size < 1):
        raise UsageError(f"--what {word}: this model has room for 1 to {room} tokens there.")
    limited: dict[str, Any] = {} if limit is None else {"cold": True}
    under = f", under {format_bytes(limit)}" if limit is not None else ""
    if kind == "decode":
        request = {"what": "decode", "context": size, "tokens": options.tokens, "warm": 4}
        request |= limited or {"touch": TOUCH}
        name = f"decode after {size} tokens" if size else "decode at no context"
        return Measurement(name + under, request, 1, bool(limited), limit)
    request = {"what": "prompt", "tokens": size, "repeats": 1 if limited else options.repeats, "touch": TOUCH}
    return Measurement(f"prompt of {size} tokens{under}", request | limited, size, bool(limited), limit, 3600.0)


def knobs(options: argparse.Namespace, python: Path, gguf: Path) -> Knobs:
    """llama.cpp's settings. Under a limit there is no room for a copy of the model, so plain mmap comes first."""

    def make(choice: Mapping[str, Any]) -> Side:
        words = [
            f"load {choice['load']}",
            "repacked" if choice["repack"] else "not repacked",
            f"micro-batch {choice['ubatch']}",
            "flash attention" if choice["flash"] else "no flash attention",
        ]
        settings = {"model": str(gguf), "threads": options.threads, **choice}
        return Side("llama.cpp", python, HERE / "llama_cpp_side.py", settings, setting=", ".join(words))

    def values(asked: Measurement) -> dict[str, list[Any]]:
        limited, prompt = asked.limit_bytes is not None, asked.request["what"] == "prompt"
        size = asked.request["tokens"] if prompt else 512
        found: dict[str, list[Any]] = {
            "load": ["mmap", "direct"] if limited else ["none", "mmap"],
            "repack": [False, True] if limited else [True, False],
            "ubatch": [most for most in (512, 2048, 4096, 8192) if most <= max(size, 512)],
            "flash": [True, False],
        }
        if limited:
            found["ubatch"].reverse()  # each micro-batch reads the experts again
        return {name: options_[:1] for name, options_ in found.items()} if options.fixed else found

    return Knobs(make, values)


def converted(options: argparse.Namespace, python: Path, model: Path) -> Path:
    """The model as GGUF in the work folder, written if it is not there or older than the model."""
    out = options.work / f"{model.resolve().name}.gguf"
    if out.exists() and out.stat().st_mtime >= (model / "config.json").stat().st_mtime:
        return out
    say(f"Writing {out} with the values of {model}.")
    options.work.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([python, HERE / "to_gguf.py", model, out], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "to_gguf.py failed.")
    return out


def small_model(options: argparse.Namespace) -> Path:
    """A model of 0.6 GiB in Moonlight's shape, four layers deep, made once."""
    folder, tools = options.work / "short", HERE.parents[1] / "tools"
    if not (folder / INDEX_NAME).exists():
        options.work.mkdir(parents=True, exist_ok=True)
        words = [str(tools / "synthesis" / word) if word.endswith(".json") else word for word in SHORT]
        done = subprocess.run(
            [sys.executable, tools / "synthesize.py", folder, *words], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UsageError(done.stderr.strip() or "synthesize.py failed.")
    return folder


def built(python: Path, gguf: Path) -> str:
    """What was compiled into llama.cpp, in its own words."""
    side = Side("llama.cpp", python, HERE / "llama_cpp_side.py", {"model": str(gguf)})
    answer = run(side, Measurement("about", {"what": "about"})).answer
    return f"llama-cpp-python {answer.get('version')}: {answer.get('built')}"


def same(ours: Side, theirs: Side, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides' logits against Earthshine's in fp32, printed and returned."""
    precise = replace(ours, name="Earthshine in fp32", settings={**ours.settings, "dtype": "fp32"})
    found = agreement.against(precise, [ours, theirs], options.work)
    print(agreement.table(found), flush=True)
    return {"same": found}


def budgets(ours: Side, options: argparse.Namespace) -> dict[str, Any]:
    sizes = [size.strip() for size in options.budgets.split(",") if size.strip()]
    if not sizes:
        raise UsageError("--what peaks needs --budgets, such as 6GiB,8GiB,12GiB.")
    sides = [replace(ours, settings={**ours.settings, "memory": size}, setting=size) for size in sizes]
    asked = Measurement("peaks", {"what": "prompt", "tokens": 1024, "repeats": 1, "cold": True}, 1024, True)
    found = dict(zip(sizes, peaks(sides, asked), strict=True))
    print(over_budgets(found), flush=True)
    return {"peaks": {size: run_entry(one) for size, one in found.items()}}


def course(options: argparse.Namespace) -> None:
    model = small_model(options) if options.short else options.model
    if model is None or not (model / "config.json").is_file():
        raise UsageError("Name the folder of a published INT4 checkpoint, or use --short.")
    asked = measurements(options, load_spec(model).max_context)
    python = LLAMA.python(options.work)
    gguf = converted(options, python, model)
    ours, theirs = earthshine(options, model), knobs(options, python, gguf)
    more: dict[str, Any] = {"model": str(model), "built": built(python, gguf)}
    if "same" in options.what:
        first = {name: values[0] for name, values in theirs.values(Measurement("", {"what": "logits"})).items()}
        more |= same(ours, theirs.make(first), options)
    if "peaks" in options.what:
        more |= budgets(ours, options)
    if asked:
        Comparison("llama.cpp", ours, theirs, options, (more["built"],), more).run(asked)
    else:
        print(json.dumps(more), flush=True)


def main(words: Iterable[str] | None = None) -> int:
    options = parsed(None if words is None else list(words))
    return finished(lambda: course(options))


if __name__ == "__main__":
    sys.exit(main())
