"""Forecasts compared: over contexts, over budgets, and what a change of the machine would buy.

Every figure is the forecast of a plan that would work; contexts and budgets that do not fit are left out. Nothing is
interpolated between plans.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from earthshine.errors import UsageError
from earthshine.machine import DiskRate, Machine
from earthshine.machine.profile import Points
from earthshine.plan.args import PlanArgs
from earthshine.plan.budget import least_context, plan_memory
from earthshine.plan.forecast import Cost, Forecaster, Load
from earthshine.plan.plan import PROCESS_BYTES, Plan, make_plan
from earthshine.plan.sizes import Sizes, sizes_of
from earthshine.spec import ModelSpec

CONTEXTS = (4096, 32768, 131072, 262144)
_BUDGETS = 4  # steps from the smallest that works to the machine's memory
_GIB = 1 << 30
_BOUNDLESS = 1 << 60  # bytes, in which any plan fits


@dataclass(frozen=True, slots=True)
class Case:
    """A plan and all that it was made from, so that it can be made again a little otherwise."""

    spec: ModelSpec
    machine: Machine
    args: PlanArgs
    sizes: Sizes
    plan: Plan

    @classmethod
    def of(cls, spec: ModelSpec, machine: Machine, args: PlanArgs, available_bytes: int | None = None) -> "Case":
        """Raises UsageError as `make_plan` does."""
        sizes = sizes_of(spec, args.dtype, args.trunk)
        return cls(spec, machine, args, sizes, make_plan(spec, args, machine, available_bytes=available_bytes))

    @property
    def smallest(self) -> int:
        """The least budget that works with the plan's context; the plan's own `smallest` may be for a shorter one."""
        return (self._otherwise() or self).plan.memory.smallest

    def costs(self) -> Forecaster:
        """What this plan costs."""
        return Forecaster(self.spec, self.sizes, self.plan.memory, self.machine, self.args.trunk)

    def decode(self, context_tokens: int | None = None) -> Cost:
        """Of one step at a context of that length, by default the longest that there is room for."""
        at = context_tokens or self.plan.memory.context_tokens
        return self.costs().decode(Load(at, self.args.batch, self.args.skew))

    def prompt(self, n_tokens: int) -> Cost:
        """Of a first prompt."""
        return self.costs().prompt(n_tokens, self.args.skew)

    def with_context(self, context_tokens: int) -> "Case | None":
        """The same budget with room for another context; None where that can't be."""
        return self._otherwise(context_tokens=context_tokens)

    def by_context(self) -> Iterator[tuple[int, Cost, Cost]]:
        """Each context that there can be: the cost of a step there, and of a first prompt of that length."""
        for context in sorted({*CONTEXTS, self.plan.memory.context_tokens}):
            other = self.with_context(context)
            if other is not None:
                yield context, other.decode(), other.prompt(context)

    def by_budget(self) -> Iterator[tuple[int, Cost, Cost]]:
        """Budgets from the smallest that works to the machine's memory: of a step, and of a prompt of half the context.

        Their context is the plan's.
        """
        memory, smallest = self.plan.memory, self.smallest
        ratio = self.machine.memory_bytes / smallest
        steps = [int(smallest * ratio ** (i / _BUDGETS)) >> 20 << 20 for i in range(1, _BUDGETS + 1)]
        for budget in sorted({*steps, smallest, memory.budget_bytes}):
            other = self._otherwise(memory_bytes=budget)
            if other is not None:
                yield budget, other.decode(), other.prompt(max(1, memory.context_tokens // 2))

    def what_if(self) -> Iterator[tuple[str, float]]:
        """What would change, and how many times as fast a token then comes."""
        now, budget = self.decode().seconds, self.plan.memory.budget_bytes
        disk = tuple(DiskRate(d.block_bytes, d.depth, 2 * d.bytes_per_second) for d in self.machine.disk)
        for name, machine, more in (
            ("one more GiB of memory", _with_memory(self.machine, _GIB), _GIB),
            ("twice as much memory", _with_memory(self.machine, budget), budget),
            ("a disk twice as fast, or a second one", replace(self.machine, disk=disk), 0),
            ("memory twice as fast", _with_faster_memory(self.machine), 0),
        ):
            other = self._otherwise(machine, memory_bytes=budget + more)
            if other is not None:
                yield name, now / other.decode().seconds

    def _otherwise(self, machine: Machine | None = None, **changed: Any) -> "Case | None":
        """The plan for changed arguments or sizes; None if it is not possible."""
        memory = self.plan.memory
        fixed = {"memory_bytes": memory.budget_bytes, "context_tokens": memory.context_tokens}
        try:
            return Case.of(self.spec, machine or self.machine, replace(self.args, **(fixed | changed)))
        except UsageError:
            return None


def smallest_budget(spec: ModelSpec, args: PlanArgs) -> tuple[int, int]:
    """The least budget that works on any machine, and its context in tokens: the one asked for, or a short one."""
    sizes = sizes_of(spec, args.dtype, args.trunk)
    smallest = plan_memory(sizes, _BOUNDLESS, args, PROCESS_BYTES, spec.max_context).smallest
    return smallest, least_context(args, spec.max_context)


def _with_memory(machine: Machine, more: int) -> Machine:
    return replace(machine, memory_bytes=machine.memory_bytes + more)


def _with_faster_memory(machine: Machine) -> Machine:
    """Products and attention of few rows read twice as fast; those that are bound by computing stay."""

    def faster(points: Points) -> Points:
        return tuple((rows, min(2 * rate, max(rate, points[-1][1]))) for rows, rate in points)

    products = {form: faster(points) for form, points in machine.products.items()}
    attention = faster(machine.attention)
    return replace(machine, memory_read=2 * machine.memory_read, products=products, attention=attention)
