"""Write a seeded random model in a published checkpoint's format, at any depth, to measure and test with.

python tools/synthesize.py FOLDER --like config.json --layers 4                 # four layers at full width
python tools/synthesize.py FOLDER --like tools/synthesis/moonlight.json --expert-storage int4
python tools/synthesize.py FOLDER --like config.json --sparse                   # all layers, hardly any disk space

The config is that of a published model, cut as asked. The same seed gives the same bytes, tensor by tensor. FOLDER
must be new or empty, and is left so where anything is refused or fails; the exit code is then 2.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from checkpoints.writer import write_shards
from synthesis.config import STORAGES, Cut, cut_config
from synthesis.filling import Filling, SparseFilling
from synthesis.layout import shards, vision_shards

from earthshine.errors import CheckpointError, EarthshineError, UsageError
from earthshine.spec import ModelSpec, footprint, moe_layers, read_config
from earthshine.storage import Storage
from earthshine.text import load_tokenizer
from earthshine.units import format_bytes
from earthshine.untrusted import shown

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_TOKENIZER_FILES = ("tiktoken.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                    "chat_template.jinja")  # fmt: skip
_MOST_SKEW = 4.0
_HEADER_BYTES = 250  # of a tensor in its shard's header and in the index together
_SPARE_BYTES = 64 << 20
_WITHOUT_TOKENIZER = (
    "It has no tokenizer: earthshine inspect and plan, benchmarks/engine.py and earthshine.engine read it; earthshine "
    "chat, serve, score and LLM refuse it. To use those, make it again with --tokenizer FOLDER, a folder with "
    "tokenizer.json or tiktoken.model of the published model."
)


def _size(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?(B|[KMG]i?B)", text)
    if found is None or float(found[1]) * _UNITS[found[2]] < 1:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a size; write one such as 5GiB or 500MB")
    return int(float(found[1]) * _UNITS[found[2]])


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--like", type=Path, required=True, metavar="CONFIG", help="a published config.json")
    parser.add_argument("--layers", type=int, help="how many layers; dense ones come first, as published")
    parser.add_argument("--dense", type=int, help="how many of them are dense")
    parser.add_argument("--experts", type=int, help="routed experts per layer")
    parser.add_argument("--top-k", type=int, help="experts per token")
    parser.add_argument("--context", type=int, help="the longest sequence, in tokens")
    parser.add_argument("--vocab", type=int, help="tokens; control tokens keep their distance from the end")
    parser.add_argument("--expert-storage", choices=STORAGES, help="by default as published")
    parser.add_argument("--trunk-storage", choices=("bf16", "fp8"), help="refused where the experts' does not allow it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skew", type=float, default=0.0, help="Zipf's exponent of expert popularity, 0 to 4")
    parser.add_argument("--sparse", action="store_true", help="holes in place of most data; see synthesis/filling.py")
    parser.add_argument("--tokenizer", type=Path, help="copy the tokenizer's files from this folder")
    parser.add_argument("--shard-bytes", type=_size, metavar="SIZE", help="by default one shard per layer")
    return parser.parse_args(words)


def _small_files(options: argparse.Namespace, config: dict[str, Any], spec: ModelSpec) -> dict[str, bytes]:
    """Everything but the shards, by name. Raises UsageError and TextError for a tokenizer that does not fit."""
    generation = {"do_sample": False, "eos_token_id": list(spec.stop_tokens), "max_length": spec.max_context}
    files = {
        "config.json": json.dumps(config, indent=2).encode() + b"\n",
        "generation_config.json": json.dumps(generation, indent=2).encode() + b"\n",
    }
    if options.tokenizer is None:
        return files
    try:
        copied = [path for path in map(options.tokenizer.joinpath, _TOKENIZER_FILES) if path.is_file()]
        files |= {path.name: path.read_bytes() for path in copied}
    except OSError as error:
        raise UsageError(f"{shown(options.tokenizer)} can't be read: {error.strerror}.") from None
    if not files.keys() & {"tiktoken.model", "tokenizer.json"}:
        raise UsageError(f"{shown(options.tokenizer)} holds neither tiktoken.model nor tokenizer.json.")
    load_tokenizer(options.tokenizer).require_fit(spec.vocab_size, spec.stop_tokens)
    return files


def _filling(options: argparse.Namespace, spec: ModelSpec) -> Filling:
    if not 0 <= options.skew <= _MOST_SKEW:  # NaN fails too
        raise UsageError(f"--skew is {options.skew}; it must be between 0 and {_MOST_SKEW:g}.")
    if options.skew and not any(moe.router.has_bias for _, moe in moe_layers(spec)):
        raise UsageError(f"--skew is {options.skew}, and {spec.family} has no router bias to express it.")
    return (SparseFilling if options.sparse else Filling)(spec, options.seed, options.skew)


def _refuse_no_room(folder: Path, filling: Filling) -> None:
    """Raises CheckpointError before anything is written where the disk is too small."""
    spec, sizes = filling.spec, footprint(filling.spec)
    fp8 = spec.trunk_storage is Storage.FP8_BLOCK128
    n_tensors = 9 * sizes.n_experts_in_all_layers + 30 * spec.n_layers
    written = filling.disk_bytes(
        sizes.experts_bytes + sizes.trunk_bytes["fp8" if fp8 else "bf16"], sizes.n_experts_in_all_layers
    )
    needed = written + n_tensors * _HEADER_BYTES + _SPARE_BYTES
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise CheckpointError(
            f"The model needs up to {format_bytes(needed)} on the disk of {shown(folder)}, which has "
            f"{format_bytes(free)} free; free some space, or cut --layers or --experts."
        )


def _refuse_occupied(folder: Path) -> None:
    try:
        if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{shown(folder)} is not an empty folder; name a new one.")
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown(folder)} can't be used: {getattr(error, 'strerror', None) or error}.") from None


@contextlib.contextmanager
def _all_or_nothing(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Makes `folder`; on any failure removes the files `names` from it and every folder that was made."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for name in names:
            with contextlib.suppress(OSError):
                (folder / name).unlink()
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        if isinstance(error, OSError):
            raise CheckpointError(f"{shown(folder)} can't be written: {error.strerror}.") from None
        raise


def synthesize(options: argparse.Namespace) -> str:
    """Writes the model that the options describe; returns sentences about it. Raises EarthshineError."""
    started = time.monotonic()
    folder: Path = options.folder
    _refuse_occupied(folder)
    published = read_config(options.like)
    config, spec = cut_config(published, _cut(options))
    small = _small_files(options, config, spec)
    filling = _filling(options, spec)
    _refuse_no_room(folder, filling)
    vision = vision_shards(config) if options.sparse else []
    with _all_or_nothing(folder, tuple(small)):
        for name, content in small.items():
            (folder / name).write_bytes(content)
        files = write_shards(folder, chain(shards(filling, options.shard_bytes), vision))
    seconds = time.monotonic() - started
    stats = [path.stat() for path in files]
    apparent, on_disk = sum(stat.st_size for stat in stats), 512 * sum(stat.st_blocks for stat in stats)
    written = (
        f"{folder}: {len(files)} files of {format_bytes(apparent)}, {format_bytes(on_disk)} on disk, "
        f"in {seconds:.1f} s ({format_bytes(on_disk / seconds)}/s)"
    )
    return written if options.tokenizer is not None else f"{written}\n{_WITHOUT_TOKENIZER}"


def _cut(options: argparse.Namespace) -> Cut:
    return Cut(
        n_layers=options.layers,
        n_dense=options.dense,
        n_experts=options.experts,
        top_k=options.top_k,
        vocab_size=options.vocab,
        max_context=options.context,
        expert_storage=options.expert_storage,
        trunk_storage=options.trunk_storage,
    )


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = _arguments(words)
    try:
        print(synthesize(options))
    except EarthshineError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; nothing was left behind.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
