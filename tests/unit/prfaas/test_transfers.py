"""The link's sharing against a simulation that sends every layer by itself."""

import math
import random
from dataclasses import dataclass, field

import pytest

from earthshine.prfaas.simulator.transfers import Transfers

LAYERS = 60


@dataclass
class Sent:
    """One transfer: what arrives when, and how much of it is sent."""

    begin: float  # of its prefill
    seconds: float  # of its prefill; 0: all bytes exist at the begin
    nbytes: float
    sent: float = 0.0
    end: float = math.inf
    layers: list[float] = field(init=False)  # when each is computed

    def __post_init__(self) -> None:
        self.layers = [self.begin + self.seconds * (i + 1) / LAYERS for i in range(LAYERS)]

    def exists(self, now: float) -> float:
        return self.nbytes * sum(layer <= now for layer in self.layers) / LAYERS

    @property
    def growth(self) -> float:
        return self.nbytes / self.seconds


def layer_by_layer(found: list[Sent], rates: list[tuple[float, float]]) -> list[float]:
    """Ends, where each transfer that has a computed layer to send has an equal share of the link."""
    for one in found:
        one.sent, one.end = 0.0, math.inf
    now, instants = 0.0, sorted({at for one in found for at in one.layers} | {at for at, _ in rates})
    while any(one.end == math.inf for one in found):
        rate = next(rate for at, rate in reversed(rates) if at <= now)
        exist = [one.exists(now) for one in found]
        active = [i for i, one in enumerate(found) if one.sent < exist[i] - 1e-9 * one.nbytes]
        share = rate / len(active) if active else 0.0
        until = min((at for at in instants if at > now), default=math.inf)
        if share:
            until = min(until, *(now + (exist[i] - found[i].sent) / share for i in active))
        for i in active:
            found[i].sent += share * (until - now)
            if found[i].sent >= found[i].nbytes * (1 - 1e-9):
                found[i].end = min(found[i].end, until)
        now = until
    return [one.end for one in found]


def fluid(found: list[Sent], rates: list[tuple[float, float]]) -> list[float]:
    """Ends by `Transfers`; every byte is accounted for."""
    transfers: Transfers[int] = Transfers(rates[0][1])
    events = [(at, 0, -1, rate) for at, rate in rates]
    for i, one in enumerate(found):
        events += [(one.layers[0], 1, i, 0.0)] + ([(one.layers[-1], 2, i, 0.0)] if one.seconds else [])
    events.sort()
    ends = [math.inf] * len(found)
    while events or len(transfers):
        change = transfers.next_change()
        if not events or change < events[0][0]:
            ended = transfers.pop_ended(change)
            if ended is not None:
                ends[ended] = change
            continue
        now, kind, i, rate = events.pop(0)
        if kind == 0:
            transfers.set_rate(now, rate)
        elif kind == 2:
            transfers.complete(now, i)
        elif found[i].seconds:
            transfers.add_growing(now, i, found[i].nbytes, found[i].growth)
        else:
            transfers.add(now, i, found[i].nbytes)
    assert transfers.sent_bytes(max(ends)) == pytest.approx(sum(one.nbytes for one in found), rel=1e-6)
    return ends


@pytest.mark.parametrize("rate", [1e6, 9e6, 1e7, 1.1e7, 1e9])
def test_lone_transfer_ends_exactly_as_layer_by_layer(rate: float):
    lone = [Sent(3.0, 1.0, 1e7)]
    expected = max(3 + 1 / LAYERS + 1e7 / rate, 4 + 1e7 / LAYERS / rate)
    assert fluid(lone, [(0.0, rate)]) == [pytest.approx(expected, rel=1e-9)]
    assert layer_by_layer(lone, [(0.0, rate)]) == [pytest.approx(expected, rel=1e-6)]


def test_a_transfer_uses_what_slower_ones_leave():
    """One grows at 2 of 10 MB/s, so that another has 8 while it grows; both share evenly what is left."""
    slow, fast = Sent(0.0, 10.0, 2e7), Sent(5.0, 0.0, 1.6e7)
    ends = fluid([slow, fast], [(0.0, 1e7)])
    assert ends[1] == pytest.approx(7.0, rel=1e-9)
    assert ends[0] == pytest.approx(10 + 2e7 / LAYERS / 1e7, rel=1e-9)


def random_transfers(draw: random.Random) -> tuple[list[Sent], list[tuple[float, float]]]:
    found = [
        Sent(draw.uniform(0, 20), draw.choice((0.0, draw.uniform(0.2, 5))), draw.uniform(1e6, 5e7)) for _ in range(12)
    ]
    times = sorted(draw.uniform(0, 20) for _ in range(3))
    return found, [(0.0, 2e7)] + [(at, draw.choice((3e6, 1e7, 4e7))) for at in times]


def test_transfers_that_share_end_as_layer_by_layer_within_a_fraction_of_a_percent():
    errors, durations = [], []
    for seed in range(40):
        found, rates = random_transfers(random.Random(seed))
        for one, exact, end in zip(found, layer_by_layer(found, rates), fluid(found, rates), strict=True):
            errors.append(abs(end - exact))
            durations.append(exact - one.begin)
    assert sum(errors) < 0.002 * sum(durations)
    assert max(errors) < 0.5  # of 11 s on average
