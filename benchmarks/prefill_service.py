"""Policies of prefill as a service in the simulator's scenarios, on the PrfaaS paper's clusters.

    python benchmarks/prefill_service.py scenarios --traces FOLDER      # each policy in each scenario
    python benchmarks/prefill_service.py scenarios --only burst,outage
    python benchmarks/prefill_service.py rate                           # the simulator against the throughput model
    python benchmarks/prefill_service.py speed                          # requests simulated per second

FOLDER has Mooncake's conversation_trace.jsonl and synthetic_trace.jsonl; without it the scenarios that need one are
left out. Nothing but `speed` depends on the machine. Ends with one line of JSON; progress goes to standard error.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from result_rows import result_row, result_rows

from earthshine.loadgen.trace import Arrival
from earthshine.prfaas.fleet import Fleet, Link, read_fleet, shipped_fleets
from earthshine.prfaas.lengths import Sample
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.simulator.baselines import static_threshold
from earthshine.prfaas.simulator.compare import BOUND, LOCAL, OURS, PAPER, REMOTE, STATIC, STATIC_LATE, Row, compare
from earthshine.prfaas.simulator.scenarios import Scenario, scenario
from earthshine.prfaas.simulator.simulate import simulate
from earthshine.prfaas.solve import solve, with_roles
from earthshine.prfaas.workload import PAPER_LENGTHS, PAPER_OUTPUT_TOKENS, drawn, evenly

REQUESTS = 20_000
GOLDEN = 0.6180339887498949  # its multiples, less their whole parts, are spread evenly
QUEUE_SECONDS = 60.0  # 1% of the time in which the requests of `rate` arrive
TRACES = ("conversation", "synthetic")
COMPARED: tuple[tuple[str, str, dict[str, float]], ...] = (  # with goal and floor of ours over it, if it has one
    (STATIC, "requests in time, ours over the best static threshold", {"goal": 1.0, "floor": 0.98}),
    (STATIC_LATE, "requests in time, ours over the static threshold with late prompts last", {}),
    (LOCAL, "requests in time, ours over local prefill alone", {"goal": 1.0}),
    (BOUND, "requests in time, ours over the bound", {"goal": 0.95, "floor": 0.85}),
)


def scenarios(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for made in chosen(options):
        rows = {}
        for row in compare(made, Policy()):
            rows[row.policy] = row
            print(described(made, row), file=sys.stderr, flush=True)
        found += compared(made, rows)
    return found


def compared(made: Scenario, rows: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Ours over each other's requests in time, and the mean first tokens."""
    found, n, ours = [], len(made.arrivals), rows[OURS].in_time
    for other, name, wanted in COMPARED:
        ratio = ours / max(rows[other].in_time, 1)
        note = f"{ours / n:.1%} against {rows[other].in_time / n:.1%}"
        note += f"; {rows[other].about}" if other in (STATIC, STATIC_LATE) else ""
        found.append(result_row(f"{made.name}: {name}", ratio, ratio, ratio, note=note) | wanted)
    means = {name: sum(row.waits) / n for name, row in rows.items() if row.waits}
    note = ", ".join(f"{name} {means[name]:.2f} s" for name in (STATIC, PAPER, REMOTE) if name in means)
    mean = means[OURS]
    return [*found, result_row(f"{made.name}: mean first token, ours", mean, mean, mean, "s", note=note)]


def chosen(options: argparse.Namespace) -> Iterator[Scenario]:
    """The scenarios that were asked for, in their order."""
    fleet = read_fleet(shipped_fleets()["paper"])
    names = options.only.split(",") if options.only else ["steady", "burst", "wave", "outage", "drift", *TRACES]
    for name in names:
        if name in TRACES:
            if options.traces is not None:
                trace = options.traces / f"{name}_trace.jsonl"
                yield scenario("prefix", fleet, options.seed, options.seconds, trace)
        else:
            yield scenario(name, fleet, options.seed, options.seconds)


def described(made: Scenario, row: Row) -> str:
    n = len(made.arrivals)
    waits = sorted(row.waits)
    times = f"mean {sum(waits) / n:.2f} s, P90 {waits[int(0.9 * (n - 1))]:.2f} s" if waits else ""
    return f"{made.name:28} {row.policy:22} {row.in_time / n:7.2%} of {n}  {times}  {row.about}"


def rate(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The highest rate at which no queue grows over the model's rate for the same lengths. Requests are evenly spaced,
    and long and short ones evenly mixed, so that none queues behind others by chance."""
    paper, found = read_fleet(shipped_fleets()["paper"]), []
    lengths = sorted(a.input_tokens for a in drawn([0.0] * REQUESTS, PAPER_LENGTHS, PAPER_OUTPUT_TOKENS, options.seed))
    mixed = [lengths[int(i * GOLDEN % 1 * REQUESTS)] for i in range(REQUESTS)]
    for gbps in (100, 10, 2):
        links = {ends: Link(*ends, gbps * 1e9 / 8) for ends in paper.links}
        solution = solve(Fleet(paper.clusters, links), Sample(mixed), PAPER_OUTPUT_TOKENS)
        fleet = with_roles(Fleet(paper.clusters, links), {"pd": solution.n_prefill["pd"]})
        low, high = 0.8 * solution.rate, 1.2 * solution.rate
        while high - low > 0.004 * solution.rate:
            middle = (low + high) / 2
            low, high = (low, middle) if grows(fleet, middle, mixed, solution.thresholds[0]) else (middle, high)
        note = f"{low:.3f} against {solution.rate:.3f} requests per second"
        print(f"{gbps} Gb/s: {note}", file=sys.stderr, flush=True)
        what, ratio = (
            f"highest simulated rate without a growing queue over the model's, {gbps} Gb/s",
            low / solution.rate,
        )
        found.append(result_row(what, ratio, ratio, ratio, note=note) | {"goal": 1.0, "floor": 0.95})
    return found


def grows(fleet: Fleet, at_rate: float, lengths: list[int], threshold: float) -> bool:
    """Whether the last first token comes so late that a queue must have formed; the longest prompt takes 21 s."""
    times = evenly(len(lengths), at_rate)
    requests = [Arrival(*one, PAPER_OUTPUT_TOKENS) for one in zip(times, lengths, strict=True)]
    run = simulate(fleet, requests, static_threshold(threshold))
    return max(served.first_token for served in run.served) > times[-1] + QUEUE_SECONDS


def speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    fleet = with_roles(read_fleet(shipped_fleets()["paper"]), {"pd": 4})
    arrivals = drawn(evenly(100_000, 2.7), PAPER_LENGTHS, PAPER_OUTPUT_TOKENS, options.seed)
    took = []
    for _ in range(3):
        began = time.process_time()
        simulate(fleet, arrivals, static_threshold(22_000))
        took.append(time.process_time() - began)
    return result_rows({"100,000 requests simulated under a static threshold (s)": took})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("scenarios", "rate", "speed"))
    parser.add_argument("--traces", type=Path, help="the folder of Mooncake's traces")
    parser.add_argument("--only", help="scenarios, divided by commas")
    parser.add_argument("--seconds", type=float, help="how long requests arrive (default: each scenario's own)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = {"scenarios": scenarios, "rate": rate, "speed": speed}[options.what](options)
    print(json.dumps({"rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
