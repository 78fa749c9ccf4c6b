"""A fleet: clusters of like instances, which prefill, decode or both, and the links between them; and its file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from earthshine.errors import UsageError
from earthshine.prfaas.profile import Profile, profile_fields, profile_from
from earthshine.untrusted import (
    flag_field,
    number_field,
    parse_object,
    read_file,
    real_path,
    require_keys,
    shown,
    text_field,
)

FORMAT = "earthshine fleet 1"
MOST_CLUSTERS = 64
_MOST_INSTANCES = 1 << 20
_MAX_BYTES = 4 << 20
_MOST_RATE = 1e15  # bytes per second


@dataclass(frozen=True, slots=True)
class Cluster:
    """Instances of one profile behind one network, where moving a cache costs nothing next to computing it."""

    name: str
    profile: Profile
    n_prefill: int
    n_decode: int
    convertible: bool = False  # an instance may change between prefill and decode

    @property
    def n_instances(self) -> int:
        return self.n_prefill + self.n_decode


@dataclass(frozen=True, slots=True)
class Link:
    """Egress from one cluster to another, all its connections together."""

    source: str
    target: str
    bytes_per_second: float
    round_trip_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """Clusters by name, and a link for each pair that is connected, by (source, target)."""

    clusters: dict[str, Cluster]
    links: dict[tuple[str, str], Link]

    @property
    def decoding(self) -> list[Cluster]:
        """Clusters that decode or could."""
        return [c for c in self.clusters.values() if c.n_decode or (c.convertible and c.profile.decode)]

    @property
    def prefilling(self) -> list[Cluster]:
        """Clusters that prefill or could."""
        return [c for c in self.clusters.values() if c.n_prefill or (c.convertible and c.profile.prefill)]

    def extrapolated(self, tokens: float) -> dict[str, float]:
        """By profile, where its prefill curve ends, if that is before `tokens`: beyond it the last slope goes on."""
        ends = {c.profile.name: c.profile.prefill.points[-1][0] for c in self.prefilling if c.profile.prefill}
        return {name: end for name, end in ends.items() if end < tokens}


def shipped_fleets() -> Mapping[str, Path]:
    """The names and files of the fleets that ship with the package."""
    folder = Path(__file__).with_name("fleets")
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def read_fleet(path: Path) -> Fleet:
    """The fleet in a JSON file; raises UsageError that names the entry and what would be right."""
    where = shown(path)
    found = parse_object(read_file(real_path(path, UsageError), where, _MAX_BYTES, UsageError), where, UsageError)
    if found.get("format") != FORMAT:
        raise UsageError(f"{where} is not a fleet; its format must be {FORMAT!r}.")
    require_keys(found, where, ("format", "profiles", "clusters"), ("format", "profiles", "clusters", "links"))
    profiles: dict[str, Profile] = {}
    for number, entry in enumerate(_objects(found, "profiles", where, 1, MOST_CLUSTERS), 1):
        profile = profile_from(entry, f"{where}: profile {number}")
        if profiles.setdefault(profile.name, profile) is not profile:
            raise UsageError(f"{where}: two profiles have the name {shown(profile.name)}.")
    clusters: dict[str, Cluster] = {}
    for number, entry in enumerate(_objects(found, "clusters", where, 1, MOST_CLUSTERS), 1):
        cluster = _cluster(entry, f"{where}: cluster {number}", profiles)
        if clusters.setdefault(cluster.name, cluster) is not cluster:
            raise UsageError(f"{where}: two clusters have the name {shown(cluster.name)}.")
    links: dict[tuple[str, str], Link] = {}
    given = _objects(found, "links", where, 0, MOST_CLUSTERS**2) if "links" in found else []
    for number, entry in enumerate(given, 1):
        link = _link(entry, f"{where}: link {number}", clusters)
        if links.setdefault((link.source, link.target), link) is not link:
            raise UsageError(f"{where}: two links lead from {shown(link.source)} to {shown(link.target)}.")
    return check_fleet(Fleet(clusters, links), where)


def fleet_json(fleet: Fleet) -> str:
    """JSON that `read_fleet` reads back as an equal fleet. Raises UsageError for two profiles of one name."""
    profiles: dict[str, dict[str, Any]] = {}
    for cluster in fleet.clusters.values():
        fields = profile_fields(cluster.profile)
        if profiles.setdefault(cluster.profile.name, fields) != fields:
            raise UsageError(f"Two different profiles have the name {shown(cluster.profile.name)}; rename one.")
    clusters = [
        {"name": c.name, "profile": c.profile.name, "n_prefill": c.n_prefill, "n_decode": c.n_decode}
        | {"convertible": c.convertible}
        for c in fleet.clusters.values()
    ]
    links = [asdict(link) for link in fleet.links.values()]
    found = {"format": FORMAT, "profiles": list(profiles.values()), "clusters": clusters, "links": links}
    return json.dumps(found, indent=1) + "\n"


def check_fleet(fleet: Fleet, where: str) -> Fleet:
    """`fleet` itself; raises UsageError where no request could ever be served."""
    if not fleet.decoding:
        raise UsageError(f"{where} has no cluster that decodes; give one n_decode of at least 1.")
    if not fleet.prefilling:
        raise UsageError(f"{where} has no cluster that prefills; give one n_prefill of at least 1.")
    for target in fleet.decoding:
        if any(c is target or (c.name, target.name) in fleet.links for c in fleet.prefilling):
            return fleet
    raise UsageError(f"{where}: no cluster that prefills has a link to one that decodes.")


def _objects(found: dict[str, Any], name: str, where: str, least: int, most: int) -> list[dict[str, Any]]:
    value: list[dict[str, Any]] = found[name]
    fits = isinstance(value, list) and least <= len(value) <= most
    if not fits or not all(isinstance(entry, dict) for entry in value):
        raise UsageError(f"{where}: {name} must be a list of {least} to {most} objects.")
    return value


def _cluster(found: dict[str, Any], where: str, profiles: dict[str, Profile]) -> Cluster:
    keys = ("name", "profile", "n_prefill", "n_decode", "convertible")
    require_keys(found, where, ("name", "profile"), keys)
    name = text_field(found, "profile", where)
    if name not in profiles:
        raise UsageError(f"{where}: profile is {shown(name)}; it must be one of {', '.join(map(shown, profiles))}.")
    profile = profiles[name]
    counts = {
        key: int(number_field(found, key, where, 0, _MOST_INSTANCES, whole=True)) if key in found else 0
        for key in ("n_prefill", "n_decode")
    }
    for key, curve in (("n_prefill", profile.prefill), ("n_decode", profile.decode)):
        if counts[key] and curve is None:
            raise UsageError(f"{where}: {key} is {counts[key]}, but {shown(name)} has no {key[2:]} curve.")
    if not sum(counts.values()):
        raise UsageError(f"{where} must have n_prefill, n_decode or both.")
    convertible = flag_field(found, "convertible", where)
    if convertible and None in (profile.prefill, profile.decode):
        raise UsageError(f"{where} is convertible, so {shown(name)} must have both prefill and decode.")
    return Cluster(text_field(found, "name", where), profile, **counts, convertible=convertible)


def _link(found: dict[str, Any], where: str, clusters: dict[str, Cluster]) -> Link:
    keys = ("source", "target", "bytes_per_second", "round_trip_seconds")
    require_keys(found, where, keys[:3], keys)
    ends = [text_field(found, key, where) for key in ("source", "target")]
    for key, end in zip(keys, ends, strict=False):
        if end not in clusters:
            raise UsageError(f"{where}: {key} is {shown(end)}; it must be one of {', '.join(map(shown, clusters))}.")
    if ends[0] == ends[1]:
        raise UsageError(f"{where} leads from {shown(ends[0])} to itself.")
    rate = number_field(found, "bytes_per_second", where, 0, _MOST_RATE)
    trip = number_field(found, "round_trip_seconds", where, 0, 60) if "round_trip_seconds" in found else 0.0
    return Link(ends[0], ends[1], rate, trip)
