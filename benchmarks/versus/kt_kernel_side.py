"""kt-kernel's routed experts as a worker: its RAWINT4 path on random experts (random_experts.py), published codes as
they lie.

Request: experts, tokens, repeats, threads, backend (a class of kt_kernel_ext.moe), out (a file for the first call's
output, or none). kt-kernel copies the codes, widens scales to fp32 and rounds activations to int8 in groups of 32.
"""

import os
import sys

import kt_kernel
import torch
from kt_kernel import kt_kernel_ext
from random_experts import GROUP, HIDDEN, INTERMEDIATE, TOP_K, experts, timed_calls
from worker import serve


def apart():
    """Sends what the library prints from C++ to standard error, where it can't follow the answer."""
    answers = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(answers, "w")


def pool(threads):
    """kt-kernel's workers, all on the first memory node."""
    config = kt_kernel_ext.WorkerPoolConfig()
    config.subpool_count, config.subpool_numa_map, config.subpool_thread_count = 1, [0], [threads]
    return kt_kernel_ext.CPUInfer(config)


def loaded(request, cpu):
    """The layer with its experts in memory of its own."""
    n_experts, drawn = request["experts"], experts(request["experts"])
    config = kt_kernel_ext.moe.MOEConfig(n_experts, TOP_K, HIDDEN, INTERMEDIATE, 0)
    config.max_len, config.pool = max(request["tokens"], 1024), cpu.backend_
    config.quant_config.bits, config.quant_config.group_size, config.quant_config.zero_point = 4, GROUP, False
    for name, (codes, scales) in drawn.items():
        setattr(config, f"{name}_projs", [[matrix.data_ptr() for matrix in codes]])
        setattr(config, f"{name}_scales", [[matrix.data_ptr() for matrix in scales]])
    layer = getattr(kt_kernel_ext.moe, request["backend"])(config)
    every = torch.arange(n_experts)
    cpu.submit(layer.load_weights_task(every.data_ptr()))
    cpu.sync()
    return layer


def ffn(request):
    torch.set_num_threads(1)
    cpu = pool(request["threads"])
    layer = loaded(request, cpu)

    def compute(x, chosen, weight):
        out, length = torch.empty_like(x), torch.tensor([len(x)])
        pointers = (tensor.data_ptr() for tensor in (chosen, weight, x, out))
        cpu.submit(layer.forward_task(length.data_ptr(), TOP_K, *pointers, False))
        cpu.sync()
        return out

    return {**timed_calls(compute, request), "variant": kt_kernel.__cpu_variant__}


if __name__ == "__main__":
    apart()
    serve({"experts": ffn})
