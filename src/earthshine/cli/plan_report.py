"""What `earthshine plan` prints for one machine: the answer, then a section for each thing that it follows from."""

from earthshine.cli.layout import Report
from earthshine.cli.plan_answer import MachinePlan, answer_rows, parameters, place_of, print_estimated
from earthshine.cli.words import SERVE_BATCH, dollars, least_size, rate
from earthshine.plan import Cost
from earthshine.plan.answer import LEAST_GAIN, usd_per_million
from earthshine.plan.explore import Case
from earthshine.plan.prices import Ownership, PriceTable
from earthshine.spec import ModelSpec
from earthshine.spec.layout import moe_layers
from earthshine.storage import PAGE_TOKENS
from earthshine.units import format_bytes, format_duration

_PARTS = {
    "process": "Python and its libraries",
    "margin": "safety margin",
    "workspace": "room to compute in",
    "cache pages": "cache of the conversation",
    "recurrent states": "state of the conversation",
    "activations": "prompt being read",
    "trunk": "trunk",
    "embedding": "embedding (token table)",
    "trunk buffers": "buffers for streamed layers",
    "expert slots": "experts kept in memory",
    "experts in transit": "experts being read",
}
_BOUNDS = {"disk": "disk", "memory": "memory speed", "compute": "processor", "overhead": "overhead"}
_STEP = {"disk": "reading from disk", "overhead": "overhead between kernels", "head": "output layer (head)"}


def print_plan(title: str, spec: ModelSpec, found: MachinePlan, table: PriceTable) -> None:
    """The answer for one machine and, where there is a plan, what is behind it."""
    report, given, case = Report(), found.answer, found.case
    assert given is not None
    report.heading(f"{title} on {found.machine.name}")
    report.paragraph(parameters(spec))
    if found.estimated:
        report.blank()
        print_estimated(report, found)
    report.blank()
    report.facts(answer_rows(found, given, table, spec))
    if case is None:
        return
    for part in (_print_memory, _print_contexts, _print_budgets, _print_step):
        report.blank()
        part(report, case)
    report.blank()
    _print_prices(report, case, found, table)
    report.blank()
    _print_terms(report, case)


def _print_memory(report: Report, case: Case) -> None:
    memory = case.plan.memory
    report.heading("What the memory holds")
    rows = [
        (_PARTS.get(name, name), format_bytes(nbytes), _note(case, name)) for name, nbytes in memory.parts.items()
        if nbytes
    ]  # fmt: skip
    rows.append(("total", format_bytes(memory.planned_bytes), f"of {format_bytes(memory.budget_bytes)}"))
    context = f"{memory.context_tokens:,} tokens of conversation"
    rows.append(("smallest budget", least_size(case.smallest), f"for {context}"))
    report.table(("", "size", ""), rows)


def _note(case: Case, part: str) -> str:
    memory = case.plan.memory
    if part == "trunk" and memory.streamed:
        when = "at every step" if memory.batch > 1 else "for every token"
        return f"{len(memory.streamed)} of {len(case.sizes.units)} parts read {when}"
    if part == "expert slots":
        return f"{memory.slots_per_layer} of {max(case.sizes.experts)} in each layer"
    if part == "cache pages":
        shared = f", shared by up to {memory.batch} replies" if memory.batch > 1 else ""
        return f"{memory.pages * PAGE_TOKENS:,} tokens{shared}"
    if part == "activations":
        return f"{memory.prefill_tokens:,} tokens at once"
    return ""


def _print_contexts(report: Report, case: Case) -> None:
    report.heading(f"By length of the conversation, {_batch(case)}")
    columns = ("tokens", _rate_column(case), "limited by", "first token", "limited by")
    report.table(
        columns,
        (
            (f"{at:,}", rate(decode.tokens_per_second), _limit(decode), format_duration(prompt.seconds), _limit(prompt))
            for at, decode, prompt in case.by_context()
        ),
    )
    report.paragraph(
        "Each row is a plan with room for just that many tokens, the rest of the memory being for experts. First "
        "token: the wait for it where all of them are one new prompt."
    )
    if case.args.batch > 1:
        report.paragraph(
            f"tokens/s, all: while {case.args.batch} conversations of that length are in the cache; if it holds fewer, "
            "the others wait."
        )


