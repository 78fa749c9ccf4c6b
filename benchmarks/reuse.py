"""Time to the first token with a prefix found on disk after a restart, against computing it.

    python benchmarks/reuse.py MODEL --memory 15GiB --tokens 4096 --rounds 3

Each round has a prompt of its own: a server with an empty disk cache computes it, ends by SIGTERM, and the next server
finds it on disk. Both answer a short request first, so that what only a server's first request costs is left out. Ends
with one line of JSON.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from result_rows import result_rows
from served import serving


def first_token(url: str, ids: list[int]) -> tuple[float, list[int], int]:
    """Seconds to the first token, the log-probabilities of the reply, and the prompt tokens found in the cache."""
    body: dict[str, Any] = {"prompt": ids, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "stream": True}
    body |= {"stream_options": {"include_usage": True}, "logprobs": 0}
    began, first, logprobs, cached = time.monotonic(), 0.0, [], 0
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=3600) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            piece = json.loads(line[6:])
            if piece.get("choices") and piece["choices"][0].get("logprobs"):
                first = first or time.monotonic() - began
                logprobs += piece["choices"][0]["logprobs"]["token_logprobs"]
            if piece.get("usage"):
                cached = piece["usage"]["prompt_tokens_details"]["cached_tokens"]
    return first, logprobs, cached


def one_round(options: argparse.Namespace, seed: int) -> dict[str, float]:
    draw = random.Random(seed)
    ids = [draw.randrange(100, 5000) for _ in range(options.tokens)]
    folder = Path(tempfile.mkdtemp(dir=options.work))
    more = ["--batch", "2", "--context", str(options.tokens + 256), "--disk-cache", "8GiB"]
    more += ["--disk-cache-folder", str(folder)] + (["--memory", options.memory] if options.memory else [])
    found = []
    try:
        for _ in range(2):
            with serving(str(options.model), more) as (url, _):
                first_token(url, ids[-40:])
                found.append(first_token(url, ids))
    finally:
        shutil.rmtree(folder)
    (computed, expected, none), (again, repeated, cached) = found
    if expected != repeated or none or cached < options.tokens - 64:
        raise SystemExit(f"{cached} tokens came back, {none} at first, and the replies are {expected} and {repeated}.")
    return {"computed_seconds": computed, "again_seconds": again, "cached_tokens": cached, "ratio": computed / again}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--memory")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where the pages are kept (default: the temporary folder)")
    options = parser.parse_args()
    rounds = []
    for seed in range(options.rounds):
        rounds.append(one_round(options, seed))
        print(rounds[-1], file=sys.stderr, flush=True)
    about = f"*{options.model.name}*, prompt of {options.tokens}: "
    figures = {about + name.replace("_", " "): [found[name] for found in rounds] for name in rounds[0]}
    print(json.dumps({"rounds": rounds, "rows": result_rows(figures)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
