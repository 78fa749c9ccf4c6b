"""Attention over pages: against the oracle, and the same bits for any division of heads, tokens, pages and threads."""

import ctypes
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from earthshine.errors import KernelError
from earthshine.kernels import library, reference
from earthshine.kernels.attention import CSequence, PagedTokens, _Attention, paged_attention

SPAN = 512  # positions of one softmax in the library

pytestmark = pytest.mark.skipif(not library.available(), reason="the native library is not installed")


class Heads(NamedTuple):
    """`n` query heads over `n_kv` kv heads, and what of a kv head's values is its key and what its value."""

    n: int
    n_kv: int
    key_dim: int
    value_offset: int
    value_dim: int

    @property
    def width(self) -> int:
        return max(self.key_dim, self.value_offset + self.value_dim)


def mla(n_heads: int, rank: int, rope: int) -> Heads:
    return Heads(n_heads, 1, rank + rope, 0, rank)


def gqa(n_heads: int, n_kv: int, dim: int) -> Heads:
    return Heads(n_heads, n_kv, dim, dim, dim)


class Case(NamedTuple):
    query: Tensor
    pool: Tensor
    sequences: list[PagedTokens]
    heads: Heads
    scale: float

    def attend(self) -> Tensor:
        return paged_attention(self.query, self.pool, self.sequences, self.scale, **self.layout())

    def layout(self) -> dict[str, int]:
        return dict(zip(("n_kv_heads", "value_offset", "value_dim"), self.heads[1:2] + self.heads[3:], strict=True))


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threads = library.threads()
    yield
    library.set_threads(threads)
    library.force("auto")


def draw(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size).bfloat16()


