"""Forecasts compared: each is of a possible plan, and no improvement of the machine makes one worse."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from earthshine.errors import UsageError
from earthshine.machine import DiskRate, Machine, described, read_machine
from earthshine.plan import PlanArgs, make_plan
from earthshine.plan.explore import CONTEXTS, Case, smallest_budget
from earthshine.spec import ModelSpec, spec_from_config

from .made_up import FLAT, GIB, MIB, k2_6, machine, made

MACHINES = {name: read_machine(path) for name, path in described().items()}


def big() -> ModelSpec:
    """1.4 GB of experts over a small trunk, with room for 300,000 tokens."""
    return made(
        "int4", moe_intermediate_size=4096, num_hidden_layers=9, n_routed_experts=96, max_position_embeddings=300_000
    )


def published(shared_data: Path) -> list[ModelSpec]:
    names = ("moonshotai--Kimi-K2.6", "moonshotai--Kimi-K2-Instruct", "deepseek-ai--DeepSeek-V3")
    files = [shared_data / f"configs/{name}_config.json" for name in names]
    return [spec_from_config(json.loads(file.read_text())) for file in files]


def case(spec: ModelSpec, computer: Machine, **args: object) -> Case | None:
    try:
        return Case.of(spec, computer, PlanArgs(**args))
    except UsageError:
        return None


def test_no_improvement_makes_a_token_slower(shared_data: Path) -> None:
    """Over models, machines, budgets and batches: nothing lost but to rounding."""
    tried = 0
    for spec in published(shared_data):
        for computer in MACHINES.values():
            for memory in (None, 8 * GIB, 20 * GIB, 60 * GIB):
                for batch in (1, 8):
                    found = case(spec, computer, memory_bytes=memory, batch=batch)
                    if found is None:
                        continue
                    tried += 1
                    for name, times in found.what_if():
                        most = 12 if name == "twice as much memory" else 4  # an expert held is not read at all
                        assert 0.999 < times < most, (spec.family, computer.name, memory, batch, name)
    assert tried > 30


def test_the_part_that_helps_is_the_one_waited_for() -> None:
    """A model that streams waits for the disk; with all in memory neither the disk nor more memory helps."""
    least = Case.of(big(), FLAT, PlanArgs(context_tokens=2048)).smallest
    slow = machine(disk=(DiskRate(1 << 20, 1, 1e7),))
    streams = dict(Case.of(big(), slow, PlanArgs(least, 2048)).what_if())
    assert streams["a disk twice as fast, or a second one"] == pytest.approx(2, abs=0.05)
    assert streams["memory twice as fast"] == pytest.approx(1, abs=0.05)
    assert streams["one more GiB of memory"] > 1.5
    whole = dict(Case.of(big(), slow, PlanArgs(context_tokens=2048)).what_if())
    assert whole["a disk twice as fast, or a second one"] == whole["one more GiB of memory"] == 1
    assert 1.3 < whole["memory twice as fast"] <= 2


def test_faster_memory_helps_attention_where_that_waits_for_it() -> None:
    """At few rows attention waits for memory as products do; bound by computing, it gains nothing."""
    for points, least, most in ((((1, 1e9), (1000, 1e12)), 1.6, 2.0), (((1, 1e9),), 1.0, 1.1)):
        long = machine(attention=points)
        times = dict(Case.of(big(), long, PlanArgs(context_tokens=100_000)).what_if())["memory twice as fast"]
        assert least <= times <= most


def test_a_change_keeps_all_else(shared_data: Path) -> None:
    """One more GiB is the plan with one more GiB: the same context, whether or not that was asked for."""
    computer = MACHINES["desktop-128gb"]
    found = Case.of(k2_6(shared_data), computer, PlanArgs())
    memory = found.plan.memory
    more = PlanArgs(memory.budget_bytes + GIB, memory.context_tokens)
    larger = replace(computer, memory_bytes=computer.memory_bytes + GIB)
    other = Case.of(k2_6(shared_data), larger, more)
    assert other.plan.memory.context_tokens == memory.context_tokens
    times = found.decode().seconds / other.decode().seconds
    assert dict(found.what_if())["one more GiB of memory"] == pytest.approx(times)
    twice = replace(computer, memory_bytes=computer.memory_bytes + memory.budget_bytes)
    doubled = Case.of(k2_6(shared_data), twice, PlanArgs(2 * memory.budget_bytes, memory.context_tokens))
    times = found.decode().seconds / doubled.decode().seconds
    assert dict(found.what_if())["twice as much memory"] == pytest.approx(times)


def test_the_smallest_budget_of_any_machine_is_one_that_works(shared_data: Path) -> None:
    computer = MACHINES["mini-24gb"]
    for args in (PlanArgs(), PlanArgs(context_tokens=32_768, batch=4)):
        least, _ = smallest_budget(k2_6(shared_data), args)
        Case.of(k2_6(shared_data), computer, replace(args, memory_bytes=least))
        with pytest.raises(UsageError, match="smallest budget"):
            Case.of(k2_6(shared_data), computer, replace(args, memory_bytes=least - 1))


def test_contexts_that_can_not_be_are_left_out(shared_data: Path) -> None:
    """Those beyond the model's, and those whose pages do not fit."""
    found = Case.of(made(max_position_embeddings=40_000), FLAT, PlanArgs(context_tokens=5000))
    assert [at for at, _, _ in found.by_context()] == [4096, 5000, 32_768]
    tight = Case.of(k2_6(shared_data), MACHINES["mini-24gb"], PlanArgs(8 * GIB, 4096))
    contexts = [at for at, _, _ in tight.by_context()]
    assert contexts == [4096, 32_768]
    with pytest.raises(UsageError, match="smallest budget"):
        Case.of(k2_6(shared_data), MACHINES["mini-24gb"], PlanArgs(8 * GIB, 131_072))
    roomy = Case.of(k2_6(shared_data), MACHINES["server-768gb"], PlanArgs(context_tokens=1000))
    assert [at for at, _, _ in roomy.by_context()] == [1000, *CONTEXTS]


