"""Products whose bits do not depend on the batch: the oracle's values, and the same bits at every cut."""

import pytest
import torch

from earthshine import kernels
from earthshine.kernels import reference, rows

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def _draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _on_threads(work, dtype=torch.float32):
    """What `work` gives where one, two and three threads are asked for."""
    before, native, results = torch.get_num_threads(), kernels.threads(), []
    try:
        for threads in (1, 2, 3):
            kernels.set_threads(threads, dtype)
            results.append(work())
    finally:
        kernels.set_threads(native)
        torch.set_num_threads(before)
    return results


@DTYPES
@pytest.mark.parametrize("shape", [(256, 256), (1000, 64), (48, 1024)])
def test_a_row_is_the_same_alone_and_among_others(dtype, shape):
    x, weight = _draw(75, shape[1], dtype=dtype), _draw(*shape, dtype=dtype, seed=1)
    together = rows.linear(x, weight)
    for begin, end in ((0, 1), (40, 41), (74, 75), (3, 24), (16, 48)):
        assert torch.equal(rows.linear(x[begin:end], weight), together[begin:end])


@DTYPES
def test_heads_are_the_same_alone_and_among_others(dtype):
    x, weight = _draw(45, 4, 32, dtype=dtype), _draw(4, 96, 32, dtype=dtype, seed=1)
    together = rows.linear_by_head(x, weight)
    for begin, end in ((0, 1), (44, 45), (3, 24)):
        assert torch.equal(rows.linear_by_head(x[begin:end], weight), together[begin:end])


@pytest.mark.parametrize("key_heads", [1, 3], ids=["shared keys", "keys a head"])
def test_attention_is_the_same_however_the_queries_are_cut(key_heads):
    query, key, value = _draw(3, 600, 16), _draw(key_heads, 600, 16, seed=1), _draw(key_heads, 600, 12, seed=2)
    together = rows.attend(query, key, value, 0.6, 0)
    for begin, end in ((0, 1), (255, 257), (511, 513), (599, 600), (100, 400)):
        part = rows.attend(query[:, begin:end], key[:, :end], value[:, :end], 0.6, begin)
        assert torch.equal(part, together[:, begin:end])
    torch.testing.assert_close(together, reference.attend(query, key, value, 0.6, 0), rtol=1e-4, atol=1e-5)


def test_attention_survives_scores_that_overflow_an_exponential():
    query, key = torch.full((1, 2, 4), 50.0), torch.full((1, 2, 4), 50.0)
    value = torch.tensor([[[1.0], [3.0]]])
    assert rows.attend(query, key, value, 1.0, 0)[0, :, 0].tolist() == [1.0, 2.0]


def test_leading_axes_are_kept():
    x, weight = _draw(2, 5, 8), _draw(6, 8, seed=1)
    torch.testing.assert_close(rows.linear(x, weight), x @ weight.T)


def test_gradients_flow_through_the_plain_product():
    x = _draw(40, 8).requires_grad_()
    weight = _draw(6, 8, seed=1).requires_grad_()
    rows.linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(40, -1))


@DTYPES
@pytest.mark.parametrize("shape", [(576, 7168), (7168, 2048)], ids=str)
def test_the_number_of_threads_changes_nothing_at_full_width(dtype, shape):
    """Kimi-K2.6's latent and an expert's down projection, where a library might divide the sum itself."""
    x, weight = _draw(33, shape[1], dtype=dtype), _draw(*shape, dtype=dtype, seed=1)
    results = _on_threads(lambda: rows.linear(x, weight), dtype)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_elementwise_results_are_the_same_alone_among_others_and_on_any_number_of_threads():
    gate, up, logits = _draw(75, 1032), _draw(75, 1032, seed=1), _draw(75, 131, seed=2)
    results = _on_threads(lambda: rows.swiglu(gate, up))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    scores = rows.route(logits, torch.zeros(131), top_k=131, normalize=False)[1]
    shares = rows.route(logits, None, top_k=131, normalize=False, scoring="softmax")[1]
    for row in range(75):
        one = slice(row, row + 1)
        alone = rows.route(logits[one], None, top_k=131, normalize=False, scoring="softmax")[1]
        assert torch.equal(alone, shares[one])
        assert torch.equal(rows.swiglu(gate[one], up[one]), results[0][one])
        assert torch.equal(rows.route(logits[one], torch.zeros(131), top_k=131, normalize=False)[1], scores[one])


def test_bf16_queries_are_not_rounded_when_they_are_scaled():
    query, key, value = (_draw(2, 20, 16, dtype=torch.bfloat16, seed=seed) * 8 for seed in range(3))
    expected = reference.attend(query, key, value, 0.3, 0)
    torch.testing.assert_close(rows.attend(query, key, value, 0.3, 0), expected, rtol=1e-2, atol=1e-2)


@DTYPES
def test_grouped_queries_are_near_the_oracle_and_the_same_alone_and_in_a_batch(dtype):
    """Eight query heads over two kv heads, whose values lie behind the keys, in pages of 16."""
    pool, query = _draw(5, 16, 2 * 40, dtype=dtype), _draw(9, 8, 24, dtype=dtype, seed=1)
    layout = {"n_kv_heads": 2, "value_offset": 24, "value_dim": 16}
    pages = torch.tensor([3, 0, 4], dtype=torch.int32)
    sequences = [kernels.PagedTokens(6, 33, pages), kernels.PagedTokens(3, 0, pages[1:])]
    together = rows.paged_attention(query, pool, sequences, 0.2, **layout)
    expected = reference.paged_attention(query, pool, sequences, 0.2, **layout)
    torch.testing.assert_close(together, expected, rtol=1e-2, atol=1e-2 if dtype == torch.bfloat16 else 1e-5)
    for first, count in ((0, 1), (2, 4), (6, 3)):
        whole = sequences[first == 6]
        part = kernels.PagedTokens(count, whole.start + first % 6, whole.pages)
        alone = rows.paged_attention(query[first : first + count], pool, [part], 0.2, **layout)
        assert torch.equal(alone, together[first : first + count])
