"""Latent attention: both forms agree, only the past counts, and only distances between positions matter."""

from dataclasses import replace

import pytest
import torch

from earthshine.kernels import PagedTokens
from earthshine.models import Mla, MlaWeights
from earthshine.models.rope import RotaryTable
from earthshine.spec import MlaSpec, RopeSpec, YarnSpec

HIDDEN = 48
SPEC = MlaSpec(3, None, 24, 16, 20, RopeSpec(8, 10000.0, YarnSpec(4.0, 16, 32.0, 1.0, 1.0, 1.0)), 1e-6)


@pytest.fixture
def attention():
    generator = torch.Generator().manual_seed(3)

    def matrix(rows, columns):
        return torch.randn(rows, columns, generator=generator) * 2 * columns**-0.5

    weights = MlaWeights(
        kv_a=matrix(SPEC.latent_dim, HIDDEN),
        kv_a_norm=1 + 0.1 * torch.randn(24, generator=generator),
        kv_b=matrix(3 * 36, 24),
        o=matrix(HIDDEN, 60),
        q=matrix(3 * 24, HIDDEN),
    )
    return Mla(SPEC, weights, RotaryTable(SPEC.rope))


@pytest.fixture
def x():
    return torch.randn(40, HIDDEN, generator=torch.Generator().manual_seed(4))


def _all(attention, x, form, start=0):
    positions = torch.arange(len(x))
    query, latent = attention.query(x, positions).part(start, len(x)), attention.latent(x, positions)
    if form == "naive":
        return attention.naive(query, latent, start)
    order = torch.tensor([4, 0, 3, 1, 2], dtype=torch.int32)
    pool = torch.full((5, 8, SPEC.latent_dim), float("nan"))
    pool[order.long()] = latent.unflatten(0, (5, 8))
    return attention.paged(query, pool, [PagedTokens(len(x) - start, start, order)])


def test_absorbed_over_pages_equals_naive(attention, x):
    naive, paged = _all(attention, x, "naive"), _all(attention, x, "paged")
    torch.testing.assert_close(paged, naive, rtol=2e-4, atol=2e-5)
    assert float((naive[30] - naive[31]).abs().max()) > 0.1


@pytest.mark.parametrize("form", ["naive", "paged"])
def test_new_tokens_see_what_a_whole_pass_sees(attention, x, form):
    torch.testing.assert_close(_all(attention, x, form, start=33), _all(attention, x, form)[33:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["naive", "paged"])
def test_the_future_is_hidden(attention, x, form):
    changed = x.clone()
    changed[21:] = 100.0
    torch.testing.assert_close(_all(attention, changed, form)[:21], _all(attention, x, form)[:21])


def test_leading_axes_are_separate_sequences(attention, x):
    pair = torch.stack((x, x.flip(0)))
    query, latent = (make(pair, torch.arange(40)) for make in (attention.query, attention.latent))
    torch.testing.assert_close(
        attention.naive(query, latent, 0)[1], _all(attention, x.flip(0), "naive"), rtol=1e-4, atol=1e-5
    )


def test_the_latent_is_normalised_and_its_key_rotated(attention, x):
    low, key = attention.latent(x, torch.arange(40)).split((24, 8), -1)
    plain = x @ attention.weights.kv_a.T
    rms = plain[:, :24].square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(low, plain[:, :24] / rms * attention.weights.kv_a_norm, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(key.norm(dim=-1), plain[:, 24:].norm(dim=-1))
    torch.testing.assert_close(key[0], plain[0, 24:])
    assert not torch.allclose(key[1], plain[1, 24:])


def test_both_latent_norms_add_the_specs_epsilon(attention, x):
    weights, positions = attention.weights, torch.arange(40)
    low_rank = replace(weights, q=None, q_a=weights.kv_a[:24], q_a_norm=weights.kv_a_norm, q_b=torch.eye(72, 24))
    changed = Mla(replace(SPEC, q_lora_rank=24, latent_norm_eps=10.0), low_rank, RotaryTable(SPEC.rope))
    plain = x @ weights.kv_a[:24].T
    wanted = plain / (plain.square().mean(-1, keepdim=True) + 10).sqrt() * weights.kv_a_norm
    torch.testing.assert_close(changed.latent(x, positions)[:, :24], wanted)
    torch.testing.assert_close(changed.query(x, positions).nope[:, 0], wanted[:, :16])
