"""Bytes and counts as people read them: binary units for memory, decimal ones for counts."""


def _scaled(value: float, step: int, names: tuple[str, ...]) -> str:
    index = 0
    while abs(value) >= step and index < len(names) - 1:
        value /= step
        index += 1
    return f"{value:.0f}{names[0]}" if index == 0 else f"{value:.2f}{names[index]}"


def format_bytes(value: float) -> str:
    """Binary units: 24772632 is "23.63 MiB"."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def format_count(value: float) -> str:
    """Decimal magnitudes: 1026408232448 is "1026.41 B"."""
    return _scaled(value, 1000, ("", " K", " M", " B")) if abs(value) >= 1000 else f"{value:.0f}"
