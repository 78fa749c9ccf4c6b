"""Forecasts compared with sums by hand, for a machine with round rates and a model small enough to add up.

The machine reads 1 GB/s from disk and 10 GB/s of memory; products run at 20 GFLOP/s at one row, attention at 50.
"""

import math
from itertools import pairwise

import pytest

from earthshine.machine import DiskRate
from earthshine.plan import Cost, Forecaster, Load, PlanArgs, Sizes, make_plan, plan_memory, sizes_of
from earthshine.plan.routing import Routing
from earthshine.spec import ModelSpec
from earthshine.spec.footprint import expert_bytes, expert_params

from .made_up import FLAT, GIB, MIB, machine, made, memory_plan

SPEC = made()
SIZES = sizes_of(SPEC)
ONE, MANY = 20e9, 100e9  # FLOP/s of a product at one row, and from 100 rows on
# Values by hand. Queries pass 160 > 48 > 4 heads of 24; latents 160 > 40; kv_b makes 4 heads of 16 and 16 out of 32.
ATTENTION = 48 * 160 + 96 * 48 + 40 * 160 + 160 * 64
KV_B = 128 * 32
DENSE, SHARED, ROUTER = 3 * 192 * 160, 3 * 64 * 160, 16 * 160
EXPERT, HEAD = 3 * 64 * 160, 160 * 160
TRUNK = 3 * (ATTENTION + KV_B) + DENSE + 2 * (SHARED + ROUTER)


def at(rows: float) -> float:
    """FLOP/s at a number of rows: a straight line in logarithms from 20 GFLOP/s at 1 to 100 at 100."""
    return MANY if rows >= 100 else ONE * 5 ** (math.log(rows) / math.log(100))


def forecaster(spec: ModelSpec = SPEC, trunk: str = "bf16", changed_machine=FLAT, **changed) -> Forecaster:
    sizes = sizes_of(spec, trunk=trunk)
    return Forecaster(spec, sizes, memory_plan(sizes, **changed), changed_machine, trunk)


def test_a_token_with_all_in_memory() -> None:
    cost = forecaster().decode(Load(1000, skew=0.0))
    parts = {
        "trunk": 2 * TRUNK / ONE,
        "experts": 2 * 2 * 4 * EXPERT / ONE,
        "head": 2 * HEAD / ONE,
        "attention": 3 * 2 * 4 * (40 + 32) * 1000 / 50e9,
        "overhead": 3 * 1e-6,
        "activations": 3 * SIZES.activation / 10e9,
        "disk": 0.0,
    }
    assert cost.parts == pytest.approx(parts)
    assert cost.seconds == pytest.approx(sum(parts.values()))
    assert (cost.tokens, cost.disk_bytes, cost.hit_share) == (1, 0, 1)
    assert cost.tokens_per_second == pytest.approx(1 / cost.seconds)
    assert cost.bound == "memory"


def test_experts_that_are_not_held_come_from_disk_while_those_that_are_compute() -> None:
    """With 4 of 16 held and even routing, 3 of a token's 4 are read; what arrives last is computed last."""
    cost = forecaster(slots_per_layer=4, transit_slots=2).decode(Load(1000, skew=0.0))
    whole = forecaster().decode(Load(1000, skew=0.0))
    nbytes = 2 * 3 * expert_bytes(160, SPEC.layers[1].ffn, SPEC.expert_storage)
    assert cost.disk_bytes == pytest.approx(nbytes)
    assert cost.hit_share == pytest.approx(0.25)
    assert cost.parts == pytest.approx({**whole.parts, "disk": nbytes / 1e9})
    computing = whole.parts["experts"]
    waited = max(computing, nbytes / 1e9 + computing / 4)
    assert cost.seconds == pytest.approx(whole.seconds - computing + waited)
    assert cost.bound == "disk"


def test_a_trunk_that_streams_is_read_once_a_step() -> None:
    """Beside computing, so that only the longer of the two counts."""
    whole = forecaster().decode(Load(1))
    streamed = ("layers.1", "head")
    nbytes = SIZES.streamed_units["layers.1"] + SIZES.streamed_units["head"]
    slow = forecaster(streamed=streamed).decode(Load(1))
    assert slow.disk_bytes == nbytes
    assert slow.seconds == pytest.approx(max(whole.seconds, nbytes / 1e9)) == nbytes / 1e9
    fast = machine(disk=(DiskRate(1 << 20, 1, 1e12),))
    quick = forecaster(changed_machine=fast, streamed=streamed).decode(Load(1))
    assert quick.seconds == pytest.approx(whole.seconds)
    assert (slow.bound, quick.bound) == ("disk", "memory")


