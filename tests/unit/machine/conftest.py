"""A tree of the system's files in a folder, and a machine whose every figure differs."""

from pathlib import Path
from types import MappingProxyType

import pytest

from earthshine.machine import DiskRate, Machine, Network

GIB = 1 << 30


class System:
    """Files under a root, as the kernel shows them under /."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", "MemTotal: 32000000 kB\nMemFree: 7 kB\nMemAvailable:   24000000 kB\n")
        self.write("proc/self/status", "Name: python\nVmRSS:\t  5000 kB\n")

    def write(self, name: str, text: str) -> None:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def groups(self, *lines: str, mounts: str = "") -> None:
        self.write("proc/self/cgroup", "".join(f"{line}\n" for line in lines))
        if mounts:
            self.write("proc/self/mountinfo", mounts)

    def memory2(self, group: str, most: int | str, used: int, cache: int | None = 0, at: str = "sys/fs/cgroup") -> None:
        self.write(f"{at}/{group}/memory.max", f"{most}\n")
        self.write(f"{at}/{group}/memory.current", f"{used}\n")
        self.write(f"{at}/{group}/memory.stat", "anon 5\n" + ("" if cache is None else f"inactive_file {cache}\n"))

    def memory1(
        self,
        group: str,
        most: int,
        used: int,
        cache: int = 0,
        above: int | None = None,
        at: str = "sys/fs/cgroup/memory",
    ) -> None:
        self.write(f"{at}/{group}/memory.limit_in_bytes", f"{most}\n")
        self.write(f"{at}/{group}/memory.usage_in_bytes", f"{used}\n")
        hierarchical = most if above is None else above
        self.write(
            f"{at}/{group}/memory.stat",
            f"cache 1\ninactive_file 99\nhierarchical_memory_limit {hierarchical}\ntotal_inactive_file {cache}\n",
        )


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


@pytest.fixture
def machine() -> Machine:
    products = {
        form: ((1, 1e10 + i), (4, 3.7e10 / (i + 1)), (512, 4.123456789012345e11 + i))
        for i, form in enumerate(("bf16", "int4", "fp8", "int8"))
    }
    return Machine(
        name="Müller's box",
        source="Measured by hand.",
        measured="2026-01-31",
        identity=MappingProxyType(
            {"cpu_model": "Some CPU", "processors": 3, "memory_bytes": 30 * GIB, "instruction_set": "avx2"}
        ),
        processors=2,
        memory_bytes=24 * GIB + 1,
        memory_read=49.3e9,
        disk=(DiskRate(4096, 1, 1e8 / 3), DiskRate(1 << 20, 1, 2e9), DiskRate(1 << 20, 4, 2.5e9)),
        products=MappingProxyType(products),
        attention=((16, 4.5e11), (64, 7.2e11), (16384, 8.1e11)),
        layer_seconds=2.5e-4,
        network=Network(1.1e9, 1e-4 / 3),
        watts=90.5,
        price_usd=1000.0,
    )
