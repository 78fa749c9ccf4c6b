"""What a person may choose of a plan, and within which bounds.

Refuses values that have no meaning with any machine, and combinations that contradict each other.
"""

from dataclasses import dataclass

from earthshine.errors import UsageError
from earthshine.plan.routing import MOST_SKEW, SKEW
from earthshine.spec import ModelSpec

MOST_THREADS = 512
MOST_BATCH = 4096
MOST_CACHE_TOKENS = 1 << 40
TRUNKS, DTYPES = ("bf16", "int8"), ("bf16", "fp32")


@dataclass(frozen=True, slots=True)
class PlanArgs:
    """Arguments of `make_plan`, which chooses those that are None.

    memory_bytes: the budget, all that the process may hold.
    context_tokens: of each sequence; by default what the budget allows easily.
    batch: sequences that a step computes together.
    trunk: "bf16" as published, or "int8". dtype: of activations, "bf16" or "fp32".
    skew: how unevenly the forecast assumes experts to be chosen (plan.routing).
    cache_tokens: of the pages that the sequences share; None for `batch` full contexts, 0 for one and what an eighth of
        the budget holds.
    """

    memory_bytes: int | None = None
    context_tokens: int | None = None
    batch: int = 1
    threads: int | None = None
    trunk: str = "bf16"
    dtype: str = "bf16"
    skew: float = SKEW
    cache_tokens: int | None = None

    @property
    def may_stream(self) -> bool:
        """Whether parts of the trunk may be read at every step. What is rounded, or used in fp32, is converted once
        and stays, so that results don't depend on what streams."""
        return self.trunk == "bf16" and self.dtype == "bf16"


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
        raise UsageError(f"A cache of {cache} tokens is not possible; choose 0 to {MOST_CACHE_TOKENS}.")
    if not 0 <= args.skew <= MOST_SKEW:  # nan fails too
        raise UsageError(f"A skew of {args.skew} is not possible; choose 0 (even) to {MOST_SKEW:g}.")
