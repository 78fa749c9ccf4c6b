"""Parity with transformers' DeepseekV3, Qwen3Moe and KimiLinear over every corner of the published formats."""

import pytest
import torch

from earthshine.engine import SamplingParams, Session, StepRow, TokenEvent, load_model, step
from earthshine.kernels import library
from earthshine.kv import PagePool, PageTable
from earthshine.models import Decoder
from earthshine.plan import PlanArgs

from .tiny import PROMPT, Case, KimiLinear, Qwen3, oracle, write_tiny

CASES = [
    Case(),
    Case(q_lora_rank=None),
    Case(n_groups=8),
    Case(storage="fp8"),
    Case(storage="int4"),
    Case(q_lora_rank=None, n_groups=8, storage="int4"),
    Case(n_groups=8, storage="fp8", yarn=False),
    Qwen3(),
    Qwen3(n_kv_heads=8, normalize=False),
    Qwen3(n_kv_heads=1, head_dim=20),
    Qwen3(n_kv_heads=4, head_dim=16, storage="fp8"),
    Qwen3(n_kv_heads=4, storage="fp8", scales="bfloat16"),
    Qwen3(yarn=True),
    Qwen3(head_dim=20, yarn=True, attention_factor=1.5),
    KimiLinear(),
    KimiLinear(latent_layers=(1, 4), n_layers=5),
]
STEPS = 64


@pytest.fixture(scope="module", params=CASES, ids=str)
def folder(request, tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"), request.param)


@pytest.fixture
def served_again():
    """What serves by itself serves again after the test."""
    yield
    if library.available():
        library.force("auto")


def _pool(decoder: Decoder) -> PagePool:
    return PagePool(decoder.spec.kept, 16, 16, decoder.dtype)


def _greedy(decoder: Decoder) -> list[int]:
    session = Session(decoder, _pool(decoder), fingerprint="tiny", prefill_tokens=37)
    session.sync(PROMPT)
    events = session.generate(SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True))
    return [event.token for event in events if isinstance(event, TokenEvent)]


def _logits(decoder: Decoder, tokens: list[int], paged: bool) -> torch.Tensor:
    """Of every position: over pages, as sequences are served, or of the whole sequence at once, as in training."""
    if paged:
        return decoder.logits(step(decoder, [StepRow(PageTable(_pool(decoder)), tokens)])[0])
    with torch.no_grad():
        return decoder.logits(decoder.hidden(torch.tensor(tokens), torch.arange(len(tokens))))


@pytest.mark.parametrize("paged", [True, False], ids=["paged", "whole"])
def test_fp32_is_the_oracle(folder, paged):
    """Logits within 1e-4 of their spread at every position, and the same 64 greedy tokens."""
    model = oracle(folder)
    decoder = load_model(folder, PlanArgs(dtype="fp32", threads=1)).decoder
    generated = _greedy(decoder)
    tokens = PROMPT + generated
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0]
    spread = float(expected.max() - expected.min())
    difference = float((_logits(decoder, tokens, paged) - expected).abs().max()) / spread
    print(f"fp32: largest difference over spread {difference:.2e}")
    assert difference < 1e-4
    # Each token is the oracle's own choice given the tokens before it, so greedy decoding there writes the same.
    assert generated == expected[len(PROMPT) - 1 : -1].argmax(-1).tolist()
    assert len(set(generated)) > 5, "a model that repeats itself would hide differences"


def test_bf16_is_as_near_to_fp32_as_the_oracle_is(folder, served_again):
    """Rounding activations to bf16 costs no more here than it costs transformers, on any instruction set."""
    tokens = PROMPT
    with torch.no_grad():
        exact = oracle(folder)(torch.tensor([tokens])).logits[0]
        theirs = oracle(folder, torch.bfloat16)(torch.tensor([tokens])).logits[0].float()
    decoder = load_model(folder, PlanArgs(threads=1)).decoder
    error_theirs = float((theirs - exact).square().mean().sqrt())
    for name in library.instruction_sets() if library.available() else ("torch",):
        if library.available():
            library.force(name)
        ours = _logits(decoder, tokens, paged=True)
        error_ours = float((ours - exact).square().mean().sqrt())
        print(f"bf16 on {name}: RMS error {error_ours:.4f}, transformers' {error_theirs:.4f}")
        assert 0 < error_ours < 1.25 * error_theirs, name
