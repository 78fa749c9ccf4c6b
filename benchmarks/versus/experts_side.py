"""Earthshine's routed experts alone as a worker: `kernels.moe_ffn` and `moe_sum` on random experts (random_experts.py).

Request: experts, tokens, repeats, threads, out (a file for the first call's output, or none).
"""

import numpy as np
import torch
from random_experts import HIDDEN, TOP_K, experts, timed_calls
from worker import serve

from earthshine import kernels

MOST_PAIRS = 4096  # whose fp32 outputs exist at once, as in ExpertStore


def ffn(request: dict) -> dict:
    kernels.set_threads(request["threads"])
    n_experts, drawn = request["experts"], experts(request["experts"])
    parts = {name: [kernels.int4_matrix(*pair) for pair in zip(*pairs, strict=True)] for name, pairs in drawn.items()}
    held = [kernels.Expert(parts["gate"][e], parts["up"][e], parts["down"][e]) for e in range(n_experts)]

    def compute(x: torch.Tensor, chosen: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(x.shape)
        flat = chosen.numpy().reshape(-1)
        order = np.argsort(flat, kind="stable")
        token = torch.from_numpy((order // TOP_K).astype(np.int32))
        share = torch.from_numpy(weight.numpy().reshape(-1)[order])
        counts = np.bincount(flat, minlength=n_experts)
        ends = np.cumsum(counts)
        each = torch.empty(min(MOST_PAIRS, len(flat)) + int(counts.max()), HIDDEN)
        at = 0
        while at < n_experts:
            done = int(ends[at - 1]) if at else 0
            last = max(at + 1, int(np.searchsorted(ends, done + MOST_PAIRS, side="right")))
            run = [e for e in range(at, last) if counts[e]]
            begin = [0, *(int(ends[e]) - done for e in run)]
            pairs, rows = slice(done, done + begin[-1]), each[: begin[-1]]
            kernels.moe_ffn(x, [held[e] for e in run], token[pairs], begin, rows)
            kernels.moe_sum(rows, token[pairs], share[pairs], total)
            at = last
        return total.to(x.dtype)

    return timed_calls(compute, request)


if __name__ == "__main__":
    serve({"experts": ffn})
