"""What an operator configures: the places, where their keys are, and what a first token may take and cost.

From command line options, or from a JSON file that is read again at a signal. Every key of a file must be known. Raises
UsageError, which names the entry and what would be right.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from earthshine.errors import UsageError
from earthshine.loadgen.client import Site, parse_site, read_key
from earthshine.prfaas.fleet import Fleet, read_fleet
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

FORMAT = "earthshine route 1"
MOST_PLACES = 64
_MAX_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:\[\]-]{0,63}")
_WIRE = ("earthshine://", "earthshine+plain://")
_DAY = 86400.0
_PLACE_KEYS = ("name", "url", "key_file", "drain", "metrics", "batch", "health")
_NUMBERS = {
    "link_bytes_per_second": (1.0, 1e15),
    "deadline_seconds": (1e-3, _DAY),
    "usd_ceiling": (0.0, 1e6),
    "usd_per_second_saved": (1e-12, 1e6),
    "threshold": (0.0, 1e9),
}
_KEYS = ("format", "decode", "prefill", "fleet", *_NUMBERS)
NONE = "none"  # in the header: borrow from nobody


@dataclass(frozen=True, slots=True)
class PlaceSetup:
    """A server. `site` is None for one that prefills and is reached by the decode places alone; its name is theirs for
    it. `batch`: sequences that it decodes at once. `health`: the path of its probe."""

    name: str
    site: Site | None
    drain: bool = False  # no new requests, and those under way go on
    metrics: bool = False  # read /metrics for what others sent there
    batch: int = 8
    health: str = "/health"


@dataclass(frozen=True, slots=True)
class RouterSetup:
    """decode: places that requests are sent to. prefill: places that these may borrow from. fleet: profiles and links
    by the places' names; what it lacks is learned."""

    decode: tuple[PlaceSetup, ...]
    prefill: tuple[PlaceSetup, ...] = ()
    fleet: Fleet = field(default_factory=lambda: Fleet({}, {}))
    link_bytes_per_second: float = 1.25e8  # of a link that the fleet lacks: 1 Gb/s
    deadline_seconds: float | None = None
    usd_ceiling: float | None = None
    usd_per_second_saved: float | None = None
    threshold: float | None = None  # tokens; None: solved again and again

    def __post_init__(self) -> None:
        if not self.decode:
            raise UsageError("There is no place that decodes; give --decode URL.")
        if len(self.decode) + len(self.prefill) > MOST_PLACES:
            raise UsageError(f"There are more than {MOST_PLACES} places.")
        names = [place.name for place in (*self.decode, *self.prefill)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"Two places have the name {shown(twice)}; write NAME=URL with another name for one.")
        unknown = next((name for name in self.fleet.clusters if name not in names), None)
        if unknown is not None:
            raise UsageError(f"The fleet has {shown(unknown)}, which is none of the places {', '.join(names)}.")
        for place in self.decode:
            cluster = self.fleet.clusters.get(place.name)
            if cluster is not None and cluster.profile.prefill is None:
                raise UsageError(f"{shown(place.name)} decodes, so its profile needs prefill too: it computes a prompt "
                                 "itself where none is borrowed.")  # fmt: skip


def place_from(text: str, key: str = "", *, prefill: bool = False) -> PlaceSetup:
    """A place from URL or NAME=URL; without a name it is called by its host and port."""
    name, found, url = text.partition("=")
    if not found or "/" in name:
        name, url = "", text
    site = _site(url, key, prefill)
    if not name:
        name = url.partition("://")[2].partition("/")[0] if site is None else _host(site)
    _check_name(name, text)
    return PlaceSetup(name, site)


def _host(site: Site) -> str:
    return f"[{site.host}]:{site.port}" if ":" in site.host else f"{site.host}:{site.port}"


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name) or name == NONE:
        raise UsageError(
            f"{shown(where)}: a place's name must be up to 64 letters, digits and . _ : -, and not {NONE}."
        )


def _site(url: str, key: str, prefill: bool) -> Site | None:
    if url.startswith(_WIRE):
        if not prefill:
            raise UsageError(
                f"{shown(url)} is a place that prefills; one that decodes has an address http://host:port."
            )
        return None
    return parse_site(url, key)


def read_setup(path: Path) -> RouterSetup:
    """The setup in a JSON file; names of other files in it are relative to its folder."""
    where = shown(path)
    real = real_path(path, UsageError)
    found = parse_object(read_file(real, where, _MAX_BYTES, UsageError), where, UsageError)
    if found.get("format") != FORMAT:
        raise UsageError(f"{where} does not set up a router; its format must be {FORMAT!r}.")
    require_keys(found, where, ("format", "decode"), _KEYS)
    decode, prefill = (
        _places(found.get(name, []), f"{where}: {name}", real.parent, name == "prefill")
        for name in ("decode", "prefill")
    )
    numbers: dict[str, Any] = {
        name: number_field(found, name, where, least, most) for name, (least, most) in _NUMBERS.items() if name in found
    }
    fleet = read_fleet(real.parent / text_field(found, "fleet", where)) if "fleet" in found else Fleet({}, {})
    return RouterSetup(decode, prefill, fleet, **numbers)


def _places(value: Any, where: str, folder: Path, prefill: bool) -> tuple[PlaceSetup, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise UsageError(f"{where} must be a list of objects.")
    return tuple(_place(entry, f"{where}: place {number}", folder, prefill) for number, entry in enumerate(value, 1))


def _place(found: dict[str, Any], where: str, folder: Path, prefill: bool) -> PlaceSetup:
    require_keys(found, where, ("url",), _PLACE_KEYS)
    key = read_key(folder / text_field(found, "key_file", where)) if "key_file" in found else ""
    place = place_from(text_field(found, "url", where), key, prefill=prefill)
    if "name" in found:
        place = replace(place, name=text_field(found, "name", where))
        _check_name(place.name, where)
    if "health" in found:
        place = replace(place, health=text_field(found, "health", where))
        if not re.fullmatch(r"/[!-~]*", place.health):
            raise UsageError(f"{where}: health must be a path such as /health, not {shown(place.health)}.")
    batch = int(number_field(found, "batch", where, 1, 1 << 16, whole=True)) if "batch" in found else place.batch
    return replace(
        place, drain=flag_field(found, "drain", where), metrics=flag_field(found, "metrics", where), batch=batch
    )


def with_keys(places: Sequence[str], key: str, *, prefill: bool = False) -> tuple[PlaceSetup, ...]:
    """Places from command line options, all with the same key."""
    return tuple(place_from(text, key, prefill=prefill) for text in places)
