"""Fleets for tests: the shipped ones, and made-up clusters with curves of few points."""

import random
from dataclasses import replace

from earthshine.prfaas.curve import Curve
from earthshine.prfaas.fleet import Cluster, Fleet, Link, read_fleet, shipped_fleets
from earthshine.prfaas.profile import Profile

PAPER_GRID = range(1000, 120001, 200)


def shipped(name: str) -> Fleet:
    return read_fleet(shipped_fleets()[name])


def paper_fleet(gbps: float = 100) -> Fleet:
    fleet, ends = shipped("paper"), ("prfaas", "pd")
    return Fleet(fleet.clusters, {ends: replace(fleet.links[ends], bytes_per_second=gbps * 1e9 / 8)})


def made_up(
    name: str,
    seconds: tuple[float, float, float],
    n_prefill: int,
    n_decode: int = 0,
    rate: float = 1.0,
    convertible: bool = False,
) -> Cluster:
    """`seconds`: of prefill at 1,000, 20,000 and 100,000 tokens. `rate`: requests of 100 tokens per second and
    decoding instance."""
    prefill = Curve(tuple(zip((1000.0, 20000.0, 100000.0), seconds, strict=True)))
    decode = Curve(((8.0, 8 / (100 * rate)),)) if n_decode or convertible else None
    profile = Profile(name, "made up", prefill, Curve(((1000.0, 1e8), (100000.0, 2e9))), decode, 8, False, 1.0)
    return Cluster(name, profile, n_prefill, n_decode, convertible)


def scarce_decode(seed: int, sources: str = "ABR") -> Fleet:
    """A and B prefill and decode, the other sources prefill alone. Links are slow or fast, and decoding takes no more
    than prefill could bring."""
    draw = random.Random(seed)
    seconds = [(a := draw.uniform(0.2, 1), b := a * draw.uniform(3, 30), b * draw.uniform(4, 15)) for _ in sources]
    n = [draw.randint(1, 4) for _ in sources]
    rate, first = draw.uniform(0.1, 1) * sum(n) / 10, draw.uniform(0.05, 0.95)
    decode = {"A": rate * first, "B": rate * (1 - first)}
    clusters = [
        made_up(name, curve, count, 1 if name in decode else 0, decode.get(name, 1.0))
        for name, curve, count in zip(sources, seconds, n, strict=True)
    ]
    gbps = {(source, target): draw.choice((0.1, 0.5, 2, 8, 20, 100)) for source in sources[2:] for target in "AB"}
    return fleet_of(*clusters, links={ends: rate * 1e9 / 8 for ends, rate in gbps.items()})


def fleet_of(*clusters: Cluster, links: dict[tuple[str, str], float] | None = None) -> Fleet:
    return Fleet({c.name: c for c in clusters}, {ends: Link(*ends, rate) for ends, rate in (links or {}).items()})
