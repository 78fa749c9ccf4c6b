"""Prices and the cost of a machine's hour: sums by hand, and invalid tables."""

import json
from pathlib import Path
from typing import Any

import pytest

from earthshine.errors import UsageError
from earthshine.plan.prices import SHIPPED, Ownership, read_prices

GOOD = {"name": "a service", "input": 1.5, "output": 4}


def table(folder: Path, *entries: Any, **changed: Any) -> Path:
    found = {"format": "earthshine prices 1", "dated": "2026-01-02", "source": "nowhere", "prices": list(entries)}
    path = folder / "prices.json"
    path.write_text(json.dumps(found | changed))
    return path


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as refusal:
        read_prices(path)
    assert "prices.json" in str(refusal.value)
    return str(refusal.value)


def test_the_table_that_ships_is_whole() -> None:
    found = read_prices()
    assert found.dated >= "2026-05-14"
    assert len(found.source) > 20
    assert len({price.name for price in found.prices}) == len(found.prices) >= 5
    for price in found.prices:
        assert 0 < price.input < price.output < 1000
        assert price.cached_input is None or 0 < price.cached_input < price.input
    assert read_prices(SHIPPED) == found


def test_a_table_is_read_as_it_stands(tmp_path: Path) -> None:
    found = read_prices(table(tmp_path, GOOD, {**GOOD, "name": "two", "cached_input": 0, "input": 0}))
    assert (found.dated, found.source) == ("2026-01-02", "nowhere")
    one, two = found.prices
    assert (one.name, one.input, one.output, one.cached_input) == ("a service", 1.5, 4.0, None)
    assert (two.input, two.cached_input) == (0.0, 0.0)
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "prices.json")
    assert read_prices(link) == found


@pytest.mark.parametrize("name", ["input", "output", "cached_input"])
@pytest.mark.parametrize("value", [-0.01, "1.5", True, [], 1e6 + 1, 10**400, {}], ids=lambda value: str(value)[:9])
def test_invalid_price_is_refused_by_its_entry(tmp_path: Path, name: str, value: Any) -> None:
    error = refused(table(tmp_path, GOOD, {**GOOD, "name": "second", name: value}))
    assert "price 2, 'second'" in error
    assert f"{name} is " in error


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path, text: str) -> None:
    path = table(tmp_path, GOOD)
    path.write_text(path.read_text().replace("1.5", text))
    refused(path)


@pytest.mark.parametrize("name", ["name", "input", "output"])
def test_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    assert f"price 1 lacks {name}" in refused(table(tmp_path, {key: GOOD[key] for key in GOOD if key != name}))


@pytest.mark.parametrize(
    ("entries", "changed", "error"),
    [
        ([{**GOOD, "currency": "EUR"}], {}, "price 1 has 'currency', which is not known; it may have name"),
        ([GOOD, "free"], {}, "price 2 must be an object"),
        ([{**GOOD, "name": ""}], {}, "name is ''"),
        ([{**GOOD, "name": "a\x1b[31mred"}], {}, "it must be a line of text"),
        ([{**GOOD, "name": "x" * 1001}], {}, "it must be a line of text"),
        ([{**GOOD, "name": 5}], {}, "name is 5"),
        ([], {}, "1 to 1000 prices"),
        ([GOOD] * 1001, {}, "1 to 1000 prices"),
        ([GOOD], {"prices": {"a": GOOD}}, "1 to 1000 prices"),
        ([GOOD], {"format": "earthshine prices 2"}, "its format must be 'earthshine prices 1'"),
        ([GOOD], {"format": None}, "its format must be"),
        ([GOOD], {"note": "mine"}, "has 'note', which is not known"),
        ([GOOD], {"dated": 2026}, "dated is 2026"),
        ([GOOD], {"source": "two\nlines"}, "source is "),
    ],
)
def test_a_malformed_table_is_refused(tmp_path: Path, entries: list[Any], changed: dict[str, Any], error: str) -> None:
    assert error in refused(table(tmp_path, *entries, **changed))


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b"{", b'{"format": 1, "format": 2}', b" " * (2 << 20)])
def test_files_that_are_not_tables_are_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "prices.json"
    path.write_bytes(raw)
    refused(path)
    path.unlink()
    refused(path)
    path.mkdir()
    refused(path)


def test_an_hour_and_a_million_tokens_by_hand() -> None:
    """100 W at 0.30 $ are 3 cents an hour; 876.60 $ over 1 year of 8766 hours are 10."""
    own = Ownership(100, 0.30, 876.60, 1)
    assert own.usd_per_hour == pytest.approx(0.03 + 0.10)
    assert own.usd_per_million(10) == pytest.approx(0.13 * 1e6 / 36_000)
    assert Ownership(0, 0.25, 0, 4).usd_per_million(1) == 0
    assert Ownership(1000, 0.25, 0, 4).usd_per_hour == 0.25
    assert Ownership(0, 0.25, 8766, 2).usd_per_hour == 0.5


@pytest.mark.parametrize(
    ("figures", "named"),
    [
        ((-1, 0.25, 0, 4), "--watts"),
        ((float("nan"), 0.25, 0, 4), "--watts"),
        ((1e8, 0.25, 0, 4), "--watts"),
        ((100, -0.1, 0, 4), "--kwh-price"),
        ((100, float("inf"), 0, 4), "--kwh-price"),
        ((100, 0.25, -1, 4), "--machine-price"),
        ((100, 0.25, 2e9, 4), "--machine-price"),
        ((100, 0.25, 0, 0), "--life-years"),
        ((100, 0.25, 0, float("nan")), "--life-years"),
        ((100, 0.25, 0, 101), "--life-years"),
    ],
)
def test_figures_that_can_not_be_are_refused_by_name(figures: tuple[float, ...], named: str) -> None:
    with pytest.raises(UsageError, match=f"^{named} is .*; it must be a number from"):
        Ownership(*figures)


def test_a_service_of_an_open_model_is_found_by_its_family_and_size(tmp_path: Path) -> None:
    shipped = read_prices()
    found = shipped.service_of("kimi_k25", 1_026_408_232_448)
    assert found is not None
    assert found.name == "Kimi K2.6 (Moonshot)"
    assert shipped.service_of("kimi_k25", 23_500_000) is None, "gleam is of the same family"
    assert shipped.service_of("deepseek_v3", 1_026_408_232_448) is None
    own = read_prices(table(tmp_path, GOOD, {**GOOD, "name": "two", "family": "qwen3_moe", "parameters": 5}))
    service = own.service_of("qwen3_moe", 5)
    assert service is not None
    assert service.name == "two"


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"family": "x"}, "both family and parameters, or neither"),
        ({"parameters": 5}, "both family and parameters, or neither"),
        ({"family": "x", "parameters": 1.5}, "it must be a whole number above 0"),
        ({"family": "x", "parameters": True}, "it must be a whole number above 0"),
        ({"family": "x", "parameters": 0}, "it must be a whole number above 0"),
        ({"family": 7, "parameters": 5}, "family is 7"),
    ],
    ids=str,
)
def test_an_open_model_of_a_service_is_named_whole(tmp_path: Path, more: dict[str, Any], error: str) -> None:
    assert error in refused(table(tmp_path, {**GOOD, **more}))
