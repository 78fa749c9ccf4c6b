"""Replays recorded routing traces against the policy of the expert slots, plain LRU and Belady's optimum.

Prints hits in percent over the last 80% of each trace, per layer, one token per step. Belady's optimum shares one
pool among all layers and knows the future, so it bounds every policy. A trace is a file of JSON lines, each with
`layers`: the experts that one token chose in each layer. Run it from the repository's root:

    python tools/replay_routing.py TRACE.jsonl [TRACE.jsonl ...]
"""

import argparse
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np

from earthshine.weights.policy import LayerPolicy

SLOTS = (1, 2, 4, 6, 8, 12, 16, 32, 64)
HALF_LIFE = 8.0
Trace = np.ndarray  # int64 [steps, layers, top_k]


def read_trace(path: Path) -> Trace:
    with path.open(encoding="utf-8") as lines:
        return np.array([json.loads(line)["layers"] for line in lines], dtype=np.int64)


def counted(trace: Trace, hits: np.ndarray) -> float:
    """Percent of hits [steps] over the last 80% of the steps."""
    begin = len(trace) // 5
    return 100.0 * float(hits[begin:].sum()) / trace[begin:].size


def replay_lru(trace: Trace, n_slots: int) -> float:
    hits = np.zeros(len(trace))
    for layer in range(trace.shape[1]):
        held: OrderedDict[int, None] = OrderedDict()
        for step, used in enumerate(trace[:, layer].tolist()):
            for expert in used:
                hits[step] += expert in held
                held[expert] = None
                held.move_to_end(expert)
                if len(held) > n_slots:
                    held.popitem(last=False)
    return counted(trace, hits)


class DecayedFrequency:
    """The simple policy: uses decayed with a half-life of 8 steps, admission as in `LayerPolicy`."""

    def __init__(self, n_experts: int, top_k: int) -> None:
        self._score = np.zeros(n_experts)

    def step(self, experts: np.ndarray, share: np.ndarray) -> None:
        self._score *= 0.5 ** (1 / HALF_LIFE)
        self._score[experts] += share

    def kept(self, resident: np.ndarray, missed: np.ndarray, n_slots: int) -> np.ndarray:
        candidates = np.concatenate((resident, missed))
        return candidates[np.argsort(-self._score[candidates], kind="stable")[:n_slots]]


def replay_policy(trace: Trace, n_slots: int, kind: type[LayerPolicy] | type[DecayedFrequency]) -> float:
    n_experts, share = int(trace.max()) + 1, np.ones(trace.shape[2])
    hits = np.zeros(len(trace))
    for layer in range(trace.shape[1]):
        policy = kind(n_experts, trace.shape[2])
        resident = np.zeros(0, dtype=np.int64)
        for step, used in enumerate(trace[:, layer]):
            there = np.isin(used, resident)
            hits[step] += there.sum()
            policy.step(used, share)
            resident = policy.kept(resident, used[~there], n_slots)
    return counted(trace, hits)


def replay_belady(trace: Trace, n_slots: int) -> float:
    """One pool of n_slots times the layers; what is used soonest stays in it."""
    steps, layers, _ = trace.shape
    uses: dict[tuple[int, int], list[int]] = {}
    for step in range(steps - 1, -1, -1):
        for layer in range(layers):
            for expert in trace[step, layer].tolist():
                uses.setdefault((layer, expert), []).append(step * layers + layer)
    hits = np.zeros(steps)
    held: dict[tuple[int, int], int] = {}  # to the next use
    for step in range(steps):
        for layer in range(layers):
            for expert in trace[step, layer].tolist():
                key = layer, expert
                hits[step] += key in held
                uses[key].pop()
                held[key] = uses[key][-1] if uses[key] else steps * layers
            while len(held) > n_slots * layers:
                del held[max(held, key=held.__getitem__)]
    return counted(trace, hits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=Path)
    for path in parser.parse_args().traces:
        trace = read_trace(path)
        print(f"{path.name}: {trace.shape[0]} steps, {trace.shape[1]} layers, top {trace.shape[2]}")
        print("slots/layer    LRU  decayed  policy  Belady  policy/Belady  decayed/Belady")
        for n_slots in SLOTS:
            if n_slots > trace.max():
                continue
            best = replay_belady(trace, n_slots)
            lru = replay_lru(trace, n_slots)
            simple, ours = (replay_policy(trace, n_slots, kind) for kind in (DecayedFrequency, LayerPolicy))
            print(f"{n_slots:11d} {lru:6.1f} {simple:8.1f} {ours:7.1f} {best:7.1f} ", end="")
            print(f"{ours / best:14.3f} {simple / best:15.3f}")
        print()


if __name__ == "__main__":
    main()
