"""How long a running reply waits for its next token while another request's long prompt is computed.

    python benchmarks/stall.py MODEL --memory 12GiB --prompt 2048 --max-stall 1

Starts `earthshine serve` and one reply, sends two long prompts in its middle, one after the other, and reports the
times between the reply's tokens before and during the prompts, and the times of the prompts' first tokens beside the
reply and alone. From the first prompt the scheduler learns what a prefill pass costs. Ends with one line of JSON.
"""

import argparse
import json
import random
import statistics
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import httpx
from result_rows import result_rows
from served import serving


def arrivals(url: str, seed: int, prompt: int, tokens: int, found: list[float]) -> None:
    """Appends when the request was sent and when each token came."""
    draw = random.Random(seed)
    ids = [draw.randrange(100, 5000) for _ in range(prompt)]
    body = {"prompt": ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True, "logprobs": 0}
    found.append(time.monotonic())
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=3600) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {") and '"token_logprobs":[' in line:
                found.append(time.monotonic())


def measured(url: str, options: argparse.Namespace) -> dict[str, float]:
    arrivals(url, 0, 64, 4, [])
    alone: list[float] = []
    arrivals(url, 1, options.prompt, 1, alone)
    reply: list[float] = []
    writing = threading.Thread(target=arrivals, args=(url, 2, 64, options.tokens, reply))
    writing.start()
    while len(reply) < options.tokens // 8:
        time.sleep(0.01)
    times: list[list[float]] = [[] for _ in range(2)]
    for seed, beside in enumerate(times, 3):
        arrivals(url, seed, options.prompt, 1, beside)
        time.sleep(1)
    writing.join()
    gaps = [(begin, end - begin) for begin, end in pairwise(reply[1:])]
    before = [gap for begin, gap in gaps if begin + gap < times[0][0]]
    found = {"gap_alone_median": statistics.median(before), "prompt_alone_seconds": alone[1] - alone[0]}
    for name, (sent, first) in zip(("first", "second"), times, strict=True):
        during = [gap for begin, gap in gaps if sent <= begin <= first]
        if not during:
            raise SystemExit("the reply ended before the prompts were sent; give it more --tokens.")
        found |= {f"gap_beside_{name}_median": statistics.median(during), f"gap_beside_{name}_most": max(during)}
        found[f"{name}_prompt_seconds"] = first - sent
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--memory")
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=300, help="of the running reply (default 300)")
    parser.add_argument("--max-stall", type=float, default=1.0)
    options = parser.parse_args()
    more = ["--batch", "2", "--context", str(options.prompt + 1024), "--max-stall", str(options.max_stall)]
    with serving(str(options.model), more + (["--memory", options.memory] if options.memory else [])) as (url, _):
        found = measured(url, options)
    about = f"*{options.model.name}*, `--max-stall {options.max_stall:g}`, prompts of {options.prompt}: "
    rows = result_rows({f"{about}{name.replace('_', ' ')} (s)": [value] for name, value in found.items()})
    print(json.dumps({"max_stall": options.max_stall, **found, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
