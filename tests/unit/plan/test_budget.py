"""Memory plans: a budget's division never exceeds it, the smallest works, and more memory is never worse."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earthshine.errors import UsageError
from earthshine.plan import MemoryPlan, PlanArgs, Sizes, check_memory, plan_memory
from earthshine.plan.budget import MARGIN_BYTES, PREFILL_TOKENS, WORKSPACE_BYTES
from earthshine.units import parse_bytes

PROCESS = 300 << 20
MIB, GIB = 1 << 20, 1 << 30
# Kimi-K2.6: a dense layer, 60 sparse ones of 384 experts, 163840 words, latents of 576 values.
_LAYERS = {"layers.0": 995 * 10**6} | {f"layers.{i}": 296 * 10**6 for i in range(1, 61)} | {"head": 2_348_810_240}
K2_6 = Sizes(
    _LAYERS, _LAYERS | {"embed": 2_348_810_240}, 2_348_810_240, 24_846_336, (384,) * 60, 70_272, 149_000, 2_621_440
)
K2_6_INT8 = replace(K2_6, units={name: size * 17 // 32 for name, size in _LAYERS.items()})
TINY = Sizes({"layers.0": 9000, "head": 50_000}, {"layers.0": 9000, "head": 50_000}, 50_000, 8192, (6,), 96, 700, 800)


def divided(
    sizes: Sizes,
    budget: int,
    context: int | None = None,
    batch: int = 1,
    *,
    cache: int = 0,
    max_context: int = 262_144,
) -> MemoryPlan:
    args = PlanArgs(context_tokens=context, batch=batch, cache_tokens=cache)
    return plan_memory(sizes, budget, args, PROCESS, max_context)


def parts(sizes: Sizes, found: MemoryPlan) -> int:
    """The sum of the plan's parts."""
    trunk = sum(size for name, size in sizes.units.items() if name not in found.streamed)
    buffers = 2 * max((sizes.streamed_units[name] for name in found.streamed), default=0)
    slots = sum(min(found.slots_per_layer, n) for n in sizes.experts) + found.transit_slots
    fixed = PROCESS + MARGIN_BYTES + WORKSPACE_BYTES + sizes.logits
    passing = found.pages * 64 * sizes.kept + found.prefill_tokens * sizes.activation
    embedding = 0 if found.embedding_on_disk else sizes.embedding
    return fixed + passing + trunk + buffers + embedding + slots * sizes.expert


def test_recurrent_states_are_counted_for_each_sequence_of_the_batch() -> None:
    """One that a step reads, one or two that it writes, and checkpoints: four."""
    recurrent = replace(K2_6, state=40 << 20)
    one, eight = (divided(recurrent, 64 * GIB, 4096, batch) for batch in (1, 8))
    assert one.parts["recurrent states"] == 4 * (40 << 20)
    assert eight.parts["recurrent states"] == 8 * 4 * (40 << 20)
    assert eight.planned_bytes <= 64 * GIB
    assert divided(K2_6, 64 * GIB, 4096, 8).parts["recurrent states"] == 0


def resident(sizes: Sizes, found: MemoryPlan) -> int:
    return sum(size for name, size in sizes.units.items() if name not in found.streamed)


def smallest(sizes: Sizes, context: int | None = None, max_context: int = 262_144) -> int:
    """The budget that a refusal names, in bytes."""
    with pytest.raises(UsageError) as refusal:
        divided(sizes, 1, context, max_context=max_context)
    named = re.search(r"memory must be at least ([0-9]+MiB)", str(refusal.value))
    assert named is not None
    return parse_bytes(named[1])


def check(sizes: Sizes, found: MemoryPlan, max_context: int) -> None:
    assert parts(sizes, found) == found.planned_bytes <= found.budget_bytes
    assert found.smallest <= found.budget_bytes
    assert 0 <= found.slots_per_layer <= max(sizes.experts, default=0)
    whole = found.slots_per_layer == max(sizes.experts, default=0)
    assert found.transit_slots >= (0 if whole else 2)
    assert PREFILL_TOKENS[0] <= found.prefill_tokens <= PREFILL_TOKENS[1]
    assert 1 <= found.context_tokens <= max_context
    assert set(found.streamed) <= set(sizes.units)
    if found.streamed:
        without = parts(sizes, found) - 2 * max(sizes.streamed_units[name] for name in found.streamed)
        without -= found.slots_per_layer * len(sizes.experts) * sizes.expert
        needed = without + sum(sizes.units[name] for name in found.streamed)
        assert needed > found.budget_bytes, "the trunk streams only where it does not fit"
        assert found.embedding_on_disk


