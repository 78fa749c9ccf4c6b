"""`earthshine plan`: does a model run on a machine, how fast and why, and what it costs. Options, files and JSON.

Works from a config.json alone and loads no torch. What is shown are forecasts; `benchmarks/` compares them with
measurements. `cli.plan_answer` and `cli.plan_report` print them.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from earthshine.cli.plan_answer import MachinePlan, print_comparison
from earthshine.cli.plan_report import print_plan
from earthshine.cli.this_machine import THIS, machine_named
from earthshine.errors import UsageError
from earthshine.files import write_file
from earthshine.hub import find_config, size_on_disk
from earthshine.machine import (
    Machine,
    described,
    memory_available,
    memory_resident,
)
from earthshine.plan import Cost, PlanArgs, plan_json
from earthshine.plan.answer import REPLY_TOKENS, Answer, answer, usd_per_million
from earthshine.plan.download import Download
from earthshine.plan.plan import PROCESS_BYTES
from earthshine.plan.prices import SHIPPED, Ownership, PriceTable, read_prices
from earthshine.spec import ModelSpec, load_spec
from earthshine.units import parse_bytes


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """The options of the command."""

    memory: str | None
    context: int | None
    batch: int
    threads: int | None
    trunk: str
    machines: tuple[str, ...]
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
    folder = find_config(model)
    spec = load_spec(folder)
    on_disk = size_on_disk(model, folder, spec)
    names = options.machines or (THIS,)
    found = [_find(name, spec, folder, on_disk, options, table, len(names) == 1) for name in names]
    title = _title(model, folder)
    _write(found, options, title)
    if options.as_json:
        facts = [_facts(one, table) for one in found]
        print(json.dumps(facts[0] if len(facts) == 1 else {"machines": facts}, indent=2))
    elif len(found) == 1:
        print_plan(title, spec, found[0], table)
    else:
        print_comparison(title, spec, found, table)


def _find(
    name: str,
    spec: ModelSpec,
    folder: Path,
    on_disk: Download,
    options: PlanOptions,
    table: PriceTable,
    alone: bool,
) -> MachinePlan:
    """The answer for one machine; a refusal of one of several is kept instead of raised."""
    machine, estimated = machine_named(name, folder)
    own = _ownership(machine, options)
    args = PlanArgs(
        None if options.memory is None else parse_bytes(options.memory),
        options.context,
        options.batch,
        options.threads,
        options.trunk,
        skew=options.skew,
    )
    here = name == THIS
    if not here:  # there nothing of the model is known to be, and no free space
        on_disk = replace(on_disk, present_bytes=0, free_bytes=None)
    available = max(0, memory_available() + memory_resident() - PROCESS_BYTES) if here else None
    try:
        given, case = answer(spec, machine, args, on_disk, own, table, available)
    except UsageError as error:
        if alone and (args.memory_bytes or 0) > machine.memory_bytes:
            names = ", ".join(described())
            raise UsageError(f"{error} For another machine, use --machine with a file or {names}.", "memory") from None
        if alone:
            raise
        return MachinePlan(name, machine, estimated, own, refusal=str(error))
    return MachinePlan(name, machine, estimated, own, given, case)


def _ownership(machine: Machine, options: PlanOptions) -> Ownership | None:
    watts = machine.watts if options.watts is None else options.watts
    price = machine.price_usd if options.machine_price is None else options.machine_price
    own = Ownership(watts or 0.0, options.kwh_price, price or 0.0, options.life_years)
    return None if watts is None and price is None else own


def _write(found: list[MachinePlan], options: PlanOptions, title: str) -> None:
    """The files of --save and --plot, which need one machine that can hold the model."""
    asked = [name for name, path in (("--save", options.save), ("--plot", options.plot)) if path is not None]
    if not asked:
        return
    case = found[0].case
    if len(found) > 1 or case is None:
        why = "the model does not fit the memory there" if len(found) == 1 else "give --machine once"
        raise UsageError(f"{' and '.join(asked)} need one plan: {why}.")
    if options.save is not None:
        write_file(options.save, plan_json(case.plan).encode())
    if options.plot is not None:
        from earthshine.cli.plot import plot_plan

        kind = "rates estimated, not measured" if found[0].estimated else "a forecast"
        if case.machine.device != "cpu":
            kind = "what another engine could reach, since there are no GPU kernels"
        plot_plan(options.plot, case, f"{title} on {case.machine.name}: {kind}")


def _title(model: str | None, folder: Path) -> str:
    """What a person calls the model: its id, or the name of its folder or config."""
    if model is None or not os.path.exists(model):
        return model or "gleam"
    named = folder.parent if folder.name == "config.json" else folder
    return "".join(filter(str.isprintable, named.name)) or model


def _facts(found: MachinePlan, table: PriceTable) -> dict[str, Any]:
    facts: dict[str, Any] = {"machine": found.machine.name, "estimated": bool(found.estimated)}
    if found.answer is None:
        return facts | {"refusal": found.refusal}
    facts["answer"] = _answer(found.answer)
    facts["services"] = {"dated": table.dated, "source": table.source, "prices": [asdict(p) for p in table.prices]}
    case = found.case
    if case is None:
        return facts
    facts |= {"plan": asdict(case.plan), "skew": case.args.skew}
    facts["smallest_budget"] = case.smallest  # with this context
    for name, rows in (("contexts", case.by_context()), ("budgets", case.by_budget())):
        facts[name] = [{"at": at, "decode": _cost(d), "first_token": _cost(p)} for at, d, p in rows]
    facts["times_quicker"] = dict(case.what_if())
    if found.own is not None:
        facts["usd_per_million"] = usd_per_million(case, found.own)
    return facts


def _answer(given: Answer) -> dict[str, Any]:
    load, helps = given.download, given.best_change
    return {
        "runs": given.runs,
        "lacks": list(given.lacks),
        "smallest_bytes": given.smallest_bytes,
        "smallest_context": given.smallest_context,
        "budget_bytes": given.budget_bytes,
        "free_memory_bytes": given.free_bytes,
        "model_bytes": load.total_bytes,
        "download_bytes": load.missing_bytes,
        "free_disk_bytes": load.free_bytes,
        "context_tokens": given.context_tokens or None,
        "tokens_per_second": given.reply_rate or None,
        "reply_tokens": REPLY_TOKENS,
        "reply_seconds": given.reply_seconds,
        "first_token_seconds": {str(n): seconds for n, seconds in (given.waits or {}).items()},
        "output_usd_per_million": given.output_usd_per_million,
        "service": None if given.service is None else given.service.name,
        "times_service_price": given.times_service,
        "helps_most": None if helps is None else {"change": helps[0], "times_as_fast": helps[1]},
    }


def _cost(cost: Cost) -> dict[str, Any]:
    return asdict(cost) | {"tokens_per_second": cost.tokens_per_second}
