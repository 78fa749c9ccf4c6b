"""Checks a machine's file against its rules, field by field, and reads it as plain values of known types.

A number is a JSON number, never a boolean or a text with a unit (but `memory_bytes`, which may be a size such as
"24GiB"), and is within the bounds below, which are generous: a figure outside them has a wrong unit. Refuses keys
that it does not know, keys that are missing, and tables whose rows do not ascend.
"""

import datetime
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from earthshine.errors import UsageError
from earthshine.storage import ALIGNMENT, Storage
from earthshine.units import parse_bytes
from earthshine.untrusted import shown

FORMATS = tuple(storage.value_type for storage in Storage)
IDENTITY = ("cpu_model", "processors", "memory_bytes", "instruction_set")

# Least and most of each kind of figure.
PROCESSORS = (1, 1 << 16)
MEMORY_BYTES = (1 << 30, 1 << 50)
MEMORY_RATE = (1e8, 1e15)  # bytes per second
DISK_RATE = (1e6, 1e12)
NETWORK_RATE = (1e4, 1e12)
FLOPS = (1e6, 1e18)  # emulated instructions are slow
LAYER_SECONDS = (1e-9, 1.0)
ROUND_TRIP_SECONDS = (1e-7, 10.0)
BLOCK_BYTES = (ALIGNMENT, 1 << 30)
DEPTH = (1, 1024)
ROWS = (1, 1 << 24)
WATTS = (1.0, 1e6)
PRICE = (1.0, 1e9)
MOST_POINTS = 64  # of one table

_REQUIRED = (
    "name", "source", "measured", "identity", "processors", "memory_bytes", "memory_read", "disk", "products",
    "attention", "layer_seconds",
)  # fmt: skip
_OPTIONAL = ("network", "watts", "price_usd", "device")
DEVICES = ("cpu", "gpu")


class _Unsound(Exception):
    """What is wrong with one field, and what would be right."""


def _wrong(field: str, value: object, right: str) -> _Unsound:
    return _Unsound(f"{field} is {shown(value)}; it must be {right}.")


def read_fields(found: dict[str, Any], what: str) -> dict[str, Any]:
    """`Machine`'s fields from a file's object, `disk` and `network` as plain tuples. Raises UsageError about `what`."""
    try:
        _keys("", found, _REQUIRED, _OPTIONAL)
        fields = {name: read(name, found[name]) for name, read in _READERS.items() if name in found}
        if (fields["measured"] is None) != (fields["identity"] is None):
            known, absent = ("identity", "measured") if fields["measured"] is None else ("measured", "identity")
            raise _wrong(absent, None, f"given, since {known} is; a machine that is described has neither")
    except _Unsound as wrong:
        raise UsageError(f"{what}: {wrong}") from None
    return {name: None for name in _OPTIONAL} | fields


def _keys(field: str, value: object, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(field, value, f"an object with {', '.join(required)}")
    fields = ", ".join((*required, *optional))
    of = f"{field} has" if field else "a machine has"
    unknown = next((key for key in value if key not in (*required, *optional)), None)
    if unknown is not None:
        raise _Unsound(f"{shown(unknown)} is not a known field; {of} {fields}.")
    missing = next((key for key in required if key not in value), None)
    if missing is not None:
        raise _Unsound(f"{f'{field}.' if field else ''}{missing} is missing; {of} {fields}.")
    return value


def _number(field: str, value: object, bounds: tuple[float, float], unit: str) -> float:
    least, most = bounds
    if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]
        raise _wrong(field, value, f"a plain number of {unit} from {least:g} to {most:g}, without a unit")
    return float(value)  # type: ignore[arg-type]


def _integer(field: str, value: object, bounds: tuple[int, int], unit: str) -> int:
    least, most = bounds
    if type(value) is not int or not least <= value <= most:
        raise _wrong(field, value, f"a whole number of {unit} from {least} to {most}, without a unit")
    return value


def _text(field: str, value: object, most: int) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > most or not value.isprintable():
        raise _wrong(field, value, f"a text of 1 to {most} characters that can be printed, on one line")
    return value


def _memory(field: str, value: object) -> int:
    if isinstance(value, str):
        try:
            value = parse_bytes(value)
        except UsageError:
            raise _wrong(field, value, "a number of bytes, or a size such as 24GiB") from None
    return _integer(field, value, MEMORY_BYTES, "bytes")


def _date(field: str, value: object) -> str | None:
    try:
        if value is None or (isinstance(value, str) and datetime.date.fromisoformat(value).isoformat() == value):
            return value
    except ValueError:
        pass
    raise _wrong(field, value, "the day of measuring, such as 2026-01-31, or null for a machine that is described")