@st.composite
def some_sizes(draw: st.DrawFn) -> Sizes:
    """From models smaller than a page to larger than K2.6, also with one huge unit or no experts."""
    nbytes = st.one_of(st.integers(1, 10**5), st.integers(10**6, 4 * 10**9))
    units = {f"layers.{i}": draw(nbytes) for i in range(draw(st.integers(1, 12)))} | {"head": draw(nbytes)}
    ratio = draw(st.sampled_from([1.0, 0.53]))
    experts = tuple(draw(st.lists(st.integers(1, 400), max_size=12)))
    embedding, expert = draw(nbytes), draw(nbytes)
    small = {name: max(1, int(size * ratio)) for name, size in units.items()}
    latent, activation = draw(st.integers(1, 10**5)), draw(st.integers(1, 10**6))
    return Sizes(small, units | {"embed": embedding}, embedding, expert, experts, latent, activation, draw(nbytes))


@settings(max_examples=300, deadline=None)
@given(some_sizes(), st.one_of(st.none(), st.integers(1, 5000)), st.integers(0, 10**12), st.sampled_from([0, 1, 7]))
def test_the_parts_never_exceed_the_budget(sizes: Sizes, context: int | None, more: int, shift: int) -> None:
    """At the smallest budget, right above it, and at any other."""
    least = divided(sizes, 1 << 62, context, max_context=5000).smallest
    for budget in (least, least + shift, least + (more >> shift * 5)):
        found = divided(sizes, budget, context, max_context=5000)
        check(sizes, found, 5000)
        assert context is None or found.context_tokens == context
        assert found.smallest == least
    with pytest.raises(UsageError):
        divided(sizes, least - 1, context, max_context=5000)


@pytest.mark.parametrize("sizes", [K2_6, K2_6_INT8, TINY], ids=["K2.6", "K2.6 int8", "tiny"])
@pytest.mark.parametrize("context", [None, 1, 4096, 131_072])
def test_the_smallest_budget_is_named_and_works(sizes: Sizes, context: int | None) -> None:
    named = smallest(sizes, context)
    found = divided(sizes, named, context)
    check(sizes, found, 262_144)
    assert named - 2 * MIB < found.smallest <= named
    with pytest.raises(UsageError, match=f"a context of {context or 2048} tokens, not"):
        divided(sizes, found.smallest - 1, context)