def _print_budgets(report: Report, case: Case) -> None:
    memory = case.plan.memory
    report.heading(f"By memory, for {memory.context_tokens:,} tokens of conversation, {_batch(case)}")
    columns = ("memory", _rate_column(case), "read per token", "experts found", "limited by")
    report.table(
        columns,
        (
            (
                format_bytes(at) + (" *" if at == memory.budget_bytes else ""),
                rate(decode.tokens_per_second),
                format_bytes(decode.disk_bytes / case.args.batch),
                f"{decode.hit_share:.0%}",
                _limit(decode),
            )
            for at, decode, _ in case.by_budget()
        ),
    )
    report.paragraph(
        "* the budget of this plan. Experts found: those that were in memory already, of all that a token uses."
    )


def _batch(case: Case) -> str:
    n = case.args.batch
    return "one reply at a time" if n == 1 else f"{n} replies at a time"


def _rate_column(case: Case) -> str:
    return "tokens/s, all" if case.args.batch > 1 else "tokens/s"


def _print_step(report: Report, case: Case) -> None:
    """What takes the time of one decode step, and what other hardware would change."""
    cost = case.decode()
    batch = case.args.batch
    of = f"a step goes, with a token for each of {batch} replies" if batch > 1 else "a token goes"
    report.heading(f"Where the time of {of}, at {case.plan.memory.context_tokens:,} tokens")
    parts = sorted(cost.parts.items(), key=lambda part: -part[1])
    report.table(
        ("", "time", ""),
        (
            (_STEP.get(name, name), format_duration(seconds), "")
            for name, seconds in parts
            if seconds > 0.005 * cost.seconds
        ),
    )
    spread = "even" if case.args.skew == 0 else f"skewed (--skew {case.args.skew:g})"
    report.paragraph(f"Parts overlap. The choice of experts is assumed to be {spread}.")
    report.blank()
    report.heading("What would make it faster")
    idle = [name for name, times in case.what_if() if times < LEAST_GAIN]
    report.table(
        ("", "times as fast", ""),
        ((name, f"{times:.2f}", "") for name, times in case.what_if() if times >= LEAST_GAIN),
    )
    if idle:
        report.paragraph(f"No faster with: {'; '.join(idle)}.")
    if batch == 1:
        most = f"serve decodes up to {SERVE_BATCH}, see --batch {SERVE_BATCH}"
        report.paragraph(f"Several replies at a time share what is read: {most}.")


def _print_prices(report: Report, case: Case, found: MachinePlan, table: PriceTable) -> None:
    own = found.own
    report.heading(f"US dollars per million tokens, services on {table.dated}")
    rows: list[tuple[str, ...]] = [
        (price.name, dollars(price.input), dollars(price.output), "") for price in table.prices
    ]
    if own is not None:
        usd = usd_per_million(case, own)
        rows.insert(0, (f"own machine, at ${own.usd_per_hour:.3f} per hour", *map(dollars, usd.values()), ""))
    report.table(("", "prompt", "output", ""), rows)
    if own is None:
        report.paragraph(f"The cost {place_of(found)} needs --watts and --machine-price.")
    else:
        report.paragraph(_hour(own))


def _hour(own: Ownership) -> str:
    """What an hour of the machine is made of, with the options that change it."""
    years = f"{own.life_years:g} year{'s' if own.life_years != 1 else ''}"
    return (
        f"The machine costs ${own.usd_per_hour:.3f} per hour: ${own.price_usd:,.0f} over {years} of running day and "
        f"night (--machine-price, --life-years) and {own.watts:,g} W at ${own.usd_per_kwh:g} per kWh (--watts, "
        "--kwh-price)."
    )


def _print_terms(report: Report, case: Case) -> None:
    report.heading("Terms")
    moe = next((moe for _, moe in moe_layers(case.spec)), None)
    rows = [("token", "a piece of text; three words are about four tokens")]
    if moe is not None:
        rows.append(
            (
                "expert",
                f"one of {moe.n_experts} parts of a layer, of which each token uses {moe.top_k}; "
                "those not in memory are read from disk",
            )
        )
    rows.append(("trunk", "all weights but the experts; every token uses all of it"))
    rows.append(("prompt", "the text before a reply: it is read before the first token comes"))
    report.facts(rows)


def _limit(cost: Cost) -> str:
    return _BOUNDS[cost.bound]
