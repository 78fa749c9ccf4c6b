"""Fleets for tests: the shipped ones, and made-up clusters with curves of few points."""

from dataclasses import replace

from earthshine.prfaas.curve import Curve
from earthshine.prfaas.fleet import Cluster, Fleet, Link, read_fleet, shipped_fleets
from earthshine.prfaas.lengths import LogNormal
from earthshine.prfaas.profile import Profile

PAPER_LENGTHS = LogNormal(9.90, 1.00, 128, 131072)
PAPER_OUTPUT = 1024
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


def fleet_of(*clusters: Cluster, links: dict[tuple[str, str], float] | None = None) -> Fleet:
    return Fleet({c.name: c for c in clusters}, {ends: Link(*ends, rate) for ends, rate in (links or {}).items()})
