"""What the comparisons of whole models share: the words of `--what`, the model's bf16 copy, and the small model.

Raises UsageError for a word that names no measurement, a size that the model has no room for, and a model that can't
be copied. Copies are made once, in the work folder.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from earthshine.errors import UsageError
from earthshine.spec import read_config, spec_from_config

from .alternation import Measurement
from .comparison import HERE, limit_bytes, say

TOUCH = 512  # tokens of an untimed prompt, after which every expert has been used
ROOM = 64  # tokens that a context needs on top of its own
_TOOLS = HERE.parents[1] / "tools"
_SHORT = ("--like", str(_TOOLS / "synthesis" / "moonlight.json"), "--expert-storage", "int4", "--context", "8192",
          "--layers", "6", "--vocab", "16384", "--experts", "32")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser, what: Sequence[str], short: Sequence[str]) -> None:
    """The model and the words; `what` by default, `short` with --short."""
    parser.add_argument("model", type=Path, nargs="?", help="a published INT4 checkpoint; not needed with --short")
    parser.add_argument("--what", nargs="+", default=list(what), metavar="WHAT", help=f"by default {' '.join(what)}")
    parser.add_argument("--tokens", type=int, default=32, help="decoded in each process (default 32)")
    parser.add_argument("--repeats", type=int, default=2, help="prompts in each process (default 2)")
    parser.add_argument("--fixed", action="store_true", help="the peer's first setting, without trying others")
    parser.set_defaults(short_what=list(short))


def parsed(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    options = parser.parse_args(words)
    if options.short:
        options.rounds, options.repeats, options.fixed, options.what = 1, 1, True, options.short_what
    return options


def measurements(options: argparse.Namespace, model: Path) -> list[Measurement]:
    """Of every word but `same`, in their order, each once."""
    room = spec_from_config(read_config(model)).max_context - options.tokens - ROOM
    return [_measurement(word, options, room) for word in dict.fromkeys(options.what) if word != "same"]


def _measurement(word: str, options: argparse.Namespace, room: int) -> Measurement:
    kind, _, number = word.partition(":")
    least = {"decode": 0, "prompt": 1, "batch": 1}.get(kind)
    if least is None or not (word == "decode" or (number.isdecimal() and len(number) < 10)):
        raise UsageError(f"--what {word!r} must be one of decode, decode:N, prompt:N, batch:N, same.")
    size, limit = int(number or 0), limit_bytes(options)
    most = 256 if kind == "batch" else room
    if not least <= size <= most:
        raise UsageError(f"--what {word}: must be between {least} and {most} here.")
    limited: dict[str, Any] = {} if limit is None else {"cold": True}
    if kind == "prompt":
        request = {"what": "prompt", "tokens": size, "repeats": 1 if limited else options.repeats, "touch": TOUCH}
        return Measurement(f"prompt of {size} tokens", request | limited, size, bool(limited), limit, 3600.0)
    request = {"what": "decode", "context": 0, "tokens": options.tokens, "warm": 4, "touch": TOUCH} | limited
    if kind == "batch":
        name = f"decode, batch of {size}"
        return Measurement(name, request | {"batch": size}, size, bool(limited), limit, 3600.0)
    name = f"decode after {size} tokens" if size else "decode at no context"
    return Measurement(name, request | {"context": size}, 1, bool(limited), limit, 3600.0)


def bf16_copy(options: argparse.Namespace, model: Path) -> Path:
    """The model in bf16, with the same values, in the work folder; written if it is not there or older."""
    copy = options.work / f"{model.resolve().name}.bf16"
    written = copy / "config.json"
    if written.exists() and written.stat().st_mtime >= (model / "config.json").stat().st_mtime:
        return copy
    say(f"Writing {copy}, the values of {model} in bf16.")
    options.work.mkdir(parents=True, exist_ok=True)
    _checked([sys.executable, str(_TOOLS / "write_bf16.py"), str(model), str(copy)])
    return copy


def chosen_model(options: argparse.Namespace) -> Path:
    """The model named, or with --short one of 0.7 GiB in Moonlight's shape, six layers deep, made once."""
    if not options.short:
        if options.model is None or not (options.model / "config.json").is_file():
            raise UsageError("Name the folder of a published INT4 checkpoint, or use --short.")
        model = options.model
    else:
        model = options.work / "short"
        if not (model / "config.json").exists():
            options.work.mkdir(parents=True, exist_ok=True)
            _checked([sys.executable, str(_TOOLS / "synthesize.py"), str(model), *_SHORT])
    assert isinstance(model, Path)
    return model


def _checked(words: Sequence[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError((done.stderr.strip().splitlines() or [f"{words[1]} failed."])[-1])
