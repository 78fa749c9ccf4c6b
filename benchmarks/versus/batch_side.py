"""Earthshine as a worker that also decodes several sequences in one step: the engine's own `step`, a row for each.

Request: as for earthshine_side.py, which answers every request without a `batch`. A step includes the head of every row
and the choice of its likeliest token.
"""

import time

import earthshine_side
import torch
from earthshine_side import opened
from worker import prompt, serve

from earthshine.engine.step import StepRow, step
from earthshine.kv import PageTable


def decode(request: dict) -> dict:
    return rows(request) if "batch" in request else earthshine_side.decode(request)


def rows(request: dict) -> dict:
    """Seconds of each step of `batch` sequences, after `warm` untimed ones."""
    batch, warm, context = request["batch"], request.get("warm", 4), request.get("context", 0) or 16
    count = warm + request["tokens"]
    page = 256  # rows begin on pages of their own, so each may leave a part of one empty
    room = batch * (-(-(context + count + 16) // page) + 1) * page
    model, session, load_seconds = opened(request, max(room, request.get("touch", 0) + 16))
    vocab, decoder, pool = model.spec.vocab_size, model.decoder, session._page_table.pool
    if request.get("touch"):
        session.sync(prompt(request["touch"], vocab, 1))
        session.clear()
    page_tables = [PageTable(pool) for _ in range(batch)]
    new, seconds = [prompt(context, vocab, row) for row in range(batch)], []
    for _ in range(count + 1):  # the first is the prompt's
        began = time.perf_counter()
        hidden = step(decoder, [StepRow(*pair) for pair in zip(page_tables, new, strict=True)])
        likeliest = decoder.logits(torch.stack([states[-1] for states in hidden])).argmax(-1).tolist()
        seconds.append(time.perf_counter() - began)
        new = [[token] for token in likeliest]
    return {"seconds": seconds[warm + 1 :], "load_seconds": load_seconds}


if __name__ == "__main__":
    serve({"decode": decode, "prompt": earthshine_side.whole_prompt})
