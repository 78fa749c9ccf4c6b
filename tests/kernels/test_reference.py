"""The oracle itself, against definitions written out by hand."""

import math

import pytest
import torch

from earthshine.kernels import reference


def test_rms_norm_divides_by_the_root_mean_square():
    x = torch.tensor([[3.0, 4.0]])
    rms = math.sqrt(12.5 + 0.5)
    out = reference.rms_norm(x, torch.tensor([2.0, 10.0]), 0.5)
    torch.testing.assert_close(out, torch.tensor([[6 / rms, 40 / rms]]))


def test_swiglu_gates_by_silu():
    out = reference.swiglu(torch.tensor([2.0]), torch.tensor([3.0]))
    assert float(out) == pytest.approx(2 / (1 + math.exp(-2)) * 3)


def test_rotate_rotates_interleaved_pairs():
    """A quarter turn takes (1, 2) to (-2, 1); the second pair does not turn."""
    cos, sin = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    out = reference.rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]), cos, sin)
    assert out.tolist() == [-2.0, 1.0, 3.0, 4.0]


def test_rotate_rotates_halves():
    """A quarter turn takes (1, 3) to (-3, 1); the second pair does not turn."""
    cos, sin = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    out = reference.rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]), cos, sin, interleaved=False)
    assert out.tolist() == [-3.0, 2.0, 1.0, 4.0]


def test_softmax_scores_are_shares_of_all_experts():
    chosen, weight = _route([1.0, 2.0, 0.0], None, top_k=2, scoring="softmax", normalize=False, scale=2.0)
    assert chosen.tolist() == [[1, 0]]
    total = 1 + math.e + math.e**2
    assert weight[0].tolist() == pytest.approx([2 * math.e**2 / total, 2 * math.e / total])


def test_attend_shares_a_kv_head_among_query_heads_in_a_row():
    query, key, value = torch.randn(4, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 6)
    out = reference.attend(query, key, value, 0.3, 2)
    for head in range(4):
        kv = slice(head // 2, head // 2 + 1)
        alone = reference.attend(query[head : head + 1], key[kv], value[kv], 0.3, 2)
        torch.testing.assert_close(out[head : head + 1], alone)


def test_attend_is_a_softmax_over_the_past():
    query = torch.tensor([[[1.0], [2.0]]])
    key = torch.tensor([[[0.5], [1.0], [-1.0]]])
    value = torch.tensor([[[1.0], [10.0], [100.0]]])
    out = reference.attend(query, key, value, scale=2.0, start=1)[0, :, 0]
    first = [math.exp(2.0 * 1 * k) for k in (0.5, 1.0)]
    second = [math.exp(2.0 * 2 * k) for k in (0.5, 1.0, -1.0)]
    assert float(out[0]) == pytest.approx((first[0] + 10 * first[1]) / sum(first), rel=1e-5)
    assert float(out[1]) == pytest.approx((second[0] + 10 * second[1] + 100 * second[2]) / sum(second), rel=1e-5)


def _route(logits, bias, **options):
    """Route one token whose router logits are `logits`."""
    return reference.route(torch.tensor([logits]), None if bias is None else torch.tensor(bias), **options)


def test_the_bias_selects_and_never_weighs():
    chosen, weight = _route([1.0, 2.0, -3.0], [0.0, 0.0, 5.0], top_k=2, scale=2.0)
    assert chosen.tolist() == [[2, 1]]
    scores = [1 / (1 + math.exp(3)), 1 / (1 + math.exp(-2))]
    assert weight[0].tolist() == pytest.approx([2 * score / sum(scores) for score in scores])


def test_weights_are_left_alone_without_normalisation():
    _, weight = _route([0.0, 1.0], [0.0, 0.0], top_k=1, normalize=False, scale=3.0)
    assert float(weight) == pytest.approx(3 / (1 + math.exp(-1)))


def test_equal_scores_go_to_the_lower_expert():
    chosen, _ = _route([0.5] * 8, [0.0] * 8, top_k=3)
    assert chosen.tolist() == [[0, 1, 2]]


def test_groups_are_kept_by_their_two_best():
    """The best single expert loses when its group's two best sum to less; a negative choice in a kept group wins."""
    logits = [3.0, -9.0, 1.0, 1.1, -1.0, -1.0]
    chosen, _ = _route(logits, [0.0] * 6, top_k=2, n_groups=3, groups_kept=1)
    assert chosen.tolist() == [[3, 2]]
    chosen, _ = _route(logits, [-2.0] * 6, top_k=3, n_groups=3, groups_kept=2)
    assert sorted(chosen[0].tolist()) == [0, 2, 3]


def test_int4_nibbles_are_offset_binary_lowest_first():
    words = torch.tensor([[0x76543210, 0x0FEDCBA9, 0, 0]], dtype=torch.int64).to(torch.int32)
    out = reference.decode_int4(words, torch.tensor([[0.5]], dtype=torch.bfloat16))
    expected = [(u - 8) * 0.5 for u in (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 0)] + [-4.0] * 16
    assert out[0].tolist() == expected


def test_int4_products_are_rounded_to_bf16():
    scale = torch.tensor([[1.0078125]], dtype=torch.bfloat16)  # 1 + 2^-7: seven times it needs nine bits
    word = torch.full((1, 4), -1, dtype=torch.int32)  # code 15, value 7
    assert reference.decode_int4(word, scale)[0, 0].item() == torch.tensor(7 * 1.0078125).bfloat16().item()
    assert reference.decode_int4(word, scale)[0, 0].item() != 7 * 1.0078125


def test_fp8_blocks_are_cropped_at_the_edge():
    weight = torch.ones(130, 129).to(torch.float8_e4m3fn)
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    out = reference.decode_fp8(weight, scale)
    assert [out[0, 0].item(), out[0, 128].item(), out[129, 0].item(), out[129, 128].item()] == [1.0, 2.0, 3.0, 4.0]


def test_linear_sums_in_fp32():
    """2^12 and 4096 halves: a bf16 sum would lose every half."""
    x = torch.tensor([[4096.0] + [0.5] * 4096], dtype=torch.bfloat16)
    weight = torch.ones(1, 4097, dtype=torch.bfloat16)
    assert reference.linear(x, weight).item() == 6144.0


def test_rms_norm_rounds_before_the_weight_multiplies():
    x, weight = torch.linspace(-3, 3, 64).bfloat16(), torch.linspace(0.5, 1.5, 64).bfloat16()
    scaled = x.float() / (x.float().square().mean() + 1e-6).sqrt()
    assert torch.equal(reference.rms_norm(x, weight, 1e-6), weight * scaled.bfloat16())
    assert not torch.equal((weight.float() * scaled).bfloat16(), weight * scaled.bfloat16())


def test_scores_that_vanish_weigh_nothing():
    _, weight = _route([-200.0, -200.0], [0.0, 0.0], top_k=2)
    assert weight.tolist() == [[0.0, 0.0]]


def test_equal_groups_go_to_the_lower_one():
    chosen, _ = _route([0.5] * 6, [0.0] * 6, top_k=2, n_groups=3, groups_kept=1)
    assert chosen.tolist() == [[0, 1]]
