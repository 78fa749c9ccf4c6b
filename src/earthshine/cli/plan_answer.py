"""The answer of `earthshine plan` in words: one block for a machine, or a row each for several.

Figures of a machine that was not measured are rounded and marked: "about" in sentences, "~" in a table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from earthshine.cli.layout import Report
from earthshine.cli.words import dollars, least_size, parameters_in_words, rate, size
from earthshine.machine import Machine, described
from earthshine.plan.answer import READING_RATE, REPLY_TOKENS, Answer
from earthshine.plan.download import ON_LABEL, label_size
from earthshine.plan.explore import Case
from earthshine.plan.forecast import READ_DEPTH
from earthshine.plan.prices import Ownership, PriceTable
from earthshine.spec import ModelSpec, footprint
from earthshine.units import format_duration, format_rate

_NO_KERNELS = (
    "Not with Earthshine: it runs on processors (CPUs) and has no GPU kernels. The figures are what an engine such as "
    "vLLM could reach on this hardware."
)
_MUCH = 0.9  # of the budget


@dataclass(frozen=True, slots=True)
class MachinePlan:
    """The answer and the plan for one machine.

    asked: its name as given, "this" for this one. estimated: why its rates are estimates, or "". refusal: why there
    is neither an answer nor a plan, or "".
    """

    asked: str
    machine: Machine
    estimated: str
    own: Ownership | None
    answer: Answer | None = None
    case: Case | None = None
    refusal: str = ""


def print_comparison(title: str, spec: ModelSpec, found: Sequence[MachinePlan], table: PriceTable) -> None:
    """A row of the answer for each machine, then what the rows need in words."""
    report = Report()
    report.heading(f"{title} on {len(found)} machines")
    report.paragraph(parameters(spec))
    known = next((one.answer for one in found if one.answer is not None), None)
    if known is not None:
        total = known.download.total_bytes
        report.paragraph(f"{size(total)}{label_size(total, ON_LABEL)} on disk")
    report.blank()
    columns = ("", "runs", "memory", "tokens/s", "answer", "4K", "32K", "output")
    report.table(columns, (_comparison_row(one) for one in found))
    report.blank()
    batch = next((one.case.args.batch for one in found if one.case is not None), 1)
    each = f"tokens/s: of each of {batch} replies. " if batch > 1 else ""
    report.paragraph(
        f"{each}answer: the time of one of {REPLY_TOKENS} tokens. 4K, 32K: the wait for the first token after a prompt "
        f"of that length. output: its cost over {_service_name(found, table)}."
    )
    for one in found:
        report.blank()
        report.heading(f"{one.asked}: {one.machine.name}")
        for line in _remarks(one):
            report.paragraph(line)


def parameters(spec: ModelSpec) -> str:
    """How large the model is."""
    params = footprint(spec)
    return parameters_in_words(params.total_params, params.active_params, " parameters")


def _comparison_row(one: MachinePlan) -> tuple[str, ...]:
    given = one.answer
    if given is None:
        return (one.asked, "no", "", "", "", "", "", "")
    about, exact = ("~", _rounded) if one.estimated else ("", float)
    if given.decode is None:
        return (one.asked, "no", f"> {size(given.smallest_bytes)}", "", "", "", "", "")
    waits = [about + format_duration(exact(wait)) if wait is not None else "-" for wait in (given.waits or {}).values()]
    times = given.times_service
    usd = given.output_usd_per_million
    cost = _times(times) if times is not None else "unknown" if usd is None else f"${dollars(usd)}"
    speed = (about + rate(exact(given.reply_rate)), about + format_duration(exact(given.reply_seconds or 0.0)))
    return (one.asked, "yes" if given.runs else "no", size(given.budget_bytes), *speed, *waits, cost)


def _remarks(one: MachinePlan) -> Iterator[str]:
    given = one.answer
    if given is None:
        yield one.refusal
        return
    if one.estimated:
        yield f"{one.estimated} Its speeds are estimates (~)."
    if given.lacks:
        yield _verdict(given)
    if given.decode is not None:
        yield f"What would help most: {_helps(given)}"


def _service_name(found: Sequence[MachinePlan], table: PriceTable) -> str:
    service = next((one.answer.service for one in found if one.answer and one.answer.service), None)
    if service is None:
        return "what a service asks, or US dollars per million tokens where none offers this model"
    return f"the price at {service.name} on {table.dated}"


def print_estimated(report: Report, found: MachinePlan) -> None:
    report.paragraph(
        f"{found.estimated} Speeds are estimates and may be off by a factor of three; earthshine bench machine "
        "measures it in under a minute."
    )


def answer_rows(found: MachinePlan, given: Answer, table: PriceTable, spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """The answer's block for one machine."""
    case, estimated = found.case, bool(found.estimated)
    taken = None if case is None else case.plan.memory.planned_bytes
    yield f"Does it run {place_of(found)}?", _verdict(given, taken)
    yield "Machine", _machine(found, spec)
    yield "Download", _download(given)
    if case is None or given.decode is None:
        yield "What would help", _helps(given)
        return
    batch = case.args.batch
    together = f" ({batch} replies at a time)" if batch > 1 else ""
    yield "Speed", _speed(given, estimated, batch)
    yield f"{REPLY_TOKENS}-token answer", _about(given.reply_seconds or 0.0, estimated) + together
    waits = (given.waits or {}).items()
    yield "First token", "; ".join(_wait(n, seconds, estimated, spec.max_context) for n, seconds in waits)
    yield "Cost of output", _output_cost(given, table, f"{place_of(found)} for machine and power{together}")
    yield "Would help most", _helps(given)