def test_each_context_is_a_plan_of_its_own() -> None:
    found = Case.of(big(), FLAT, PlanArgs(GIB, 4096))
    for at, decode, prompt in found.by_context():
        other = Case.of(big(), FLAT, PlanArgs(GIB, at))
        assert (decode, prompt) == (other.decode(), other.prompt(at))
        assert prompt.tokens == at


@pytest.mark.parametrize("context", [None, 20_000])
def test_budgets_run_from_the_smallest_for_this_context_to_the_machines_memory(context: int | None) -> None:
    computer = machine(memory_bytes=6 * GIB)
    found = Case.of(big(), computer, PlanArgs(context_tokens=context))
    memory = found.plan.memory
    budgets = list(found.by_budget())
    sizes = [at for at, _, _ in budgets]
    assert sizes == sorted(sizes)
    assert sizes[0] == found.smallest
    assert sizes[-1] == 6 * GIB
    assert memory.budget_bytes in sizes
    assert len(sizes) == 6
    with pytest.raises(UsageError):
        make_plan(big(), PlanArgs(found.smallest - 1, memory.context_tokens), computer)
    for at, decode, prompt in budgets:
        other = Case.of(big(), computer, PlanArgs(at, memory.context_tokens))
        assert (decode, prompt) == (other.decode(), other.prompt(memory.context_tokens // 2))
    assert all(more[1].seconds <= less[1].seconds * 1.001 for less, more in pairwise(budgets))


def test_the_smallest_is_for_the_plans_own_context() -> None:
    """A context that nobody asked for grows with the budget, and the least budget for it is more than that for 2048."""
    found = Case.of(big(), machine(memory_bytes=6 * GIB), PlanArgs())
    assert found.plan.memory.context_tokens == 32_768
    assert found.smallest > found.plan.memory.smallest + 25_000 * found.sizes.kept
    asked = Case.of(big(), machine(memory_bytes=6 * GIB), PlanArgs(context_tokens=32_768))
    assert found.smallest == asked.smallest == asked.plan.memory.smallest


def test_a_plan_decodes_at_its_own_context_by_default() -> None:
    found = Case.of(big(), FLAT, PlanArgs(GIB + 300 * MIB, 8192, batch=2))
    assert found.decode() == found.decode(8192) == found.plan.forecast["decode at 8192"]
    assert found.decode(1) == found.plan.forecast["decode at 1"]
    assert found.prompt(4096) == found.plan.forecast["first token of 4096"]
    assert found.decode(1).seconds < found.decode().seconds
