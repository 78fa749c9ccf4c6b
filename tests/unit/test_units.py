"""Sizes, counts and durations as people read them."""

import pytest

from earthshine.errors import UsageError
from earthshine.units import counted, format_bytes, format_count, format_duration, parse_bytes


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (24_772_632, "23.63 MiB"), (5 * 2**50, "5120.00 TiB")],
)
def test_bytes_are_binary(value, text):
    assert format_bytes(value) == text


def test_one_is_singular():
    assert [counted(number, "token") for number in (0, 1, 2)] == ["0 tokens", "1 token", "2 tokens"]


@pytest.mark.parametrize(("value", "text"), [(999, "999"), (1000, "1.00 K"), (1_026_408_232_448, "1026.41 B")])
def test_counts_are_decimal(value, text):
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("1048576", 1 << 20),
        ("12GiB", 12 << 30),
        ("12gib", 12 << 30),
        ("12Gi", 12 << 30),
        ("12GB", 12 * 10**9),
        ("12G", 12 * 10**9),
        (" 1.5 TiB ", 3 << 39),
        ("0.5k", 500),
        ("512MiB", 512 << 20),
        ("7b", 7),
        ("999999999999999", 999_999_999_999_999),
    ],
)
def test_a_size_is_binary_with_an_i_and_decimal_without(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "GiB", "-1GiB", "+1", "1e9", "12XB", "12GiBB", "1.2.3G", "1,5G", ".5G", "12 G B", "0x10", "nan", "inf",
        "1" * 16, "1." + "1" * 7, "\u0661\u0662GiB", "12\nGiB\n13", "9" * 10_000,
    ],
    ids=lambda text: ascii(text[:12]),
)  # fmt: skip
def test_text_that_is_not_a_size_is_refused(text):
    with pytest.raises(UsageError, match="is not a size; write a number of bytes with a unit") as refusal:
        parse_bytes(text)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(("text", "meant"), [("16", "16GiB"), (" 4096 ", "4096GiB"), ("16384", "16384MiB")])
def test_a_small_number_without_a_unit_is_asked_about(text, meant):
    with pytest.raises(UsageError, match=f"if {meant} was meant, write {meant}"):
        parse_bytes(text)


@pytest.mark.parametrize("value", [1, 1000, 12 << 30, 25 * 10**9])
def test_what_is_shown_is_read_back(value):
    assert abs(parse_bytes(format_bytes(value)) - value) <= 0.01 * value


@pytest.mark.parametrize(
    ("seconds", "exact", "rough"),
    [
        (0.0015, "1.5 ms", "1 s"), (0.25, "250 ms", "1 s"), (40, "40.0 s", "40 s"), (119, "119.0 s", "119 s"),
        (5058, "84.3 min", "84 min"), (9000, "2.5 h", "2.5 h"), (3 * 86400, "3.0 days", "3.0 days"),
    ],
)  # fmt: skip
def test_durations_have_the_unit_that_people_would_choose(seconds, exact, rough):
    assert (format_duration(seconds), format_duration(seconds, rough=True)) == (exact, rough)
