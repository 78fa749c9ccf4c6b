"""What a person asks before all else: does the model run there, how fast is that, and what does it cost.

Every number is a forecast of `plan.explore` or a size of `plan.download`; what is not known is None. An answer of no
says what is lacking.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from earthshine.machine import Machine
from earthshine.plan.args import PlanArgs, check_args
from earthshine.plan.download import Download
from earthshine.plan.explore import Case, smallest_budget
from earthshine.plan.forecast import Cost
from earthshine.plan.plan import PROCESS_BYTES, budget_bytes
from earthshine.plan.prices import Ownership, PriceTable, ServicePrice
from earthshine.spec import ModelSpec, footprint

REPLY_TOKENS = 300
PROMPTS = (4096, 32768)  # tokens
# Silent reading of 238 English words a minute (Brysbaert, 2019, J. Mem. Lang. 109), at 4 tokens for 3 words.
READING_RATE = 238 / 60 * 4 / 3
LEAST_GAIN = 1.005  # times as fast: less is shown as none


@dataclass(frozen=True, slots=True)
class Answer:
    """`lacks`: what there is too little of, any of "memory", "disk" and "kernels"; nothing if the model runs.

    smallest_bytes: the least budget that works, with `smallest_context` tokens of conversation. budget_bytes: the one
    in use. free_bytes: what the process may take now; None on a machine that is described.
    context_tokens: the length of conversation that `decode` is at. waits: seconds to the first token of a prompt, by
    its length; None where it does not fit. output_usd_per_million: of tokens; None where the machine's cost is unknown.
    best_change: the change of the machine that makes replies fastest, with how many times as fast; None if none does.
    """

    lacks: tuple[str, ...]
    smallest_bytes: int
    smallest_context: int
    budget_bytes: int
    free_bytes: int | None
    download: Download
    context_tokens: int = 0
    decode: Cost | None = None
    waits: Mapping[int, float | None] | None = None
    output_usd_per_million: float | None = None
    service: ServicePrice | None = None
    best_change: tuple[str, float] | None = None

    @property
    def runs(self) -> bool:
        return not self.lacks

    @property
    def reply_seconds(self) -> float | None:
        """Of a reply, once its first token is there."""
        return None if self.decode is None else REPLY_TOKENS / self.reply_rate

    @property
    def reply_rate(self) -> float:
        """Tokens per second of one conversation, whatever the batch."""
        return 0.0 if self.decode is None else 1 / self.decode.seconds

    @property
    def times_service(self) -> float | None:
        """Output here over its price at the service that offers the same model; None where either is unknown."""
        if self.output_usd_per_million is None or self.service is None or not self.service.output:
            return None
        return self.output_usd_per_million / self.service.output


def answer(
    spec: ModelSpec,
    machine: Machine,
    args: PlanArgs,
    download: Download,
    own: Ownership | None,
    table: PriceTable,
    available_bytes: int | None = None,
) -> tuple[Answer, Case | None]:
    """The answer, and the plan that it is about; None where the memory there is can't hold one.

    Raises UsageError for arguments out of range, and for a budget in `args` that can't work.
    """
    lacks = [*(["kernels"] if machine.device != "cpu" else []), *(["disk"] if download.lacking_bytes else [])]
    check_args(args, spec)
    smallest, shortest = smallest_budget(spec, args)
    budget = budget_bytes(args, machine, PROCESS_BYTES, available_bytes)
    if args.memory_bytes is None and budget < smallest:
        found = Answer(
            lacks=(*lacks, "memory"),
            smallest_bytes=smallest,
            smallest_context=shortest,
            budget_bytes=budget,
            free_bytes=available_bytes,
            download=download,
        )
        return found, None
    case = Case.of(spec, machine, args, available_bytes)
    context = min(PROMPTS[0], case.plan.memory.context_tokens)
    found = Answer(
        lacks=tuple(lacks),
        smallest_bytes=smallest,
        smallest_context=shortest,
        budget_bytes=budget,
        free_bytes=available_bytes,
        download=download,
        context_tokens=context,
        decode=case.decode(context),
        waits=_waits(case),
        output_usd_per_million=None if own is None else usd_per_million(case, own)["output"],
        service=table.service_of(spec.family, footprint(spec).total_params),
        best_change=max((each for each in case.what_if() if each[1] >= LEAST_GAIN), key=lambda c: c[1], default=None),
    )
    return found, case


def _waits(case: Case) -> dict[int, float | None]:
    waits: dict[int, float | None] = {}
    for n_tokens in PROMPTS:
        other = case.with_context(n_tokens)
        waits[n_tokens] = None if other is None else other.prompt(n_tokens).seconds
    return waits


def usd_per_million(case: Case, own: Ownership) -> dict[str, float]:
    """US dollars for a million tokens of prompt and of reply, at a context half full, on a machine that does nothing
    else."""
    half = max(1, case.plan.memory.context_tokens // 2)
    return {
        "input": own.usd_per_million(case.prompt(half).tokens_per_second),
        "output": own.usd_per_million(case.decode(half).tokens_per_second),
    }
