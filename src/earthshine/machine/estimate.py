"""This machine as it is likely to be, where nobody has measured it: rates from what the system says without a test.

Processors, instruction set, memory and the kind of disk are probed; each has a typical rate below, and `source` says
which were taken. Nothing here is a measurement: `earthshine bench machine` makes one. Rates of the instruction sets
are what this package's kernels reached on one core of a busy server of 2.1 GHz, and for AVX512_BF16 on Zen 5, rounded
down.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from earthshine.machine.cgroup import ROOT
from earthshine.machine.drive import disk_kind, link_rate
from earthshine.machine.probe import identity, memory_total, processors, title
from earthshine.machine.profile import DiskRate, Machine, Points
from earthshine.units import format_rate

_MEMORY_PER_CORE = 10e9  # bytes per second that one core reads
_DESKTOP_MEMORY, _SERVER_MEMORY = 60e9, 250e9  # that all cores read, two channels of DDR5 or eight
_SERVER_BYTES = 200 << 30  # of memory, more than two channels hold
_MEMORY_SHARE = 0.8  # of the memory's rate, that products of one row reach at best
_LINK_SHARE = 0.7  # of a PCIe link, that reads of an expert reach
_DISKS = {
    "NVMe drive": 2.5e9,
    "SATA SSD": 0.5e9,
    "hard disk": 0.15e9,
    "virtual disk": 1e9,
    "network": 0.1e9,
    "unknown": 0.5e9,
}
_LAYER_SECONDS = 5e-4
_BYTES_PER_VALUE = {"bf16": 2.0, "int4": 0.5625, "fp8": 1.0, "int8": 1.03}
_LATENT_FLOPS_PER_BYTE = 1.9  # of one query row
_ROWS, _HEADS = (1, 4, 16, 64, 512), (16, 64, 16384)


@dataclass(frozen=True, slots=True)
class _Core:
    """FLOP/s of one core: products of many rows, and of one row by a format that has to be decoded."""

    many: float
    decoded: float


_CORES = {
    "amx": _Core(3e11, 1.2e10),
    "avx512_bf16": _Core(1.5e11, 2e10),
    "avx512": _Core(8e10, 8e9),
    "avx2": _Core(3e10, 3.5e9),
    "portable": _Core(1.5e8, 1e8),
    "reference": _Core(1.5e8, 1e8),
}


def estimated_machine(folder: Path, root: Path = ROOT) -> Machine:
    """This machine with typical rates. `folder`: where models lie, there or not yet, whose disk counts."""
    own, threads, nbytes = identity(root), processors(root), memory_total(root)
    core, kind = _CORES[str(own["instruction_set"])], disk_kind(folder, root)
    most = _SERVER_MEMORY if nbytes > _SERVER_BYTES else _DESKTOP_MEMORY
    memory, disk = min(threads * _MEMORY_PER_CORE, most), _disk_rate(folder, kind, root)
    parts = (
        f"{threads} processors with {own['instruction_set']} kernels",
        f"memory read at {format_rate(memory)}",
        f"{kind} read at {format_rate(disk)}" if kind != "unknown" else f"a disk read at {format_rate(disk)}",
    )
    return Machine(
        name=title(threads, root),
        source=f"Estimated, not measured: {', '.join(parts)}.",
        measured=None,
        identity=own,
        processors=threads,
        memory_bytes=nbytes,
        memory_read=memory,
        disk=(DiskRate(1 << 20, 1, disk),),
        products=_products(core, threads, memory),
        attention=_attention(core.many * threads, memory),
        layer_seconds=_LAYER_SECONDS,
    )


def _disk_rate(folder: Path, kind: str, root: Path) -> float:
    link = link_rate(folder, root)
    return _DISKS[kind] if link is None else _LINK_SHARE * link


def _products(core: _Core, threads: int, memory: float) -> Mapping[str, Points]:
    """The times of reading or decoding a weight, whichever is longer, and of multiplying it by the rows are added."""
    found: dict[str, Points] = {}
    for form, nbytes in _BYTES_PER_VALUE.items():
        read = 2 / nbytes * _MEMORY_SHARE * memory
        one = read if form == "bf16" else min(read, core.decoded * threads)
        found[form] = tuple((rows, 1 / (1 / (one * rows) + 1 / (core.many * threads))) for rows in _ROWS)
    return found


def _attention(peak: float, memory: float) -> Points:
    return tuple((rows, 1 / (1 / (rows * _LATENT_FLOPS_PER_BYTE * memory) + 1 / peak)) for rows in _HEADS)
