"""Throughput of several requests at once over one, of Earthshine's server and llama.cpp's.

    python benchmarks/versus_llama_server.py MODEL --limit 12GiB --conversations 1 8 16 --server /path/to/llama-server

Both serve the same values over HTTP with as many slots as there are requests; llama.cpp's with mmap, the only way
to load that fits under a limit below the model's size. MODEL needs a tokenizer (tools/synthesize.py --tokenizer). The
GGUF is written once, with a vocabulary of placeholders, since only token ids are exchanged.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from versus.alternation import Measurement, Result, Side, alternate
from versus.comparison import HERE, arguments, finished, limit_bytes, limits_now, refuse_no_picture, say
from versus.report import document, table, watched
from versus_llama_cpp import LLAMA

from earthshine.errors import UsageError
from earthshine.spec import load_spec
from earthshine.units import format_bytes


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--server", type=Path, required=True, help="llama-server, built from llama.cpp's source")
    parser.add_argument("--conversations", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--tokens", type=int, default=48, help="of each reply (default 48)")
    parser.add_argument("--context", type=int, default=64, help="of each prompt (default 64)")
    return parser.parse_args(words)


def converted(options: argparse.Namespace) -> Path:
    out = options.work / f"{options.model.resolve().name}.words.gguf"
    if out.exists() and out.stat().st_mtime >= (options.model / "config.json").stat().st_mtime:
        return Path(out)
    say(f"Writing {out} with the values of {options.model}.")
    options.work.mkdir(parents=True, exist_ok=True)
    words = [LLAMA.python(options.work), HERE / "to_gguf.py", "--placeholders", options.model, out]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError((done.stderr.strip().splitlines() or ["to_gguf.py failed."])[-1])
    return Path(out)


def sides(options: argparse.Namespace, gguf: Path, count: int) -> tuple[Side, Side]:
    """Ours and theirs with `count` slots. Each request has room for its prompt and reply."""
    room = -(-(options.context + options.tokens + 16) // 64) * 64
    limit = limit_bytes(options)
    budget = options.memory or (None if limit is None else f"{(limit >> 20) - 512}MiB")
    ours = [str(Path(sys.executable).parent / "earthshine"), "serve", str(options.model), "--port", "{port}"]
    ours += ["--threads", str(options.threads), "--batch", str(count), "--context", str(room)]
    ours += [] if budget is None else ["--memory", budget]
    threads, parallel = str(options.threads), str(count)
    theirs = [str(options.server), "-m", str(gguf), "--port", "{port}", "-t", threads, "-tb", threads, "-np", parallel]
    theirs += ["-c", str(room * count), "--no-warmup", "--no-repack"] if limit else ["-c", str(room * count)]
    python, worker = Path(sys.executable), HERE / "server_side.py"
    return (
        Side("Earthshine", python, worker, {"model": str(options.model), "command": ours, "memory": budget}),
        Side("llama-server", python, worker, {"model": str(gguf), "command": theirs}),
    )


def measured(options: argparse.Namespace, gguf: Path, count: int) -> Result:
    limit = limit_bytes(options)
    ours, theirs = sides(options, gguf, count)
    span = load_spec(options.model).vocab_size
    request = {"what": "shared", "conversations": count, "tokens": options.tokens, "context": options.context}
    request |= {"span": span, "start_seconds": 600}
    under = "" if limit is None else f", under {format_bytes(limit)}"
    named = f"{count} conversation{'s' if count > 1 else ''} at once{under}"
    asked = Measurement(named, request, count, True, limit, 3600.0)
    limits = limits_now
    return alternate(ours, theirs, asked, options.rounds, limits=lambda: limits(ours, options.threads), watch=watched)


def gains(results: Sequence[Result]) -> dict[str, Any]:
    """Tokens per second of each count over those of the first, for each side."""
    found: dict[str, Any] = {}
    for pick in ("ours", "theirs"):
        rates = [result.measurement.tokens_each / result.seconds(getattr(result, pick)) for result in results]
        counts = [result.measurement.tokens_each for result in results]
        name = getattr(results[0], pick).name
        found[name] = {count: round(rate / rates[0], 3) for count, rate in zip(counts, rates, strict=True)}
    return found


def course(options: argparse.Namespace) -> None:
    refuse_no_picture(options)
    if not options.server.is_file():
        raise UsageError(f"--server {options.server} does not exist; build llama-server from llama.cpp's source.")
    gguf = converted(options)
    results: list[Result] = []
    try:
        for count in options.conversations:
            say(f"{count} at once")
            results.append(measured(options, gguf, count))
    finally:
        if results:
            gain = gains(results)
            shown = (f"{name}: " + ", ".join(f"{n} at once {by:.2f}" for n, by in by_count.items())
                    for name, by_count in gain.items())  # fmt: skip
            print(table(results, ["tokens per second over those of the first row", *shown]), flush=True)
            print(json.dumps({"peer": "llama-server", "gains": gain, **document(results)}), flush=True)


def main(words: Iterable[str] | None = None) -> int:
    options = parsed(None if words is None else list(words))
    return finished(lambda: course(options))


if __name__ == "__main__":
    sys.exit(main())
