"""`earthshine plan`: what goes where on a machine, how fast that will be and why, and what it costs.

Works from a config.json alone and loads no torch. What is printed are forecasts; `benchmarks/` compares them with
measurements.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from earthshine.errors import UsageError
from earthshine.hub import find_model
from earthshine.machine import Machine, described, memory_available, memory_resident, own_machine, read_machine
from earthshine.plan import Cost, PlanArgs, plan_json
from earthshine.plan.explore import Case
from earthshine.plan.plan import PROCESS_BYTES
from earthshine.plan.prices import SHIPPED, Ownership, PriceTable, read_prices
from earthshine.settings import read_settings
from earthshine.spec import load_spec
from earthshine.units import format_bytes, parse_bytes
from earthshine.untrusted import shown

_LEAST_GAIN = 1.005  # times as fast: less is shown as none


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """The options of the command."""

    memory: str | None
    context: int | None
    batch: int
    threads: int | None
    trunk: str
    machine: str | None
    skew: float
    watts: float | None
    kwh_price: float
    machine_price: float | None
    life_years: float
    prices: Path | None
    save: Path | None
    plot: Path | None
    as_json: bool


def run_plan(model: str | None, options: PlanOptions) -> None:
    table = read_prices(options.prices or SHIPPED)
    spec = load_spec(find_model(model, weights=False))
    machine = _machine(options.machine)
    memory = None if options.memory is None else parse_bytes(options.memory)
    args = PlanArgs(memory, options.context, options.batch, options.threads, options.trunk, skew=options.skew)
    own = _ownership(machine, options)
    here = options.machine is None
    available = max(0, memory_available() + memory_resident() - PROCESS_BYTES) if here else None
    case = Case.of(spec, machine, args, available)
    if options.save is not None:
        options.save.write_text(plan_json(case.plan), encoding="utf-8")
    if options.plot is not None:
        from earthshine.cli.plot import plot_plan

        plot_plan(options.plot, case)
    if options.as_json:
        print(json.dumps(_facts(case, own, table), indent=2))
        return
    _print(case, own, table)


def _machine(name: str | None) -> Machine:
    """The machine that --machine names, a file or a shipped one; by default this machine, as it was measured."""
    shipped = described()
    if name is not None:
        if name in shipped:
            return read_machine(shipped[name])
        if not os.path.exists(name):
            raise UsageError(f"{shown(name)} is neither a file nor a known machine; known are {', '.join(shipped)}.")
        return read_machine(Path(name))
    own = own_machine(read_settings().profile)
    if own is None:
        raise UsageError(
            "This machine has not been measured yet: run earthshine bench machine (under a minute), or name another "
            f"machine with --machine, such as {', '.join(shipped)}."
        )
    return own


def _ownership(machine: Machine, options: PlanOptions) -> Ownership | None:
    watts = machine.watts if options.watts is None else options.watts
    price = machine.price_usd if options.machine_price is None else options.machine_price
    own = Ownership(watts or 0.0, options.kwh_price, price or 0.0, options.life_years)
    return None if watts is None and price is None else own


def _facts(case: Case, own: Ownership | None, table: PriceTable) -> dict[str, Any]:
    facts: dict[str, Any] = {"plan": asdict(case.plan), "machine": case.machine.name, "skew": case.args.skew}
    facts["smallest_budget"] = case.smallest  # with this context
    for name, rows in (("contexts", case.by_context()), ("budgets", case.by_budget())):
        facts[name] = [{"at": at, "decode": _cost(d), "first_token": _cost(p)} for at, d, p in rows]
    facts["times_quicker"] = dict(case.what_if())
    if own is not None:
        facts["usd_per_million"] = _usd(case, own)
    facts["services"] = {"dated": table.dated, "source": table.source, "prices": [asdict(p) for p in table.prices]}
    return facts


def _cost(cost: Cost) -> dict[str, Any]:
    return asdict(cost) | {"tokens_per_second": cost.tokens_per_second}


def _usd(case: Case, own: Ownership) -> dict[str, float]:
    """Per million tokens of prompt and of reply, on a machine that does nothing else."""
    half = max(1, case.plan.memory.context_tokens // 2)
    return {
        "input": own.usd_per_million(case.prompt(half).tokens_per_second),
        "output": own.usd_per_million(case.decode(half).tokens_per_second),
    }


def _print(case: Case, own: Ownership | None, table: PriceTable) -> None:
    console, memory = Console(markup=False, emoji=False), case.plan.memory  # names come from files
    console.print(f"{case.spec.family} on {case.machine.name}: a forecast", highlight=False)
    places = _table("what the memory holds", ("part", "size", ""))
    for name, nbytes in memory.parts.items():
        if nbytes:
            places.add_row(name, format_bytes(nbytes), _note(case, name))
    places.add_row("total", format_bytes(memory.planned_bytes), f"of {format_bytes(memory.budget_bytes)}")
    places.add_row("smallest budget", format_bytes(case.smallest), "with this context and batch")
    console.print(places)
    batch = f"batch {case.args.batch}"
    columns = ("context", "decode tokens/s", "limited by", "time to first token", "limited by")
    rates = _table(f"by context in tokens, {batch}", columns)
    for at, decode, prompt in case.by_context():
        rates.add_row(f"{at:,}", _rate(decode), _limit(decode), _seconds(prompt.seconds), _limit(prompt))
    console.print(rates)
    columns = ("memory", "decode tokens/s", "limited by", "bytes read per token", "cache hits")
    budgets = _table(f"by memory budget, {memory.context_tokens:,} tokens of context, {batch}", columns)
    for at, decode, _ in case.by_budget():
        read = format_bytes(decode.disk_bytes / case.args.batch)
        budgets.add_row(format_bytes(at), _rate(decode), _limit(decode), read, f"{decode.hit_share:.0%}")
    console.print(budgets)
    if case.args.batch == 1:
        console.print("Batch 1 is one request at a time; serve decodes up to 8 together: --batch 8.", highlight=False)
    console.print(_reasons(case), highlight=False)
    for line in _changes(case):
        console.print(f"  {line}", highlight=False)
    _print_money(console, case, own, table)


def _note(case: Case, part: str) -> str:
    memory = case.plan.memory
    if part == "trunk" and memory.streamed:
        return f"{len(memory.streamed)} of {len(case.sizes.units)} parts stream from disk"
    if part == "expert slots":
        return f"{memory.slots_per_layer} of {max(case.sizes.experts)} experts of each layer"
    if part == "cache pages":
        return f"{memory.batch} x {memory.context_tokens:,} tokens"
    if part == "activations":
        return f"{memory.prefill_tokens:,} tokens of a prompt at once"
    return ""


def _limit(cost: Cost) -> str:
    return "overhead" if cost.bound == "calls" else cost.bound


def _reasons(case: Case) -> str:
    """What takes the time of one decode step."""
    cost = case.decode()
    parts = sorted(cost.parts.items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in parts if seconds > 0.005 * cost.seconds)
    spread = "even" if case.args.skew == 0 else f"skewed by {case.args.skew:g}"
    return f"One decode step at that context, each part alone: {listed}. Expert routing is assumed to be {spread}."


def _changes(case: Case) -> Iterator[str]:
    """What changes of the machine would do to a decode step, those without an effect in one line."""
    idle = []
    for name, times in case.what_if():
        if times < _LEAST_GAIN:
            idle.append(name)
        else:
            yield f"with {name}: {times:.2f} times as fast"
    if idle:
        yield f"no faster with: {'; '.join(idle)}"


def _print_money(console: Console, case: Case, own: Ownership | None, table: PriceTable) -> None:
    prices = _table(f"US dollars per million tokens, services in {table.dated}", ("", "input", "output"))
    if own is None:
        console.print("What a million tokens cost here needs --watts and --machine-price.", highlight=False)
    else:
        usd = _usd(case, own)
        prices.add_row(f"here, at ${own.usd_per_hour:.3f} per hour", _dollars(usd["input"]), _dollars(usd["output"]))
    for price in table.prices:
        prices.add_row(price.name, _dollars(price.input), _dollars(price.output))
    console.print(prices)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index in (0, len(columns) - 1) else "right")
    return table


def _dollars(usd: float) -> str:
    """To the cent; below 10 cents to two digits, since small models cost less than a cent."""
    return f"{usd:.2f}" if usd >= 0.1 or usd == 0 else f"{usd:.{1 - math.floor(math.log10(usd))}f}"


def _rate(cost: Cost) -> str:
    rate = cost.tokens_per_second
    return f"{rate:.2f}" if rate < 100 else f"{rate:,.0f}"


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
