"""Parity with transformers' DeepseekV3 over every corner of the published formats."""

import pytest
import torch

from earthshine.engine import SamplingParams, Session, TokenEvent, load_model
from earthshine.kernels import library
from earthshine.kv import PagePool
from earthshine.models import Decoder
from earthshine.plan import Wishes

from .tiny import PROMPT, Case, oracle, write_tiny

CASES = [
    Case(),
    Case(q_lora_rank=None),
    Case(n_groups=8),
    Case(storage="fp8"),
    Case(storage="int4"),
    Case(q_lora_rank=None, n_groups=8, storage="int4"),
    Case(n_groups=8, storage="fp8", yarn=False),
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


def _session(decoder: Decoder, naive: bool) -> Session:
    spec = decoder.spec
    pool = PagePool(spec.n_layers, spec.latent_dim, 16, 16, decoder.dtype)
    return Session(decoder, pool, fingerprint="tiny", prefill_tokens=37, naive=naive)


def _greedy(decoder: Decoder, naive: bool) -> list[int]:
    session = _session(decoder, naive)
    session.sync(PROMPT)
    events = session.generate(SamplingParams(temperature=0, max_tokens=STEPS, ignore_stop=True))
    return [event.token for event in events if isinstance(event, TokenEvent)]


class _WholeSequence:
    """Attention over the step's own tokens: every position at once, as the oracle computes it."""

    def __init__(self, naive: bool) -> None:
        self._naive = naive

    def attend(self, layer, attention, query, latent):
        return (attention.naive if self._naive else attention.absorbed)(query, latent, 0)


def _logits(decoder: Decoder, tokens: list[int], naive: bool) -> torch.Tensor:
    with torch.no_grad():
        hidden = decoder.hidden(torch.tensor(tokens), torch.arange(len(tokens)), _WholeSequence(naive))
        return decoder.logits(hidden)


@pytest.mark.parametrize("naive", [False, True], ids=["absorbed", "naive"])
def test_fp32_is_the_oracle(folder, naive):
    """Logits within 1e-4 of their spread at every position, and the same 64 greedy tokens."""
    model = oracle(folder)
    decoder = load_model(folder, Wishes(dtype="fp32", threads=1)).decoder
    generated = _greedy(decoder, naive)
    tokens = PROMPT + generated
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0]
    spread = float(expected.max() - expected.min())
    difference = float((_logits(decoder, tokens, naive) - expected).abs().max()) / spread
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
    decoder = load_model(folder, Wishes(threads=1)).decoder
    error_theirs = float((theirs - exact).square().mean().sqrt())
    for name in library.instruction_sets() if library.available() else ("torch",):
        if library.available():
            library.force(name)
        ours = _logits(decoder, tokens, naive=False)
        error_ours = float((ours - exact).square().mean().sqrt())
        print(f"bf16 on {name}: RMS error {error_ours:.4f}, transformers' {error_theirs:.4f}")
        assert 0 < error_ours < 1.25 * error_theirs, name
