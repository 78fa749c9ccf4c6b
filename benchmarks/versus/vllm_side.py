"""vLLM on the CPU as a worker, in one process, in the setting that the request names.

Request, in addition to the measurement's: model (a bf16 copy of it, by write_bf16.py), threads, latent (keep
latents and use vLLM's MLA; otherwise heads are expanded and cached, which vLLM's CPU kernels do faster), zen (let vLLM
use AMD's zentorch), eager (no compilation), batch (sequences at once, for `decode`). Contexts are true prompts. A
prompt's time ends with its first token, so it includes one row of the head. See worker.py.

vLLM 0.32's own rotary embedding for CPUs, which it uses where nothing is compiled, leaves queries of three dimensions
wrong, as DeepSeek-V3's are: every position but the first is then another model's. The compiled one is used instead.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from worker import prompt, serve

GIB = 1 << 30


def apart():
    """Sends what the library prints from C++ to standard error, where it can't follow the answer."""
    answers = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(answers, "w")


def cache_gib(config, latent, tokens):
    """Whole GiB in which the keys and values of that many tokens fit, and one more."""
    heads, widest = config["num_attention_heads"], 256  # a head's 192 values, padded
    numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"] if latent else 2 * heads * widest
    return 1 + -(-tokens * config["num_hidden_layers"] * numbers * 2 // GIB)


def engine(request, room, batch=1):
    """vLLM with room for `batch` sequences of `room` tokens. It reads its environment when imported."""
    config = json.loads((Path(request["model"]) / "config.json").read_text())
    cores = sorted(os.sched_getaffinity(0))[: request["threads"]]
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": str(cache_gib(config, request["latent"], batch * room)),
        "VLLM_MLA_DISABLE": "0" if request["latent"] else "1",
    }
    if not request["zen"]:
        sys.modules["zentorch"] = None  # as if it were not installed
    from vllm import LLM

    operations = {"compilation_config": {"custom_ops": ["all", "-rotary_embedding"]}} if request["eager"] else {}
    return LLM(
        model=request["model"], skip_tokenizer_init=True, dtype="bfloat16", max_model_len=room, max_num_seqs=batch,
        enable_prefix_caching=False, enforce_eager=request["eager"], seed=0, **operations,
    )  # fmt: skip


def vocabulary(request):
    return json.loads((Path(request["model"]) / "config.json").read_text())["vocab_size"]


def generated(llm, prompts, count):
    """Seconds of every step of the engine until each prompt has `count` greedy tokens, and the first's tokens."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    for number, ids in enumerate(prompts):
        llm.llm_engine.add_request(f"{time.monotonic_ns()}-{number}", {"prompt_token_ids": ids}, params)
    seconds, tokens = [], {}
    while llm.llm_engine.has_unfinished_requests():
        began = time.perf_counter()
        for output in llm.llm_engine.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)
        seconds.append(time.perf_counter() - began)
    assert sorted(map(len, tokens.values())) == [count] * len(prompts), "vLLM ended a sequence early."
    return seconds, tokens[min(tokens)]


def decode(request):
    context, warm, batch = request.get("context", 0) or 16, request.get("warm", 4), request.get("batch", 1)
    count, vocab, touch = warm + request["tokens"] + 1, vocabulary(request), request.get("touch", 0)
    began = time.perf_counter()
    llm = engine(request, max(context, touch) + count + 16, batch)
    load_seconds = time.perf_counter() - began
    if touch:
        generated(llm, [prompt(touch, vocab, 1)], 1)
    seconds, _ = generated(llm, [prompt(context, vocab, row) for row in range(batch)], count)
    return {"seconds": seconds[-request["tokens"] :], "prompt_seconds": seconds[0], "load_seconds": load_seconds}


def whole_prompt(request):
    tokens, vocab = request["tokens"], vocabulary(request)
    began = time.perf_counter()
    llm = engine(request, tokens + 16)
    load_seconds = time.perf_counter() - began
    if not request.get("cold"):
        generated(llm, [prompt(min(tokens, request.get("touch", 512)), vocab, 1)], 1)
    ids = prompt(tokens, vocab, request.get("seed", 0))
    seconds = [sum(generated(llm, [ids], 1)[0]) for _ in range(request.get("repeats", 1))]
    return {"seconds": seconds, "load_seconds": load_seconds}


def logits(request):
    """The hidden states after the final norm are taken on their way, and vLLM's own head applied to all of them."""
    tokens, steps = request["tokens"], request.get("steps", 16)
    llm = engine({**request, "eager": True}, tokens + steps + 16)
    ids, kept = prompt(tokens, vocabulary(request), request.get("seed", 0)), []

    def keep(module, inputs, output):
        kept.append((output[0] if isinstance(output, tuple) else output).clone())

    llm.apply_model(lambda model: model.model.norm.register_forward_hook(keep) and None)
    _, greedy = generated(llm, [ids], steps)
    found = llm.apply_model(lambda model: model.compute_logits(kept[0][:tokens]))[0]
    np.save(request["out"], found.float().numpy())
    return {"seconds": [1.0], "greedy": greedy}


if __name__ == "__main__":
    apart()
    serve({"decode": decode, "prompt": whole_prompt, "logits": logits})
