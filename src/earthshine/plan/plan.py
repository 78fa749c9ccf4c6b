"""The plan: one frozen value that says which parts of a model are in memory or on disk, and how fast that will be.

Invariant: a plan is the engine's whole configuration, and nothing mutates it. The same spec, machine and arguments give
the same plan. Refuses a budget over the machine's memory, a context over the model's, and a budget that is too small,
naming the smallest that works.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from earthshine.errors import UsageError
from earthshine.machine import Machine
from earthshine.plan.args import MOST_THREADS, PlanArgs, check_args
from earthshine.plan.budget import MemoryPlan, plan_memory
from earthshine.plan.forecast import Cost, Forecaster, Load
from earthshine.plan.sizes import Sizes, sizes_of
from earthshine.spec import ModelSpec
from earthshine.units import format_bytes

PROCESS_BYTES = 288 << 20  # Python, torch and this package before a model: 225 MiB were measured
MEMORY_SHARE = 0.85  # of what a machine has to give, where no budget is named


@dataclass(frozen=True, slots=True)
class Plan:
    """Which parts of a model are in memory, and the forecast.

    model: its family and a digest of its spec.
    machine: name of the machine's profile, or "rates unknown".
    forecast: costs by name, such as "decode at 4096"; empty where the machine's rates are unknown.
    """

    model: str
    machine: str
    trunk: str
    dtype: str
    threads: int
    process_bytes: int
    memory: MemoryPlan
    forecast: Mapping[str, Cost]


@lru_cache(maxsize=8)  # a report makes some thirty plans of one model
def model_name(spec: ModelSpec) -> str:
    """The family and a digest of the spec. A plan is refused for a model of another name."""
    return f"{spec.family}-{hashlib.sha256(repr(spec).encode()).hexdigest()[:16]}"


def make_plan(
    spec: ModelSpec,
    args: PlanArgs,
    machine: Machine | None = None,
    *,
    process_bytes: int = PROCESS_BYTES,
    available_bytes: int | None = None,
    processors: int = 1,
    sizes: Sizes | None = None,
) -> Plan:
    """The plan for a model.

    Args:
        machine: its measured rates give the forecast, which is empty without them.
        process_bytes: resident memory of the process before the model is loaded.
        available_bytes: free memory, of which a budget is taken where `args` names none; by default the machine's.
        processors: threads where neither `args` nor the machine says how many.
        sizes: of the model's files; by default those that the spec gives.

    Raises UsageError for arguments out of range, a budget over the machine's memory or below the smallest that works.
    """
    check_args(args, spec)
    sizes = sizes or sizes_of(spec, args.dtype, args.trunk)
    budget = budget_bytes(args, machine, process_bytes, available_bytes)
    memory = plan_memory(sizes, budget, args, process_bytes, spec.max_context)
    threads = args.threads or min(machine.processors if machine else processors, MOST_THREADS)
    name = machine.name if machine else "rates unknown"
    plan = Plan(model_name(spec), name, args.trunk, args.dtype, threads, process_bytes, memory, {})
    if machine is None:
        return plan
    return replace(plan, forecast=_forecast(Forecaster(spec, sizes, memory, machine, args.trunk), memory, args))


def budget_bytes(args: PlanArgs, machine: Machine | None, process: int, available: int | None) -> int:
    """The budget that `args` names, or else a share of what is available; raises UsageError as `make_plan` does."""
    most = machine.memory_bytes if machine else None
    if args.memory_bytes is not None:
        if most is not None and machine is not None and args.memory_bytes > most:
            raise UsageError(
                f"memory must be at most {format_bytes(most)}, which {machine.name} has, not "
                f"{format_bytes(args.memory_bytes)}.",
                "memory",
            )
        return args.memory_bytes
    if available is not None:
        return process + int(MEMORY_SHARE * available)
    if most is None:
        raise UsageError("memory must be given where no machine is.", "memory")
    return int(MEMORY_SHARE * most)


def _forecast(costs: Forecaster, memory: MemoryPlan, args: PlanArgs) -> dict[str, Cost]:
    """Decoding in an empty context and in a full one, and the longest first prompt that leaves room for a reply."""
    full = memory.context_tokens
    found = {f"decode at {at}": costs.decode(Load(at, args.batch, args.skew)) for at in dict.fromkeys((1, full))}
    prompt = max(1, full // 2)
    return found | {f"first token of {prompt}": costs.prompt(prompt, args.skew)}
