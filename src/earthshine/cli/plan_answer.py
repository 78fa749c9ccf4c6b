"""The answer of `earthshine plan` in words: one block for a machine, or a row each for several.

Figures of a machine that was not measured are rounded and marked: "about" in sentences, "~" in a table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from earthshine.cli.layout import Report
from earthshine.cli.words import dollars, least_size, parameters_in_words, rate, size
from earthshine.machine import Machine
from earthshine.plan.answer import READING_RATE, REPLY_TOKENS, Answer
from earthshine.plan.explore import Case
from earthshine.plan.prices import Ownership, PriceTable
from earthshine.spec import ModelSpec, footprint
from earthshine.units import format_duration

_NO_KERNELS = (
    "Not with Earthshine: it runs on processors (CPUs) and has no GPU kernels. The figures are what an engine such as "
    "vLLM could reach on this hardware."
)


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
        report.paragraph(f"{size(known.download.total_bytes)} on disk")
    report.blank()
    columns = ("", "runs", "memory", "tokens/s", "answer", "4K", "32K", "output")
    report.table(columns, (_comparison_row(one) for one in found))
    report.blank()
    report.paragraph(
        f"answer: the time of one of {REPLY_TOKENS} tokens. 4K, 32K: the wait for the first token after a prompt of "
        f"that length. output: its cost over {_service_name(found, table)}."
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
    report.paragraph(found.machine.source)


def answer_rows(found: MachinePlan, given: Answer, table: PriceTable, most: int) -> Iterator[tuple[str, str]]:
    """The answer's block for one machine. `most`: the model's context in tokens."""
    yield "Does it run here?" if found.asked == "this" else "Does it run there?", _verdict(given)
    yield "Download", _download(given)
    if given.decode is None:
        yield "What would help", _helps(given)
        return
    estimated = bool(found.estimated)
    about, exact = ("about ", _rounded) if estimated else ("", float)
    speed = exact(given.reply_rate)
    at = f"with {given.context_tokens:,} tokens of conversation"
    yield "Speed", f"{about}{rate(speed)} tokens per second {at}, {_reading(speed)}"
    yield f"{REPLY_TOKENS}-token answer", _about(given.reply_seconds or 0.0, estimated)
    waits = (given.waits or {}).items()
    yield "First token", "; ".join(_wait(n, seconds, estimated, most) for n, seconds in waits)
    yield "Cost of output", _output_cost(given, table)
    yield "Would help most", _helps(given)


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


def _verdict(given: Answer) -> str:
    smallest = least_size(given.smallest_bytes)
    if "kernels" in given.lacks:
        return _NO_KERNELS
    if "memory" in given.lacks:
        there = "are free now" if given.free_bytes is not None else "can be used"
        has = size(given.budget_bytes)
        return f"No: it needs at least {smallest} of memory, and {has} {there}."
    if "disk" in given.lacks:
        lacking = size(given.download.lacking_bytes)
        return f"Not yet: {lacking} of disk space are missing. Memory is enough: {smallest} is the least."
    shortest = f"for {given.smallest_context:,} tokens of conversation"
    return f"Yes, with {size(given.budget_bytes)} of memory; {smallest} is the least that works, {shortest}."


def _download(given: Answer) -> str:
    text = given.download.sentence()
    return f"{text}, which its disk has to hold" if given.download.free_bytes is None else text


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


def _output_cost(given: Answer, table: PriceTable) -> str:
    service = given.service
    there = "" if service is None else f"${dollars(service.output)} at {service.name} on {table.dated}"
    if given.output_usd_per_million is None:
        return "unknown without --watts and --machine-price" + (f"; the API: {there}" if there else "")
    here = f"${dollars(given.output_usd_per_million)} per million tokens here"
    times = given.times_service
    if times is None:
        return f"{here}; no service in the table of prices offers this model"
    over = f"{_times(times)} the API's price" if times >= 1.05 else f"{_times(times)} of the API's price"
    return f"{over if not 0.95 <= times < 1.05 else 'about the same as the API'}: {here}, {there}"


def _helps(given: Answer) -> str:
    """The change that would help most, which is what is lacking where the model does not run."""
    if "kernels" in given.lacks:
        return "a machine whose processors (CPUs) run Earthshine, or vLLM on this one"
    if "memory" in given.lacks:
        return f"{size(given.smallest_bytes - given.budget_bytes)} more memory, or a smaller model"
    if "disk" in given.lacks:
        lacking = size(given.download.lacking_bytes)
        return f"{lacking} more free space, or EARTHSHINE_HOME set to a folder on a larger disk"
    if given.best_change is None:
        return "nothing of disk, memory size or memory speed: other parts take the time"
    change, times = given.best_change
    return f"{change}: tokens come " + (f"{times:.1f} times as fast" if times >= 1.1 else f"{times - 1:.1%} faster")
