"""The arguments of a plan and their limits.

Refuses values that no machine allows, and combinations that contradict each other.
"""

from dataclasses import dataclass

from earthshine.errors import UsageError
from earthshine.plan.routing import MOST_SKEW, SKEW
from earthshine.spec import ModelSpec
from earthshine.untrusted import shown

MOST_THREADS = 512
MOST_BATCH = 4096
MOST_CACHE_TOKENS = 1 << 40
TRUNKS, DTYPES = ("bf16", "int8"), ("bf16", "fp32")


@dataclass(frozen=True, slots=True)
class PlanArgs:
    """Arguments of `make_plan`. Those that are None are chosen by it.

    memory_bytes: the memory budget of the process.
    context_tokens: the most tokens of a sequence.
    batch: the most sequences that a step computes together.
    trunk: "bf16" as published, or "int8".
    dtype: of activations, "bf16" or "fp32".
    skew: Zipf's exponent of the choice of experts that the forecast assumes (plan.routing).
    cache_tokens: capacity of the pages that all sequences share, of one full context at least. 0: one full context, and
        more in up to an eighth of the budget, for at most `batch` full contexts.
    """

    memory_bytes: int | None = None
    context_tokens: int | None = None
    batch: int = 1
    threads: int | None = None
    trunk: str = "bf16"
    dtype: str = "bf16"
    skew: float = SKEW
    cache_tokens: int = 0

    @property
    def may_stream(self) -> bool:
        """Whether parts of the trunk may be read from disk at every step. A trunk that is rounded to int8 or used in
        fp32 is converted once and stays in memory, so that results don't depend on which layers stream."""
        return self.trunk == "bf16" and self.dtype == "bf16"


def check_args(args: PlanArgs, spec: ModelSpec) -> None:
    """Raises UsageError for a value out of range and for arguments that contradict each other.

    `param` of the error is the argument's name in `LLM`, which is also the command line's option.
    """
    for name, value, choices in (("trunk", args.trunk, TRUNKS), ("dtype", args.dtype, DTYPES)):
        if value not in choices:
            raise UsageError(f"{name} must be {' or '.join(choices)}, not {shown(value)}.", name)
    if args.trunk != "bf16" and args.dtype != "bf16":
        raise UsageError(f"dtype must be bf16 with an {args.trunk} trunk, not {args.dtype}.", "dtype")
    for name, number, least, most, unit in (
        ("threads", args.threads, 1, MOST_THREADS, ""),
        ("batch", args.batch, 1, MOST_BATCH, " sequences"),
        ("context", args.context_tokens, 1, spec.max_context, " tokens with this model"),
        ("cache_tokens", args.cache_tokens, 0, MOST_CACHE_TOKENS, ""),
        ("skew", args.skew, 0, MOST_SKEW, ""),
    ):
        if number is not None and not least <= number <= most:  # nan fails too
            raise UsageError(f"{name} must be between {least} and {most}{unit}, not {shown(number)}.", name)
