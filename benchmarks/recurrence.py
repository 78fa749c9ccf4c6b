"""Kimi Delta Attention's recurrence against the memory and the vector unit, measured in the same run.

    python benchmarks/recurrence.py [--short]

Kimi-Linear's heads: 32 of 128 values, a state of 2 MiB per layer. A decode step reads and writes the states of 20
layers; a prompt's token takes 7 multiplications and additions for each value of the state (decay, product with the key,
update, result). Convolutions, norms and decays come on top and are not counted. One thread, by its processor time, so
that it can be measured while other work runs.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from limits import update_rate, vector_peak
from result_rows import result_rows
from torch import Tensor

from earthshine.kernels import RecurrentTokens, kda, library, set_threads

HEADS, DIM, KERNEL, LAYERS = 32, 128, 4, 20
WIDTH = HEADS * DIM
WEIGHTS = {
    "conv": torch.randn(3 * WIDTH, KERNEL),
    "a_log": torch.randn(HEADS),
    "dt_bias": torch.randn(WIDTH),
}


def inputs(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """qkv, gate and beta."""
    qkv, gate, beta = (torch.randn(tokens, width).bfloat16() for width in (3 * WIDTH, WIDTH, HEADS))
    return qkv, gate, beta


def calls(tokens: int, layers: int) -> tuple[Callable[[], object], Tensor]:
    """One pass over the states of `layers` layers, and the memory that holds them."""
    states = torch.randn(layers, HEADS, DIM, DIM)
    kept = [RecurrentTokens(tokens, state, torch.zeros(KERNEL - 1, 3 * WIDTH).bfloat16()) for state in states]
    given = inputs(tokens)
    return lambda: [kda(*given, [one], **WEIGHTS) for one in kept], states


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Processor time of the calling thread, which does all of the work."""
    work()
    found = []
    for _ in range(repeats):
        began = time.thread_time()
        work()
        found.append(time.thread_time() - began)
    return found


def rows(repeats: int) -> dict[str, list[float]]:
    """Each figure's values, with the limits taken right before and after; the better limit counts."""
    set_threads(1)
    decode, states = calls(1, LAYERS)
    before = update_rate(states), vector_peak()
    took = seconds(decode, repeats)
    prompt = seconds(calls(2048, 1)[0], max(3, repeats // 3))
    memory, peak = (max(pair) for pair in zip(before, (update_rate(states), vector_peak()), strict=True))
    rate = [2 * states.nbytes / value for value in took]
    flops = [7.0 * 2048 * states[0].numel() / value for value in prompt]
    return {
        "decode (us per layer)": [1e6 * value / LAYERS for value in took],
        "decode (of the memory's rate of updates)": [value / memory for value in rate],
        "prompt of 2048 (ms per layer)": [1e3 * value for value in prompt],
        "prompt of 2048 (of the vector unit's peak)": [value / peak for value in flops],
        "memory (GB/s of updates)": [memory / 1e9],
        "vector unit (GFLOP/s)": [peak / 1e9],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="five repeats instead of thirty")
    repeats = 5 if parser.parse_args().short else 30
    found = rows(repeats)
    for name, values in found.items():
        print(f"{name:64} {statistics.median(values):10.2f}   {min(values):.2f} to {max(values):.2f}")
    print(json.dumps({"instruction_set": library.instruction_set(), "rows": result_rows(found)}))


if __name__ == "__main__":
    main()
