"""Runs one scenario under every policy, ours and those to compare with, and beside the bound that none can exceed."""

import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial

from earthshine.prfaas.control import Controller, threshold_of
from earthshine.prfaas.decide import decide
from earthshine.prfaas.fleet import Cluster, Fleet
from earthshine.prfaas.lengths import Sample
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.route import FleetState, Route, Router, RouteRequest
from earthshine.prfaas.simulator.baselines import EXO_TOKENS, all_remote, late_last, local_only, paper, static_threshold
from earthshine.prfaas.simulator.bound import most_in_time
from earthshine.prfaas.simulator.outcome import Outcome
from earthshine.prfaas.simulator.scenarios import Scenario
from earthshine.prfaas.simulator.simulate import simulate
from earthshine.prfaas.solve import can_grid_search, grid_search, paper_grid, solve, with_roles
from earthshine.prfaas.throughput import Solution

OURS, STATIC, PAPER = "earthshine", "best static threshold", "paper, frozen"
STATIC_LATE, LOCAL_LATE = "static threshold, late last", "local only, late last"
REMOTE, LOCAL, BOUND = "all remote", "local only", "bound"
_TENTHS = 10
_AROUND = 3  # of the best thresholds
_FINER = (0.05, 0.025, 0.0125)  # shares of the requests, around them
_BESIDE = (0.0, -0.1, -0.05, 0.05, 0.1)  # the best static threshold: shares of the requests, for another order

# The paper does not define when bandwidth is "abundant". Here it is where no link carries more than this share of its
# rate in the model: a prefix that moves is part of a prompt, so moves at most double what is sent.
_ABUNDANT = 0.5


@dataclass(frozen=True, slots=True)
class Row:
    """One policy in one scenario."""

    policy: str
    about: str  # its constants
    in_time: float  # requests whose first token came within the deadline
    waits: "array[float]" = field(default_factory=lambda: array("d"))  # seconds to each first token
    remote_share: float = 0.0  # of the requests
    reused_share: float = 0.0  # of the prompt tokens, found in a prefix cache
    egress: float = 0.0  # bytes per second over all links
    conversions: int = 0
    unserved: int = 0


@dataclass(frozen=True, slots=True)
class Static:
    """A static threshold, `share` of the requests being shorter, with its fleet's roles."""

    row: Row
    share: float
    fleet: Fleet


def compare(found: Scenario, policy: Policy, *, note: Callable[[str], None] = lambda _: None) -> Iterator[Row]:
    """A row for each policy, ours first; the bound last, with `in_time` alone. note: called with the name of each
    before it runs."""
    static = cache(lambda: best_static(found))
    runs: list[tuple[str, Callable[[], Row]]] = [
        (OURS, lambda: _row(OURS, "decide and tick", found, ours(found, policy))),
        (STATIC, lambda: static().row),
        (STATIC_LATE, lambda: _static_late(found, static())),
        (PAPER, lambda: _paper(found)),
        ("exo's constant", lambda: _static(found, EXO_TOKENS, _solved(found), "exo's constant")),
        (REMOTE, lambda: _row(REMOTE, "", found, _run(found, _decoding_only(found), all_remote))),
        (LOCAL, lambda: _local(found, LOCAL, local_only)),
        (LOCAL_LATE, lambda: _local(found, LOCAL_LATE, late_last(local_only))),
        (BOUND, lambda: Row(BOUND, "no policy can exceed it", bound(found))),
    ]
    left_out = set() if found.fleet.links else {REMOTE}
    if not can_grid_search(found.fleet, paper_grid(found.lengths)):
        left_out.add(PAPER)  # it is described for two clusters
    for name, run in runs:
        if name not in left_out:
            note(name)
            yield run()


def bound(found: Scenario) -> float:
    """Requests that any policy can have in time, at most."""
    return most_in_time(found.fleet, found.arrivals, found.deadline_seconds, found.conditions)


def ours(found: Scenario, policy: Policy) -> Outcome:
    """`decide` and `tick` themselves, from the roles and the threshold that are solved for what is expected."""
    fleet = _solved(found)
    controller = Controller(fleet, policy, found.lengths, found.output_tokens)
    return _run(found, fleet, partial(_decide, policy), controller.threshold, controller)


def best_static(found: Scenario) -> Static:
    """The threshold and the roles with the most requests in time, chosen in hindsight: all roles with thresholds at
    each tenth of the requests, then thresholds around the best three.

    A run ends early when it can't be among the best three, so the result is that of whole runs. Those of medium
    thresholds come first, since the best is soon found among them.
    """
    threshold = _thresholds(found)
    known: dict[tuple[int, float], Row] = {}
    fleets = list(_all_roles(found.fleet))

    def best(n: int) -> list[tuple[int, float]]:
        return sorted(known, key=lambda one: -known[one].in_time)[:n]

    def tried(roles: int, share: float) -> None:
        if (roles, share) not in known:
            third = best(_AROUND)[-1] if len(known) >= _AROUND else None
            limit = None if third is None else len(found.arrivals) - int(known[third].in_time)
            known[roles, share] = _static(found, threshold(share), fleets[roles], most_late=limit)

    for at in sorted(range(_TENTHS + 1), key=lambda at: abs(2 * at - _TENTHS)):
        for roles in range(len(fleets)):
            tried(roles, at / _TENTHS)
    for step in _FINER:
        for roles, share in best(_AROUND):
            for beside in (share - step, share + step):
                tried(roles, min(1.0, max(0.0, beside)))
    roles, share = best(1)[0]
    return Static(known[roles, share], share, fleets[roles])


