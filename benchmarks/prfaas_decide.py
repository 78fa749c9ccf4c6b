"""What routing costs: `decide` for one request and the controller's `tick`, in processor time.

    python benchmarks/prfaas_decide.py [--repeats N]

The fleet is the paper's, with a link back, or four clusters of it, all linked. Prompts wait, so that every part of the
cost counts; half the requests have cached prefixes in two clusters, and half have a deadline that some places miss.
Prints one JSON document with rows for docs/results.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product

from result_rows import result_rows

from earthshine.prfaas.control import Controller
from earthshine.prfaas.decide import decide
from earthshine.prfaas.fleet import Fleet, Link, read_fleet, shipped_fleets
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.route import Cached, FleetState, RouteRequest
from earthshine.prfaas.workload import PAPER_LENGTHS, PAPER_OUTPUT_TOKENS

POLICY = Policy()
THRESHOLD = 19400
DECISIONS, TICKS = 2000, 10


def fleet_of(n: int) -> Fleet:
    """The paper's two clusters, n // 2 times, with a link between each two clusters."""
    paper = read_fleet(shipped_fleets()["paper"])
    clusters = {}
    for number, cluster in product(range(n // 2), paper.clusters.values()):
        name = f"{cluster.name}{number or ''}"
        clusters[name] = replace(cluster, name=name)
    return Fleet(clusters, {ends: Link(*ends, 12.5e9) for ends in permutations(clusters, 2)})


def busy(fleet: Fleet) -> FleetState:
    state = FleetState.idle(fleet, THRESHOLD)
    for cluster in state.clusters.values():
        cluster.prefill_wait_seconds, cluster.prefill_depth = 2.0, 10
    return state


def requests(prefixes: bool) -> list[RouteRequest]:
    """Of every length, with and without a deadline."""
    cached = {"prfaas": 3, "pd": 6} if prefixes else {}
    return [
        RouteRequest(n, {name: Cached(n // part, (n // part,)) for name, part in cached.items()}, deadline)
        for n in range(1000, 131000, 1000)
        for deadline in (None, 6.0)
    ]


def microseconds(call: Callable[[int], object], n: int, repeats: int) -> list[float]:
    """Of one call, in each repeat of `n`."""
    found = []
    for _ in range(repeats):
        began = time.thread_time()
        for i in range(n):
            call(i)
        found.append(1e6 * (time.thread_time() - began) / n)
    return found


def figures_of(n: int, repeats: int) -> dict[str, list[float]]:
    """Of a fleet of `n` clusters."""
    state, found = busy(fleet_of(n)), {}
    for prefixes in (False, True):
        asked = requests(prefixes)

        def routed(i: int, asked: list[RouteRequest] = asked) -> object:
            return decide(asked[i % len(asked)], state, POLICY)

        name = f"decide, {n} clusters, {'prefixes in two' if prefixes else 'no prefixes'} (µs)"
        found[name] = microseconds(routed, DECISIONS, repeats)
    controller = Controller(state.fleet, POLICY, PAPER_LENGTHS, PAPER_OUTPUT_TOKENS)
    for i in range(POLICY.window_requests):
        controller.observe(0.0, 1000 + 37 * i)
        controller.replied(PAPER_OUTPUT_TOKENS)
    spent = microseconds(lambda i: controller.tick(30.0 * i, state), TICKS, repeats)
    return found | {f"tick, {n} clusters (ms)": [value / 1000 for value in spent]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    figures = figures_of(2, repeats) | figures_of(4, repeats)
    print(json.dumps({"rows": result_rows(figures)}, ensure_ascii=False))


if __name__ == "__main__":
    main()