def make(heads: Heads, page_tokens: int, tokens: list[tuple[int, int]], seed: int = 0, size: float = 1.0) -> Case:
    """`tokens`: (count, start) of each sequence. Pages are shuffled; whatever no sequence has written is nan."""
    needs = [-(-(count + start) // page_tokens) for count, start in tokens]
    order = torch.randperm(sum(needs) + 2, generator=torch.Generator().manual_seed(seed)).int()
    row = heads.n_kv * heads.width
    pool = torch.full((len(order), page_tokens, row), float("nan"), dtype=torch.bfloat16)
    sequences = []
    for i, ((count, start), pages) in enumerate(zip(tokens, order[: sum(needs)].split(needs), strict=True)):
        write(pool, pages, draw(count + start, row, seed=seed + i + 1))
        sequences.append(PagedTokens(count, start, pages))
    query = draw(sum(count for count, _ in tokens), heads.n, heads.key_dim, seed=seed + 99, size=size)
    return Case(query, pool, sequences, heads, heads.key_dim**-0.5)


def write(pool: Tensor, pages: Tensor, rows: Tensor) -> None:
    place = torch.arange(len(rows))
    pool[pages[place // pool.shape[1]].long(), place % pool.shape[1]] = rows


def expected(case: Case) -> Tensor:
    """fp32 [tokens, n_heads, value_dim]."""
    return reference.paged_attention(case.query.float(), case.pool.float(), case.sequences, case.scale, **case.layout())


def assert_near(actual: Tensor, wanted: Tensor) -> None:
    """Within the roundings of shares and results to bf16: half a unit in the last place is 2^-9 of a value."""
    assert actual.isfinite().all()
    error = (actual.float() - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert error.max() < 2**-8
    assert (
        (actual.float() - wanted).abs() <= 2**-8 * wanted.abs() + 2**-7 * wanted.square().mean(-1, keepdim=True).sqrt()
    ).all()


Shape = tuple[Heads, int, list[tuple[int, int]]]  # heads, page tokens, (count, start) of each sequence
SHAPES: list[Shape] = [
    (mla(1, 32, 0), 16, [(1, 0)]),
    (mla(3, 40, 8), 16, [(17, 0), (1, 33), (2, 15)]),
    (mla(3, 33, 5), 7, [(5, 60), (1, 199)]),
    (mla(16, 64, 32), 48, [(1, 95), (9, 100)]),
    (mla(64, 96, 32), 64, [(1, 130), (3, 61)]),
    (mla(128, 64, 64), 64, [(1, 63), (2, 126)]),
    (mla(5, 64, 0), 64, [(3, SPAN - 2), (1, 2 * SPAN)]),
    (gqa(8, 2, 64), 16, [(1, 95), (40, 100), (3, 0)]),
    (gqa(32, 2, 128), 64, [(1, SPAN + 3), (9, 61)]),
    (gqa(6, 6, 80), 16, [(7, 20), (1, 2 * SPAN + 1)]),
    (gqa(9, 3, 72), 7, [(50, 12), (1, 30)]),
    (gqa(4, 2, 256), 16, [(2, 33), (1, 200)]),
    (Heads(7, 7, 33, 33, 17), 16, [(20, 5), (1, 40)]),
    (Heads(6, 3, 40, 11, 21), 16, [(3, 18), (1, SPAN)]),  # the value begins within the key and ends within it
    (Heads(6, 2, 24, 9, 37), 5, [(3, 18), (1, 70)]),  # and ends behind it
    (Heads(4, 2, 64, 70, 32), 16, [(2, 18), (1, 70)]),  # unused values between both
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [0.3, 6.0], ids=["even", "peaked"])
def test_every_instruction_set_is_near_the_oracle(instruction_set: str, shape: Shape, size: float) -> None:
    case = make(*shape, seed=len(shape[2]), size=size)
    assert_near(case.attend(), expected(case))


def test_the_shapes_of_published_models_are_near_the_oracle() -> None:
    """Kimi-K2.6 has 64 heads, Moonlight 16; both keep 512 + 64 values a token. Qwen3-30B-A3B has 32 over 4."""
    for heads in (mla(16, 512, 64), mla(64, 512, 64), gqa(32, 4, 128)):
        case = make(heads, 64, [(1, 700), (3, 20)])
        assert_near(case.attend(), expected(case))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_instruction_sets_give_the_same_bits(shape: Shape) -> None:
    """All but avx512_bf16, which adds in an order of its own."""
    case = make(*shape, seed=4)
    results: dict[str, Tensor] = {}
    for name in set(library.instruction_sets()) - {"avx512_bf16"}:
        library.force(name)
        results[name] = case.attend()
    for name, result in results.items():
        assert torch.equal(result, results["portable"]), name


@pytest.mark.parametrize("heads", [mla(6, 48, 16), gqa(6, 3, 40)], ids=str)
def test_any_number_of_threads_gives_the_same_bits(instruction_set: str, heads: Heads) -> None:
    case, results = make(heads, 16, [(25, 0), (1, 1100), (2, 530)]), []
    for threads in (1, 2, 3):
        library.set_threads(threads)
        results.append(case.attend())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def alone(case: Case, place: int, begin: int, end: int) -> Tensor:
    """Tokens begin to end of one sequence, in a call of their own; what comes later is nan in the pool."""
    whole = case.sequences[place]
    first = sum(sequence.count for sequence in case.sequences[:place])
    seen = whole.start + end
    pool = torch.full_like(case.pool, float("nan"))
    write(pool, whole.pages, case.pool[whole.pages.long()].flatten(0, 1)[:seen])
    part = PagedTokens(end - begin, whole.start + begin, whole.pages)
    return case._replace(query=case.query[first + begin : first + end], pool=pool, sequences=[part]).attend()


@pytest.mark.parametrize("heads", [*(mla(n, 64, 8) for n in (3, 16, 64)), gqa(8, 2, 40), gqa(3, 3, 64)], ids=str)
def test_a_token_is_the_same_alone_in_a_batch_and_in_any_chunk(instruction_set: str, heads: Heads) -> None:
    case = make(heads, 16, [(9, SPAN - 4), (1, 40), (12, 0)])
    together = case.attend()
    for place, first, count in ((0, 0, 9), (1, 9, 1), (2, 10, 12)):
        for chunk in (count, 5, 1):
            for begin in range(0, count, chunk):
                end = min(begin + chunk, count)
                assert torch.equal(alone(case, place, begin, end), together[first + begin : first + end])


def test_spans_in_any_order_and_rounds_give_the_same_bits() -> None:
    """A token of 128 heads is a block. 32 MiB hold a span of 128 of them, so the spans of 130 are taken in turn."""
    case = make(mla(128, 512, 0), 64, [(130, SPAN - 60)])
    library.set_threads(3)
    library.force(next(name for name in library.instruction_sets() if name != "amx"))  # 2 s where it is emulated
    together = case.attend()
    assert torch.equal(alone(case, 0, 50, 130), together[50:])
    for token in (0, 59, 60, 61, 129):
        assert torch.equal(alone(case, 0, token, token + 1), together[token : token + 1])


def test_where_pages_lie_and_how_large_they_are_changes_nothing(instruction_set: str) -> None:
    latents, query = draw(700, 96, seed=1), draw(3, 16, 96)
    results = []
    for page_tokens in (7, 16, 48, 64, 1000):
        n = -(-700 // page_tokens)
        swapped = torch.arange(n - n % 4).view(-1, 4)[:, [0, 2, 1, 3]].flatten()  # ends of a block where they were
        for order in (torch.arange(n), torch.arange(n).flip(0), torch.cat((swapped, torch.arange(n - n % 4, n)))):
            pool = torch.full((n, page_tokens, 96), float("inf"), dtype=torch.bfloat16)
            write(pool, order, latents)
            results.append(paged_attention(query, pool, [PagedTokens(3, 697, order.int())], 0.1, value_dim=64))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("heads", [gqa(12, 3, 48), Heads(12, 3, 48, 20, 33)], ids=str)
def test_a_kv_head_is_the_same_alone_and_beside_others(instruction_set: str, heads: Heads) -> None:
    """Each kv head attends as if it were a model's only one: strides, blocks and what lies beside it change nothing."""
    case, group = make(heads, 16, [(9, SPAN - 4), (1, 40), (45, 0)]), heads.n // heads.n_kv
    together = case.attend()
    for h in range(heads.n_kv):
        query = case.query[:, h * group : (h + 1) * group].contiguous()
        pool = case.pool.unflatten(-1, (heads.n_kv, -1))[:, :, h].contiguous()
        alone = case._replace(query=query, pool=pool, heads=heads._replace(n=group, n_kv=1))
        assert torch.equal(alone.attend(), together[:, h * group : (h + 1) * group])


def test_nan_between_keys_and_values_is_not_read(instruction_set: str) -> None:
    case = make(Heads(4, 2, 64, 70, 32), 16, [(2, 18), (1, 70)])
    result = case.attend()
    case.pool.unflatten(-1, (2, -1))[..., 64:70] = float("nan")
    assert torch.equal(case.attend(), result)


def test_sequences_may_share_pages() -> None:
    case = make(mla(4, 32, 16), 16, [(2, 62)])
    pages = case.sequences[0].pages
    forked = torch.cat((pages[:2], torch.tensor([len(case.pool)], dtype=torch.int32)))
    pool = torch.cat((case.pool, draw(1, 16, 48, seed=7)))
    sequences = [case.sequences[0], PagedTokens(2, 40, forked)]
    both = case._replace(query=draw(4, 4, 48, seed=3), pool=pool, sequences=sequences)
    assert_near(both.attend(), expected(both))
    assert torch.equal(both._replace(query=both.query[:2], sequences=sequences[:1]).attend(), both.attend()[:2])


def test_a_score_far_above_the_others_selects_its_latent(instruction_set: str) -> None:
    """Scores of thousands overflow no exponential, and a share of one is exact."""
    latents = draw(600, 64, seed=2)
    latents[[70, 550]] = draw(2, 64, seed=3) * 40
    query = latents[[70, 550]].unsqueeze(1).repeat(1, 16, 1)
    pool = latents.view(-1, 60, 64)
    mixed = paged_attention(query, pool, [PagedTokens(2, 598, torch.arange(10, dtype=torch.int32))], 1.0, value_dim=48)
    assert torch.equal(mixed, query[..., :48])


def test_first_token_attends_to_its_own_latent(instruction_set: str) -> None:
    case = make(mla(3, 48, 16), 16, [(1, 0)])
    latent = case.pool[case.sequences[0].pages[0], 0, :48]
    assert torch.equal(case.attend(), latent.expand(1, 3, 48))


def test_empty_sequences_and_empty_batches_are_possible() -> None:
    case = make(mla(4, 32, 16), 16, [(2, 5)])
    empty = PagedTokens(0, 3, case.sequences[0].pages)
    assert torch.equal(case._replace(sequences=[empty, *case.sequences, empty]).attend(), case.attend())
    assert case._replace(query=case.query[:0], sequences=[]).attend().shape == (0, 4, 32)


def _pages(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


REFUSED: list[tuple[Callable[[Case], Case], str]] = [
    (lambda c: c._replace(query=c.query.float()), "query must be .* not torch.float32"),
    (lambda c: c._replace(pool=c.pool[..., :40]), "pool must be a contiguous tensor of three dimensions"),
    (lambda c: c._replace(query=c.query[0]), "query must be a contiguous tensor of three dimensions"),
    (lambda c: c._replace(pool=c.pool.to("meta")), "in bf16 on the CPU"),
    (lambda c: c._replace(query=c.query[..., :40].contiguous()), "must have 1 x 40 values, .* not 48"),
    (lambda c: c._replace(heads=mla(4, 0, 48)), "key_dim and value_dim must be at least 1"),
    (lambda c: c._replace(heads=mla(4, 49, 0)), "must have 1 x 49 values"),
    (lambda c: c._replace(heads=Heads(4, 1, 48, 48, 48)), "must have 1 x 96 values"),
    (lambda c: c._replace(heads=Heads(4, 1, 48, -1, 48)), "value_offset at least 0, not 48, 48 and -1"),
    (lambda c: c._replace(heads=Heads(4, 2, 48, 0, 32)), "must have 2 x 48 values, .* not 48"),
    (lambda c: c._replace(heads=Heads(4, 3, 48, 0, 32)), "n_heads must be a multiple of n_kv_heads, not 4 with 3"),
    (lambda c: c._replace(heads=Heads(4, 0, 48, 0, 32)), "not 4 with 0"),
    (lambda c: c._replace(scale=0.0), r"scale must be a finite number above 0, not 0\.0"),
    (lambda c: c._replace(scale=float("nan")), "above 0, not nan"),
    (lambda c: c._replace(scale=1e39), "does not fit"),
    (lambda c: c._replace(sequences=[]), "have 0 tokens and the queries 2"),
    (lambda c: c._replace(sequences=[PagedTokens(2, 15, _pages(0))]), "Positions 15 to 17 do not fit in 1 pages of 16"),
    (lambda c: c._replace(sequences=[PagedTokens(2, -1, _pages(0))]), "Positions -1 to 1"),
    (lambda c: c._replace(sequences=[PagedTokens(2, 0, _pages(0).long())]), "int32"),
    (lambda c: c._replace(sequences=[PagedTokens(2, 0, _pages(0, len(c.pool)))]), "outside its array"),
    (lambda c: c._replace(sequences=[PagedTokens(2, 0, _pages(-1))]), "outside its array"),
]


@pytest.mark.parametrize(("damage", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_shapes_that_do_not_fit_are_refused(damage: Callable[[Case], Case], says: str) -> None:
    with pytest.raises(KernelError, match=says):
        damage(make(mla(4, 32, 16), 16, [(2, 5)])).attend()


OK, NULL, SHAPE, INDEX = 0, 1, 2, 5
HUGE = 2**62
C_REFUSED: list[tuple[dict[str, float], dict[str, int | None], int]] = [
    ({"n_heads": 0}, {}, SHAPE),
    ({"n_heads": HUGE}, {}, SHAPE),
    ({"n_kv_heads": 0}, {}, SHAPE),
    ({"n_kv_heads": 3}, {}, SHAPE),
    ({"n_kv_heads": 8}, {}, SHAPE),
    ({"n_kv_heads": HUGE}, {}, SHAPE),
    ({"key_dim": 0}, {}, SHAPE),
    ({"key_dim": HUGE}, {}, SHAPE),
    ({"value_dim": 0}, {}, SHAPE),
    ({"value_dim": HUGE}, {}, SHAPE),
    ({"value_offset": -1}, {}, SHAPE),
    ({"value_offset": HUGE}, {}, SHAPE),
    ({"value_offset": 2**63 - 1}, {}, SHAPE),
    ({"page_tokens": 0}, {}, SHAPE),
    ({"n_pool_pages": HUGE}, {}, SHAPE),
    ({"scale": -1.0}, {}, SHAPE),
    ({"scale": float("inf")}, {}, SHAPE),
    ({"n_pool_pages": 1}, {}, INDEX),
    ({}, {"first": -1}, INDEX),
    ({}, {"first": HUGE}, INDEX),
    ({}, {"rows": 3}, INDEX),
    ({}, {"rows": -1}, INDEX),
    ({}, {"start": HUGE}, INDEX),
    ({}, {"start": 31}, INDEX),
    ({}, {"n_pages": HUGE}, INDEX),
    ({}, {"n_pages": -1}, INDEX),
    ({}, {"pages": None}, NULL),
]


@pytest.mark.parametrize(("of_shape", "of_sequence", "status"), C_REFUSED, ids=str)
def test_the_c_interface_checks_its_own_arguments(
    of_shape: dict[str, float], of_sequence: dict[str, int | None], status: int
) -> None:
    query, pool, pages = draw(2, 4, 48), draw(2, 16, 48), _pages(1, 0)
    out = torch.empty(2, 4, 32, dtype=torch.bfloat16)

    def call(shape: _Attention | None, sequences: object, n: int, *missing: str) -> int:
        at = {name: None if name in missing else t.data_ptr() for name, t in (("q", query), ("p", pool), ("o", out))}
        where = None if shape is None else ctypes.byref(shape)
        return int(library.library().es_paged_attention(where, sequences, n, at["q"], 2, at["p"], at["o"]))

    shape = _Attention(4, 1, 48, 0, 32, 16, 2, 0.1)
    sequence = CSequence(0, 2, 28, pages.data_ptr(), 2)
    assert call(shape, (CSequence * 1)(sequence), 1) == OK
    assert call(shape, (CSequence * 2)(sequence, sequence), 2) == INDEX  # rows that both would write
    assert call(shape, None, 1) == call(None, (CSequence * 1)(sequence), 1) == NULL
    assert [call(shape, (CSequence * 1)(sequence), 1, name) for name in "qpo"] == [NULL] * 3
    assert call(shape, (CSequence * 1)(sequence), -1) == SHAPE
    for changed, values in ((shape, of_shape), (sequence, of_sequence)):
        for name, value in values.items():
            setattr(changed, name, value)
    assert call(shape, (CSequence * 1)(sequence), 1) == status