def _static_late(found: Scenario, best: Static) -> Row:
    """The best static threshold with late prompts last: in the same roles, that threshold or one beside it."""
    threshold = _thresholds(found)
    tokens = {threshold(min(1.0, max(0.0, best.share + more))): None for more in _BESIDE}
    rows = [_static(found, one, best.fleet, STATIC_LATE, order=late_last) for one in tokens]
    return max(rows, key=lambda row: row.in_time)


def _thresholds(found: Scenario) -> Callable[[float], float]:
    """Tokens below which a share of the requests is."""
    lengths = Sample(a.input_tokens for a in found.arrivals)
    return lambda share: lengths.percentile(share) if share > 0 else 0.0


def _decide(policy: Policy, request: RouteRequest, state: FleetState) -> Route:
    return decide(request, state, policy)


def _all_roles(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet with each division of its convertible clusters, of one at a time where it has several."""
    yield fleet
    for cluster in fleet.clusters.values():
        if cluster.convertible:
            for n in range(1, cluster.n_instances):
                if n != cluster.n_prefill:
                    yield with_roles(fleet, {cluster.name: n})


def _solved(found: Scenario) -> Fleet:
    """The fleet in the roles that the model gives for what is expected."""
    return _in_roles_of(solve(found.fleet, found.lengths, found.output_tokens), found.fleet)


def _in_roles_of(solution: Solution, fleet: Fleet) -> Fleet:
    return with_roles(fleet, {c.name: solution.n_prefill[c.name] for c in _convertible(fleet)})


def _convertible(fleet: Fleet) -> list[Cluster]:
    return [cluster for cluster in fleet.clusters.values() if cluster.convertible]


def _static(
    found: Scenario,
    tokens: float,
    fleet: Fleet,
    name: str = STATIC,
    order: Callable[[Router], Router] = lambda router: router,
    most_late: int | None = None,
) -> Row:
    run = _run(found, fleet, order(static_threshold(tokens)), most_late=most_late)
    return _row(name, f"{tokens:,.0f} tokens{_roles(fleet)}", found, run)


def _roles(fleet: Fleet) -> str:
    return "".join(f", {c.name} {c.n_prefill}/{c.n_decode}" for c in _convertible(fleet))


def _paper(found: Scenario) -> Row:
    """Threshold and roles of the paper's grid search, for what is expected at the start, and never changed."""
    solution = grid_search(found.fleet, found.lengths, found.output_tokens, paper_grid(found.lengths))
    fleet, threshold, abundant = _in_roles_of(solution, found.fleet), threshold_of(solution), _is_abundant(solution)
    limit = f"{threshold:,.0f} tokens" if threshold < math.inf else "no threshold"
    about = f"{limit}{_roles(fleet)}, bandwidth {'abundant' if abundant else 'scarce'}"
    return _row(PAPER, about, found, _run(found, fleet, paper(abundant), threshold))


def _is_abundant(solution: Solution) -> bool:
    """Whether every cluster's links could carry so much more than its prompts' caches; see _ABUNDANT."""
    return all(solution.rate * stage.share <= _ABUNDANT * stage.egress for stage in solution.stages)


def _decoding_only(found: Scenario) -> Fleet:
    """The paper's naive heterogeneous system: what decodes does nothing else."""
    return with_roles(found.fleet, {c.name: 0 for c in _convertible(found.fleet)})


def _local(found: Scenario, name: str, router: Router) -> Row:
    """In the best roles for it, in hindsight; clusters that do not decode stand idle."""
    best: Row | None = None
    for fleet in _all_roles(found.fleet):
        limit = None if best is None else len(found.arrivals) - int(best.in_time)
        row = _row(name, _roles(fleet)[2:], found, _run(found, fleet, router, most_late=limit))
        best = row if best is None or row.in_time > best.in_time else best
    assert best is not None, "a fleet has its own roles"
    return best


def _run(
    found: Scenario,
    fleet: Fleet,
    router: Router,
    threshold: float = math.inf,
    controller: Controller | None = None,
    most_late: int | None = None,
) -> Outcome:
    return simulate(
        fleet,
        found.arrivals,
        router,
        threshold=threshold,
        conditions=found.conditions,
        controller=controller,
        deadline_seconds=found.deadline_seconds,
        most_late=most_late,
    )


def _row(policy: str, about: str, found: Scenario, run: Outcome) -> Row:
    return Row(
        policy,
        about,
        run.within(found.deadline_seconds),
        array("d", (served.wait for served in run.served)),
        run.remote_share,
        run.reused_share,
        run.sent_bytes / max(run.seconds, 1e-9),
        run.conversions,
        run.unserved,
    )
