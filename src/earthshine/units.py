"""Bytes, counts and rates as people read them. Decimal units (GB) as published, binary ones (GiB) for memory."""

import re

from earthshine.errors import UsageError

_SCALES = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


def parse_bytes(text: str) -> int:
    """`"24GiB"`, `"1.5 GB"` or `"4096"` to a number of bytes; raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    scale = _SCALES.get(match[2].upper()) if match else None
    if match is None or scale is None:
        raise UsageError(f"{text!r} is not a size; write a number and a unit, such as 24GiB or 500MB.")
    return int(float(match[1]) * scale)


def _scaled(value: float, step: int, names: tuple[str, ...]) -> str:
    index = 0
    while abs(value) >= step and index < len(names) - 1:
        value /= step
        index += 1
    return f"{value:.0f}{names[0]}" if index == 0 else f"{value:.2f}{names[index]}"


def format_bytes(value: float) -> str:
    """Binary units: 24772632 is "23.62 MiB"."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def format_count(value: float) -> str:
    """Decimal magnitudes: 1026408232448 is "1026.41 B"."""
    return _scaled(value, 1000, ("", " K", " M", " B")) if abs(value) >= 1000 else f"{value:.0f}"
