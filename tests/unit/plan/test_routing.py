"""Routing by popularity: shares, distinct experts as random draws give them, and recorded routing."""

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earthshine.plan.routing import MOST_SKEW, SKEW, Routing, popularity

SHAPES = [(384, 8), (256, 8), (64, 6), (16, 4), (8, 7), (4, 3), (5, 5), (1, 1), (40, 39)]


@pytest.mark.parametrize(("n_experts", "top_k"), SHAPES)
@pytest.mark.parametrize("skew", [0.0, 0.3, SKEW, 2.0, MOST_SKEW])
def test_shares_add_up_to_what_a_token_chooses(n_experts: int, top_k: int, skew: float) -> None:
    shares = popularity(n_experts, top_k, skew)
    assert len(shares) == n_experts
    assert sum(shares) == pytest.approx(top_k, rel=1e-9)
    most = max(0.95, (1 + top_k / n_experts) / 2)
    assert all(0 < share <= most for share in shares)
    assert all(a >= b - 1e-9 for a, b in pairwise(shares)), "the busiest first"


@given(st.integers(1, 500), st.data(), st.floats(0, MOST_SKEW))
def test_distinct_experts_lie_between_one_tokens_and_all(n_experts: int, data: st.DataObject, skew: float) -> None:
    top_k, held = data.draw(st.integers(1, n_experts)), data.draw(st.integers(0, n_experts))
    routing, before = Routing(n_experts, top_k, skew), 0.0
    for n_tokens in (1, 2, 7, 100, 10_000):
        distinct, missed = routing.distinct(n_tokens), routing.distinct(n_tokens, held)
        assert max(before, top_k) - 1e-9 <= distinct <= min(n_experts, n_tokens * top_k) + 1e-9
        assert 0 <= missed <= distinct
        assert distinct - missed <= held + 1e-9
        before = distinct
    assert routing.distinct(5, n_experts) == 0


@pytest.mark.parametrize(("n_experts", "top_k"), SHAPES)
def test_even_routing_has_a_closed_form(n_experts: int, top_k: int) -> None:
    for n_tokens in (1, 3, 64, 500):
        wanted = n_experts * (1 - (1 - top_k / n_experts) ** n_tokens)
        assert Routing(n_experts, top_k, 0.0).distinct(n_tokens) == pytest.approx(wanted, rel=1e-9)


def test_a_model_that_uses_all_its_experts_reads_each_once() -> None:
    for skew in (0.0, SKEW):
        assert Routing(6, 6, skew).distinct(1) == pytest.approx(6)
        assert Routing(6, 6, skew).distinct(50) == pytest.approx(6)
        assert Routing(6, 6, skew).distinct(50, 4) == pytest.approx(2)


@pytest.mark.parametrize("skew", [0.0, SKEW, 2.0])
def test_distinct_experts_are_those_of_a_draw(skew: float) -> None:
    """20 tokens, each expert chosen or not by its share; the error of 500 draws is about 0.15."""
    n_experts, top_k, tokens, held = 64, 6, 20, 5
    generator, routing = random.Random(1), Routing(n_experts, top_k, skew)
    shares, found, missed = popularity(n_experts, top_k, skew), 0, 0
    for _ in range(500):
        seen = {e for _ in range(tokens) for e, share in enumerate(shares) if generator.random() < share}
        found, missed = found + len(seen), missed + sum(e >= held for e in seen)
    assert routing.distinct(tokens) == pytest.approx(found / 500, abs=0.5)
    assert routing.distinct(tokens, held) == pytest.approx(missed / 500, abs=0.5)


def test_held_experts_are_the_busiest() -> None:
    shares = popularity(256, 8, SKEW)
    for held in (0, 1, 16, 255, 256):
        assert Routing(256, 8).distinct(1, held) == pytest.approx(sum(shares[held:]))
    answered = [1 - Routing(256, 8).distinct(1, held) / 8 for held in (4, 8, 16, 64)]
    assert answered == pytest.approx([0.27, 0.37, 0.47, 0.72], abs=0.005), "as the module says"
    assert sum(shares[:26]) / 8 == pytest.approx(0.55, abs=0.005)


def test_the_law_is_near_what_was_recorded(shared_data: Path) -> None:
    """Of Kimi-Linear: the busiest tenth's part, and experts that 8 tokens in a row choose, which the law overrates."""
    lines = (shared_data / "routing/kimi_linear_300.jsonl").read_text().splitlines()
    steps = [json.loads(line)["layers"] for line in lines]
    n_layers, tenth, distinct, n_runs = len(steps[0]), 0, 0, 0
    for layer in range(n_layers):
        counts: dict[int, int] = {}
        for step in steps:
            for expert in step[layer]:
                counts[expert] = counts.get(expert, 0) + 1
        tenth += sum(sorted(counts.values(), reverse=True)[:26])
        for start in range(0, len(steps) - 8, 8):
            distinct += len({expert for step in steps[start : start + 8] for expert in step[layer]})
            n_runs += 1
    assert tenth / (len(steps) * n_layers * 8) == pytest.approx(0.53, abs=0.005)
    assert distinct / n_runs == pytest.approx(36, abs=0.5)
    assert Routing(256, 8).distinct(8) == pytest.approx(43, abs=0.5)
