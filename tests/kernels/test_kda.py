"""Kimi Delta Attention and its output norm: against the oracle and transformers, and for any cut of a prompt."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from earthshine import kernels
from earthshine.errors import KernelError
from earthshine.kernels import RecurrentTokens, library, recurrent, reference

pytestmark = pytest.mark.skipif(not library.available(), reason="the native library is not installed")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threads = library.threads()
    yield
    library.set_threads(threads)
    library.force("auto")


def draw(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


class Case(NamedTuple):
    qkv: Tensor
    gate: Tensor
    beta: Tensor
    sequences: list[RecurrentTokens]
    weights: dict[str, Any]

    def mix(self) -> Tensor:
        return recurrent.kda(self.qkv, self.gate, self.beta, self.sequences, **self.weights)

    def fresh(self) -> "Case":
        """The same with states and tails of its own."""
        copies = [RecurrentTokens(s.count, s.state.clone(), s.tail.clone()) for s in self.sequences]
        return self._replace(sequences=copies)

    def oracle(self) -> "Case":
        """In fp64."""
        wide = [RecurrentTokens(s.count, s.state.double(), s.tail.double()) for s in self.sequences]
        return self._replace(qkv=self.qkv.double(), sequences=wide)


def make(
    n_heads: int, dim: int, kernel: int, counts: list[int], *, bounded: bool = False, logits: torch.dtype | None = None
) -> Case:
    tokens, width = sum(counts), n_heads * dim
    sequences = [
        RecurrentTokens(
            count,
            draw(n_heads, dim, dim, seed=i, size=0.2),
            draw(kernel - 1, 3 * width, seed=i).bfloat16(),
        )
        for i, count in enumerate(counts)
    ]
    weights = {
        "conv": draw(3 * width, kernel, size=0.6),
        "a_log": draw(n_heads, size=0.5),
        "dt_bias": draw(width) - 3,
        "lower_bound": -5.0 if bounded else None,
    }
    gate, beta = draw(tokens, width, seed=3), draw(tokens, n_heads, seed=4)
    logits = logits or torch.bfloat16
    return Case(draw(tokens, 3 * width).bfloat16(), gate.to(logits), beta.to(logits), sequences, weights)


SHAPES = [
    (1, 16, 4, [1]),
    (2, 32, 4, [5, 1, 40]),
    (3, 48, 1, [3, 0, 18]),
    (1, 80, 2, [33]),
    (2, 128, 4, [70, 1]),
    (1, 256, 5, [17, 2]),
    (5, 16, 8, [2, 9]),
]


def ran(case: Case) -> list[Tensor]:
    """The result and what the sequences keep, from a copy of them."""
    mine = case.fresh()
    return [mine.mix(), *(part for s in mine.sequences for part in (s.state, s.tail))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bounded", [False, True])
def test_every_instruction_set_is_near_the_oracle_and_gives_the_same_bits(shape: Any, bounded: bool) -> None:
    case = make(*shape, bounded=bounded, logits=torch.float32 if bounded else None)
    oracle = case.oracle()
    expected = [reference.kda(*oracle[:4], **oracle.weights)]
    expected += [part for s in oracle.sequences for part in (s.state, s.tail)]
    results = {}
    for name in library.instruction_sets():
        library.force(name)
        results[name] = ran(case)
    for got, wanted in zip(results["portable"], expected, strict=True):
        torch.testing.assert_close(got.double(), wanted.double(), rtol=1e-4, atol=2e-6)
    for name, result in results.items():
        assert all(torch.equal(a, b) for a, b in zip(result, results["portable"], strict=True)), name


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 33])
def test_bits_do_not_depend_on_how_a_prompt_is_cut(instruction_set: str, chunk: int) -> None:
    case = make(2, 48, 4, [50])
    whole, mine = ran(case), case.fresh()
    (kept,), parts = mine.sequences, []
    for first in range(0, 50, chunk):
        part = slice(first, min(first + chunk, 50))
        sequence = RecurrentTokens(part.stop - first, kept.state, kept.tail)
        cut = mine._replace(qkv=mine.qkv[part], gate=mine.gate[part], beta=mine.beta[part], sequences=[sequence])
        parts.append(cut.mix())
    assert all(torch.equal(a, b) for a, b in zip([torch.cat(parts), kept.state, kept.tail], whole, strict=True))


def test_bits_do_not_depend_on_the_batch_or_on_threads(instruction_set: str) -> None:
    case = make(3, 32, 4, [20, 1, 1, 35])
    together = ran(case)
    for threads in (2, 3):
        library.set_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(ran(case), together, strict=True))
    first = 0
    for place, sequence in enumerate(case.sequences):
        part = slice(first, first + sequence.count)
        alone = ran(case._replace(qkv=case.qkv[part], gate=case.gate[part], beta=case.beta[part], sequences=[sequence]))
        assert torch.equal(alone[0], together[0][part])
        assert torch.equal(alone[1], together[1 + 2 * place])
        assert torch.equal(alone[2], together[2 + 2 * place])
        first = part.stop


@pytest.mark.parametrize("bounded", [False, True])
def test_a_token_without_input_decays_the_state_alone(bounded: bool) -> None:
    """q, k and v are zero, so that the state shows the decay: softplus over its whole range, and the bounded gate."""
    case = make(1, 256, 1, [1], bounded=bounded, logits=torch.float32)
    logits = torch.linspace(-100, 100, 256)
    logits[:3] = torch.tensor([0.0, float("inf"), float("-inf")])
    state, a_log = torch.ones(1, 256, 256), torch.tensor([0.3])
    weights = {**case.weights, "dt_bias": torch.zeros(256), "a_log": a_log}
    recurrent.kda(
        torch.zeros_like(case.qkv),
        logits[None],
        case.beta,
        [RecurrentTokens(1, state, case.sequences[0].tail)],
        **weights,
    )
    wide, rate = logits.double(), a_log.double().exp()
    exponent = -5 * torch.sigmoid(rate * wide) if bounded else -rate * torch.nn.functional.softplus(wide)
    assert torch.equal(state, state[..., :1].expand_as(state))
    torch.testing.assert_close(state[0, :, 0].double(), exponent.exp(), rtol=2e-5, atol=1e-35)
    slow = wide < -4  # where a step forgets little, what it forgets must be right
    forgotten = 1 - state[0, slow, 0].double()
    if not bounded:
        torch.testing.assert_close(forgotten, -torch.expm1(exponent[slow]), rtol=1e-5, atol=1e-7)


def test_nan_stays_in_its_head_and_sequence() -> None:
    case = make(2, 32, 4, [6, 4])
    case.qkv[2, 5] = float("nan")  # q of the first head in the first sequence
    mixed, *kept = ran(case)
    assert mixed[2:6, 0].isnan().all()  # the convolution sees it in four tokens
    assert not mixed[:2].isnan().any()
    assert not mixed[6:].isnan().any()
    assert not mixed[:, 1].isnan().any()
    assert not kept[0].isnan().any()  # q does not enter the state


def test_fp32_activations_take_the_oracle_and_bf16_the_library() -> None:
    case = make(2, 16, 4, [9])
    narrow, wide = case.fresh(), case.fresh()
    wide = wide._replace(
        qkv=wide.qkv.float(), sequences=[RecurrentTokens(9, s.state, s.tail.float()) for s in wide.sequences]
    )
    torch.testing.assert_close(
        kernels.kda(*narrow[:4], **narrow.weights), kernels.kda(*wide[:4], **wide.weights), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(narrow.sequences[0].tail.float(), wide.sequences[0].tail)


def test_the_mixture_of_a_layer_is_that_of_transformers() -> None:
    """transformers' layer in fp32, tiny and seeded: a prompt by its chunks, and our oracle's token by token."""
    from transformers import KimiLinearConfig
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

    torch.manual_seed(0)
    config = KimiLinearConfig(hidden_size=24, linear_num_heads=2, linear_head_dim=16, num_hidden_layers=4)
    layer = KimiLinearDeltaAttention(config, 0).float()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.5)
        x = torch.randn(1, 75, 24)
        expected = layer(x)[0]
        gates = layer.forget_gate
        qkv = torch.cat([project(x)[0] for project in (layer.q_proj, layer.k_proj, layer.v_proj)], -1)
        sequence = RecurrentTokens(75, torch.zeros(2, 16, 16), torch.zeros(config.linear_conv_kernel_dim - 1, 96))
        mixed = reference.kda(
            qkv,
            gates.f_b_proj(gates.f_a_proj(x))[0],
            layer.b_proj(x)[0],
            [sequence],
            conv=layer.conv1d.weight[:, 0],
            a_log=gates.A_log.flatten(),
            dt_bias=gates.dt_bias,
        )
        output_gate = layer.g_b_proj(layer.g_a_proj(x))[0].view_as(mixed)
        normed = reference.gated_rms_norm(mixed, output_gate, layer.o_norm.weight, config.rms_norm_eps)
        torch.testing.assert_close(layer.o_proj(normed.flatten(1)), expected, rtol=1e-4, atol=1e-5)


class TestGatedRmsNorm:
    @pytest.mark.parametrize("shape", [(1, 128), (7, 3, 128), (5, 40), (600, 2, 128)], ids=str)
    def test_it_is_the_oracle_but_for_rare_roundings(self, shape: tuple[int, ...]) -> None:
        x, gate, weight = draw(*shape), (3 * draw(*shape, seed=1)).bfloat16(), draw(shape[-1], seed=2)
        results = []
        for name in library.instruction_sets():
            library.force(name)
            results.append(recurrent.gated_rms_norm(x, gate, weight, 1e-5))
            assert torch.equal(results[-1], results[0]), name
        expected = reference.gated_rms_norm(x.double(), gate.double(), weight.double(), 1e-5).bfloat16()
        torch.testing.assert_close(results[0], expected, rtol=2**-7, atol=0)
        assert (results[0] == expected).float().mean() > 0.99
        assert torch.equal(kernels.gated_rms_norm(x, gate, weight, 1e-5), results[0])
        assert torch.equal(recurrent.gated_rms_norm(x[-1:], gate[-1:], weight, 1e-5), results[0][-1:])

    def test_it_serves_fp32_alike_alone_and_in_a_batch(self) -> None:
        x, gate, weight = draw(9, 3, 20), draw(9, 3, 20, seed=1), draw(20, seed=2)
        together = kernels.gated_rms_norm(x, gate, weight, 1e-5)
        torch.testing.assert_close(together, reference.gated_rms_norm(x, gate, weight, 1e-5))
        for row in range(9):
            one = slice(row, row + 1)
            assert torch.equal(kernels.gated_rms_norm(x[one], gate[one], weight, 1e-5), together[one])

    @pytest.mark.parametrize(
        ("call", "says"),
        [
            (
                lambda x: recurrent.gated_rms_norm(x.bfloat16(), x.bfloat16(), x[0], 1e-5),
                "norm's input .* not bfloat16",
            ),
            (lambda x: recurrent.gated_rms_norm(x, x, x[0], 1e-5), "output gate must be .* not float32"),
            (lambda x: recurrent.gated_rms_norm(x, x.bfloat16()[:1], x[0], 1e-5), r"bfloat16 \[2, 8\]"),
            (lambda x: recurrent.gated_rms_norm(x, x.bfloat16(), x[0, :4], 1e-5), r"float32 \[8\]"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, call: Callable[[Tensor], object], says: str) -> None:
        with pytest.raises(KernelError, match=says):
            call(torch.zeros(2, 8))


def _kept(case: Case, **changes: Any) -> Case:
    one = case.sequences[0]
    values = {"count": one.count, "state": one.state, "tail": one.tail} | changes
    return case._replace(sequences=[RecurrentTokens(**values), *case.sequences[1:]])


def _weights(case: Case, **changes: Any) -> Case:
    return case._replace(weights=case.weights | changes)


REFUSED: list[tuple[Callable[[Case], Case], str]] = [
    (lambda c: c._replace(qkv=c.qkv.float()), r"qkv must be .* not float32 \[5, 192\]"),
    (
        lambda c: c._replace(qkv=c.qkv[:, :190]),
        "qkv must have .* channels, not 190 with 2 heads",
    ),
    (lambda c: c._replace(qkv=c.qkv[:, ::2]), "qkv must have|must be contiguous bfloat16"),
    (lambda c: c._replace(gate=c.gate[:, :60]), r"bfloat16 or float32 \[5, 64\]"),
    (lambda c: c._replace(beta=c.beta.double()), "beta must be .* not float64"),
    (lambda c: c._replace(sequences=c.sequences[:1]), r"have \[3\] tokens and qkv 5"),
    (lambda c: _kept(c, count=-1), r"\[-1, 2\] tokens"),
    (lambda c: _kept(c, state=c.sequences[0].state.double()), "state must be .* not float64"),
    (lambda c: _kept(c, state=c.sequences[0].state.mT), "state must be contiguous float32"),
    (lambda c: _kept(c, tail=c.sequences[0].tail[:2].contiguous()), r"bfloat16 \[3, 192\]"),
    (lambda c: _kept(c, tail=c.sequences[0].tail.float()), "tail must be .* not float32"),
    (lambda c: _kept(c, state=c.sequences[1].state), "share a state"),
    (lambda c: _kept(c, tail=c.sequences[1].tail), "share a state"),
    (lambda c: _weights(c, conv=c.weights["conv"][:9]), r"float32 \[192, 4\]"),
    (lambda c: _weights(c, conv=torch.zeros(192, 9)), "between 1 and 8 tokens, not 9"),
    (lambda c: _weights(c, a_log=c.weights["a_log"].bfloat16()), "a_log must be .* not bfloat16"),
    (lambda c: _weights(c, a_log=torch.zeros(4)), "head_dim|bfloat16 or float32|float32"),
    (lambda c: _weights(c, a_log=torch.zeros(0)), "with 0 heads"),
    (lambda c: _weights(c, dt_bias=c.weights["dt_bias"][:9]), r"float32 \[64\]"),
    (lambda c: _weights(c, lower_bound=5.0), "lower bound must be below 0, not 5.0"),
    (lambda c: _weights(c, lower_bound=float("nan")), "lower bound must be below 0, not nan"),
    (lambda c: c._replace(qkv=c.qkv[:, :60].contiguous()), "head_dim must be a multiple of 16 up to 256, not 10"),
]


@pytest.mark.parametrize(("damage", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_what_does_not_fit_is_refused_and_changes_nothing(damage: Callable[[Case], Case], says: str) -> None:
    case = make(2, 32, 4, [3, 2])
    before = [part.clone() for s in case.sequences for part in (s.state, s.tail)]
    with pytest.raises(KernelError, match=says):
        damage(case).mix()
    after = [part for s in case.sequences for part in (s.state, s.tail)]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_no_tokens_are_a_result_too() -> None:
    case = make(2, 16, 4, [0])
    assert ran(case)[0].shape == (0, 2, 16)
    assert case._replace(sequences=[]).mix().shape == (0, 2, 16)
