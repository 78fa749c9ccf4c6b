"""Bytes, counts and durations as people read them: binary units for memory, decimal ones for counts."""

import re

from earthshine.errors import UsageError

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_MOST_GIB = 4096  # a larger number without a unit is likely one of MiB
_BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def _scaled(value: float, step: int, names: tuple[str, ...]) -> str:
    index = 0
    while abs(value) >= step and index < len(names) - 1:
        value /= step
        index += 1
    return f"{value:.0f}{names[0]}" if index == 0 else f"{value:.2f}{names[index]}"


def format_bytes(value: float) -> str:
    """Binary units: 24772632 is "23.63 MiB"."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def format_rate(bytes_per_second: float) -> str:
    """Decimal units, as data sheets have: 3.5e9 is "3.50 GB/s"."""
    return _scaled(bytes_per_second, 1000, (" B/s", " kB/s", " MB/s", " GB/s", " TB/s"))


def format_decimal(value: float) -> str:
    """Decimal units to three digits, as a drive's label has: 594e9 is "594 GB"."""
    return three_digits(_scaled(value, 1000, (" B", " kB", " MB", " GB", " TB")))


def three_digits(text: str) -> str:
    """A size with its number to three digits: "553.40 GiB" is "553 GiB"."""
    number, _, unit = text.partition(" ")
    return f"{float(number):.3g} {unit}" if float(number) < 999.5 else f"{float(number):.0f} {unit}"


def format_count(value: float) -> str:
    """Decimal magnitudes: 1026408232448 is "1026.41 B"."""
    return _scaled(value, 1000, ("", " K", " M", " B")) if abs(value) >= 1000 else f"{value:.0f}"


def counted(number: int, noun: str) -> str:
    """1 is "1 token", 2 "2 tokens"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def format_duration(seconds: float, rough: bool = False) -> str:
    """0.0015 is "1.5 ms", 5058 "84.3 min". `rough`, for a time to wait: whole seconds and minutes, at least "1 s"."""
    if seconds < 1 and not rough:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"
    for least, unit, name, digits in ((48 * 3600, 86400, "days", 1), (7200, 3600, "h", 1), (120, 60, "min", 0)):
        if seconds >= least:
            return f"{seconds / unit:.{digits if rough else 1}f} {name}"
    return f"{max(1.0, seconds):.0f} s" if rough else f"{seconds:.1f} s"


def parse_bytes(text: str) -> int:
    """Bytes from "12GiB" (binary), "12GB" (decimal) or a plain number, as `plain_bytes` takes it; raises UsageError for
    anything else."""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([kmgt]i?|)b?", text.strip().lower())
    if found is None:
        raise UsageError(f"{text[:40]!r} is not a size; write a number of bytes with a unit, such as 12GiB or 500MB.")
    if text.strip().isdecimal():
        return plain_bytes(int(text))
    return int(float(found[1]) * (_UNITS | _BINARY)[found[2]])


def plain_bytes(number: int) -> int:
    """A number of bytes that was given without a unit.

    Raises UsageError for one below 1 MiB, 0 excepted: nobody who writes 16 means 16 bytes.
    """
    if 0 < number < 1 << 20:
        meant = f"{number}{'GiB' if number <= _MOST_GIB else 'MiB'}"
        raise UsageError(f'{number} is a size in bytes; if {meant} was meant, write {meant}, from Python "{meant}".')
    return number
