"""`earthshine prfaas solve`: threshold, roles and throughput of a fleet; the answer first, then its stages."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from earthshine.cli.layout import Report
from earthshine.cli.words import rate, size
from earthshine.errors import UsageError
from earthshine.loadgen.trace import MOST_TOKENS, read_trace
from earthshine.prfaas.fleet import Fleet, read_fleet, shipped_fleets
from earthshine.prfaas.lengths import Lengths, LogNormal, trace_lengths
from earthshine.prfaas.solve import Change, grid_search, paper_grid, solve, what_if
from earthshine.prfaas.throughput import Solution, Stage, evaluate, stage_order
from earthshine.prfaas.workload import PAPER_OUTPUT_TOKENS
from earthshine.units import format_duration
from earthshine.untrusted import shown

MOST_GBPS = 1e6
_MOST_REQUESTS = 1_000_000
_LEAST_GAIN = 1.005  # times the rate: less is shown as nothing


@dataclass(frozen=True, slots=True)
class Workload:
    """The options for lengths: a log-normal, or a trace. `output`: tokens of a reply; None for the default."""

    mu: float
    sigma: float
    shortest: int
    longest: int
    trace: Path | None
    output: float | None

    def read(self) -> tuple[Lengths, float]:
        """Lengths of prompts, and mean tokens of a reply. Raises UsageError."""
        if self.trace is None:
            lengths = LogNormal(self.mu, self.sigma, self.shortest, self.longest)
            return lengths, float(PAPER_OUTPUT_TOKENS) if self.output is None else self.output
        arrivals = read_trace(self.trace, _MOST_REQUESTS)
        mean = sum(arrival.output_tokens for arrival in arrivals) / len(arrivals)
        return trace_lengths(arrivals), mean if self.output is None else self.output

    @property
    def words(self) -> str:
        if self.trace is not None:
            return f"prompts of {shown(self.trace)} after prefix hits"
        return (
            f"log-normal prompts (mu {self.mu:g}, sigma {self.sigma:g}, {self.shortest:,} to {self.longest:,} tokens)"
        )


@dataclass(frozen=True, slots=True)
class SolveOptions:
    """The options of the command."""

    fleet: str
    link: float | None
    workload: Workload
    threshold: float | None
    at_means: bool
    json: bool


def run_solve(options: SolveOptions) -> None:
    fleet = fleet_named(options.fleet, options.link)
    lengths, output_tokens = options.workload.read()
    found = _solution(fleet, lengths, output_tokens, options)
    changes = [] if options.threshold is not None or options.at_means else what_if(fleet, lengths, output_tokens)
    if options.json:
        facts = _facts(found, changes, output_tokens) | {"extrapolated": fleet.extrapolated(lengths.longest)}
        print(json.dumps(facts, indent=2))
    else:
        words = f"{options.workload.words}, replies of {output_tokens:.0f}"
        _print(found, changes, words, extrapolation(fleet, lengths.longest))


def fleet_named(name: str, gbps: float | None = None) -> Fleet:
    """A file's fleet or a shipped one, all links at `gbps` Gb/s if that is given. Raises UsageError."""
    if gbps is not None and not 0 <= gbps <= MOST_GBPS:
        raise UsageError(f"--link must be from 0 to {MOST_GBPS:g} Gb/s, not {gbps:g}.")
    shipped = shipped_fleets()
    if name not in shipped and not os.path.exists(name):
        raise UsageError(f"{shown(name)} is neither a file nor a known fleet; known are {', '.join(shipped)}.")
    fleet = read_fleet(shipped.get(name) or Path(name))
    if gbps is None:
        return fleet
    links = {ends: replace(link, bytes_per_second=gbps * 1e9 / 8) for ends, link in fleet.links.items()}
    return Fleet(fleet.clusters, links)


def extrapolation(fleet: Fleet, longest: float) -> str:
    """A line about prefill curves that end before the longest prompt; empty for none."""
    ends = ", ".join(f"{shown(name)} at {end:,.0f}" for name, end in fleet.extrapolated(longest).items())
    return f"Extrapolated to {longest:,.0f} tokens, since these prefill curves end before: {ends}." if ends else ""


