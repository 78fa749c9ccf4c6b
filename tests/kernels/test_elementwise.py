"""Norm, rotation, SwiGLU and routing of the native library against the oracle, on every instruction set."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from earthshine.errors import KernelError
from earthshine.kernels import elementwise, library, reference

EPS = 1e-6


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    if not library.available():
        pytest.skip(library.reason())
    threads = library.threads()
    yield
    library.force("auto")
    library.set_threads(threads)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def everywhere(compute: Callable[[], Tensor]) -> Tensor:
    """The result, once it is the same bits on every instruction set."""
    results = []
    for name in library.instruction_sets():
        library.force(name)
        results.append(compute())
    for name, result in zip(library.instruction_sets(), results, strict=True):
        bits = torch.int16 if result.dtype == torch.bfloat16 else torch.int32
        assert torch.equal(result.view(bits), results[-1].view(bits)), name
    return results[-1]


def norm_in_order(x: Tensor, weight: Tensor) -> Tensor:
    """The reference's norm with the library's order of summation: 64 lanes, then a tree. Exact for bf16."""
    lanes = torch.zeros(len(x), 64)
    for part in torch.nn.functional.pad(x.float(), (0, -x.shape[1] % 64)).split(64, dim=1):
        lanes += part.square()
    total = (lanes[:, :16] + lanes[:, 16:32]) + (lanes[:, 32:48] + lanes[:, 48:])
    for n in (8, 4, 2, 1):
        total = total[:, :n] + total[:, n : 2 * n]
    factor = 1 / torch.sqrt(total / x.shape[1] + EPS)
    return (x.float() * factor).bfloat16() * weight


@pytest.mark.parametrize("dim", [1, 15, 40, 64, 576, 7168])
@pytest.mark.parametrize("rows", [1, 11])
class TestRmsNorm:
    def test_every_bit_is_that_of_the_stated_order(self, rows: int, dim: int) -> None:
        x, weight = normal(rows, dim), normal(dim, seed=1)
        result = everywhere(lambda: elementwise.rms_norm(x, weight, EPS))
        assert torch.equal(result, norm_in_order(x, weight))
        torch.testing.assert_close(result, reference.rms_norm(x, weight, EPS), rtol=2**-7, atol=0)

    def test_a_residual_is_added_and_kept(self, rows: int, dim: int) -> None:
        x, y, weight = normal(rows, dim), normal(rows, dim, seed=2), normal(dim, seed=1)
        added = x.clone()
        result = elementwise.rms_norm(added, weight, EPS, added=y)
        assert torch.equal(added, x + y)
        assert torch.equal(result, elementwise.rms_norm(x + y, weight, EPS))

    def test_fp32_rows_round_only_on_the_way_out(self, rows: int, dim: int) -> None:
        x, weight = normal(rows, dim, dtype=torch.float32), normal(dim, seed=1)
        result = everywhere(lambda: elementwise.rms_norm(x, weight, EPS))
        expected = reference.rms_norm(x, torch.ones(dim), EPS).bfloat16() * weight
        torch.testing.assert_close(result, expected, rtol=2**-7, atol=0)
        assert (result == expected).float().mean() > 0.9


class TestRmsNormInPlace:
    def test_a_part_of_each_latent_is_normed_where_it_lies(self) -> None:
        latents, weight = normal(5, 576), normal(512, seed=1)
        before, part = latents.clone(), latents[:, :512]
        assert elementwise.rms_norm(part, weight, EPS, out=part) is part
        assert torch.equal(part, elementwise.rms_norm(before[:, :512].contiguous(), weight, EPS))
        assert torch.equal(latents[:, 512:], before[:, 512:])

    def test_leading_axes_are_rows(self) -> None:
        x, weight = normal(2, 3, 40), normal(40, seed=1)
        assert torch.equal(
            elementwise.rms_norm(x, weight, EPS).view(6, 40), elementwise.rms_norm(x.view(6, 40), weight, EPS)
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_heads_are_normed_where_they_lie_in_wider_rows(self, dtype: torch.dtype) -> None:
        """Queries and keys of grouped-query attention are parts of one product's rows."""
        both, weight = normal(5, 6 * 40, dtype=dtype), normal(40, seed=1)
        query, key = (part.unflatten(1, (-1, 40)) for part in both.split((160, 80), 1))
        for part in (query, key):
            result = everywhere(lambda part=part: elementwise.rms_norm(part, weight, EPS))
            assert torch.equal(result, elementwise.rms_norm(part.contiguous(), weight, EPS))
        rows = torch.zeros(5, 2 * 60).bfloat16()
        elementwise.rms_norm(key.contiguous(), weight, EPS, out=rows.unflatten(1, (2, 60))[..., :40])
        assert torch.equal(rows.unflatten(1, (2, 60))[..., :40], elementwise.rms_norm(key.contiguous(), weight, EPS))
        assert (rows.unflatten(1, (2, 60))[..., 40:] == 0).all()

    def test_heads_are_normed_in_place(self) -> None:
        both, weight = normal(5, 6 * 40), normal(40, seed=1)
        before, query = both.clone(), both[:, :160].unflatten(1, (-1, 40))
        elementwise.rms_norm(query, weight, EPS, out=query)
        assert torch.equal(query, elementwise.rms_norm(before[:, :160].reshape(5, 4, 40), weight, EPS))
        assert torch.equal(both[:, 160:], before[:, 160:])

    def test_nan_stays_in_its_row(self) -> None:
        x = normal(3, 40)
        x[1, 7] = float("nan")
        result = everywhere(lambda: elementwise.rms_norm(x, torch.ones(40).bfloat16(), EPS))
        assert result.isnan().any(1).tolist() == [False, True, False]
        assert (result[1].view(torch.int16) == 0x7FC0).all()


