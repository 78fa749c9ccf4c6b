"""Random experts of Kimi-K2.6's shape and random calls of them, from a seed: the same codes and scales in every Python.

Needs numpy and torch alone, so that both sides of a comparison can import it. All sixteen codes are equally likely.
Each call chooses other experts, so that few of them are in the processor's caches.
"""

import time

import numpy as np
import torch

HIDDEN, INTERMEDIATE, TOP_K, GROUP = 7168, 2048, 8, 32
SHAPES = {"gate": (INTERMEDIATE, HIDDEN), "up": (INTERMEDIATE, HIDDEN), "down": (HIDDEN, INTERMEDIATE)}


def experts(n_experts, seed=0):
    """Of gate, up and down: published codes, int32 [experts, out, in / 8], and bf16 scales [experts, out, in / 32]."""
    draw, found = torch.Generator().manual_seed(seed), {}
    for name, (rows, columns) in SHAPES.items():
        codes = torch.empty(n_experts, rows, columns // 8, dtype=torch.int32)
        codes.view(torch.uint8).random_(0, 256, generator=draw)
        scales = torch.rand(n_experts, rows, columns // GROUP, generator=draw).mul_(0.002).add_(0.001).bfloat16()
        found[name] = codes, scales
    return found


def call(n_experts, tokens, seed):
    """x, bf16 [tokens, hidden]; chosen, int64 [tokens, top_k], none twice; weight, fp32, rows adding up to 1."""
    draw = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(tokens, HIDDEN, generator=draw).bfloat16()
    chosen = torch.rand(tokens, n_experts, generator=draw).argsort(-1)[:, :TOP_K].contiguous()
    weight = torch.rand(tokens, TOP_K, generator=draw)
    return x, chosen, weight / weight.sum(-1, keepdim=True)


def timed_calls(compute, request):
    """`compute(x, chosen, weight)` -> [tokens, hidden] on calls of their own: seconds of each after one untimed, and
    the first's output, fp32, into the file `out` where the request names one."""
    n_experts, tokens, seconds = request["experts"], request["tokens"], []
    for seed in range(request["repeats"] + 1):
        drawn = call(n_experts, tokens, seed)
        began = time.perf_counter()
        output = compute(*drawn)
        seconds.append(time.perf_counter() - began)
        if seed == 0 and request.get("out"):
            np.save(request["out"], output.float().numpy())
    return {"seconds": seconds[1:]}
