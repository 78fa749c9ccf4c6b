"""transformers as a worker, on a bf16 copy of the checkpoint (tools/write_bf16.py), in the setting of the request.

Request, in addition to the measurement's: model (the copy), threads, attention (sdpa or eager), experts (transformers'
name of how a layer's experts are computed), cache (dynamic or static), dtype (bf16, or fp32 where logits are compared).
Contexts are filled with random latents in place of a prompt of that length: transformers keeps latents, and decodes
after random ones at the speed of true ones. See worker.py.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import time

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache
from worker import prompt, serve, timed

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Model:
    """A loaded model, and what every request does with it."""

    def __init__(self, request):
        torch.set_num_threads(request["threads"])
        began = time.perf_counter()
        self.model = AutoModelForCausalLM.from_pretrained(
            request["model"], dtype=DTYPES[request.get("dtype", "bf16")], attn_implementation=request["attention"],
            experts_implementation=request["experts"],
        ).eval()  # fmt: skip
        self.config, self.static = self.model.config, request["cache"] == "static"
        self.load_seconds = time.perf_counter() - began

    def cache(self, room):
        return StaticCache(config=self.config, max_cache_len=room) if self.static else DynamicCache(config=self.config)

    def prompt(self, n_tokens, seed=0):
        return torch.tensor([prompt(n_tokens, self.config.vocab_size, seed)])

    def run(self, ids, cache, keep=1):
        """Logits of the last `keep` positions (0: all), bf16 [keep, vocab], of ids [1, n] that follow what is held."""
        return self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits[0]

    def fill(self, cache, n_tokens):
        """Random latents of `n_tokens` in every layer, as `cache` holds those of a prompt."""
        sizes = self.config.kv_lora_rank, self.config.qk_rope_head_dim
        for layer in range(self.config.num_hidden_layers):
            cache.update(*(torch.randn(1, 1, n_tokens, size).to(self.model.dtype) for size in sizes), layer)

    def greedy(self, logits, cache, count):
        """`count` tokens from the logits before them, and seconds of each step; one step fewer than tokens."""
        tokens, seconds = [int(logits[-1].argmax())], []
        while len(tokens) < count:
            began = time.perf_counter()
            tokens.append(int(self.run(torch.tensor([tokens[-1:]]), cache)[-1].argmax()))
            seconds.append(time.perf_counter() - began)
        return tokens, seconds


def decode(request):
    loaded, warm, context = Model(request), request.get("warm", 4), request.get("context", 0)
    count = warm + request["tokens"] + 1
    if request.get("touch"):
        loaded.run(loaded.prompt(request["touch"], 1), loaded.cache(request["touch"]))
    cache = loaded.cache(max(context, 16) + count)
    if context:
        loaded.fill(cache, context - 1)
    logits = loaded.run(loaded.prompt(1 if context else 16), cache)
    _, seconds = loaded.greedy(logits, cache, count)
    return {"seconds": seconds[warm:], "load_seconds": loaded.load_seconds}


def whole_prompt(request):
    loaded, tokens = Model(request), request["tokens"]
    ids = loaded.prompt(tokens, request.get("seed", 0))
    if not request.get("cold"):
        touch = min(tokens, request.get("touch", 512))
        loaded.run(loaded.prompt(touch, 1), loaded.cache(touch))
    seconds = timed(lambda: loaded.run(ids, loaded.cache(tokens)), request.get("repeats", 1))
    return {"seconds": seconds, "load_seconds": loaded.load_seconds}


def logits(request):
    loaded, tokens, steps = Model(request), request["tokens"], request.get("steps", 16)
    cache = loaded.cache(tokens + steps)
    found = loaded.run(loaded.prompt(tokens, request.get("seed", 0)), cache, 0)
    np.save(request["out"], found.float().numpy())
    return {"seconds": [loaded.load_seconds], "greedy": loaded.greedy(found, cache, steps)[0]}


if __name__ == "__main__":
    with torch.inference_mode():
        serve({"decode": decode, "prompt": whole_prompt, "logits": logits})