def test_a_batch_shares_experts_and_the_weights_of_the_trunk() -> None:
    """16 tokens choose 16 * (1 - 0.75^16) of 16 experts, and each weight is read once for all of them."""
    held = {"slots_per_layer": 0, "transit_slots": 2}
    cost, one = (forecaster(**held).decode(Load(100, batch, 0.0)) for batch in (16, 1))
    distinct = 16 * (1 - 0.75**16)
    assert cost.tokens == 16
    assert cost.disk_bytes == pytest.approx(one.disk_bytes * distinct / 4)
    assert cost.hit_share == 0
    assert cost.parts["experts"] == pytest.approx(2 * 2 * EXPERT * 16 * 4 / at(16 * 4 / distinct))
    assert cost.parts["trunk"] == pytest.approx(2 * TRUNK * 16 / at(16))
    assert cost.parts["attention"] == pytest.approx(16 * one.parts["attention"])
    assert cost.parts["overhead"] == one.parts["overhead"]
    assert cost.tokens_per_second > one.tokens_per_second


def test_a_prompt_in_one_chunk_reads_each_expert_that_it_needs_once() -> None:
    n = 300
    cost = forecaster(slots_per_layer=4, transit_slots=2).prompt(n, 0.0)
    distinct = 16 * (1 - 0.75**n)
    nbytes = 2 * distinct * expert_bytes(160, SPEC.layers[1].ffn, SPEC.expert_storage)
    assert cost.disk_bytes == pytest.approx(nbytes)
    assert cost.tokens == n
    assert cost.hit_share == 0, "slots are empty before the first prompt"
    assert cost.parts == pytest.approx(
        {
            "trunk": 2 * TRUNK * n / MANY,
            "experts": 2 * 2 * 4 * n * EXPERT / at(4 * n / distinct),
            "head": 2 * HEAD / ONE,
            "attention": 3 * 2 * 4 * 72 * (n * (n + 1) / 2) / 50e9,
            "overhead": 3 * 1e-6,
            "activations": 3 * n * SIZES.activation / 10e9,
            "disk": nbytes / 1e9,
        }
    )


def test_the_attention_of_a_prompt_runs_at_the_rate_of_all_its_rows() -> None:
    """However the engine cuts a pass: 300 tokens of 4 heads have 1200 query rows."""
    rising = machine(attention=((1, 1e9), (1200, 40e9), (4800, 60e9)))
    cost = forecaster(changed_machine=rising).prompt(300, 0.0)
    assert cost.parts["attention"] == pytest.approx(3 * 2 * 4 * 72 * (300 * 301 / 2) / 40e9)


def test_a_prompt_in_chunks_is_the_sum_of_them() -> None:
    """512, 512 and 176 tokens: each reads what is not held, and attends to all before it."""
    costs = forecaster(slots_per_layer=4, transit_slots=2, streamed=("layers.0",))
    cost = costs.prompt(1200, 0.0)
    expert = expert_bytes(160, SPEC.layers[1].ffn, SPEC.expert_storage)
    distinct = [16 * (1 - 0.75**n) for n in (512, 512, 176)]
    missed = [distinct[0], distinct[1] * 12 / 16, distinct[2] * 12 / 16]
    assert cost.disk_bytes == pytest.approx(2 * expert * sum(missed) + 3 * SIZES.streamed_units["layers.0"])
    assert cost.hit_share == pytest.approx(1 - sum(missed) / sum(distinct))
    assert cost.parts["attention"] == pytest.approx(3 * 2 * 4 * 72 * (1200 * 1201 / 2) / 50e9)
    assert cost.parts["head"] == 2 * HEAD / ONE, "for the last token only"
    assert cost.parts["trunk"] == pytest.approx(2 * TRUNK * 1200 / MANY)
    assert cost.parts["overhead"] == pytest.approx(3 * 3e-6)
    assert cost.seconds > costs.prompt(1024, 0.0).seconds > costs.prompt(512, 0.0).seconds


def test_a_prompt_with_all_in_memory_reads_nothing() -> None:
    cost = forecaster().prompt(1200)
    assert (cost.disk_bytes, cost.hit_share, cost.parts["disk"]) == (0, 1, 0)
    assert cost.seconds == pytest.approx(sum(cost.parts.values()))


def test_the_bound_of_many_chunks_is_that_of_most_of_the_time() -> None:
    """The first chunk reads every expert and is bound by the disk; with most of them held the others are not."""
    slow = machine(disk=(DiskRate(1 << 20, 1, 6e7),))
    costs = forecaster(changed_machine=slow, slots_per_layer=15, transit_slots=2)
    assert costs.prompt(512, 0.0).bound == "disk"
    long = costs.prompt(512 * 40, 0.0)
    assert long.parts["disk"] < 0.6 * (long.parts["trunk"] + long.parts["experts"])
    assert long.bound == "compute"