class TestRotate:
    @pytest.mark.parametrize("heads", [1, 3, 64])
    @pytest.mark.parametrize("dim", [2, 40, 64, 128])
    @pytest.mark.parametrize("interleaved", [True, False])
    def test_every_bit_is_the_references(self, heads: int, dim: int, interleaved: bool) -> None:
        x, angles = normal(5, heads, dim), normal(5, dim // 2, dtype=torch.float32)
        cos, sin = angles.cos(), angles.sin()
        result = everywhere(lambda: elementwise.rotate(x, cos, sin, interleaved=interleaved))
        assert torch.equal(result, reference.rotate(x, cos[:, None], sin[:, None], interleaved=interleaved))

    @pytest.mark.parametrize("interleaved", [True, False])
    @pytest.mark.parametrize("dim", [64, 40])
    def test_it_works_in_place_on_a_part_of_each_head(self, dim: int, interleaved: bool) -> None:
        query, angles = normal(4, 3, 128 + dim), normal(4, dim // 2, dtype=torch.float32)
        cos, sin = angles.cos(), angles.sin()
        before, part = query.clone(), query[..., 128:]
        elementwise.rotate(part, cos, sin, interleaved=interleaved, out=part)
        assert torch.equal(query[..., :128], before[..., :128])
        expected = reference.rotate(before[..., 128:], cos[:, None], sin[:, None], interleaved=interleaved)
        assert torch.equal(part, expected)

    def test_it_writes_into_a_wider_row(self) -> None:
        key, angles, latents = normal(4, 64), normal(4, 32, dtype=torch.float32), torch.zeros(4, 576).bfloat16()
        elementwise.rotate(key, angles.cos(), angles.sin(), out=latents[:, 512:])
        assert torch.equal(latents[:, 512:], reference.rotate(key, angles.cos(), angles.sin()))
        assert (latents[:, :512] == 0).all()


class TestSwiglu:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("shape", [(1, 40), (3, 2048), (2, 18432)])
    def test_it_is_the_reference_but_for_rare_roundings(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        gate, up = normal(*shape, dtype=dtype) * 4, normal(*shape, seed=1, dtype=dtype)
        result = everywhere(lambda: elementwise.swiglu(gate, up))
        expected = reference.swiglu(gate, up).bfloat16()
        torch.testing.assert_close(result, expected, rtol=2**-7, atol=0)
        assert (result == expected).float().mean() > 0.99

    def test_extremes(self) -> None:
        gate = torch.tensor([[0.0, -1000.0, 1000.0, float("inf"), float("nan"), -87.0]])
        result = everywhere(lambda: elementwise.swiglu(gate, torch.ones(1, 6)))
        assert result[0, :4].tolist() == [0.0, 0.0, 1000.0, float("inf")]
        assert result[0, 4].isnan()
        assert -1e-30 < result[0, 5] <= 0

    def test_gate_and_up_may_be_halves_of_one_matrix(self) -> None:
        both = normal(3, 96)
        gate, up = both[:, :48], both[:, 48:]
        assert torch.equal(elementwise.swiglu(gate, up), elementwise.swiglu(gate.contiguous(), up.contiguous()))


SCORINGS: tuple[reference.Scoring, ...] = ("sigmoid", "softmax")


def scores_of(logits: Tensor, scoring: reference.Scoring = "sigmoid") -> Tensor:
    """The library's scores, seen through a choice of all experts."""
    chosen, weight = elementwise.route(logits, None, top_k=logits.shape[1], normalize=False, scoring=scoring)
    return torch.empty_like(logits).scatter_(1, chosen, weight)


class TestRoute:
    @pytest.mark.parametrize(
        ("n_experts", "top_k", "n_groups", "groups_kept"),
        [(384, 8, 1, 1), (256, 8, 8, 4), (8, 2, 1, 1), (5, 5, 1, 1), (24, 6, 4, 1), (40, 10, 5, 5)],
    )
    @pytest.mark.parametrize("normalize", [True, False])
    @pytest.mark.parametrize("scoring", SCORINGS)
    def test_after_the_scores_every_bit_is_the_references(
        self, n_experts: int, top_k: int, n_groups: int, groups_kept: int, normalize: bool, scoring: reference.Scoring
    ) -> None:
        logits, bias = normal(33, n_experts, dtype=torch.float32), normal(n_experts, dtype=torch.float32) / 8
        logits = torch.where(logits.abs() < 0.5, 0.25, logits)  # many are equal
        rule = {"top_k": top_k, "n_groups": n_groups, "groups_kept": groups_kept, "normalize": normalize, "scale": 2.5}
        rule["scoring"] = scoring
        for ties in (bias, torch.zeros(n_experts), None):
            weight = everywhere(lambda bias=ties: elementwise.route(logits, bias, **rule)[1])
            chosen = everywhere(lambda bias=ties: elementwise.route(logits, bias, **rule)[0].int())
            scores = scores_of(logits, scoring)
            expected = reference.choose(scores, ties, top_k, n_groups, groups_kept, normalize, 2.5)
            assert torch.equal(chosen.long(), expected[0])
            assert torch.equal(weight, expected[1])

    def test_the_sigmoid_is_that_of_torch_within_four_units_in_the_last_place(self) -> None:
        logits = torch.linspace(-85, 85, 4096)[None]
        torch.testing.assert_close(scores_of(logits), torch.sigmoid(logits), rtol=4 * 2**-23, atol=0)

    @pytest.mark.parametrize("n_experts", [1, 5, 16, 40, 128, 4096])
    def test_the_softmax_is_that_of_torch_within_some_units_in_the_last_place(self, n_experts: int) -> None:
        logits = 6 * normal(9, n_experts, dtype=torch.float32)
        logits[1] = -200.0  # what pads the lanes counts for nothing
        logits[2, 0] = 1000.0
        expected = torch.softmax(logits.double(), -1).float()
        torch.testing.assert_close(scores_of(logits, "softmax"), expected, rtol=1e-5, atol=1e-30)

    def test_one_nan_or_inf_makes_every_share_nan_as_in_torch(self) -> None:
        logits = normal(3, 40, dtype=torch.float32)
        logits[0, 7], logits[1, 39], logits[2] = float("nan"), float("inf"), float("-inf")
        chosen, weight = elementwise.route(logits, None, top_k=4, scoring="softmax")
        expected = reference.route(logits, None, top_k=4, scoring="softmax")
        assert chosen.tolist() == expected[0].tolist() == [[0, 1, 2, 3]] * 3
        assert weight.isnan().all()
        assert expected[1].isnan().all()

    def test_the_softmax_router_is_that_of_qwen3_moe(self) -> None:
        from transformers import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

        config = Qwen3MoeConfig(num_experts=128, num_experts_per_tok=8, norm_topk_prob=True, hidden_size=32)
        router, x = Qwen3MoeTopKRouter(config), normal(50, 32, dtype=torch.float32)
        router.weight.data.copy_(normal(128, 32, dtype=torch.float32))
        with torch.no_grad():
            logits, weight, chosen = router(x)
        mine = elementwise.route(logits, None, top_k=8, scoring="softmax")
        assert torch.equal(mine[0], chosen)
        torch.testing.assert_close(mine[1], weight, rtol=1e-5, atol=1e-8)

    @pytest.mark.parametrize("groups", [1, 4])
    def test_nan_comes_first_and_nothing_points_outside(self, groups: int) -> None:
        logits = torch.full((3, 16), float("nan"))
        logits[1:] = torch.arange(16.0)
        logits[1, 5] = float("nan")
        bias = torch.zeros(16)
        bias[3] = float("-inf")
        chosen, weight = elementwise.route(logits, bias, top_k=16, n_groups=groups, groups_kept=1)
        expected = reference.route(logits, bias, top_k=16, n_groups=groups, groups_kept=1)
        assert torch.equal(chosen, expected[0])
        assert torch.equal(weight.isnan(), expected[1].isnan())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_is_the_same_alone_in_any_batch_and_on_any_threads(threads: int) -> None:
    """The shapes are large enough to be cut into tasks."""
    library.set_threads(threads)
    x, weight = normal(40, 7168), normal(7168, seed=1)
    heads, angles = normal(40, 64, 64), normal(40, 32, dtype=torch.float32)
    logits, bias = normal(70, 384, dtype=torch.float32), normal(384, dtype=torch.float32)
    norm, gated = elementwise.rms_norm(x, weight, EPS), elementwise.swiglu(x, x)
    turned = elementwise.rotate(heads, angles.cos(), angles.sin())
    chosen, share = elementwise.route(logits, bias, top_k=8)
    for row in (0, 8, 9, 39):
        one = slice(row, row + 1)
        assert torch.equal(norm[one], elementwise.rms_norm(x[one], weight, EPS))
        assert torch.equal(gated[one], elementwise.swiglu(x[one], x[one]))
        assert torch.equal(turned[one], elementwise.rotate(heads[one], angles.cos()[one], angles.sin()[one]))
        alone = elementwise.route(logits[one], bias, top_k=8)
        assert torch.equal(chosen[one], alone[0])
        assert torch.equal(share[one], alone[1])


X, W, ANGLES = torch.zeros(2, 8).bfloat16(), torch.ones(8).bfloat16(), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: elementwise.rms_norm(X.half(), W, EPS), "float16"),
        (lambda: elementwise.rms_norm(X, W.float(), EPS), "weight must be .* not float32"),
        (lambda: elementwise.rms_norm(X, W[:4], EPS), r"bf16 \[8\]"),
        (lambda: elementwise.rms_norm(X, W, EPS, added=X[:1]), r"bf16 \[2, 8\]"),
        (lambda: elementwise.rms_norm(X, W, EPS, out=X.float()), "float32"),
        (lambda: elementwise.rms_norm(X.to("meta"), W, EPS), "on the CPU, not bfloat16"),
        (lambda: elementwise.rms_norm(X.T, torch.ones(2).bfloat16(), EPS), "not adjacent"),
        (lambda: elementwise.rms_norm(X, W, EPS, out=X[:1].expand(2, 8)), "does not fit"),
        (lambda: elementwise.rms_norm(torch.tensor(1.0).bfloat16(), W, EPS), "weight"),
        (lambda: elementwise.rotate(X.float(), ANGLES, ANGLES), "float32"),
        (lambda: elementwise.rotate(X, ANGLES[:1], ANGLES), r"fp32 \[2, 4\]"),
        (lambda: elementwise.rotate(X, ANGLES, ANGLES.double()), "float64"),
        (lambda: elementwise.rotate(X[:, :7], ANGLES[:, :3], ANGLES[:, :3].clone()), "angles"),
        (lambda: elementwise.rotate(X, ANGLES, ANGLES, out=X[:, :4]), r"bf16 \[2, 8\]"),
        (lambda: elementwise.swiglu(X, X.float()), "up must be on the CPU and like gate"),
        (lambda: elementwise.swiglu(X, X[:1]), "up must be on the CPU and like gate"),
        (lambda: elementwise.swiglu(X.int(), X.int()), "int32"),
        (lambda: elementwise.route(X, ANGLES[0], top_k=1), "bfloat16"),
        (lambda: elementwise.route(ANGLES, X[0, :4], top_k=1), "bias"),
        (
            lambda: elementwise.route(ANGLES, None, top_k=1, scoring="relu"),
            "scoring must be .* not 'relu'",
        ),
        (lambda: elementwise.route(ANGLES, ANGLES[0], top_k=5), "not 5 of 4"),
        (lambda: elementwise.route(ANGLES, ANGLES[0], top_k=0), "not 0 of 4"),
        (lambda: elementwise.route(ANGLES, ANGLES[0], top_k=1, n_groups=3), "groups of two or more, not 3"),
        (lambda: elementwise.route(ANGLES, ANGLES[0], top_k=1, n_groups=4), "groups of two or more, not 4"),
        (
            lambda: elementwise.route(ANGLES, ANGLES[0], top_k=1, n_groups=2, groups_kept=3),
            "between 1 and 2 .n_groups., not 3",
        ),
        (lambda: elementwise.route(torch.zeros(1, 5000), torch.zeros(5000), top_k=1), "at most 4096"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(KernelError, match=says):
        call()


@pytest.mark.parametrize("shape", [(0, 8), (2, 0), (0, 0)])
def test_empty_inputs_give_empty_results(shape: tuple[int, int]) -> None:
    x, half = torch.zeros(shape).bfloat16(), torch.zeros(shape[0], shape[1] // 2)
    assert elementwise.rms_norm(x, torch.ones(shape[1]).bfloat16(), EPS).shape == shape
    assert elementwise.rotate(x, half, half).shape == shape
    assert elementwise.swiglu(x, x).shape == shape
    assert elementwise.route(torch.zeros(0, 4), torch.zeros(4), top_k=2)[0].shape == (0, 2)
