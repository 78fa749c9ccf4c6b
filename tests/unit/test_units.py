"""Sizes and counts as people read them."""

import pytest

from earthshine.units import format_bytes, format_count


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (24_772_632, "23.63 MiB"), (5 * 2**50, "5120.00 TiB")],
)
def test_bytes_are_binary(value, text):
    assert format_bytes(value) == text


@pytest.mark.parametrize(("value", "text"), [(999, "999"), (1000, "1.00 K"), (1_026_408_232_448, "1026.41 B")])
def test_counts_are_decimal(value, text):
    assert format_count(value) == text