@pytest.mark.parametrize("sizes", [K2_6, K2_6_INT8, TINY], ids=["K2.6", "K2.6 int8", "tiny"])
def test_more_memory_never_means_less_of_anything(sizes: Sizes) -> None:
    """Context never shrinks, nor prefill once it has 2048 tokens. Of the trunk, then of the experts once
    all of it is there, no less stays in memory with half a GiB more; within that the steps of context and prefill may
    take what one layer needs."""
    start = smallest(sizes)
    found = [divided(sizes, start + i * (GIB // 2)) for i in range(400)]
    found += [divided(sizes, start + (220 + i * 20) * GIB) for i in range(40)]
    for less, more in pairwise(found):
        check(sizes, more, 262_144)
        assert more.context_tokens >= less.context_tokens
        assert min(more.prefill_tokens, 2048) >= min(less.prefill_tokens, 2048)
        assert resident(sizes, more) >= resident(sizes, less)
        if not less.streamed:
            assert not more.streamed
            assert more.slots_per_layer >= less.slots_per_layer
    assert found[-1].slots_per_layer == max(sizes.experts)
    assert found[-1].transit_slots == 0
    assert not found[-1].embedding_on_disk
    assert (found[-1].context_tokens, found[-1].prefill_tokens) == (32_768, 8192)


def test_k2_6_streams_its_trunk_at_8_gib_and_keeps_it_at_32() -> None:
    little, much = (divided(K2_6, gib * GIB) for gib in (8, 32))
    assert len(little.streamed) > 40
    assert "head" not in little.streamed, "the head alone is as large as eight layers, and a token needs it too"
    assert little.transit_slots > 4
    assert not much.streamed
    assert much.slots_per_layer > 0
    assert smallest(K2_6) < 5.2 * GIB


def test_streamed_units_lie_apart() -> None:
    """Between two that stream others compute, so that reading hides behind them."""
    found = divided(K2_6, 18 * GIB)
    streamed = [name in found.streamed for name in K2_6.units]
    assert 5 < sum(streamed) < 30
    assert not any(a and b for a, b in pairwise(streamed))


def test_a_model_that_fits_is_wholly_in_memory() -> None:
    found = divided(TINY, 2 * GIB, max_context=1024)
    assert (found.streamed, found.embedding_on_disk) == ((), False)
    assert (found.slots_per_layer, found.transit_slots) == (6, 0)
    assert found.context_tokens == 1024
    dense = divided(replace(TINY, experts=(), expert=0), 2 * GIB, max_context=1024)
    assert (dense.slots_per_layer, dense.transit_slots) == (0, 0)


@settings(max_examples=100, deadline=None)
@given(some_sizes(), st.integers(1, 5000), st.integers(0, 10**11), st.integers(1, 9))
def test_a_plan_of_several_sequences_fits(sizes: Sizes, context: int, more: int, batch: int) -> None:
    least = divided(sizes, 1 << 62, context, batch, max_context=5000).smallest
    found = divided(sizes, least + more, context, batch, max_context=5000)
    assert sum(found.parts.values()) == found.planned_bytes <= found.budget_bytes
    check_memory(found, sizes, PROCESS)
    with pytest.raises(UsageError, match="create a new one with earthshine plan --save"):
        check_memory(found, sizes, PROCESS + found.budget_bytes - found.planned_bytes + 1)


def test_a_memory_plan_of_another_model_is_refused() -> None:
    found = divided(K2_6, 8 * GIB, max_context=4096)
    with pytest.raises(UsageError, match="does not have"):
        check_memory(found, TINY, PROCESS)


def test_a_refusal_says_what_takes_the_memory() -> None:
    with pytest.raises(UsageError) as refusal:
        divided(K2_6, GIB, 4096, 3)
    text = str(refusal.value)
    assert "context of 4096 tokens, not 1.00 GiB." in text
    assert "4.09 GiB of weights, 274.50 MiB of cache, 459.88 MiB of working memory, and 300.00 MiB" in text


@given(
    budget=st.integers(0, 200 * GIB),
    context=st.none() | st.integers(1, 262_144),
    batch=st.integers(1, 64),
    cache=st.integers(0, 1 << 20),
)
@settings(max_examples=150, deadline=None)
def test_shared_pages_hold_one_context_at_least_and_all_at_most(budget, context, batch, cache):
    try:
        found = divided(K2_6, budget, context, batch, cache=cache)
    except UsageError:
        return
    each = -(-found.context_tokens // 64)
    assert found.parts["cache pages"] == found.pages * 64 * K2_6.kept
    assert sum(found.parts.values()) <= budget
    if cache:
        assert found.pages == max(each, -(-cache // 64))
    else:
        assert each <= found.pages <= batch * each
    check_memory(found, K2_6, PROCESS)


def test_a_batch_shortens_no_context():
    one, eight = (divided(K2_6, 48 * GIB, batch=batch) for batch in (1, 8))
    assert one.context_tokens == eight.context_tokens == 32_768
    assert one.pages == 512 < eight.pages < 8 * 512


@pytest.mark.parametrize("context", [None, 4096])
def test_a_budget_just_above_the_smallest_that_works_works_too(context: int | None) -> None:
    """Shared pages are taken from what is left in whole pages, and so never from what the weights need."""
    least = divided(K2_6, 64 * GIB, context, 8).smallest
    page = 64 * K2_6.kept
    for more in range(0, 10 * page, page // 8):
        found = divided(K2_6, least + more, context, 8)
        assert found.planned_bytes <= found.budget_bytes
