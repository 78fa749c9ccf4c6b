"""`earthshine bench serve`: sends a trace to a running server and reports latency and throughput.

Figures are those of the requests that were answered completely; the others are counted by what went wrong. Options that
contradict each other are refused before anything is sent. Raises Unreachable if no request was answered. A second run
with the same seed sends the same prompts, which the server may have in its prefix cache.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

from earthshine.cli.plot import new_figure, require_picture, save_figure
from earthshine.errors import UsageError
from earthshine.files import write_file
from earthshine.loadgen.client import Site, parse_site, read_key
from earthshine.loadgen.drive import ApiName, Run, Sample, Target, Unreachable, drive, open_target
from earthshine.loadgen.trace import Arrival, Shape, fitting_scale, read_trace, synthetic_trace
from earthshine.untrusted import shown

PERCENTS = (50, 90, 99)
MOST_REQUESTS, MOST_AT_ONCE = 1_000_000, 4096
_APIS = ("completions", "chat")
_WORD_MARGIN = 0.95  # of the context, since some words have more tokens than those of the trial
_MOST_PROBLEMS = 5  # kinds of failure that are shown


@dataclass(frozen=True, slots=True)
class BenchServeOptions:
    """The options of the command. `concurrency` requests at a time, or with `speed` each at its recorded time, sped up
    by that factor; `scale` multiplies all lengths, None for what fits the model's context."""

    url: str = "http://127.0.0.1:8000"
    model: str | None = None
    api: str = "completions"
    api_key_file: Path | None = None
    trace: Path | None = None
    requests: int = 64
    concurrency: int | None = None
    speed: float | None = None
    scale: float | None = None
    seed: int = 0
    timeout: float = 600.0
    json: bool = False
    plot: Path | None = None
    save: Path | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is sent. `at_once`: None where the trace's own times are used."""

    arrivals: Sequence[Arrival]
    shape: Shape
    trace: str
    at_once: int | None
    speed: float


def run_bench_serve(options: BenchServeOptions) -> None:
    site = site_of(options)
    _check(options)
    arrivals = (
        synthetic_trace(options.requests, options.seed)
        if options.trace is None
        else read_trace(options.trace, options.requests)
    )
    target = open_target(site, cast(ApiName, options.api), options.model)
    plan = _plan(options, arrivals, target)
    progress = _Progress(len(arrivals))
    try:
        run = drive(target, arrivals, plan.shape, concurrency=plan.at_once, speed=plan.speed, ended=progress.ended)
    finally:
        progress.clear()
    done = [sample for sample in run.samples if sample.problem is None]
    if not done:
        problem, count = Counter(sample.problem for sample in run.samples).most_common(1)[0]
        raise Unreachable(f"None of {len(arrivals)} requests was answered completely; {count} times: {problem}.")
    report = _report(options, plan, target, run, done)
    if options.save is not None:
        samples = [asdict(sample) for sample in run.samples]
        write_file(options.save, json.dumps(report | {"samples": samples}).encode() + b"\n")
    if options.plot is not None:
        _draw(options.plot, report, done)
    print(json.dumps(report) if options.json else "\n".join(_lines(report)))


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """The 50th, 90th and 99th percentiles, interpolated linearly; None for no values."""
    if not values:
        return None
    ranked, found = sorted(values), {}
    for percent in PERCENTS:
        at = percent / 100 * (len(ranked) - 1)
        low, high = ranked[math.floor(at)], ranked[math.ceil(at)]
        found[f"p{percent}"] = low + (high - low) * (at - math.floor(at))
    return found


def site_of(options: BenchServeOptions) -> Site:
    if not 0 < options.timeout <= 86400:
        raise UsageError(f"--timeout must be above 0 and at most 86400 seconds, not {options.timeout:g}.")
    key = "" if options.api_key_file is None else read_key(options.api_key_file)
    return parse_site(options.url, key, options.timeout)


