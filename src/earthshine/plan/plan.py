"""The plan: one frozen value that says how a model is held on a machine, and what that will cost.

Invariant: a plan is the engine's whole configuration, and nothing mutates it; the same spec, machine and arguments give
the same plan. Choices are left open only before planning, in `PlanArgs`. Refuses budgets beyond the machine, contexts
beyond the model, and budgets that can't work, with the smallest that does.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from earthshine.errors import UsageError
from earthshine.machine import Machine
from earthshine.plan.budget import Division, Wanted, divide
from earthshine.plan.forecast import Cost, Forecaster, Load
from earthshine.plan.routing import MOST_SKEW, SKEW
from earthshine.plan.sizes import Sizes, sizes_of
from earthshine.spec import ModelSpec
from earthshine.units import format_bytes

PROCESS_BYTES = 288 << 20  # Python, torch and this package before a model: 225 MiB were measured
MEMORY_SHARE = 0.85  # of what a machine has to give, where no budget is named
MOST_THREADS = 512
MOST_BATCH = 4096
MOST_CACHE_TOKENS = 1 << 40
TRUNKS, DTYPES = ("bf16", "int8"), ("bf16", "fp32")


@dataclass(frozen=True, slots=True)
class PlanArgs:
    """What the user asks of a plan; None leaves the choice to `make_plan`. `trunk`: bf16 as published, or int8;
    `dtype`: of activations; `context_tokens`: of each of the `batch` sequences of a step; `cache_tokens`: of the pages
    that they share, None for all that they could fill, 0 for one full context and an eighth of the memory."""

    memory_bytes: int | None = None
    context_tokens: int | None = None
    batch: int = 1
    threads: int | None = None
    trunk: str = "bf16"
    dtype: str = "bf16"
    skew: float = SKEW
    cache_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is held. `model`: its family and a digest of its spec; `machine`: the name of the profile, if any;
    `forecast`: by name, such as "decode at 4096"; empty where the machine's rates are unknown."""

    model: str
    machine: str
    trunk: str
    dtype: str
    threads: int
    process_bytes: int
    division: Division
    forecast: Mapping[str, Cost]


def model_name(spec: ModelSpec) -> str:
    """The family and a digest of the whole spec, so that a plan is not used with another model."""
    return f"{spec.family}-{hashlib.sha256(repr(spec).encode()).hexdigest()[:16]}"


def check_args(args: PlanArgs, spec: ModelSpec) -> None:
    """Raises UsageError for what has no meaning with any machine."""
    if args.trunk not in TRUNKS:
        raise UsageError(f"{args.trunk!r} is not a form of the trunk; choose one of {', '.join(TRUNKS)}.")
    if args.dtype not in DTYPES:
        raise UsageError(f"{args.dtype!r} is not a dtype here; choose one of {', '.join(DTYPES)}.")
    if args.trunk != "bf16" and args.dtype != "bf16":
        raise UsageError("A trunk in int8 takes bf16 activations; leave --dtype or --trunk at its default.")
    if args.threads is not None and not 1 <= args.threads <= MOST_THREADS:
        raise UsageError(f"{args.threads} threads are not possible; choose 1 to {MOST_THREADS}.")
    if not 1 <= args.batch <= MOST_BATCH:
        raise UsageError(f"A batch of {args.batch} is not possible; choose 1 to {MOST_BATCH}.")
    context = args.context_tokens
    if context is not None and not 1 <= context <= spec.max_context:
        raise UsageError(f"A context of {context} tokens is not possible; this model takes 1 to {spec.max_context}.")
    cache = args.cache_tokens
    if cache is not None and not 0 <= cache <= MOST_CACHE_TOKENS:
        raise UsageError(f"{cache} tokens of latents are not possible; choose up to {MOST_CACHE_TOKENS}.")
    if not 0 <= args.skew <= MOST_SKEW:  # nan fails too
        raise UsageError(f"A skew of {args.skew} is not possible; choose 0 (even) to {MOST_SKEW:g}.")


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
    """`machine`: its rates give the forecast; without one there is none. `available_bytes`: what the process may still
    take, by default of the machine's memory; `sizes`: as the files say, by default as the spec does.

    Raises UsageError for arguments out of range, a budget over the machine's memory or below the smallest that works.
    """
    check_args(args, spec)
    sizes = sizes or sizes_of(spec, args.dtype, args.trunk)
    budget = _budget(args, machine, process_bytes, available_bytes)
    # What is rounded, or used in fp32, is so once and for all: then results can't depend on what streams.
    may_stream = args.trunk == "bf16" and args.dtype == "bf16"
    wanted = Wanted(
        process_bytes,
        spec.max_context,
        args.context_tokens,
        args.batch,
        may_stream,
        args.cache_tokens,
    )
    division = divide(sizes, budget, wanted)
    threads = args.threads or min(machine.processors if machine else processors, MOST_THREADS)
    name = machine.name if machine else "rates unknown"
    plan = Plan(model_name(spec), name, args.trunk, args.dtype, threads, process_bytes, division, {})
    if machine is None:
        return plan
    return replace(plan, forecast=_forecast(Forecaster(spec, sizes, division, machine, args.trunk), division, args))


def _budget(args: PlanArgs, machine: Machine | None, process: int, available: int | None) -> int:
    most = machine.memory_bytes if machine else None
    if args.memory_bytes is not None:
        if most is not None and machine is not None and args.memory_bytes > most:
            raise UsageError(
                f"--memory {format_bytes(args.memory_bytes)} is more than {machine.name} has, {format_bytes(most)}."
            )
        return args.memory_bytes
    if available is not None:
        return process + int(MEMORY_SHARE * available)
    if most is None:
        raise UsageError("Without a machine a plan needs a budget; name one with --memory.")
    return int(MEMORY_SHARE * most)


def _forecast(costs: Forecaster, division: Division, args: PlanArgs) -> dict[str, Cost]:
    """Decoding in an empty context and in a full one, and the longest first prompt that leaves room for a reply."""
    full = division.context_tokens
    found = {f"decode at {at}": costs.decode(Load(at, args.batch, args.skew)) for at in dict.fromkeys((1, full))}
    prompt = max(1, full // 2)
    return found | {f"first token of {prompt}": costs.prompt(prompt, args.skew)}
