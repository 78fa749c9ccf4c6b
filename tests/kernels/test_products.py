"""Products of the native library: the oracle's values, and the same bits on every instruction set and at every cut.

Sums are fp32, so a product lies within a few roundings of the exact one; avx512_bf16 adds in an order of its own and is
held to the same distance, and to its own bits.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from earthshine.kernels import Expert, int4_matrix, library, native, reference
from earthshine.storage import Storage

from .stored import FORMATS, assert_same_bits, bf16, draw, matrix, random_bits

# Remainders of sixteen rows, of a strip of 64 or 128, of 32, 128 and 256 columns, and of 8, 16 and 512 activations.
SHAPES = [
    (1, 32, 1), (5, 64, 3), (16, 96, 8), (17, 288, 9), (48, 544, 17), (130, 160, 33), (70, 32, 513), (130, 1056, 1),
]  # fmt: skip
ODD_SHAPES = [(1, 1, 1), (5, 31, 3), (16, 33, 8), (17, 127, 9), (48, 161, 17), (130, 289, 33), (70, 5, 513)]
CASES = [
    (form, *shape) for form in FORMATS for shape in SHAPES + (ODD_SHAPES if form is not Storage.INT4_GROUP32 else [])
]


def elsewhere(instruction_set: str, compute: Callable[[], Tensor]) -> Tensor:
    """What the portable instance gives."""
    library.force("portable")
    result = compute()
    library.force(instruction_set)
    return result


@cache
def on_portable(form: Storage, rows: int, cols: int, m: int) -> Tensor:
    return native.linear(draw(m, cols, seed=7), matrix(form, rows, cols), torch.float32)


def assert_near(actual: Tensor, x: Tensor, weight: Tensor) -> None:
    """Within fp32's error of a sum: columns / 16 + 32 roundings of the magnitudes' sum are more than any order has."""
    exact = x.double() @ weight.double().T
    bound = (x.double().abs() @ weight.double().abs().T) * (32 + x.shape[-1] / 16) * 2.0**-24
    assert ((actual.double() - exact).abs() <= bound + 1e-35).all()


def assert_same(instruction_set: str, actual: Tensor, portable: Tensor, scale: float = 1.0) -> None:
    """Equal bits; for avx512_bf16 close, as a sum in another order is."""
    if instruction_set == "avx512_bf16":
        torch.testing.assert_close(actual, portable, rtol=1e-2, atol=1e-5 * scale)
    else:
        assert_same_bits(actual, portable)


def cuts(n: int) -> Sequence[Sequence[int]]:
    """Boundaries: one at a time, and in two ways uneven."""
    return (range(n + 1), (0, 1, n), (0, 2, 5, 9, n), (0, n // 3, n // 2 + 1, n))


@pytest.mark.parametrize(("form", "rows", "cols", "m"), CASES)
class TestLinear:
    def test_it_is_the_oracles_and_everywhere_the_same(
        self, instruction_set: str, form: Storage, rows: int, cols: int, m: int
    ) -> None:
        x, weight = draw(m, cols, seed=7), matrix(form, rows, cols)
        wide = native.linear(x, weight, torch.float32)
        assert_near(wide, x, reference.decode(weight))
        assert_same(instruction_set, wide, elsewhere(instruction_set, lambda: on_portable(form, rows, cols, m)))
        assert_same_bits(native.linear(x, weight, torch.bfloat16), wide.bfloat16())


class TestLossless:
    @pytest.mark.parametrize("cols", [32, 64, 96, 160, 1056])
    def test_int4_weights_enter_a_product_with_their_published_values(self, instruction_set: str, cols: int) -> None:
        """Rows with a single one pick columns: alone, in fours and many together. Scales from 2^-100 to 2^100."""
        rows = 37
        patterns = random_bits(rows, cols // 32, seed=cols)
        exponents = 27 + (patterns >> 16 & 0xFFFF) % 200
        weight = int4_matrix(random_bits(rows, cols // 8, seed=3), bf16(patterns & 0x807F | exponents << 7))
        picks, expected = torch.eye(cols).bfloat16(), reference.decode(weight).float().T
        assert torch.equal(native.linear(picks, weight, torch.float32), expected)
        for m in (1, 4):
            for first in range(0, cols, 27):
                some = slice(first, first + m)
                assert torch.equal(native.linear(picks[some], weight, torch.float32), expected[some])


class TestSameBits:
    @pytest.mark.parametrize("form", FORMATS)
    def test_a_row_is_the_same_alone_among_others_and_on_any_threads(self, instruction_set: str, form: Storage) -> None:
        for rows, cols in ((150, 288), (37, 2112)):
            weight, x = matrix(form, rows, cols), draw(35, cols)
            whole = native.linear(x, weight, torch.float32)
            for cut in cuts(len(x)):
                parts = [native.linear(x[a:b], weight, torch.float32) for a, b in pairwise(cut)]
                assert_same_bits(torch.cat(parts), whole)
            for threads in (2, 3):
                library.set_threads(threads)
                assert_same_bits(native.linear(x, weight, torch.float32), whole)
            library.set_threads(1)

    def test_a_row_is_the_same_before_and_after_the_512th(self, instruction_set: str) -> None:
        weight, x = matrix(Storage.INT8_GROUP128, 20, 64), draw(600, 64)
        whole = native.linear(x, weight, torch.float32)
        assert_same_bits(native.linear(x.flip(0), weight, torch.float32).flip(0), whole)
        assert_same_bits(native.linear(x[500:], weight, torch.float32), whole[500:])

    def test_leading_axes_are_rows_and_strided_activations_are_read_as_they_stand(self, instruction_set: str) -> None:
        weight, x = matrix(Storage.BF16, 33, 64), draw(2, 3, 128)
        out = native.linear(x[..., 32:96], weight, torch.bfloat16)
        assert out.shape == (2, 3, 33)
        assert_same_bits(out[1, 2], native.linear(x[1, 2, 32:96].clone(), weight, torch.bfloat16))
        assert native.linear(x[:0, :, :64], weight, torch.float32).shape == (0, 3, 33)

    def test_an_infinity_or_nan_stays_in_its_row_and_column(self, instruction_set: str) -> None:
        x, weight = draw(20, 64), draw(40, 64)
        x[3, 5], weight[7, 9] = float("inf"), float("nan")
        plain = native.linear(draw(20, 64), draw(40, 64), torch.float32)
        spoilt = native.linear(x, weight, torch.float32)
        assert (spoilt.isfinite() == (torch.arange(20) != 3)[:, None] & (torch.arange(40) != 7)).all()
        untouched = spoilt.isfinite()
        assert_same_bits(spoilt[untouched], plain[untouched])

    def test_subnormal_numbers_count_as_zero(self, instruction_set: str) -> None:
        x = torch.full((1, 32), 2.0**-130, dtype=torch.bfloat16)
        weight = torch.full((1, 32), 2.0**100, dtype=torch.bfloat16)
        assert native.linear(x, weight, torch.float32).item() == 0.0
        assert native.linear(weight, x, torch.float32).item() == 0.0
        assert float(torch.tensor(2.0**-140)) > 0, "the caller's own arithmetic keeps subnormal numbers"


class TestByHead:
    @pytest.mark.parametrize(("rows", "cols"), [(1, 8), (16, 32), (17, 48), (130, 33), (5, 288)])
    @pytest.mark.parametrize("by_columns", [False, True], ids=["by_rows", "by_columns"])
    def test_every_head_has_its_own_product_whatever_the_strides(
        self, instruction_set: str, rows: int, cols: int, by_columns: bool
    ) -> None:
        """x is the first part of wider heads, and out the last part."""
        n_heads = 3
        stored = draw(n_heads, 2, cols, rows, seed=1, gain=cols**-0.5) if by_columns else draw(
            n_heads, 2, rows, cols, seed=1, gain=cols**-0.5
        )  # fmt: skip
        weight = stored[:, 1].mT if by_columns else stored[:, 1]
        for m in (1, 2, 17, 130):
            x = draw(m, n_heads, cols + 5)[..., :cols]
            out = torch.full((m, n_heads, rows + 3), 9.0).bfloat16()
            native.linear_by_head(x, weight, out[..., 3:])
            assert (out[..., :3] == 9).all()
            expected = torch.stack(
                [native.linear(x[:, h], weight[h].contiguous(), torch.bfloat16) for h in range(3)], 1
            )
            whole = out[..., 3:].contiguous()
            if instruction_set == "avx512_bf16":  # whose order is that in which a matrix lies
                torch.testing.assert_close(whole, expected, rtol=2e-2, atol=1e-4)
            else:
                assert_same_bits(whole, expected)
            for threads, cut in ((2, (0, m // 2, m)), (3, (0, 1, m))):
                library.set_threads(threads)
                again = torch.zeros_like(out)
                for a, b in pairwise(cut):
                    native.linear_by_head(x[a:b], weight, again[a:b, :, 3:])
                assert_same_bits(again[..., 3:].contiguous(), whole)


HIDDEN, INTERMEDIATE = 160, 96


@cache
def experts(form: Storage, n: int, hidden: int = HIDDEN, intermediate: int = INTERMEDIATE) -> list[Expert]:
    shapes = ((intermediate, hidden), (intermediate, hidden), (hidden, intermediate))
    return [Expert(*(matrix(form, *shape, seed=9 * i + j) for j, shape in enumerate(shapes))) for i in range(n)]


def pairs_of(counts: Sequence[int], tokens: int, seed: int = 2) -> tuple[Tensor, list[int]]:
    """Each expert's tokens ascending, and the boundaries."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.randperm(tokens, generator=generator)[:count].sort().values for count in counts]
    return torch.cat(chosen).int(), [0, *torch.tensor(counts).cumsum(0).tolist()]


