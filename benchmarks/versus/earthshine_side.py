"""Earthshine as a worker: the same requests as a peer's, answered through the engine that users get.

Request, in addition to the measurement's: model (a published folder), threads, memory (a size, or null for the engine's
own choice), context_tokens (room in the session), dtype (bf16, or fp32 as the arbiter of logits). See worker.py for the
protocol.
"""

import sys
import time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from engine import fill, steps
from worker import prompt, serve

from earthshine.engine import LoadedModel, SamplingParams, Session, TokenEvent, load_model
from earthshine.plan import PlanArgs
from earthshine.units import parse_bytes


def opened(request: dict, context_tokens: int) -> tuple[LoadedModel, Session, float]:
    """The model, a session with room for that many tokens, and the seconds that loading took."""
    began = time.perf_counter()
    memory = parse_bytes(request["memory"]) if request.get("memory") else None
    room = max(context_tokens, request.get("context_tokens", 0))
    args = PlanArgs(memory, room, threads=request["threads"], dtype=request.get("dtype", "bf16"))
    model = load_model(Path(request["model"]), args)
    return model, model.session(context_tokens), time.perf_counter() - began


def decode(request: dict) -> dict:
    context, tokens, warm = request.get("context", 0), request["tokens"], request.get("warm", 4)
    touch = request.get("touch", 0)
    # The prompt itself gives the first token, so the first entry is left out with the warm ones.
    model, session, load_seconds = opened(request, max(context, touch, 16) + warm + tokens + 32)
    vocab = model.spec.vocab_size
    if touch:
        session.sync(prompt(touch, vocab, 1))
        session.clear()
    if context and not request.get("computed"):
        fill(session, context)
    else:
        session.sync(prompt(context or 16, vocab))
    seconds = steps(session, warm + tokens + 1)
    return {"seconds": seconds[warm + 1 :], "load_seconds": load_seconds, **_store(model)}


def whole_prompt(request: dict) -> dict:
    tokens, repeats, touch = request["tokens"], request.get("repeats", 1), request.get("touch", 512)
    model, session, load_seconds = opened(request, tokens + 16)
    ids, seconds = prompt(tokens, model.spec.vocab_size, request.get("seed", 0)), []
    if not request.get("cold"):
        session.sync(prompt(min(tokens, touch), model.spec.vocab_size, 1))
    for _ in range(repeats):
        session.clear()
        began = time.perf_counter()
        session.sync(ids)
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds, "load_seconds": load_seconds, **_store(model)}


def logits(request: dict) -> dict:
    """Logits of every position of a prompt, float32 [tokens, vocab], into the file `out`; then greedy tokens."""
    tokens, steps = request["tokens"], request.get("steps", 16)
    model, session, load_seconds = opened(request, tokens + steps + 16)
    ids = prompt(tokens, model.spec.vocab_size, request.get("seed", 0))
    session._replace(0, ids)
    rows = [session._decoder.logits(hidden).float() for _, hidden in session._prefill(len(ids))]
    np.save(request["out"], torch.cat(rows).numpy())
    greedy = SamplingParams(temperature=0, max_tokens=steps, ignore_eos=True)
    tokens_out = [event.token for event in session.generate(greedy) if isinstance(event, TokenEvent)]
    return {"seconds": [load_seconds], "greedy": tokens_out}


def _store(model: LoadedModel) -> dict:
    stats = model.experts.stats
    return {"hits": stats.hits, "misses": stats.misses, "bytes_read": stats.bytes_read}


if __name__ == "__main__":
    serve({"decode": decode, "prompt": whole_prompt, "logits": logits})
