"""The engine against the limits of the machine: one measurement a call, each in a process of its own.

    python benchmarks/engine.py WHAT MODEL [--memory SIZE] [--tokens N] [--context N] [--threads N]

WHAT is decode, cold, prompt or kernels (which takes no model). The last line printed is one JSON document with the
medians, their spread, the limits measured in the same run, and the peak of resident memory over the budget.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from limits import Disk, processor_limits
from torch import Tensor

from earthshine import kernels
from earthshine.engine import LoadedModel, LoadOptions, SamplingParams, Session, load_model
from earthshine.spec.layout import moe_layers
from earthshine.units import parse_bytes
from earthshine.weights import ExpertStore


class Timed:
    """`models`' Experts around a store: seconds spent in it, and the experts it was asked for."""

    def __init__(self, store: ExpertStore) -> None:
        self._store = store
        self.seconds = 0.0
        self.chosen: set[tuple[int, int]] = set()

    def ffn(self, layer: int, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        began = time.perf_counter()
        out = self._store.ffn(layer, x, chosen, weight)
        self.seconds += time.perf_counter() - began
        self.chosen |= {(layer, expert) for expert in torch.unique(chosen).tolist()}
        return out


def open_model(arguments: argparse.Namespace) -> tuple[LoadedModel, Timed]:
    memory = None if arguments.memory is None else parse_bytes(arguments.memory)
    model = load_model(arguments.model, LoadOptions(torch.bfloat16, memory, arguments.context, arguments.threads))
    timed = Timed(model.experts)
    model.decoder._experts = timed
    return model, timed


def prompt(n_tokens: int) -> list[int]:
    return torch.randint(5, 2000, (n_tokens,), generator=torch.Generator().manual_seed(0)).tolist()


def steps(session: Session, count: int) -> list[float]:
    """Seconds of each of `count` greedy tokens."""
    greedy = SamplingParams(max_tokens=count, ignore_stop=True)
    seconds, last = [], time.perf_counter()
    for _ in session.generate(greedy):
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
    return seconds[:count]


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def decode(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds a token after prompts of 16 tokens and of `--tokens`, and bytes touched a second."""
    model, _ = open_model(arguments)
    session = model.session()
    session.sync(prompt(16))
    steps(session, 3)
    bare = steps(session, 24)
    result: dict[str, Any] = {"seconds": spread(bare), "bytes": touched(model)}
    if arguments.tokens:
        fill(session, arguments.tokens)
        steps(session, 3)
        result["seconds_at_context"] = spread(steps(session, 24))
        session.sync(prompt(16))
        steps(session, 3)
        result["seconds_again"] = spread(steps(session, 24))
    return result


def fill(session: Session, n_tokens: int) -> None:
    """Lets the session hold a conversation of random latents, which decode at the speed of true ones."""
    session.sync(prompt(1))
    timeline = session._timeline
    timeline.reserve(n_tokens)
    for layer in range(timeline.pool.n_layers):
        timeline.write(layer, 1, torch.randn(n_tokens - 1, timeline.pool.latent_dim).to(timeline.pool.dtype))
    timeline.commit(n_tokens)
    session._tokens = prompt(n_tokens)
    session._last = None


def touched(model: LoadedModel) -> int:
    """Bytes of weights that one token reads: the trunk without the embedding, and its experts."""
    store, spec = model.experts, model.spec
    checkpoint = store._checkpoint
    trunk = sum(share.nbytes for share in checkpoint.coverage().shares if share.kind == "trunk")
    trunk -= 2 * spec.vocab_size * spec.hidden
    return trunk + sum(moe.top_k * checkpoint.expert_extents(layer, 0).nbytes for layer, moe in moe_layers(spec))


def cold(arguments: argparse.Namespace) -> dict[str, Any]:
    """Bytes a second from disk while a token's experts are wanted, from empty slots on, over the disk's own rate.

    The disk is measured before and after every token, since both change from one second to the next.
    """
    model, timed = open_model(arguments)
    layer = next(layer for layer, _ in moe_layers(model.spec))
    extents = model.experts._checkpoint.expert_extents(layer, 0)
    disk = Disk(extents.ranges[0].file, extents.nbytes)
    session = model.session()
    session.sync(prompt(1))
    steps(session, 1)  # the prompt itself has given the first token
    rates, walls, own = [], [], [disk.rate()]
    for _ in range(arguments.tokens or 12):
        before, waited = model.experts.stats.bytes_read, timed.seconds
        walls.append(steps(session, 1)[0])
        rates.append((model.experts.stats.bytes_read - before) / (timed.seconds - waited))
        own.append(disk.rate())
    ratios = [2 * rate / (a + b) for rate, a, b in zip(rates, own[:-1], own[1:], strict=True)]
    stats = model.experts.stats
    found = {"ratio": spread(ratios), "rate": spread(rates), "disk": spread(own), "seconds": spread(walls)}
    return found | {"hits": stats.hits, "misses": stats.misses}


def whole_prompt(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a prompt, and bytes read over those of the experts it uses, each once."""
    model, timed = open_model(arguments)
    session = model.session()
    began = time.perf_counter()
    session.sync(prompt(arguments.tokens or 2048))
    seconds = time.perf_counter() - began
    checkpoint = model.experts._checkpoint
    needed = sum(checkpoint.expert_extents(layer, expert).nbytes for layer, expert in timed.chosen)
    read = model.experts.stats.bytes_read
    return {"seconds": seconds, "bytes_read": read, "bytes_needed": needed, "ratio": read / needed}


def kernel_rates(arguments: argparse.Namespace) -> dict[str, Any]:
    """FLOP/s of 64 experts of Kimi-K2.6's shape on 2,048 tokens, top 8."""
    kernels.set_threads(arguments.threads)
    hidden, inner, tokens, n_experts, top_k = 7168, 2048, 2048, 64, 8

    def matrix(rows: int, columns: int) -> kernels.Matrix:
        codes = torch.randint(0, 256, (rows * columns // 2,), dtype=torch.uint8)
        scales = torch.full((rows, columns // 32), 0.01).bfloat16()
        return kernels.Matrix(kernels.Format.INT4_GROUP32, rows, columns, codes, kernels.raw_bytes(scales))

    experts = [
        kernels.Expert(matrix(inner, hidden), matrix(inner, hidden), matrix(hidden, inner)) for _ in range(n_experts)
    ]
    x = torch.randn(tokens, hidden).bfloat16()
    chosen = torch.stack([torch.randperm(n_experts)[:top_k] for _ in range(tokens)])
    order = chosen.flatten().argsort(stable=True)
    token = (order // top_k).int()
    begin = [0, *torch.bincount(chosen.flatten(), minlength=n_experts).cumsum(0).tolist()]
    each = torch.empty(tokens * top_k // 8, hidden)
    rates = []
    for _ in range(5):
        began, pairs = time.perf_counter(), 0
        for first in range(0, n_experts, 8):  # as a prompt is computed: a few experts at a time
            part = begin[first : first + 9]
            n = part[-1] - part[0]
            room = each if n <= len(each) else torch.empty(n, hidden)
            own = token[part[0] : part[-1]].contiguous()
            kernels.moe_ffn(x, experts[first : first + 8], own, [b - part[0] for b in part], room[:n])
            pairs += n
        rates.append(pairs * 6 * hidden * inner / (time.perf_counter() - began))
    return {"flops": spread(rates)}


WHAT = {"decode": decode, "cold": cold, "prompt": whole_prompt, "kernels": kernel_rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--memory")
    parser.add_argument("--tokens", type=int, default=0)
    parser.add_argument("--context", type=int)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    build = Path(tempfile.gettempdir()) / "earthshine-limits"
    before = processor_limits(arguments.threads, build)
    result = WHAT[arguments.what](arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result["peak"] = peak
    if arguments.memory:
        result["peak_over_budget"] = peak / parse_bytes(arguments.memory)
    result["limits"] = [before, processor_limits(arguments.threads, build)]
    print(json.dumps({"what": arguments.what, **result}))


if __name__ == "__main__":
    main()