def _check(options: BenchServeOptions) -> None:
    if options.api not in _APIS:
        raise UsageError(f"--api must be {' or '.join(_APIS)}, not {shown(options.api)}.")
    if not 1 <= options.requests <= MOST_REQUESTS:
        raise UsageError(f"--requests must be between 1 and {MOST_REQUESTS}, not {shown(options.requests)}.")
    if options.concurrency is not None and options.speed is not None:
        raise UsageError("--concurrency and --speed both say when requests are sent; give one.")
    if options.concurrency is not None and not 1 <= options.concurrency <= MOST_AT_ONCE:
        raise UsageError(f"--concurrency must be between 1 and {MOST_AT_ONCE}, not {shown(options.concurrency)}.")
    for name, value in (("speed", options.speed), ("scale", options.scale)):
        if value is not None and not 1e-6 <= value <= 1e6:
            raise UsageError(f"--{name} must be a factor above 0, such as 0.5, not {value:g}.")
    if options.plot is not None:
        require_picture(options.plot)
        new_figure()
    for name, place in (("save", options.save), ("plot", options.plot)):
        if place is not None and not place.parent.is_dir():
            raise UsageError(f"--{name} {shown(place)} is in a folder that does not exist; make it first.")


def _plan(options: BenchServeOptions, arrivals: Sequence[Arrival], target: Target) -> _Plan:
    scale = options.scale
    if scale is None and target.context_tokens is None:
        raise UsageError("The server does not report its context; give --scale, 1 for the trace's own lengths.")
    if scale is None and target.context_tokens is not None:
        room = target.context_tokens
        if options.api == "chat":
            room = int(room * _WORD_MARGIN)
        scale = fitting_scale(arrivals, room)
    shape = target.shape(options.seed, scale or 1.0)
    at_once = options.concurrency or (8 if options.speed is None else None)
    trace = "a synthetic trace" if options.trace is None else options.trace.name
    return _Plan(arrivals, shape, trace, at_once, options.speed or 1.0)


class _Progress:
    """A progress line on standard error, if that is a terminal."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._terminal = sys.stderr is not None and sys.stderr.isatty()

    def ended(self, sample: Sample) -> None:
        self._done += 1
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{self._done} of {self._total} requests")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")


def _report(
    options: BenchServeOptions, plan: _Plan, target: Target, run: Run, done: Sequence[Sample]
) -> dict[str, Any]:
    """All that is reported, in seconds, tokens and shares."""
    shape, arrivals = plan.shape, plan.arrivals
    prompts = [shape.input_units(arrival) for arrival in arrivals]
    known = [sample for sample in done if sample.input_tokens is not None]
    cached = [sample for sample in known if sample.cached_tokens is not None]
    outputs, inputs = sum(s.output_tokens for s in done), sum(s.input_tokens or 0 for s in known)
    found = sum(s.cached_tokens or 0 for s in cached)
    return {
        "url": options.url,
        "model": target.model,
        "api": options.api,
        "trace": plan.trace,
        "at_once": plan.at_once,
        "speed": None if plan.at_once else plan.speed,
        "seed": options.seed,
        "scale": shape.scale,
        "context_tokens": target.context_tokens,
        "requests": len(arrivals),
        "done": len(done),
        "failed": len(run.samples) - len(done),
        "unsent": run.unsent,
        "short": sum(sample.output_tokens < sample.asked_tokens for sample in done),
        "problems": dict(Counter(sample.problem for sample in run.samples if sample.problem).most_common()),
        "seconds": run.seconds,
        "output_tokens": outputs,
        "input_tokens": inputs,
        "output_tokens_per_second": outputs / run.seconds,
        "tokens_per_second": (outputs + inputs) / run.seconds,
        "requests_per_second": len(done) / run.seconds,
        "prefix_share": found / max(sum(s.input_tokens or 0 for s in cached), 1) if cached else None,
        "prefix_share_possible": sum(shape.shared_units(arrivals)) / sum(prompts),
        "latency": _latency(done),
        "client_share": run.client_share,
        "late": max(sample.late for sample in run.samples),
    }


def _latency(done: Sequence[Sample]) -> dict[str, dict[str, float] | None]:
    """Percentiles in seconds; a reply's mean time per token is without its first token."""
    means = [sum(s.gaps) / (s.output_tokens - 1) for s in done if s.output_tokens > 1 and s.gaps]
    return {
        "first token": percentiles([s.first for s in done if s.first is not None]),
        "between pieces": percentiles([gap for s in done for gap in s.gaps]),
        "each further token": percentiles(means),
        "whole reply": percentiles([s.seconds for s in done]),
    }


