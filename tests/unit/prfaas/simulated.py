"""A fleet of round numbers and a controller for tests of the simulator."""

from earthshine.loadgen.trace import Arrival
from earthshine.prfaas.control import Control, Controller
from earthshine.prfaas.curve import Curve
from earthshine.prfaas.fleet import Cluster, Fleet, Link
from earthshine.prfaas.lengths import Sample
from earthshine.prfaas.policy import Policy
from earthshine.prfaas.profile import Profile
from earthshine.prfaas.route import FleetState
from earthshine.prfaas.simulator.outcome import Outcome

ENDS = ("far", "near")
STEP = 0.02  # seconds, of any batch
BATCH = 4


def profile(name: str, per_1000: float, recurrent: bool = False) -> Profile:
    """`per_1000`: seconds of prefill of 1,000 tokens. 1,000 tokens are 1 MB, of which a tenth does not grow."""
    prefill = Curve(((1000.0, per_1000), (100000.0, 100 * per_1000)))
    cache = Curve(((1000.0, 1e6), (101000.0, 91e6)))
    return Profile(name, "made up", prefill, cache, Curve(((1.0, STEP),)), BATCH, recurrent, 1.0)


def two_clusters(
    far: int = 1, near: int = 1, decode: int = 1, rate: float = 1e9, trip: float = 0.0, recurrent: bool = False
) -> Fleet:
    """Prefill takes 0.1 s per 1,000 tokens far, and 0.3 s near, where replies are decoded."""
    clusters = {
        "far": Cluster("far", profile("fast", 0.1, recurrent), far, 0),
        "near": Cluster("near", profile("slow", 0.3, recurrent), near, decode, convertible=True),
    }
    return Fleet(clusters, {ENDS: Link(*ENDS, rate, trip)})


def at(*seconds: float, tokens: int = 10000, output: int = 10, blocks: tuple[int, ...] = ()) -> list[Arrival]:
    return [Arrival(second, tokens, output, blocks) for second in seconds]


def waits(outcome: Outcome) -> list[float]:
    """Seconds to the first token, in the order of arrival."""
    return [served.wait for served in outcome.served]


class Roles(Controller):
    """A controller that asks for the same number of prefill instances in each period."""

    def __init__(self, n_prefill: int, period_seconds: float = 10.0) -> None:
        super().__init__(two_clusters(), Policy(period_seconds=period_seconds), Sample([1000]), 10)
        self.n_prefill = n_prefill

    def tick(self, now: float, state: FleetState) -> Control:
        return Control(1.0, {"near": self.n_prefill}, "as asked")
