"""Greedy output and latents do not depend on how a prompt was cut, what was reused, threads, budget or the batch."""

from functools import cache

import pytest
import torch

from earthshine.engine import SamplingParams, Session, StepRow, TokenEvent, load_model, step
from earthshine.kv import PagePool, Timeline

from .tiny import PROMPT, Case, write_tiny

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"), Case(storage="int4"))


@pytest.fixture(scope="module")
def load(folder):
    return cache(lambda dtype, budget_bytes=1 << 30: load_model(folder, dtype=dtype, budget_bytes=budget_bytes))


def _session(model, prefill_tokens=64):
    spec = model.spec
    pool = PagePool(spec.n_layers, spec.latent_dim, 16, 16, model.decoder.dtype)
    return Session(model.decoder, pool, fingerprint="tiny", prefill_tokens=prefill_tokens)


def _answer(session, prompt=PROMPT, tokens=24):
    session.sync(prompt)
    events = session.generate(SamplingParams(temperature=0, max_tokens=tokens, ignore_stop=True))
    return [(event.token, event.logprob) for event in events if isinstance(event, TokenEvent)]


@DTYPES
@pytest.mark.parametrize("prefill_tokens", [1, 7, 33, 512])
def test_however_the_prompt_is_cut(load, dtype, prefill_tokens):
    assert _answer(_session(load(dtype), prefill_tokens)) == _answer(_session(load(dtype)))


@DTYPES
def test_whether_a_prefix_is_reused(load, dtype):
    session = _session(load(dtype))
    _answer(session, [*PROMPT[:41], 5, 6, 7])
    reused = session.sync(PROMPT).reused
    assert reused == 41
    assert _answer(session) == _answer(_session(load(dtype)))


@DTYPES
def test_however_many_threads_run(load, dtype):
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            answers.append(_answer(_session(load(dtype))))
    finally:
        torch.set_num_threads(before)
    assert answers[0] == answers[1]


@DTYPES
def test_whatever_the_slots_hold(load, dtype):
    one_expert = load(dtype, 40_000)
    assert _answer(_session(one_expert)) == _answer(_session(load(dtype)))
    assert one_expert.experts.stats.misses > 100


@DTYPES
def test_whoever_shares_the_step(load, dtype):
    model = load(dtype)
    spec = model.spec
    pool = PagePool(spec.n_layers, spec.latent_dim, 16, 48, dtype)
    prompts = [PROMPT[:50], PROMPT[30:37], [9]]
    alone = [step(model.decoder, [StepRow(Timeline(pool), prompt)])[0] for prompt in prompts]
    together = step(model.decoder, [StepRow(Timeline(pool), prompt) for prompt in prompts])
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)