def _lines(report: dict[str, Any]) -> list[str]:
    pace = (
        f"{report['at_once']} at once" if report["at_once"] else f"at the trace's times, {report['speed']:g} x as fast"
    )
    lines = [
        f"{shown(report['model'])} at {report['url']}, {report['api']}",
        f"sent        {report['trace']}, {pace}, lengths x {report['scale']:.4g}",
        f"requests    {report['done']} of {report['requests']} answered in {report['seconds']:.2f} s"
        + (f", {report['failed']} failed" if report["failed"] else "")
        + (f", {report['unsent']} not sent" if report["unsent"] else ""),
    ]
    kinds = list(report["problems"].items())
    lines += [f"            {count} x {problem}" for problem, count in kinds[:_MOST_PROBLEMS]]
    if len(kinds) > _MOST_PROBLEMS:
        lines.append(f"            and {len(kinds) - _MOST_PROBLEMS} other kinds of failure")
    if report["short"]:
        lines.append(f"            {report['short']} replies were shorter than in the trace")
    share, possible = report["prefix_share"], report["prefix_share_possible"]
    lines += [
        f"throughput  {report['output_tokens_per_second']:.1f} output tokens/s, "
        f"{report['tokens_per_second']:.1f} tokens/s with the prompts', {report['requests_per_second']:.2f} requests/s",
        f"prefixes    {'not reported' if share is None else f'{share:.1%} of prompt tokens found'}; "
        f"{possible:.1%} are shared with earlier prompts of the trace",
        f"{'seconds':20}" + "".join(f"{f'p{percent}':>10}" for percent in PERCENTS),
    ]
    for what, row in report["latency"].items():
        lines.append(f"{what:20}" + ("         -" * len(PERCENTS) if row is None else _figures(row)))
    late = "" if report["at_once"] else f", sent at most {report['late']:.3f} s late"
    lines.append(f"this client: {report['client_share']:.0%} of one processor{late}")
    return lines


def _figures(row: dict[str, float]) -> str:
    return "".join(f"{row[f'p{percent}']:>10.4f}" for percent in PERCENTS)


def _draw(path: Path, report: dict[str, Any], done: Sequence[Sample]) -> None:
    """Latencies as shares of requests, times to the first token over prompt lengths, and output tokens over time."""
    figure = new_figure()
    waits, lengths, rate = figure.subplots(1, 3)
    firsts = [sample for sample in done if sample.first is not None]
    curves: dict[str, Callable[[Sample], float]] = {
        "first token": lambda sample: sample.first or 0.0,
        "whole reply": lambda sample: sample.seconds,
    }
    for name, seconds in curves.items():
        ranked = sorted(map(seconds, firsts))
        waits.step(ranked, [(i + 1) / len(ranked) for i in range(len(ranked))], where="post", label=name)
    waits.set(xlabel="seconds", ylabel="share of requests", xscale="log")
    waits.legend()
    points = [(s.input_tokens, s.first) for s in firsts if s.input_tokens is not None]
    lengths.plot([at for at, _ in points], [seconds for _, seconds in points], ".")
    lengths.set(xlabel="prompt (tokens)", ylabel="first token after (s)")
    ends = sorted((sample.sent + sample.seconds, sample.output_tokens) for sample in done)
    rate.step([at for at, _ in ends], list(accumulate(tokens for _, tokens in ends)), where="post")
    rate.set(xlabel="seconds", ylabel="output tokens of ended replies")
    for panel in (waits, lengths, rate):
        panel.grid(True, which="both", alpha=0.3)
    figure.suptitle(f"{report['model']}: {report['trace']}", parse_math=False)  # names may have $ signs
    save_figure(figure, path)
