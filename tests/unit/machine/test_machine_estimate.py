"""Rates of a machine that nobody measured: plausible, in order, and never taken for a measurement."""

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from earthshine.machine import Machine, check_machine, described, estimate, estimated_machine, read_machine
from earthshine.plan import PlanArgs
from earthshine.plan.explore import Case
from earthshine.settings import KERNEL_CHOICES
from earthshine.spec import ModelSpec, load_spec

FLAGS = {
    "amx": "amx_tile amx_bf16 avx2 fma",
    "avx512_bf16": "avx512_bf16 avx512vbmi avx2 fma",
    "avx512": "avx512f avx512bw avx512dq avx512vl avx2 fma",
    "avx2": "avx2 fma",
    "portable": "sse2",
}
LIKE = {  # what a described machine would be estimated from: its memory, kind of disk and link
    "mini-24gb": ("avx512_bf16", 24, "nvme0n1", "16.0 GT/s PCIe"),
    "desktop-128gb": ("avx512_bf16", 128, "nvme0n1", "32.0 GT/s PCIe"),
    "server-768gb": ("avx512_bf16", 768, "nvme0n1", "32.0 GT/s PCIe"),
}


def estimated(system, monkeypatch, folder: Path, kernels: str, threads: int, gib: int, disk: str, link: str) -> Machine:
    """Of a system with these files, as the kernel would show them."""
    monkeypatch.delenv("EARTHSHINE_CPU", raising=False)
    monkeypatch.delenv("EARTHSHINE_KERNELS", raising=False)
    monkeypatch.setattr(estimate, "processors", lambda root: threads)
    system.write("proc/cpuinfo", f"model name : Some CPU\nflags : {FLAGS[kernels]}\n")
    system.write("proc/meminfo", f"MemTotal: {gib << 20} kB\nMemAvailable: {gib << 20} kB\n")
    number = os.stat(folder).st_dev
    system.write(f"sys/devices/{disk}/queue/rotational", "0")
    system.write(f"sys/devices/{disk}/device/device/current_link_speed", link)
    system.write(f"sys/devices/{disk}/device/device/current_link_width", "4")
    place = system.root / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(system.root / "sys/devices" / disk)
    return estimated_machine(folder, system.root)


def test_an_estimate_says_what_it_was_made_from(system, monkeypatch, tmp_path) -> None:
    found = estimated(system, monkeypatch, tmp_path, "avx2", 4, 16, "nvme0n1", "8.0 GT/s PCIe")
    assert found.measured is None
    assert found.name == "Some CPU, 4 threads, 16.00 GiB"
    assert found.source.startswith("Estimated, not measured: 4 processors with avx2 kernels, memory read at 40.00 GB/s")
    assert "NVMe drive read at 2.76 GB/s" in found.source
    check_machine(replace(found, identity=None))  # every figure is one that a machine's file may hold


def test_better_kernels_and_more_cores_are_estimated_faster(system, monkeypatch, tmp_path) -> None:
    machines = [
        estimated(system, monkeypatch, tmp_path, name, 4, 16, "nvme0n1", "8.0 GT/s PCIe")
        for name in KERNEL_CHOICES
        if name in FLAGS
    ]
    for worse, better in pairwise(machines):
        assert worse.product_flops("bf16", 512) < better.product_flops("bf16", 512)
    for form, points in machines[0].products.items():
        assert all(a[1] <= b[1] for a, b in pairwise(points)), form
    more = estimated(system, monkeypatch, tmp_path, "avx2", 8, 400, "nvme0n1", "8.0 GT/s PCIe")
    assert more.memory_read == 2 * machines[1].memory_read


@pytest.mark.parametrize("disk", ["sda", "vda", "mmcblk0"])
def test_other_disks_have_a_rate_too(system, monkeypatch, tmp_path, disk) -> None:
    found = estimated(system, monkeypatch, tmp_path, "amx", 2, 16, disk, "")
    assert 1e8 <= found.disk_rate(1 << 20, 2) <= 1e9


@pytest.mark.parametrize("name", LIKE)
def test_estimates_are_within_a_factor_of_three_of_described_machines(
    system, monkeypatch, tmp_path, shared_data, name
) -> None:
    """As the command tells its reader: of tokens and of the wait for the first one."""
    kernels, gib, disk, link = LIKE[name]
    there = read_machine(described()[name])
    guess = estimated(system, monkeypatch, tmp_path, kernels, there.processors, gib, disk, link)
    guess = replace(guess, memory_bytes=there.memory_bytes)
    spec: ModelSpec = load_spec(shared_data / "configs/moonshotai--Kimi-K2.6_config.json")
    exact, rough = (Case.of(spec, machine, PlanArgs(context_tokens=8192)) for machine in (there, guess))
    for cost, other in ((exact.decode(4096), rough.decode(4096)), (exact.prompt(4096), rough.prompt(4096))):
        assert 1 / 3 < other.seconds / cost.seconds < 3
