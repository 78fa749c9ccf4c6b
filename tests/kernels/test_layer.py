"""Fused layers: the bits of the separate operations in `models`, and values close to the oracle's."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from earthshine import kernels
from earthshine.errors import KernelError
from earthshine.kernels import LAYER_TOKENS, Expert, Matrix, PagedBatch, PagedTokens, Weight, library
from earthshine.models import Ffn, Moe, Run, attention_of
from earthshine.models.fused import FusedAttention
from earthshine.models.rope import RotaryTables
from earthshine.spec import GqaSpec, MlaSpec, RopeSpec, YarnSpec
from earthshine.spec.model import MoeSpec, RouterSpec, Scoring
from earthshine.spec.tensor import Use
from earthshine.storage import Storage

from .stored import assert_same_bits, draw, matrix

pytestmark = pytest.mark.usefixtures("native_library")

HIDDEN, EPS = 96, 1e-3
YARN = YarnSpec(4.0, 16, 32.0, 1.0, 1.0, 1.0)
MLA = MlaSpec(3, None, 40, 24, 20, RopeSpec(8, 10000.0, YARN), 1e-6)
GQA = GqaSpec(6, 2, 32, RopeSpec(32, 10000.0, None), 1e-2)
ATTENTION = {
    "latent": MLA,
    "latent, low-rank queries": replace(MLA, q_lora_rank=36),
    "latent, no rotation": replace(MLA, rope=RopeSpec(8, None, None)),
    "grouped": GQA,
    "grouped, half of a head rotated": replace(GQA, rope=RopeSpec(16, 10000.0, None)),
}
# What the fused layers compute from a spec. A new field must be obeyed by `fused` in models/mla.py, models/gqa.py or
# models/ffn.py, or be a reason there to return None, before it is added here: else decode steps of few tokens would
# drop it in silence.
FIELDS = {
    MlaSpec: "n_heads q_lora_rank kv_lora_rank nope_dim v_dim rope latent_norm_eps",
    GqaSpec: "n_heads n_kv_heads head_dim rope norm_eps",
    RopeSpec: "dim theta yarn",
    MoeSpec: "n_experts top_k intermediate shared_intermediate router",
    RouterSpec: "n_groups groups_kept normalize scale scoring",
}


@pytest.mark.parametrize("spec", FIELDS, ids=lambda spec: spec.__name__)
def test_fused_layers_know_every_field_of_a_spec(spec: type) -> None:
    assert [field.name for field in fields(spec)] == FIELDS[spec].split()


# (count, start) of each sequence: one token, some at the edges of pages, and as many as fit.
STEPS = ([(1, 0)], [(1, 15), (3, 40), (1, 63), (2, 16)], [(LAYER_TOKENS, 5)])


class Pages:
    """`models`' LayerState over a pool of its own. What no sequence has written is nan."""

    def __init__(self, width: int, tokens: Sequence[tuple[int, int]], dtype: torch.dtype = torch.bfloat16) -> None:
        order = torch.randperm(20, generator=torch.Generator().manual_seed(1)).int()
        self._pool = torch.full((20, 16, width), float("nan"), dtype=dtype)
        self._new: list[tuple[Tensor, Tensor]] = []
        sequences = []
        for i, (count, start) in enumerate(tokens):
            pages = order[5 * i : 5 * i + 5]
            at = torch.arange(start + count)
            places = pages[at // 16].long(), at % 16
            self._pool[places[0][:start], places[1][:start]] = draw(start, width, seed=i).to(dtype)
            self._new.append((places[0][start:], places[1][start:]))
            sequences.append(PagedTokens(count, start, pages))
        self.n_tokens = sum(count for count, _ in tokens)
        self.positions = torch.cat([torch.arange(start, start + count) for count, start in tokens])
        self.pieces = [Run(0, self.n_tokens, PagedBatch(sequences))]

    def pool(self, part: int = 0) -> Tensor:
        return self._pool

    def extend(self, rows: Tensor, part: int = 0) -> Tensor:
        for new, own in zip(self._new, rows.split([len(new[0]) for new in self._new]), strict=True):
            self._pool[new] = own
        return self._pool


def attention_weights(spec: MlaSpec | GqaSpec, form: Storage) -> dict[str, Weight]:
    weights: dict[str, Weight] = {}
    for seed, tensor in enumerate(spec.tensors(HIDDEN)):
        if len(tensor.shape) == 1:
            weights[tensor.name] = 1 + draw(*tensor.shape, seed=seed, gain=0.2)
        elif tensor.use is Use.PLAIN or form is Storage.BF16:
            weights[tensor.name] = draw(*tensor.shape, seed=seed, gain=2 * tensor.shape[1] ** -0.5)
        else:
            weights[tensor.name] = matrix(form, *tensor.shape, seed=seed)
    return weights


def wide(weight: Weight) -> Tensor:
    return (kernels.decode(weight) if isinstance(weight, Matrix) else weight).float()


ATTENTION_NORM, FFN_NORM = 1 + draw(HIDDEN, seed=50, gain=0.2), 1 + draw(HIDDEN, seed=51, gain=0.2)


def fused(spec: MlaSpec | GqaSpec, weights: dict[str, Weight]) -> FusedAttention | None:
    return attention_of(spec, weights, RotaryTables()).fused(ATTENTION_NORM, EPS)


def dense(form: Storage = Storage.BF16, inner: int = 64) -> Ffn:
    shapes = ((inner, HIDDEN), (inner, HIDDEN), (HIDDEN, inner))
    return Ffn(*(matrix(form, *shape, seed=70 + i) for i, shape in enumerate(shapes)))


@pytest.mark.parametrize("tokens", STEPS, ids=["one", "several", "most"])
@pytest.mark.parametrize("spec", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("form", [Storage.BF16, Storage.INT8_GROUP128], ids=["bf16", "int8"])
def test_attention_has_the_bits_of_its_operations_and_is_near_the_oracle(instruction_set, spec, tokens, form) -> None:
    weights = attention_weights(spec, form)
    width = spec.kept[0].width
    mine, theirs, oracle = Pages(width, tokens), Pages(width, tokens), Pages(width, tokens, torch.float32)
    x, norm = draw(mine.n_tokens, HIDDEN, seed=9), ATTENTION_NORM
    for threads in (1, 3):
        library.set_threads(threads)
        out = fused(spec, weights)(x.clone(), mine.positions, mine)
        one_by_one = attention_of(spec, weights, RotaryTables())
        assert_same_bits(out, one_by_one(kernels.rms_norm(x, norm, EPS), theirs.positions, theirs))
        assert_same_bits(mine.pool(), theirs.pool())
    exact = attention_of(spec, {name: wide(weight) for name, weight in weights.items()}, RotaryTables())
    expected = exact(kernels.rms_norm(x.float(), norm.float(), EPS), oracle.positions, oracle)
    assert float((out.float() - expected).norm() / expected.norm()) < 0.02
    written = oracle.pool().isfinite()
    torch.testing.assert_close(mine.pool().float()[written], oracle.pool()[written], rtol=0.05, atol=0.05)


class Resident:
    """`models`' ResidentExperts, all in memory."""

    def __init__(self, experts: Sequence[Expert]) -> None:
        self.experts, self._table = experts, kernels.ExpertTable(experts)

    def table(self, layer: int) -> kernels.ExpertTable:
        return self._table

    def ffn(self, layer: int, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        token = (order // chosen.shape[1]).int()
        begin = [0, *torch.bincount(flat, minlength=len(self.experts)).cumsum(0).tolist()]
        each, total = torch.empty(len(flat), x.shape[1]), torch.zeros(*x.shape)
        kernels.moe_ffn(x, self.experts, token, begin, each)
        kernels.moe_sum(each, token, weight.flatten()[order], total)
        return total.to(x.dtype)


class Mixture(NamedTuple):
    n_experts: int
    top_k: int
    rule: RouterSpec
    form: Storage
    shared: int  # inner width; 0 for none


MIXTURES = {
    "sigmoid, groups, shared": Mixture(12, 4, RouterSpec(3, 2, True, 2.5), Storage.INT4_GROUP32, 40),
    "softmax": Mixture(10, 3, RouterSpec(1, 1, True, 1.0, Scoring.SOFTMAX), Storage.BF16, 0),
    "one of one": Mixture(1, 1, RouterSpec(1, 1, False, 1.5), Storage.FP8_BLOCK128, 64),
}


def mixture(case: Mixture) -> tuple[Moe, Resident]:
    shapes = ((64, HIDDEN), (64, HIDDEN), (HIDDEN, 64))
    experts = [
        Expert(*(matrix(case.form, *shape, seed=100 * i + j) for j, shape in enumerate(shapes)))
        for i in range(case.n_experts)
    ]
    bias = draw(case.n_experts, seed=3, gain=0.3).float() if case.rule.has_bias else None
    spec = MoeSpec(case.n_experts, case.top_k, 64, case.shared, case.rule)
    shared = dense(inner=case.shared) if case.shared else None
    return Moe(spec, 5, draw(case.n_experts, HIDDEN, seed=2, gain=0.3), bias, shared), Resident(experts)


@pytest.mark.parametrize("tokens", [1, 2, LAYER_TOKENS])
@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_has_the_bits_of_its_operations_and_is_near_the_oracle(instruction_set, name, tokens) -> None:
    moe, experts = mixture(MIXTURES[name])
    x, mixed = draw(tokens, HIDDEN, seed=4), draw(tokens, HIDDEN, seed=5)
    for threads in (1, 3):
        library.set_threads(threads)
        before = experts.table(5).count.n
        out = moe.fused(FFN_NORM, EPS)(x.clone(), mixed, experts)
        total, normed = kernels.add_rms_norm(x.clone(), mixed, FFN_NORM, EPS)
        assert_same_bits(out, total + moe(normed, experts))
        chosen, _ = moe._route(normed)
        assert experts.table(5).count.n - before == len(chosen.unique())
    expected = oracle_of(moe, experts, total, normed, chosen)
    assert float((out.float() - expected).norm() / expected.norm()) < 0.02


def oracle_of(moe: Moe, experts: Resident, total: Tensor, normed: Tensor, chosen: Tensor) -> Tensor:
    """fp32, every expert by itself, for the choices that were made."""
    scores = kernels.reference.linear(normed.float(), moe.router.float())
    softmax = moe.spec.router.scoring is Scoring.SOFTMAX
    weight = (scores.softmax(-1) if softmax else scores.sigmoid()).gather(1, chosen)
    if moe.spec.router.normalize:
        weight = weight / weight.sum(-1, keepdim=True)
    out = total.float()
    for token, row in enumerate(normed.float()):
        for share, index in zip(weight[token] * moe.spec.router.scale, chosen[token].tolist(), strict=True):
            expert = experts.experts[index]
            out[token] += share * kernels.reference.ffn(row, *map(wide, (expert.gate, expert.up, expert.down)))
        if moe.shared is not None:
            shared = (moe.shared.gate, moe.shared.up, moe.shared.down)
            out[token] += kernels.reference.ffn(row, *map(wide, shared))
    return out


@pytest.mark.parametrize("form", list(Storage), ids=lambda form: form.name.lower())
def test_a_dense_network_has_the_bits_of_its_operations(instruction_set, form) -> None:
    network = dense(form)
    x, mixed = draw(5, HIDDEN, seed=4), draw(5, HIDDEN, seed=5)
    out = network.fused(FFN_NORM, EPS)(x.clone(), mixed, Resident([]))
    total, normed = kernels.add_rms_norm(x.clone(), mixed, FFN_NORM, EPS)
    assert_same_bits(out, total + network(normed))


class TestWhatDoesNotFitIsRefused:
    def test_of_attention(self) -> None:
        pages = Pages(48, [(2, 14)])
        x, layer = draw(2, HIDDEN), fused(MLA, attention_weights(MLA, Storage.BF16)).layer
        angles = torch.zeros(2, 4), torch.zeros(2, 4)
        batch = pages.pieces[0].sequences
        layer(x, pages.pool(), batch, angles)
        with pytest.raises(KernelError, match="bf16 rows of 48"):
            layer(x, pages.pool()[..., :40], batch, angles)
        with pytest.raises(KernelError, match="at most 16 rows of 96"):
            layer(draw(17, HIDDEN), pages.pool(), batch, angles)
        with pytest.raises(KernelError, match="contiguous rows of bf16"):
            layer(x.float(), pages.pool(), batch, angles)
        with pytest.raises(KernelError, match=r"fp32 \[2, 4\]"):
            layer(x, pages.pool(), batch, (angles[0], angles[1][:, :3]))
        with pytest.raises(KernelError, match="on the CPU, not on meta"):
            layer(x, pages.pool(), batch, (angles[0], angles[1].to("meta")))
        with pytest.raises(KernelError, match="outside its array"):  # a token of no sequence
            layer(draw(3, HIDDEN), pages.pool(), batch, (torch.zeros(3, 4), torch.zeros(3, 4)))
        with pytest.raises(KernelError, match="outside its array"):  # a page that is not there
            layer(x, pages.pool()[:3], [PagedTokens(2, 14, torch.tensor([1, 3], dtype=torch.int32))], angles)

    def test_of_a_feed_forward_layer(self) -> None:
        moe, experts = mixture(MIXTURES["softmax"])
        layer = moe.fused(FFN_NORM, EPS).layer
        x = draw(2, HIDDEN)
        for added, table in ((draw(3, HIDDEN), experts.table(5)), (x, None), (x, kernels.ExpertTable([]))):
            with pytest.raises(KernelError, match="`added` must have 2 rows, as x has, and the table 10 experts"):
                layer(x, added, table)

    def test_of_a_feed_forward_layer_whose_weights_have_another_width(self) -> None:
        network = draw(64, HIDDEN), draw(64, HIDDEN), draw(HIDDEN, 64)
        narrow = (*network[:2], draw(80, 64))
        router = kernels.Router(draw(8, HIDDEN), None, 2, 1, 1, True, 1.0, "softmax")
        kernels.FfnLayer(FFN_NORM, EPS, router=router, shared=network)
        with pytest.raises(KernelError, match="The router's columns are 128; the norm is 96 wide"):
            kernels.FfnLayer(FFN_NORM, EPS, router=router._replace(matrix=draw(8, 128)), shared=None)
        for own in (router, None):
            with pytest.raises(KernelError, match="The rows of down are 80; the norm is 96 wide"):
                kernels.FfnLayer(FFN_NORM, EPS, router=own, shared=narrow)

    def test_of_a_feed_forward_layer_without_any_network(self) -> None:
        with pytest.raises(KernelError, match="needs a router, a network for all tokens, or both"):
            kernels.FfnLayer(FFN_NORM, EPS, router=None, shared=None)

    def test_of_weights(self) -> None:
        shape = kernels.MlaShape(3, 40, 24, 8, 20, EPS, 1e-6, 0.1)
        weights = attention_weights(MLA, Storage.BF16)
        tensors = kernels.MlaTensors(norm=ATTENTION_NORM, q_a=None, q_a_norm=None, **weights)
        kernels.mla_layer(shape, tensors)
        stored = matrix(Storage.INT8_GROUP128, *tensors.kv_b.shape, seed=1)
        for wrong, message in (
            ({"kv_b": tensors.kv_b[:60]}, "kv_b is"),
            ({"kv_b": stored}, "kv_b is stored as"),
            ({"kv_a_norm": draw(41)}, r"bfloat16 \[40\]"),
            ({"q_a": draw(36, HIDDEN)}, "need both q_a and q_a_norm"),
            ({"q_a_norm": draw(36)}, "need both q_a and q_a_norm"),
        ):
            with pytest.raises(KernelError, match=message):
                kernels.mla_layer(shape, tensors._replace(**wrong))


class Elsewhere:
    """`models`' ResidentExperts, of which some are on disk."""

    def table(self, layer: int) -> None:
        return None


def test_one_operation_after_the_other_serves_where_not_all_is_in_memory_or_in_one_piece() -> None:
    moe, _ = mixture(MIXTURES["softmax"])
    x = draw(1, HIDDEN)
    for experts in (Elsewhere(), object()):
        assert moe.fused(FFN_NORM, EPS)(x.clone(), x, experts) is None
    pages = Pages(48, [(1, 0)])
    pages.pieces *= 2
    assert fused(MLA, attention_weights(MLA, Storage.BF16))(x, pages.positions, pages) is None


def test_one_operation_after_the_other_serves_where_the_library_does_not(monkeypatch) -> None:
    weights, network, (moe, _) = attention_weights(MLA, Storage.BF16), dense(), mixture(MIXTURES["softmax"])
    assert fused(MLA, {name: wide(weight) for name, weight in weights.items()}) is None
    monkeypatch.setenv("EARTHSHINE_KERNELS", "reference")
    kernels._serving.cache_clear()
    try:
        made = fused(MLA, weights), network.fused(FFN_NORM, EPS), moe.fused(FFN_NORM, EPS)
    finally:
        monkeypatch.undo()
        kernels._serving.cache_clear()
    assert made == (None, None, None)
