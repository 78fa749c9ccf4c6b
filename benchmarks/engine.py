"""The engine against the limits of the machine: one measurement per call, each in its own process.

    python benchmarks/engine.py WHAT MODEL [--memory SIZE] [--tokens N] [--context N] [--threads N] [--trunk KIND]

WHAT is decode, cold, streamed, prompt or kernels (which takes no model). The last line printed is one JSON document
with the medians, their spread, the limits measured in the same run, the peak of resident memory over the budget, and
the rows for `python tools/results.py add docs/results/engine.json`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from limits import Disk, matrix_peak, read_rate
from result_rows import result_row
from torch import Tensor

from earthshine import kernels
from earthshine.engine import LoadedModel, SamplingParams, Session, load_model
from earthshine.engine.experts import RoutedExperts
from earthshine.kv import PagePool
from earthshine.machine import memory_peak
from earthshine.plan import PlanArgs
from earthshine.spec import load_spec
from earthshine.spec.attention import Rows
from earthshine.spec.layout import moe_layers
from earthshine.storage import Storage
from earthshine.units import parse_bytes
from earthshine.weights import Checkpoint

GROUPS, STEPS = 2, 16  # of decoding where experts stream: rounds A B B A, and tokens of each
DISK_READS, DISK_DEPTH = 96, 4


class Timed:
    """Wraps `models`' Experts: counts the seconds spent in them and the experts that were chosen."""

    def __init__(self, experts: RoutedExperts) -> None:
        self._experts = experts
        self.seconds = 0.0
        self.chosen: set[tuple[int, int]] = set()

    def ffn(self, layer: int, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        began = time.perf_counter()
        out = self._experts.ffn(layer, x, chosen, weight)
        self.seconds += time.perf_counter() - began
        self.chosen |= {(layer, expert) for expert in torch.unique(chosen).tolist()}
        return out


def checkpoint_of(arguments: argparse.Namespace) -> Checkpoint:
    return Checkpoint.open(arguments.model, load_spec(arguments.model))


def experts_on_disk(checkpoint: Checkpoint) -> Disk:
    """The disk, read by blocks of an expert at the places of experts."""
    every = [
        checkpoint.expert_extents(layer, expert).ranges[0]
        for layer, moe in moe_layers(checkpoint.spec)
        for expert in range(moe.n_experts)
    ]
    return Disk([(span.file, span.offset) for span in every], every[0].nbytes)


def open_model(arguments: argparse.Namespace, n_sessions: int = 1) -> LoadedModel:
    memory = None if arguments.memory is None else parse_bytes(arguments.memory)
    args = PlanArgs(memory, arguments.context, n_sessions, arguments.threads, arguments.trunk)
    return load_model(arguments.model, args)


def timed_experts(model: LoadedModel) -> Timed:
    """Puts a Timed around the model's experts; a layer with all of them in memory then takes several native calls."""
    timed = Timed(model.experts)
    model.decoder._experts = timed
    return timed


def prompt(n_tokens: int, seed: int = 0) -> list[int]:
    return torch.randint(5, 2000, (n_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def steps(session: Session, count: int) -> list[float]:
    """Seconds of each of `count` greedy tokens, that is, of each decode step."""
    greedy = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    seconds, last = [], time.perf_counter()
    for _ in session.generate(greedy):
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
    return seconds[:count]


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def decode(arguments: argparse.Namespace) -> dict[str, Any]:
    """Bytes touched per second while decoding, over memory's own read rate, which is measured before and after each
    round of 8 tokens; with `--tokens N` also the rate after N tokens over the rate after 16, alternating A B B A.
    """
    model = open_model(arguments, 2 if arguments.tokens else 1)
    bare = model.session(256)
    bare.sync(prompt(16))
    long = model.session(arguments.tokens + 256) if arguments.tokens else bare
    if arguments.tokens:
        fill(long, arguments.tokens)
    for session in (bare, long):
        steps(session, 4)
    seconds: dict[str, list[float]] = {"bare": [], "long": []}
    checkpoint = checkpoint_of(arguments)
    nbytes, share = touched(checkpoint), routed(checkpoint) / touched(checkpoint)
    ratios, memory = [], [memory_rate(model, share, arguments.threads)]
    for order in ("bare", "long"), ("long", "bare"), ("bare", "long"), ("long", "bare"):
        for which in order:
            taken = statistics.median(steps(bare if which == "bare" else long, 9)[1:])
            seconds[which].append(taken)
            memory.append(memory_rate(model, share, arguments.threads))
            if which == "bare":
                ratios.append(2 * nbytes / taken / (memory[-2] + memory[-1]))
    result: dict[str, Any] = {"bytes": nbytes, "ratio": spread(ratios), "memory": spread(memory)}
    result |= {f"seconds, {which}": spread(values) for which, values in seconds.items()}
    result["at context over bare"] = statistics.median(seconds["bare"]) / statistics.median(seconds["long"])
    return result


def memory_rate(model: LoadedModel, share: float, n_threads: int) -> float:
    """Bytes per second at which memory gives what a token reads: the trunk (by its head) and the expert slots, which
    are `share` of its bytes."""
    slots = model.experts.store._arena._bytes[: 2 << 30]
    with model.decoder.trunk.head() as head:
        assert isinstance(head, Tensor)
        return 1 / (share / read_rate(n_threads, slots) + (1 - share) / read_rate(n_threads, head))


def touched(checkpoint: Checkpoint) -> int:
    """Bytes of weights that one token reads: the trunk without the embedding, and its experts."""
    spec = checkpoint.spec
    return checkpoint.coverage().nbytes("trunk") - 2 * spec.vocab_size * spec.hidden + routed(checkpoint)


def routed(checkpoint: Checkpoint) -> int:
    """Bytes of the routed experts of one token."""
    return sum(moe.top_k * checkpoint.expert_extents(layer, 0).nbytes for layer, moe in moe_layers(checkpoint.spec))


def fill(session: Session, n_tokens: int) -> None:
    """Fills the session's cache with random rows and states, which decode at the speed of true ones."""
    page_table = session._page_table
    page_table.release()
    page_table.fill(n_tokens, random_copies(page_table.pool, n_tokens))
    session._tokens = prompt(n_tokens)
    session._last = None


def random_copies(pool: PagePool, n_tokens: int) -> Iterator[Tensor]:
    """What `PageTable.copies` gives of a conversation of `n_tokens`, a part at a time."""
    for part in chain.from_iterable(pool.kept):
        if isinstance(part, Rows):
            yield torch.randn(n_tokens, part.width).to(pool.dtype)
        else:
            yield torch.randn(part.size).to(torch.float32 if part.fp32 else pool.dtype)


def cold(arguments: argparse.Namespace) -> dict[str, Any]:
    """Bytes per second from disk while a token's experts are read, starting from empty slots, over the disk's own rate.

    The disk is read before and after every token in the same pattern: as many experts, as often, after equal pauses.
    """
    model = open_model(arguments)
    timed = timed_experts(model)
    disk = experts_on_disk(checkpoint_of(arguments))
    session = model.session()
    # Another token each time: a virtual disk answers faster what it has read before, so neither side may read it again.
    session.sync(prompt(1, time.time_ns()))
    steps(session, 1)  # the prompt itself has given the first token
    layers = sum(1 for _ in moe_layers(model.spec))
    rates, walls, own, pause = [], [], [disk.rate(layers, 7, 0.02)], 0.02
    for _ in range(arguments.tokens or 12):
        before, waited = model.experts.stats, timed.seconds
        walls.append(steps(session, 1)[0])
        after, inside = model.experts.stats, timed.seconds - waited
        rates.append((after.bytes_read - before.bytes_read) / inside)
        pause = (walls[-1] - inside) / layers
        own.append(disk.rate(layers, max(1, (after.misses - before.misses) // layers), pause))
    ratios = [2 * rate / (a + b) for rate, a, b in zip(rates, own[:-1], own[1:], strict=True)]
    stats = model.experts.stats
    found = {"ratio": spread(ratios), "rate": spread(rates), "disk": spread(own), "seconds": spread(walls)}
    return found | {"hits": stats.hits, "misses": stats.misses}


def streamed(arguments: argparse.Namespace) -> dict[str, Any]:
    """A prompt of `--tokens` (2,048) and decoding after it where experts stream: tokens per second, bytes read per
    token and per second, and that over the disk's own rate for blocks of an expert, in turns A B B A with it."""
    model = open_model(arguments)
    disk = experts_on_disk(checkpoint_of(arguments))
    session = model.session()
    began, before, first = time.perf_counter(), model.experts.stats, read_bytes(model)
    session.sync(prompt(arguments.tokens or 2048))
    found: dict[str, Any] = {"seconds, prompt": spread([time.perf_counter() - began])}
    found["seconds, prompt, waiting for reads"] = spread(
        [model.experts.stats.read_wait_seconds - before.read_wait_seconds]
    )
    found["bytes, prompt"] = spread([read_bytes(model) - first])
    steps(session, STEPS)  # after which slots hold what they will
    before, own, ratios = model.experts.stats, [], []
    rounds: list[tuple[float, int, float]] = []  # seconds, bytes read, seconds of processor time
    for _ in range(GROUPS):
        beside = [disk.rate(1, DISK_READS, 0.0, DISK_DEPTH)]
        for _ in range(2):
            at, used = read_bytes(model), time.process_time()
            rounds.append((sum(steps(session, STEPS)), read_bytes(model) - at, time.process_time() - used))
        beside.append(disk.rate(1, DISK_READS, 0.0, DISK_DEPTH))
        ratios += [nbytes / seconds / statistics.mean(beside) for seconds, nbytes, _ in rounds[-2:]]
        own += beside
    hits, misses = model.experts.stats.hits - before.hits, model.experts.stats.misses - before.misses
    found["tokens per second"] = spread([STEPS / seconds for seconds, _, _ in rounds])
    found["processor seconds per token"] = spread([used / STEPS for _, _, used in rounds])
    found["bytes per token"] = spread([nbytes / STEPS for _, nbytes, _ in rounds])
    found["bytes per second"] = spread([nbytes / seconds for seconds, nbytes, _ in rounds])
    found |= {"bytes per second, disk": spread(own), "bytes per second over the disk's": spread(ratios)}
    return found | {"found in memory": spread([hits / max(1, hits + misses)])}


def read_bytes(model: LoadedModel) -> int:
    """From disk so far."""
    nbytes: int = model.experts.stats.bytes_read + model.decoder.trunk.bytes_streamed  # type: ignore[attr-defined]
    return nbytes


def whole_prompt(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a prompt, and bytes read over those of the experts it uses, each once."""
    model = open_model(arguments)
    timed = timed_experts(model)
    session = model.session()
    began = time.perf_counter()
    session.sync(prompt(arguments.tokens or 2048))
    seconds = time.perf_counter() - began
    checkpoint = checkpoint_of(arguments)
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
        return kernels.Matrix(Storage.INT4_GROUP32, rows, columns, codes, kernels.raw_bytes(scales))

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


WHAT = {"decode": decode, "cold": cold, "streamed": streamed, "prompt": whole_prompt, "kernels": kernel_rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--memory")
    parser.add_argument("--tokens", type=int, default=0)
    parser.add_argument("--context", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trunk", default="bf16")
    arguments = parser.parse_args()
    before = matrix_peak(arguments.threads)
    result = WHAT[arguments.what](arguments)
    peak = memory_peak()
    result["peak"] = peak
    if arguments.memory:
        result["peak_over_budget"] = peak / parse_bytes(arguments.memory)
    result["matrix_peak"] = [before, matrix_peak(arguments.threads)]
    print(json.dumps({"what": arguments.what, **result, "rows": rows(arguments, result)}))


def rows(arguments: argparse.Namespace, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Every figure with a spread, and the peak over the budget, as rows of docs/results/engine.json."""
    about = f"*{arguments.model.name}*, {arguments.what}" if arguments.model else arguments.what
    found = [
        result_row(f"{about}: {name}", value["median"], value["least"], value["most"])
        for name, value in result.items()
        if isinstance(value, dict)
    ]
    single = {name: value for name, value in result.items() if name in ("seconds", "ratio", "peak_over_budget")}
    return found + [
        result_row(f"{about}: {name}", value, value, value)
        for name, value in single.items()
        if isinstance(value, float)
    ]


if __name__ == "__main__":
    main()
