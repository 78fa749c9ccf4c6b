"""Mixture of experts: routing in fp32, weights as in the spec, shared experts or none."""

import pytest
import torch

from earthshine.models import Decoder
from earthshine.models.ffn import Ffn, Moe
from earthshine.spec import trunk_tensors
from earthshine.spec.attention import MlaSpec, RopeSpec
from earthshine.spec.model import LayerSpec, ModelSpec, MoeSpec, RouterSpec
from earthshine.storage import Storage


class Recorder:
    """Keeps what was asked for, and answers with zeros."""

    def ffn(self, layer, x, chosen, weight):
        self.layer, self.chosen, self.weight = layer, chosen, weight
        return torch.zeros_like(x)


def _moe(router, shared=None, *, normalize=True, dtype=torch.float32):
    spec = MoeSpec(len(router), 1, 4, 0 if shared is None else 4, RouterSpec(1, 1, normalize, 2.0))
    return Moe(spec, 5, router.to(dtype), torch.zeros(len(router)), shared)


def test_logits_that_are_equal_in_bf16_are_distinguished():
    x, experts = torch.tensor([[1.0, 2.0**-10]]).bfloat16(), Recorder()
    out = _moe(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), dtype=torch.bfloat16)(x, experts)
    assert (experts.layer, experts.chosen.tolist(), out.dtype) == (5, [[1]], torch.bfloat16)


@pytest.mark.parametrize(("normalize", "weight"), [(True, 2.0), (False, 1.0)])
def test_weights_are_normalised_if_the_spec_says_so(normalize, weight):
    experts = Recorder()
    _moe(torch.zeros(3, 2), normalize=normalize)(torch.ones(1, 2), experts)
    assert float(experts.weight) == pytest.approx(weight)


def test_shared_experts_are_added_where_there_are_any():
    x = torch.ones(1, 2)
    shared = Ffn(torch.ones(4, 2), torch.ones(4, 2), torch.ones(2, 4))
    assert torch.equal(_moe(torch.zeros(3, 2), shared)(x, Recorder()), shared(x))
    assert torch.equal(_moe(torch.zeros(3, 2))(x, Recorder()), torch.zeros(1, 2))


def test_a_decoder_needs_no_shared_experts():
    mla = MlaSpec(2, None, 8, 4, 4, RopeSpec(4, 10000.0, None), 1e-6)
    layer = LayerSpec(mla, MoeSpec(4, 1, 8, 0, RouterSpec(1, 1, True, 1.0)))
    spec = ModelSpec("deepseek_v3", 16, 10, 64, 1e-6, (layer,), Storage.BF16, Storage.BF16, 0, (1,))
    weights = {tensor.name: torch.ones(tensor.shape) for tensor in trunk_tensors(spec)}
    hidden = Decoder(spec, weights, Recorder()).hidden(torch.tensor([3, 4]), torch.arange(2))
    assert hidden.shape == (2, 16)
    assert hidden.isfinite().all()