def _identity(field: str, value: object) -> MappingProxyType[str, str | int] | None:
    if value is None:
        return None
    found = _keys(field, value, IDENTITY)
    return MappingProxyType(
        {
            "cpu_model": _text(f"{field}.cpu_model", found["cpu_model"], 200),
            "processors": _integer(f"{field}.processors", found["processors"], PROCESSORS, "processors"),
            "memory_bytes": _memory(f"{field}.memory_bytes", found["memory_bytes"]),
            "instruction_set": _text(f"{field}.instruction_set", found["instruction_set"], 40),
        }
    )


def _entries(field: str, value: object, of: str) -> list[object]:
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_POINTS:
        raise _wrong(field, value, f"a list of 1 to {MOST_POINTS} {of}")
    return value


def _disk(field: str, value: object) -> tuple[tuple[int, int, float], ...]:
    rates: list[tuple[int, int, float]] = []
    for index, entry in enumerate(_entries(field, value, "objects with block_bytes, depth and bytes_per_second")):
        at = f"{field}[{index}]"
        found = _keys(at, entry, ("block_bytes", "depth", "bytes_per_second"))
        block = _integer(f"{at}.block_bytes", found["block_bytes"], BLOCK_BYTES, "bytes")
        depth = _integer(f"{at}.depth", found["depth"], DEPTH, "concurrent reads")
        rate = _number(f"{at}.bytes_per_second", found["bytes_per_second"], DISK_RATE, "bytes per second")
        if rates and (block, depth) <= rates[-1][:2]:
            raise _wrong(at, [block, depth], f"after {list(rates[-1][:2])}: entries ascend by block_bytes, then depth")
        rates.append((block, depth, rate))
    return tuple(rates)


def _points(field: str, value: object, first: int | None = None) -> tuple[tuple[int, float], ...]:
    points: list[tuple[int, float]] = []
    for index, entry in enumerate(_entries(field, value, "pairs of rows and FLOP/s")):
        at = f"{field}[{index}]"
        if not isinstance(entry, list) or len(entry) != 2:
            raise _wrong(at, entry, "a pair of rows and FLOP/s, such as [1, 3e10]")
        rows = _integer(f"{at}, its rows", entry[0], ROWS, "rows")
        if first is not None and not points and rows != first:
            raise _wrong(f"{at}, its rows", rows, f"{first}: rows ascend from there")
        if points and rows <= points[-1][0]:
            raise _wrong(f"{at}, its rows", rows, f"more than {points[-1][0]}: rows ascend")
        points.append((rows, _number(f"{at}, its rate", entry[1], FLOPS, "FLOP/s")))
    return tuple(points)


def _products(field: str, value: object) -> MappingProxyType[str, tuple[tuple[int, float], ...]]:
    found = _keys(field, value, FORMATS)
    return MappingProxyType({form: _points(f"{field}.{form}", found[form], first=1) for form in FORMATS})


def _network(field: str, value: object) -> tuple[float, float] | None:
    if value is None:
        return None
    found = _keys(field, value, ("bytes_per_second", "round_trip_seconds"))
    rate = _number(f"{field}.bytes_per_second", found["bytes_per_second"], NETWORK_RATE, "bytes per second")
    return rate, _number(f"{field}.round_trip_seconds", found["round_trip_seconds"], ROUND_TRIP_SECONDS, "seconds")


def _device(field: str, value: object) -> str | None:
    if value is not None and value not in DEVICES:
        raise _wrong(field, value, f"one of {', '.join(DEVICES)}")
    return value


def _or_none(bounds: tuple[float, float], unit: str) -> Callable[[str, object], float | None]:
    return lambda field, value: None if value is None else _number(field, value, bounds, unit)


_READERS: MappingProxyType[str, Callable[[str, Any], Any]] = MappingProxyType(
    {
        "name": lambda field, value: _text(field, value, 80),
        "source": lambda field, value: _text(field, value, 2000),
        "measured": _date,
        "identity": _identity,
        "processors": lambda field, value: _integer(field, value, PROCESSORS, "processors"),
        "memory_bytes": _memory,
        "memory_read": lambda field, value: _number(field, value, MEMORY_RATE, "bytes per second"),
        "disk": _disk,
        "products": _products,
        "attention": _points,
        "layer_seconds": lambda field, value: _number(field, value, LAYER_SECONDS, "seconds"),
        "network": _network,
        "watts": _or_none(WATTS, "watts"),
        "price_usd": _or_none(PRICE, "US dollars"),
        "device": _device,
    }
)
