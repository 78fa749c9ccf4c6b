"""A simulated request: what arrived, how much of it is done, and the route that it follows now."""

import math
from dataclasses import dataclass

from earthshine.loadgen.trace import Arrival
from earthshine.prfaas.route import Route
from earthshine.prfaas.simulator.outcome import Served


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    """`attempt` counts its routes: events of an earlier one are void."""

    arrival: Arrival
    blocks: tuple[int, ...]  # names of its prompt's whole blocks
    reply_blocks: tuple[int, ...]  # names of those that its reply adds
    tokens: int  # of its prompt; replies that were lost with an instance count as prompt
    output_tokens: int  # still to be generated
    record: Served
    attempt: int = 0
    route: Route | None = None
    late: bool = False  # waits behind those that can be in time
    begin_by: float = math.inf  # when its prefill must begin at the latest, or it becomes late
    admit_by: float = math.inf  # when a batch must admit it at the latest, or it becomes late
    cached_blocks: int = 0  # of its prompt, in the cache of the cluster that prefills, when it began
