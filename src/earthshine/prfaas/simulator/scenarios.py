"""The scenarios in which policies are compared, each with its load and deadline and the reason for them.

Loads are shares of the rate that the throughput model gives for the fleet, so that a scenario is as hard for one fleet
as for another. The deadline is three times what 90% of the prompts take at most on the fastest idle instance: the
paper's P90 of 3.51 s, which is service alone, times three leaves even its longest prompts (7.4 s) time to queue, and
what waits longer was badly placed. A server's promise would be of this kind.

Raises UsageError for a name that is not known, and for a trace that is needed and missing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from earthshine.errors import UsageError
from earthshine.loadgen.trace import Arrival, read_trace
from earthshine.prfaas.fleet import Fleet, Link
from earthshine.prfaas.lengths import Lengths, LogNormal, Sample, trace_lengths
from earthshine.prfaas.simulator.conditions import Conditions, RateChange
from earthshine.prfaas.solve import solve
from earthshine.prfaas.workload import PAPER_LENGTHS, PAPER_OUTPUT_TOKENS, at_rate, drawn, overlaid, poisson
from earthshine.untrusted import shown

_DEADLINE = 3.0  # times the P90 of service
_GBPS = 1e9 / 8
_WAVE = (10 * _GBPS, 1 * _GBPS)
_MOST_OF_TRACE = 200_000
_LEAST_RATE, _MOST_REQUESTS = 1e-3, 1_000_000  # requests per second, requests
_SHIFT_SECONDS = 60.0  # between copies of a trace, so that what one brings at once does not come twice at once


@dataclass(frozen=True, slots=True)
class Scenario:
    """lengths, output_tokens: what is expected at the start, for which a policy may be solved."""

    name: str
    about: str
    fleet: Fleet
    arrivals: Sequence[Arrival]
    conditions: Conditions
    deadline_seconds: float
    lengths: Lengths
    output_tokens: float


@dataclass(frozen=True, slots=True)
class Kind:
    """seconds: how long requests arrive by default; 0 for all of a trace's."""

    about: str
    seconds: float
    make: Callable[["Kind", Fleet, float, int, Path | None], Scenario]


def scenario(
    name: str, fleet: Fleet, seed: int = 0, seconds: float | None = None, trace: Path | None = None
) -> Scenario:
    """The scenario for a fleet. seconds: how long requests arrive; trace: a file, for those that are recorded."""
    kind = SCENARIOS.get(name)
    if kind is None:
        raise UsageError(f"{shown(name)} is not a scenario; choose one of {', '.join(SCENARIOS)}.")
    if seconds is not None and not 1 <= seconds <= 1e6:
        raise UsageError(f"A scenario lasts 1 to 1,000,000 seconds, not {seconds:g}.")
    if trace is not None and kind.seconds:
        raise UsageError(f"The scenario {name} draws its requests; a trace is for the scenario prefix.")
    found = kind.make(kind, _both_ways(fleet), seconds or kind.seconds, seed, trace)
    if not found.arrivals:
        raise UsageError("No request arrives in that time; give a longer one.")
    return found


def _possible(rate: float, seconds: float) -> float:
    """`rate` itself, of requests per second. Raises UsageError where next to none or too many arrive in the time."""
    if rate < _LEAST_RATE:
        raise UsageError(
            f"By the throughput model this fleet serves {rate:.2g} requests per second, too few to simulate; "
            "earthshine prfaas solve says what limits it."
        )
    if rate * seconds > _MOST_REQUESTS:
        raise UsageError(
            f"{rate:.3g} requests per second would arrive, {rate * seconds:.3g} in all; a comparison takes at most "
            f"{_MOST_REQUESTS:,}. Give fewer --seconds or a smaller fleet."
        )
    return rate


def _both_ways(fleet: Fleet) -> Fleet:
    """Links are full duplex, so that a prefix can be moved either way."""
    back = {
        ends[::-1]: Link(*ends[::-1], link.bytes_per_second, link.round_trip_seconds)
        for ends, link in fleet.links.items()
    }
    return Fleet(fleet.clusters, back | fleet.links)


def _at(fleet: Fleet, bytes_per_second: float) -> Fleet:
    links = {ends: replace(link, bytes_per_second=bytes_per_second) for ends, link in fleet.links.items()}
    return Fleet(fleet.clusters, links)


def _paper_lengths(shift: float = 0.0) -> LogNormal:
    return replace(PAPER_LENGTHS, mu=PAPER_LENGTHS.mu + shift)


def _rate(fleet: Fleet, shift: float = 0.0) -> float:
    """What the model gives for the paper's lengths."""
    return solve(fleet, _paper_lengths(shift), PAPER_OUTPUT_TOKENS).rate


def deadline(fleet: Fleet, lengths: Sample) -> float:
    """Three times the P90 of the prefill on the fastest idle instance, in seconds."""
    length = round(lengths.percentile(0.9))
    return _DEADLINE * min(c.profile.prefill_seconds(length) for c in fleet.prefilling)