def place_of(found: MachinePlan) -> str:
    return "here" if found.asked == "this" else "there"


def _machine(found: MachinePlan, spec: ModelSpec) -> str:
    """The rates that the forecast starts from, and where they are from."""
    machine = found.machine
    if found.estimated:
        return machine.source
    unit = "GPU" if machine.device != "cpu" else "thread" if machine.measured else "core"
    disk = machine.disk_rate(footprint(spec).expert_bytes, READ_DEPTH)
    known = "by data sheets" if found.asked in described() else "as its file says"
    return (
        f"{machine.processors} {unit}{'s' if machine.processors > 1 else ''}, {size(machine.memory_bytes)} of memory "
        f"read at {format_rate(machine.memory_read)}, experts read from disk at {format_rate(disk)}: "
        + (f"measured on {machine.measured}" if machine.measured else known)
    )


def _speed(given: Answer, estimated: bool, batch: int) -> str:
    about, exact = ("about ", _rounded) if estimated else ("", float)
    speed, at = exact(given.reply_rate), f"with {given.context_tokens:,} tokens of conversation"
    if batch == 1 or given.decode is None:
        return f"{about}{rate(speed)} tokens per second {at}, {_reading(speed)}"
    every = rate(exact(given.decode.tokens_per_second))
    each = f"{about}{rate(speed)} tokens per second for each of {batch} replies, {every} for all"
    return f"{each}, {at}; each is {_reading(speed)}"


def _wait(n_tokens: int, seconds: float | None, estimated: bool, most: int) -> str:
    prompt = f"a prompt of {n_tokens // 1024}K tokens"
    if seconds is None:
        return f"{prompt} is too long for the model" if n_tokens > most else f"{prompt} needs more memory"
    return f"{_about(seconds, estimated)} after {prompt}"


def _about(seconds: float, estimated: bool) -> str:
    return f"about {format_duration(_rounded(seconds))}" if estimated else format_duration(seconds)


def _rounded(value: float) -> float:
    """The value to two digits, as an estimate is shown."""
    return float(f"{value:.2g}")


def _verdict(given: Answer, taken: int | None = None) -> str:
    """`taken`: what the plan takes of the memory, which a small model does not need all of."""
    smallest = least_size(given.smallest_bytes)
    if "kernels" in given.lacks:
        return _NO_KERNELS
    if "memory" in given.lacks:
        there = "are free now" if given.free_bytes is not None else "can be used"
        has = size(given.budget_bytes)
        return f"No: it needs at least {smallest} of memory, and {has} {there}."
    if "disk" in given.lacks:
        return f"Not yet: {_lacking(given)} of disk space are missing. Memory is enough: {smallest} is the least."
    memory = f"{size(given.budget_bytes)} of memory"
    if taken is not None and taken < _MUCH * given.budget_bytes:
        memory = f"{size(taken)} of the {memory} that it may use"
    shortest = f"for {given.smallest_context:,} tokens of conversation"
    return f"Yes, with {memory}; {smallest} is the least that works, {shortest}."


def _lacking(given: Answer) -> str:
    lacking = given.download.lacking_bytes
    return size(lacking) + label_size(lacking, ON_LABEL)


def _download(given: Answer) -> str:
    text = given.download.sentence()
    return f"{text}, which the disk there has to hold" if given.download.free_bytes is None else text


def _reading(tokens_per_second: float) -> str:
    times = tokens_per_second / READING_RATE
    if times >= 1.5:
        return f"{times:.0f} times as fast as people read" if times >= 9.5 else f"{times:.1f} times reading speed"
    return "about as fast as people read" if times >= 0.8 else f"{_share(times)} of the speed at which people read"


def _share(times: float) -> str:
    return f"{100 * times:.0f}%" if times >= 0.095 else f"{100 * times:.1g}%"


def _times(times: float) -> str:
    """The cost of output here over the price of a service."""
    if 0.95 <= times < 1.05:
        return "the same"
    return f"{times:.0f} times" if times >= 9.5 else f"{times:.1f} times" if times > 1 else _share(times)


def _output_cost(given: Answer, table: PriceTable, how: str) -> str:
    service = given.service
    asks = "" if service is None else f"${dollars(service.output)} at {service.name} on {table.dated}"
    if given.output_usd_per_million is None:
        return "unknown without --watts and --machine-price" + (f"; the API: {asks}" if asks else "")
    here = f"${dollars(given.output_usd_per_million)} per million tokens {how}"
    times = given.times_service
    if times is None:
        return f"{here}; no service in the table of prices offers this model"
    over = f"{_times(times)} the API's price" if times >= 1.05 else f"{_times(times)} of the API's price"
    return f"{over if not 0.95 <= times < 1.05 else 'about the same as the API'}: {here}, {asks}"


def _helps(given: Answer) -> str:
    """The change that would help most, which is what is lacking where the model does not run."""
    if "kernels" in given.lacks:
        return "a machine whose processors (CPUs) run Earthshine, or vLLM on this one"
    if "memory" in given.lacks:
        return f"{size(given.smallest_bytes - given.budget_bytes)} more memory, or a smaller model"
    if "disk" in given.lacks:
        return f"{_lacking(given)} more free space, or EARTHSHINE_HOME set to a folder on a larger disk"
    if given.best_change is None:
        return "nothing of disk, memory size or memory speed: other parts take the time"
    change, times = given.best_change
    return f"{change}: tokens come " + (f"{times:.1f} times as fast" if times >= 1.1 else f"{times - 1:.1%} faster")
