"""Delta attention: the lower bound of its decay, where a model has one, is applied."""

from dataclasses import replace

import torch

from earthshine.models.attention import attention_of
from earthshine.models.rope import RotaryTables
from earthshine.spec import KdaSpec

HIDDEN = 48
SPEC = KdaSpec(n_heads=2, head_dim=16, conv_kernel=4, norm_eps=1e-5)


def _run(spec: KdaSpec, dt_bias: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    weights = {
        tensor.name: torch.randn(tensor.shape, generator=generator) * (tensor.shape[-1] ** -0.5)
        for tensor in spec.tensors(HIDDEN)
    }
    weights["dt_bias"] = torch.full_like(weights["dt_bias"], dt_bias)
    x = torch.randn(30, HIDDEN, generator=generator)
    return attention_of(spec, weights, RotaryTables())(x, torch.arange(30), None)


def test_bound_of_the_decay_is_kept() -> None:
    """exp(bound) of a channel is left at least: with a large bias the plain decay forgets everything, the bounded one
    as much as its bound says."""
    plain, forgetful = _run(SPEC, -20.0), _run(SPEC, 50.0)
    nearly_none, strong = (_run(replace(SPEC, gate_lower_bound=bound), 50.0) for bound in (-1e-6, -60.0))
    torch.testing.assert_close(nearly_none, plain, rtol=1e-3, atol=1e-4)  # neither forgets
    torch.testing.assert_close(strong, forgetful, rtol=1e-3, atol=1e-4)  # both do
    assert float((plain - forgetful).abs().max()) > 0.05