def test_bounds_are_named_by_what_takes_the_time() -> None:
    assert forecaster(changed_machine=machine(layer_seconds=1.0)).decode(Load(1)).bound == "overhead"
    assert forecaster().decode(Load(1)).bound == "memory"
    assert forecaster().prompt(2000).bound == "compute"
    slow = machine(disk=(DiskRate(1 << 20, 1, 1e6),))
    assert forecaster(changed_machine=slow, slots_per_layer=8, transit_slots=2).decode(Load(1)).bound == "disk"
    # Attention of one row a head at the best rate there is: bound by computing.
    attention = machine(attention=((1, 1e8),))
    assert forecaster(changed_machine=attention).decode(Load(4000)).bound == "compute"


def test_an_int8_trunk_is_multiplied_in_int8_but_for_the_router_and_what_attention_takes_apart() -> None:
    rates = {"int8": ((1, 1e9),), "bf16": ((1, 4e9),)}
    other = machine(products={**FLAT.products, **rates})
    cost = forecaster(trunk="int8", changed_machine=other).decode(Load(1))
    apart = 3 * KV_B + 2 * ROUTER
    assert cost.parts["trunk"] == pytest.approx(2 * (TRUNK - apart) / 1e9 + 2 * apart / 4e9)
    assert cost.parts["head"] == pytest.approx(2 * HEAD / 1e9)
    assert cost.parts["experts"] == pytest.approx(2 * 8 * EXPERT / 4e9), "experts stay as published"


@pytest.mark.parametrize("storage", ["fp8", "int4"])
def test_experts_are_multiplied_in_the_form_they_are_published_in(storage: str) -> None:
    spec = made(storage)
    other = machine(products={**FLAT.products, storage: ((1, 1e9),)})
    cost = forecaster(spec, changed_machine=other).decode(Load(1))
    assert cost.parts["experts"] == pytest.approx(2 * 8 * EXPERT / 1e9)
    assert cost.parts["head"] == pytest.approx(2 * HEAD / ONE)
    values = expert_params(160, spec.layers[1].ffn)
    assert values == EXPERT


def planned(memory: int, disk: float = 1e9, batch: int = 1) -> tuple[Cost, Cost]:
    """Of a model of 1.4 GB whose experts take most of it, in so much memory."""
    big = made("int4", moe_intermediate_size=4096, num_hidden_layers=9, n_routed_experts=96)
    fast = machine(disk=(DiskRate(1 << 20, 1, disk),))
    plan = make_plan(big, PlanArgs(memory, 1024, batch), fast)
    return plan.forecast["decode at 1024"], plan.forecast["first token of 512"]


def test_more_memory_and_a_faster_disk_are_never_slower() -> None:
    sizes: Sizes = sizes_of(made("int4", moe_intermediate_size=4096, num_hidden_layers=9, n_routed_experts=96))
    least = plan_memory(sizes, 64 * GIB, PlanArgs(context_tokens=1024), 288 * MIB, 4096).smallest
    budgets = [least, *range(least + 40 * MIB, least + 1400 * MIB, 90 * MIB)]
    decodes, prompts = zip(*(planned(budget) for budget in budgets), strict=True)
    assert decodes[-1].disk_bytes == 0 < decodes[0].disk_bytes
    for costs in (decodes, prompts):
        assert all(more.seconds <= less.seconds * 1.001 for less, more in pairwise(costs))
    rates = [planned(least + 300 * MIB, rate) for rate in (1e8, 1e9, 1e10, 1e11)]
    for which in (0, 1):
        seconds = [cost[which].seconds for cost in rates]
        assert seconds == sorted(seconds, reverse=True)
        assert seconds[0] > 2 * seconds[-1]


def test_a_longer_context_is_never_quicker() -> None:
    costs = forecaster(slots_per_layer=4, transit_slots=2)
    steps = [costs.decode(Load(context)).seconds for context in (1, 100, 1000, 4000)]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]


def test_skew_is_worth_hits() -> None:
    costs = forecaster(slots_per_layer=4, transit_slots=2)
    hits = [costs.decode(Load(10, skew=skew)).hit_share for skew in (0.0, 0.9, 2.0)]
    assert hits == sorted(hits)
    assert hits[1] == pytest.approx(1 - Routing(16, 4, 0.9).distinct(1, 4) / 4)