def _solution(fleet: Fleet, lengths: Lengths, output_tokens: float, options: SolveOptions) -> Solution:
    if options.threshold is None:
        if options.at_means:
            return grid_search(fleet, lengths, output_tokens, paper_grid(lengths))
        return solve(fleet, lengths, output_tokens)
    if not 0 <= options.threshold <= MOST_TOKENS:
        raise UsageError(f"--threshold must be from 0 to {MOST_TOKENS} tokens, not {options.threshold:g}.")
    n_stages = len(stage_order(fleet, lengths))
    if n_stages != 2:
        raise UsageError(f"--threshold needs two clusters that prefill; this fleet has {n_stages}.")
    return evaluate(fleet, lengths, output_tokens, [options.threshold], at_means=options.at_means)


def _print(found: Solution, changes: Sequence[Change], workload: str, warning: str) -> None:
    report = Report()
    for line in answer(found):
        report.paragraph(line)
    for line in _helps(found.rate, changes):
        report.paragraph(line)
    if warning:
        report.paragraph(warning)
    report.blank()
    report.heading(f"With {workload}")
    columns = ("", "share", "mean tokens", "a prefill", "a cache", "requests/s", "of its link", "")
    report.table(columns, [_stage_row(stage, found) for stage in found.stages])
    report.blank()
    decode = [(f"{name} decodes", f"{rate(most)} requests/s at most") for name, most in found.decode.items()]
    report.facts([*decode, ("Over links", f"{8e-9 * found.egress_bytes_per_second:.3g} Gb/s")])


def answer(found: Solution) -> list[str]:
    """Where prompts go, who does what, and how many requests per second that serves."""
    used = [stage for stage in found.stages if stage.share > 0]
    parts = [f"{_span(stage, found.stages)} in {stage.cluster}" for stage in used]
    roles = [f"{name}: {_roles(found.n_prefill[name], n_decode)}" for name, n_decode in found.n_decode.items()]
    return [
        f"Prefill {', '.join(parts)}." if parts else "No cluster can prefill.",
        f"Instances: {'; '.join(roles)}.",
        f"That serves {rate(found.rate)} requests per second; what limits it: {', '.join(found.bottlenecks)}.",
    ]


def _roles(n_prefill: int, n_decode: int) -> str:
    return " and ".join(f"{n} for {what}" for n, what in ((n_prefill, "prefill"), (n_decode, "decode")) if n)


def _span(stage: Stage, stages: Sequence[Stage]) -> str:
    """The lengths of a stage."""
    others = [other for other in stages if other is not stage and other.share > 0]
    above = any(other.high <= stage.low for other in others)
    below = any(other.low >= stage.high for other in others)
    if above and below:
        return f"prompts of {stage.low:,.0f} to {stage.high:,.0f} tokens"
    if above:
        return f"prompts above {stage.low:,.0f} tokens"
    return f"prompts up to {stage.high:,.0f} tokens" if below else "all prompts"


def _helps(now: float, changes: Sequence[Change]) -> list[str]:
    ranked = sorted(changes, key=lambda change: -change.rate)
    better = [c for c in ranked if c.rate > now and c.rate >= now * _LEAST_GAIN]
    lines = [f"With {c.name}: {rate(c.rate)} requests per second ({_more(c.rate, now)})." for c in better]
    rest = [c.name for c in ranked if c not in better]
    return lines + ([f"No gain: {', '.join(rest)}."] if rest else [])


def _more(new: float, now: float) -> str:
    return f"{new / now - 1:+.0%}" if now else "from none"


def _stage_row(stage: Stage, found: Solution) -> tuple[str, ...]:
    remote = stage.egress < math.inf
    used = f"{found.rate * stage.share / stage.egress:.0%}" if remote and stage.egress else "-"
    if not stage.share:
        return (f"{stage.cluster} prefills", "0%", "-", "-", "-", "-", "-", "")
    cells = (f"{stage.share:.1%}", f"{stage.mean_tokens:,.0f}", format_duration(stage.seconds), size(stage.nbytes))
    return (f"{stage.cluster} prefills", *cells, rate(stage.rate), used, "over a link" if remote else "decodes itself")


def _facts(found: Solution, changes: Sequence[Change], output_tokens: float) -> dict[str, Any]:
    stages = [asdict(s) | {"egress": None if s.egress == math.inf else s.egress, "rate": s.rate} for s in found.stages]
    return {
        "thresholds": list(found.thresholds),
        "n_prefill": dict(found.n_prefill),
        "n_decode": dict(found.n_decode),
        "requests_per_second": found.rate,
        "bottlenecks": list(found.bottlenecks),
        "remote_share": found.remote_share,
        "egress_bytes_per_second": found.egress_bytes_per_second,
        "output_tokens": output_tokens,
        "stages": stages,
        "decode_requests_per_second": dict(found.decode),
        "with": {change.name: change.rate for change in changes},
    }
