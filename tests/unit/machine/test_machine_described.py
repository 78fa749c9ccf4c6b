"""The described machines follow from data-sheet figures by formulas that their `source` states; here both are."""

import json
from dataclasses import dataclass
from itertools import pairwise

import pytest

from earthshine.machine import described, read_machine

BYTES_A_VALUE = {"bf16": 2, "int4": 0.5 + 2 / 32, "fp8": 1 + 4 / 128**2, "int8": 1 + 4 / 128}
ROWS = (1, 4, 16, 64, 512)
LATENT_FLOPS_A_BYTE = 2 * (576 + 512) / (2 * 576)  # of one query row
READS = ((1 << 20, 1, 0.5), (1 << 20, 4, 0.85), (24_772_608, 1, 0.7), (24_772_608, 4, 0.85))


@dataclass(frozen=True)
class Sheet:
    """Figures of data sheets, and the shares of them that are reached."""

    processors: int
    memory_bytes: float  # what the modules hold, of which the system keeps 2%
    channels: float  # bytes per second
    peak: dict[str, float]  # FLOP/s
    drives: float  # bytes per second
    line: float  # bits per second
    round_trip: float
    one_row: dict[str, float]  # of the memory's read rate
    reached: float  # of the peak, by products
    attention: float  # FLOP/s that attention reaches
    readers: int = 1  # parts of the machine that each read the latents of their own heads
    read: float = 0.8  # of the channels
    layer_seconds: float = 2.5e-4


CPU_ROW = {"bf16": 0.9, "int4": 0.6, "fp8": 0.5, "int8": 0.45}


def cpu(
    processors: int, gigabytes: int, channels: float, a_cycle: int, ghz: float, drives: float, line: float
) -> Sheet:
    peak = processors * a_cycle * ghz * 1e9
    peaks = dict.fromkeys(BYTES_A_VALUE, peak)
    return Sheet(processors, gigabytes * 2**30, channels, peaks, drives, line, 2e-4, CPU_ROW, 0.74, 0.66 * peak)


HALF, WHOLE = 989.5e12, 1979e12
SHEETS = {
    "mini-24gb": cpu(8, 24, 2 * 8 * 5.6e9, 64, 3.8, 7.45e9, 2.5e9),
    "laptop-64gb": cpu(8, 64, 2 * 8 * 5.6e9, 64, 3.8, 5.15e9, 1e9),
    "desktop-128gb": cpu(16, 128, 2 * 8 * 5.6e9, 128, 4.3, 14.8e9, 5e9),
    "server-768gb": cpu(64, 768, 12 * 8 * 6e9, 128, 3.2, 2 * 14e9, 25e9),
    "8xh200": Sheet(
        8, 8 * 141e9, 8 * 4.8e12,
        {"bf16": 8 * HALF, "int4": 8 * HALF, "fp8": 8 * WHOLE, "int8": 8 * WHOLE},
        8 * 6.8e9, 400e9, 2e-5, dict.fromkeys(BYTES_A_VALUE, 0.8), 0.68, 8 * 580e12, 8, 0.9, 2e-4,
    ),
}  # fmt: skip


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


def roofline(rows: float, each: float, most: float) -> float:
    """Rows times the rate of one, and the most, with their times added: reading and multiplying overlap little."""
    return rounded(1 / (1 / (rows * each) + 1 / most))


@pytest.mark.parametrize("name", SHEETS)
def test_every_figure_follows_from_the_data_sheets(name: str) -> None:
    machine, sheet = read_machine(described()[name]), SHEETS[name]
    read = sheet.read * sheet.channels
    assert machine.processors == sheet.processors
    assert machine.memory_bytes == int(0.98 * sheet.memory_bytes)
    assert machine.memory_read == rounded(read)
    rates = [(rate.block_bytes, rate.depth, rate.bytes_per_second) for rate in machine.disk]
    assert rates == [(block, depth, rounded(share * sheet.drives)) for block, depth, share in READS]
    for form, points in machine.products.items():
        each, most = 2 * read * sheet.one_row[form] / BYTES_A_VALUE[form], sheet.reached * sheet.peak[form]
        assert points == tuple((rows, roofline(rows, each, most)) for rows in ROWS), form
    each = LATENT_FLOPS_A_BYTE * read / sheet.readers
    assert machine.attention == tuple((rows, roofline(rows, each, sheet.attention)) for rows in (16, 64, 16384))
    assert machine.layer_seconds == sheet.layer_seconds
    assert (machine.network.bytes_per_second, machine.network.round_trip_seconds) == (
        rounded(0.94 * sheet.line / 8),
        sheet.round_trip,
    )


def test_each_says_what_it_is_and_where_from() -> None:
    assert list(described()) == sorted(SHEETS)
    for path in described().values():
        machine = read_machine(path)
        assert machine.measured is None
        assert machine.identity is None
        assert "about" in machine.source
        assert machine.watts
        assert machine.price_usd
    gpus = read_machine(described()["8xh200"])
    assert "no Earthshine kernel" in gpus.source


def test_more_rows_are_never_slower_and_int4_is_the_fastest_at_one() -> None:
    for path in described().values():
        machine = read_machine(path)
        for points in (*machine.products.values(), machine.attention):
            assert all(below[1] <= above[1] for below, above in pairwise(points))
        assert max(machine.products, key=lambda form: machine.product_flops(form, 1)) == "int4"


def test_the_files_are_in_the_package_and_are_plain_json() -> None:
    for name, path in described().items():
        assert path.parent.name == "described"
        assert json.loads(path.read_text(encoding="utf-8"))["name"], name
