"""`earthshine prfaas simulate`: policies where requests queue and links fail; the answer first, then a table."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earthshine.cli.layout import Report
from earthshine.cli.plot import new_figure, require_picture, save_figure
from earthshine.cli.prfaas_solve import extrapolation, fleet_named
from earthshine.cli.progress import ProgressLine
from earthshine.errors import UsageError
from earthshine.prfaas.lengths import percentile
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.simulator.compare import BOUND, LOCAL, OURS, STATIC, Row, compare
from earthshine.prfaas.simulator.scenarios import Scenario, scenario
from earthshine.units import format_duration

_PERCENTS = (50, 90, 99)
_BINS = 60  # of a scenario's time, in the plot


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """The options of the command."""

    fleet: str
    scenario: str
    link: float | None
    trace: Path | None
    seconds: float | None
    seed: int
    json: bool
    plot: Path | None


def run_simulate(options: SimulateOptions) -> None:
    if options.plot is not None:
        require_picture(options.plot)
        new_figure()
    if options.link is not None and options.scenario == "wave":
        raise UsageError("The scenario wave sets the rates of all links itself; leave out --link.")
    fleet = fleet_named(options.fleet, options.link)
    found = scenario(options.scenario, fleet, options.seed, options.seconds, options.trace)
    with ProgressLine() as progress:
        rows = list(compare(found, Policy(), note=progress.simulating))
    if options.plot is not None:
        _draw(options.plot, found, rows)
    if options.json:
        print(json.dumps(_facts(found, rows), indent=2))
    else:
        _print(found, rows)


def _named(rows: Sequence[Row], name: str) -> Row:
    return next(row for row in rows if row.policy == name)


def _print(found: Scenario, rows: Sequence[Row]) -> None:
    report, n = Report(), len(found.arrivals)
    ours, static, local, bound = (_named(rows, name).in_time for name in (OURS, STATIC, LOCAL, BOUND))
    report.paragraph(
        f"Within {found.deadline_seconds:.1f} s, {ours / n:.1%} of first tokens come: {_times(ours, static)} as many "
        f"as with the best static threshold, {_times(ours, local)} as many as locally, and {ours / bound:.2f} of what "
        "no policy can exceed."
    )
    better = [row.policy for row in rows if row.policy != BOUND and row.in_time > ours]
    if better:
        report.paragraph(f"More in time: {', '.join(better)}.")
    warning = extrapolation(found.fleet, _longest(found))
    if warning:
        report.paragraph(warning)
    report.blank()
    rate = n / max(found.arrivals[-1].seconds, 1e-9)
    report.heading(f"{found.name}: {n:,} requests, {rate:.3g} per second")
    report.paragraph(found.about)
    columns = ("", "in time", *(f"p{percent}" for percent in _PERCENTS), "mean", "remote", "cached", "Gb/s", "")
    report.table(columns, [_cells(row, n) for row in rows])
    report.note("Times are those to the first token. cached: prompt tokens found in a prefix cache. Gb/s: over links.")


def _longest(found: Scenario) -> int:
    return max(arrival.input_tokens for arrival in found.arrivals)


def _times(value: float, other: float) -> str:
    return f"{value / other:.2f} times" if other else "infinitely many times"


def _cells(row: Row, n: int) -> tuple[str, ...]:
    share = f"{row.in_time / n:.1%}"
    if not row.waits:
        return (row.policy, share, *[""] * 7, row.about)
    times = ("never" if seconds is None else format_duration(seconds) for seconds in _waits(row).values())
    shares = (f"{row.remote_share:.0%}", f"{row.reused_share:.0%}", f"{8e-9 * row.egress:.3g}")
    counts = {"conversions": row.conversions, "never served": row.unserved}
    about = ", ".join(filter(None, [row.about, *(f"{n} {what}" for what, n in counts.items() if n)]))
    return (row.policy, share, *times, *shares, about)


def _waits(row: Row) -> dict[str, float | None]:
    """Percentiles and mean of the seconds to the first token; None where that never came."""
    ranked = sorted(row.waits)
    found = {f"p{percent}": percentile(ranked, percent / 100) for percent in _PERCENTS}
    found["mean"] = sum(ranked) / len(ranked)
    return {name: seconds if seconds < math.inf else None for name, seconds in found.items()}


def _facts(found: Scenario, rows: Sequence[Row]) -> dict[str, Any]:
    n = len(found.arrivals)
    return {
        "scenario": found.name,
        "about": found.about,
        "requests": n,
        "deadline_seconds": found.deadline_seconds,
        "extrapolated": found.fleet.extrapolated(_longest(found)),
        "policies": [_row_facts(row, n) for row in rows],
    }


def _row_facts(row: Row, n: int) -> dict[str, Any]:
    facts = {"policy": row.policy, "about": row.about, "in_time": row.in_time, "share_in_time": row.in_time / n}
    if not row.waits:
        return facts
    return facts | {
        "first_token_seconds": _waits(row),
        "remote_share": row.remote_share,
        "reused_share": row.reused_share,
        "egress_bytes_per_second": row.egress,
        "conversions": row.conversions,
        "unserved": row.unserved,
    }


def _draw(path: Path, found: Scenario, rows: Sequence[Row]) -> None:
    """Times to the first token as shares of the requests, and the requests in time over the scenario's time."""
    figure = new_figure()
    shares, over_time = figure.subplots(1, 2)
    end = found.arrivals[-1].seconds or 1.0
    bins = [min(_BINS - 1, int(arrival.seconds / end * _BINS)) for arrival in found.arrivals]
    for row in (row for row in rows if row.waits):
        ranked = sorted(row.waits)
        shares.step(ranked, [(i + 1) / len(ranked) for i in range(len(ranked))], where="post", label=row.policy)
        counts, good = [0] * _BINS, [0] * _BINS
        for at, wait in zip(bins, row.waits, strict=True):
            counts[at] += 1
            good[at] += wait <= found.deadline_seconds
        times = [(at + 0.5) / _BINS * end / 60 for at in range(_BINS) if counts[at]]
        over_time.plot(times, [good[at] / counts[at] for at in range(_BINS) if counts[at]], label=row.policy)
    shares.axvline(found.deadline_seconds, linestyle="--", color="gray")
    shares.set(xlabel="seconds to the first token", ylabel="share of requests", xscale="log")
    over_time.set(xlabel="minutes", ylabel=f"first tokens within {found.deadline_seconds:.1f} s")
    shares.legend(loc="lower right", fontsize="small")
    for panel in (shares, over_time):
        panel.grid(True, alpha=0.3)
    figure.suptitle(found.name, parse_math=False)
    save_figure(figure, path)