def _drawn(
    kind: Kind,
    name: str,
    fleet: Fleet,
    times: Sequence[float],
    seed: int,
    rates: Sequence[tuple[float, float | None]] = (),
    shift: Callable[[float], float] | None = None,
) -> Scenario:
    """Of the paper's lengths; `rates`: (time, bytes per second) of all links; None: each link's own."""
    arrivals = drawn(times, PAPER_LENGTHS, PAPER_OUTPUT_TOKENS, seed, shift)
    changes = tuple(
        RateChange(at, ends, link.bytes_per_second if rate is None else rate)
        for at, rate in rates
        for ends, link in fleet.links.items()
    )
    seconds = deadline(fleet, Sample(a.input_tokens for a in arrivals))
    expected = _paper_lengths(shift(0.0) if shift is not None else 0.0)
    return Scenario(name, kind.about, fleet, arrivals, Conditions(changes), seconds, expected, PAPER_OUTPUT_TOKENS)


def _steady(kind: Kind, fleet: Fleet, seconds: float, seed: int, trace: Path | None) -> Scenario:
    rate = _possible(0.9 * _rate(fleet), seconds)
    return _drawn(kind, "steady", fleet, poisson(seconds, lambda _: rate, rate, seed), seed)


def _burst(kind: Kind, fleet: Fleet, seconds: float, seed: int, trace: Path | None) -> Scenario:
    base = _possible(0.5 * _rate(fleet), seconds)
    times = poisson(seconds, lambda t: 10 * base if 100 <= t % 300 < 110 else base, 10 * base, seed)
    return _drawn(kind, "burst", fleet, times, seed)


def _wave(kind: Kind, fleet: Fleet, seconds: float, seed: int, trace: Path | None) -> Scenario:
    fleet = _at(fleet, _WAVE[0])
    rate = _possible(0.9 * sum(_rate(_at(fleet, link)) for link in _WAVE) / 2, seconds)
    rates = [(at, _WAVE[i % 2]) for i, at in enumerate(range(0, math.ceil(seconds), 300))]
    return _drawn(kind, "wave", fleet, poisson(seconds, lambda _: rate, rate, seed), seed, rates)


def _outage(kind: Kind, fleet: Fleet, seconds: float, seed: int, trace: Path | None) -> Scenario:
    rate = _possible(0.8 * _rate(fleet), seconds)
    rates = [change for at in range(300, math.ceil(seconds), 600) for change in ((at, 0.0), (at + 60, None))]
    return _drawn(kind, "outage", fleet, poisson(seconds, lambda _: rate, rate, seed), seed, rates)


def _drift(kind: Kind, fleet: Fleet, seconds: float, seed: int, trace: Path | None) -> Scenario:
    def shift(t: float) -> float:
        return 0.5 * math.sin(2 * math.pi * t / seconds)

    steps = 48
    rates = [_possible(0.85 * _rate(fleet, shift(i * seconds / steps)), seconds) for i in range(steps)]
    times = poisson(seconds, lambda t: rates[int(t / seconds * steps)], max(rates), seed)
    return _drawn(kind, "drift", fleet, times, seed, shift=shift)


def _prefix(kind: Kind, fleet: Fleet, seconds: float, seed: int, trace: Path | None) -> Scenario:
    if trace is None:
        raise UsageError("This scenario needs a trace with shared prefixes; give its file with --trace.")
    arrivals = read_trace(trace, _MOST_OF_TRACE)
    lengths = trace_lengths(arrivals)
    output = sum(a.output_tokens for a in arrivals) / len(arrivals)
    rate = _possible(0.9 * solve(fleet, lengths, output).rate, seconds or arrivals[-1].seconds)
    copies = max(1, int(rate * arrivals[-1].seconds / len(arrivals)))
    found = at_rate(overlaid(arrivals, copies, _SHIFT_SECONDS), rate)
    if seconds:
        found = [arrival for arrival in found if arrival.seconds < seconds]
    return Scenario(
        f"prefix, {trace.stem}",
        kind.about,
        fleet,
        found,
        Conditions(),
        deadline(fleet, lengths),
        lengths,
        output,
    )


SCENARIOS = {
    "steady": Kind("Poisson arrivals at 0.9 of the model's rate: as busy as one may plan for.", 3600, _steady),
    "burst": Kind(
        "0.5 of the model's rate, and ten times as much for 10 s of every 300 s, as when a job submits a batch: 0.65 "
        "on average, so that every burst can be worked off before the next.",
        3600,
        _burst,
    ),
    "wave": Kind(
        "Links alternate between 10 and 1 Gb/s every 300 s, long enough to convert instances. 0.9 of the mean of the "
        "model's rates at both: only a policy that adapts can keep up, and none can in the slow halves.",
        3600,
        _wave,
    ),
    "outage": Kind(
        "0.8 of the model's rate, and all links are down for 60 s of every 600 s. What comes in that minute exceeds "
        "what the clusters can do alone; the rest leaves time to recover.",
        3600,
        _outage,
    ),
    "drift": Kind(
        "The mean of the log of prompt lengths drifts by 0.5 up and down as over a day, here in four hours, which is "
        "harder to follow. 0.85 of the model's rate at the lengths of each hour.",
        14400,
        _drift,
    ),
    "prefix": Kind(
        "A recorded trace with shared prefixes, and copies of it with prefixes of their own, at 0.9 of the model's "
        "rate for what one unlimited cache would leave to compute.",
        0,
        _prefix,
    ),
}