def outputs(x: Tensor, some: Sequence[Expert], token: Tensor, begin: Sequence[int]) -> Tensor:
    each = torch.full((len(token), x.shape[1]), float("nan"))
    native.moe_ffn(x, some, token, begin, each)
    return each


class TestExperts:
    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("counts", [(1,), (0, 3, 0, 17, 1, 0), (2,) * 8], ids=str)
    def test_an_expert_is_its_three_products(self, instruction_set: str, form: Storage, counts: Sequence[int]) -> None:
        """gate and up stay fp32, what goes into down is bf16; experts without pairs change nothing."""
        x = draw(17, HIDDEN)
        token, begin = pairs_of(counts, len(x))
        some = experts(form, len(counts))
        each = outputs(x, some, token, begin)
        expected = torch.zeros_like(each)
        reference.moe_ffn(x, some, token, begin, expected)
        torch.testing.assert_close(each, expected, rtol=2e-2, atol=4e-3)
        assert torch.nn.functional.cosine_similarity(each, expected).min() > 0.9999
        assert expected.abs().mean() > 0.01
        assert_same(instruction_set, each, elsewhere(instruction_set, lambda: outputs(x, some, token, begin)), 400)

    def test_widths_need_be_no_multiples(self, instruction_set: str) -> None:
        x, some = draw(5, 33), experts(Storage.INT8_GROUP128, 2, 33, 45)
        token, begin = pairs_of((3, 5), 5)
        expected = torch.zeros(8, 33)
        reference.moe_ffn(x, some, token, begin, expected)
        torch.testing.assert_close(outputs(x, some, token, begin), expected, rtol=2e-2, atol=4e-3)

    @pytest.mark.parametrize(
        "forms", [(Storage.INT4_GROUP32, Storage.BF16), (Storage.FP8_BLOCK128, Storage.INT4_GROUP32)], ids=str
    )
    def test_gate_and_up_may_be_stored_in_different_formats(
        self, instruction_set: str, forms: tuple[Storage, Storage]
    ) -> None:
        gate, up = (experts(form, 1)[0] for form in forms)
        x, some = draw(9, HIDDEN), [Expert(gate.gate, up.up, gate.down), Expert(up.gate, up.up, gate.down)]
        token, begin = pairs_of((2, 9), 9)
        each, expected = outputs(x, some, token, begin), torch.zeros(11, HIDDEN)
        reference.moe_ffn(x, some, token, begin, expected)
        torch.testing.assert_close(each, expected, rtol=2e-2, atol=4e-3)
        assert expected.abs().mean() > 0.01
        assert_same_bits(outputs(x, some[:1], token[:1], [0, 1]), each[:1])

    @pytest.mark.usefixtures("instruction_set")
    def test_a_dense_layer_is_the_one_expert_of_all_tokens(self) -> None:
        """270 tokens: more than are computed at once."""
        x, one = draw(270, HIDDEN), experts(Storage.FP8_BLOCK128, 1)[0]
        out = native.ffn(x, one.gate, one.up, one.down)
        assert_same_bits(out, outputs(x, [one], torch.arange(270).int(), [0, 270]).bfloat16())
        expected = reference.ffn(x, one.gate, one.up, one.down)
        torch.testing.assert_close(out, expected, rtol=2e-2, atol=4e-3)
        assert expected.abs().mean() > 0.01
        assert_same_bits(native.ffn(x[261:262], one.gate, one.up, one.down), out[261:262])

    @pytest.mark.parametrize("counts", [(5, 0, 600, 20), (3,) * 70, (1,) * 66, (0,) * 65 + (4,)], ids=len)
    def test_a_pair_is_the_same_in_any_company_and_on_any_threads(
        self, instruction_set: str, counts: Sequence[int]
    ) -> None:
        """More pairs an expert, and more experts, than are computed at once."""
        form, tokens = Storage.INT4_GROUP32, 600
        x = draw(tokens, 64)
        some = experts(form, 3, 64, 32) * 30
        some = some[: len(counts)]
        token, begin = pairs_of(counts, tokens)
        whole = outputs(x, some, token, begin)
        for i in (0, 2, len(counts) - 1):
            first, last = begin[i], begin[i + 1]
            for a, b in ((first, last), (first, min(first + 1, last)), (max(first, last - 2), last)):
                assert_same_bits(outputs(x, [some[i]], token[a:b], [0, b - a]), whole[a:b])
        for threads in (2, 3):
            library.set_threads(threads)
            assert_same_bits(outputs(x, some, token, begin), whole)
        assert whole.isfinite().all()

    def test_boundaries_may_begin_within_the_pairs(self, instruction_set: str) -> None:
        x, some = draw(6, HIDDEN), experts(Storage.BF16, 1)
        token = torch.arange(6, dtype=torch.int32)
        each = outputs(x, some, token, [2, 5])
        assert each.isnan().all(1).tolist() == [True, True, False, False, False, True]
        assert_same_bits(each[2:5], outputs(x[2:5], some, token[:3], [0, 3]))


