"""`earthshine prfaas borrow`: the first token of long prompts here, and with another machine's prefill over a link.

All figures are forecasts of `plan`. Works from a config.json alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from earthshine.cli.layout import Report
from earthshine.cli.prfaas_solve import MOST_GBPS
from earthshine.cli.this_machine import machine_named
from earthshine.cli.words import KWH_USD, LIFE_YEARS, dollars
from earthshine.errors import UsageError
from earthshine.files import write_file
from earthshine.hub import find_model
from earthshine.machine import Machine
from earthshine.plan import PlanArgs
from earthshine.plan.explore import Case
from earthshine.plan.prices import Ownership
from earthshine.prfaas.borrow import Borrowing, borrowing, fleet_of
from earthshine.prfaas.fleet import fleet_json
from earthshine.prfaas.forecast import forecast_profile
from earthshine.prfaas.profile import MOST_USD, Profile
from earthshine.spec import ModelSpec, load_spec
from earthshine.units import format_duration

_PROMPTS = (8192, 32768, 131072)  # tokens


@dataclass(frozen=True, slots=True)
class BorrowOptions:
    """The options of the command."""

    model: str
    machines: tuple[str, ...]
    lender: str
    gbps: tuple[float, ...]
    prompts: tuple[int, ...]
    usd_per_hour: float | None
    save: Path | None
    json: bool


def run_borrow(options: BorrowOptions) -> None:
    folder = find_model(options.model, weights=False)
    spec = load_spec(folder)
    prompts = _checked(options, spec)
    longest = max(prompts)
    there = _profile(spec, machine_named(options.lender, folder)[0], longest, options.usd_per_hour)
    here = {name: _profile(spec, machine_named(name, folder)[0], longest) for name in options.machines}
    if options.save is not None:
        if len(here) * len(options.gbps) != 1:
            raise UsageError("--save needs one machine and one link: give --machine and --link once each.")
        fleet = fleet_of(next(iter(here.values())), there, options.gbps[0] * 1e9 / 8)
        write_file(options.save, fleet_json(fleet).encode())
    rows = {
        name: [borrowing(mine, there, gbps * 1e9 / 8, n, longest) for n in prompts for gbps in options.gbps]
        for name, mine in here.items()
    }
    if options.json:
        print(json.dumps({name: [_facts(row) for row in found] for name, found in rows.items()}, indent=2))
    else:
        _print(options, rows, there)


def _checked(options: BorrowOptions, spec: ModelSpec) -> tuple[int, ...]:
    """The prompts' lengths. Raises UsageError."""
    for gbps in options.gbps:
        if not 0 < gbps <= MOST_GBPS:
            raise UsageError(f"--link must be above 0 and at most {MOST_GBPS:g} Gb/s, not {gbps:g}.")
    if options.usd_per_hour is not None and not 0 <= options.usd_per_hour <= MOST_USD:
        raise UsageError(f"--usd-per-hour must be from 0 to {MOST_USD:g}, not {options.usd_per_hour:g}.")
    for tokens in options.prompts:
        if not 2 <= tokens <= spec.max_context:
            raise UsageError(f"--prompt must be from 2 to {spec.max_context} tokens with this model, not {tokens}.")
    return options.prompts or tuple(n for n in _PROMPTS if n <= spec.max_context) or (spec.max_context,)


def _profile(spec: ModelSpec, machine: Machine, longest: int, usd_per_hour: float | None = None) -> Profile:
    own = Ownership(machine.watts or 0.0, KWH_USD, machine.price_usd or 0.0, LIFE_YEARS)
    price = own.usd_per_hour if usd_per_hour is None else usd_per_hour
    return forecast_profile(Case.of(spec, machine, PlanArgs(context_tokens=longest)), longest, price)


def _print(options: BorrowOptions, rows: Mapping[str, Sequence[Borrowing]], there: Profile) -> None:
    report = Report()
    for name, found in rows.items():
        for row in sorted({(row.bytes_per_second, row.break_even) for row in found}):
            report.paragraph(_from(name, *row, max(each.tokens for each in found)))
    report.blank()
    report.heading(f"First token with the prefill of {there.name} at ${dollars(there.usd_per_hour)} per hour")
    costs = ("$ here", "$ borrowed", "$ rented", "$ per hour saved")
    columns = ("", "prompt", "Gb/s", "here", "borrowed", *costs, "threshold", "what decides")
    report.table(columns, [_row(name, row) for name, found in rows.items() for row in found])
    report.blank()
    report.paragraph(
        "here, borrowed: until the first token. $: US dollars for one prompt. $ here: this machine's price over "
        f"{LIFE_YEARS:g} years, and its power, while it prefills. $ borrowed: the lender's, while it prefills. "
        "$ rented: a lender that is rented for this prompt alone, until the cache has arrived here. $ per hour saved: "
        "the same, for each hour by which the first token comes sooner. threshold: borrowing is sooner for prompts of "
        "this many tokens or more. what decides: what takes most of the time until the first token, in the sooner way."
    )


def _from(name: str, bytes_per_second: float, break_even: int | None, longest: int) -> str:
    gbps = f"{8e-9 * bytes_per_second:g} Gb/s"
    if break_even is None:
        return f"{name} at {gbps}: a prompt of {longest:,} tokens is computed sooner here."
    which = "every prompt" if break_even == 1 else f"prompts from {break_even:,} tokens on"
    return f"{name} at {gbps}: borrowing is sooner for {which}."


def _row(name: str, row: Borrowing) -> tuple[str, ...]:
    times = (format_duration(row.here_seconds), format_duration(row.there_seconds))
    costs = (row.usd_here, row.usd_there, row.usd_held, row.usd_per_hour_saved)
    usd = ("-" if cost is None else dollars(cost) for cost in costs)
    threshold = "-" if row.break_even is None else f"{row.break_even:,}"
    return (name, f"{row.tokens:,}", f"{8e-9 * row.bytes_per_second:g}", *times, *usd, threshold, row.bound)


def _facts(row: Borrowing) -> dict[str, Any]:
    return asdict(row) | {"usd_per_hour_saved": row.usd_per_hour_saved, "bound": row.bound}