class TestSum:
    @pytest.mark.parametrize("hidden", [1, 15, 40, 300, 7168])
    def test_pairs_are_added_one_after_another_with_one_rounding_each(self, instruction_set: str, hidden: int) -> None:
        generator = torch.Generator().manual_seed(0)
        each, weight = torch.randn(40, hidden, generator=generator), torch.rand(40, generator=generator)
        token = torch.randint(5, (40,), generator=generator).int()
        start = torch.randn(6, hidden, generator=generator)
        expected = start.clone()
        for p, t in enumerate(token.tolist()):  # a product of two fp32 is exact in fp64, where then the sum is rounded
            expected[t] = (weight[p].double() * each[p].double() + expected[t].double()).float()
        total = start.clone()
        native.moe_sum(each, token, weight, total)
        torch.testing.assert_close(total, expected, rtol=3e-7, atol=1e-7)
        assert (total == expected).float().mean() > 0.999
        assert_same_bits(total[5], start[5])
        for threads, cut in ((1, (0, 7, 40)), (3, (0, 40))):
            library.set_threads(threads)
            again = start.clone()
            for a, b in pairwise(cut):
                native.moe_sum(each[a:b], token[a:b], weight[a:b], again)
            assert_same_bits(again, total)
        library.set_threads(1)

        def portable() -> Tensor:
            sums = start.clone()
            native.moe_sum(each, token, weight, sums)
            return sums

        assert_same_bits(total, elsewhere(instruction_set, portable))
