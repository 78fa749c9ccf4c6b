"""Facts of this computer from the system's own files: processors, memory, and the identity of a measured profile.

EARTHSHINE_CPU and EARTHSHINE_KERNELS are part of the identity. Limits of this process's control group are applied.
Where the system gives no figure, a modest default is used. `root` is where the system's files are, so that tests can
use others.
"""

import os
from pathlib import Path

from earthshine.machine.cgroup import ROOT, memory_limit, memory_room, processors_quota
from earthshine.settings import KERNEL_CHOICES, read_settings
from earthshine.units import format_bytes

_UNKNOWN = 8 << 30  # of a small machine, where the system does not report it

# What the kernels' instruction sets ask of a processor, the best first, in the words of /proc/cpuinfo.
_SETS = (
    ("amx", {"amx_tile", "amx_bf16"}),
    ("avx512_bf16", {"avx512_bf16", "avx512vbmi"}),
    ("avx512", {"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    ("avx2", {"avx2", "fma"}),
)


def processors(root: Path = ROOT) -> int:
    """The number of processors that this process may use, within its control group's quota of processor time."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, processors_quota(root) or allowed)


def memory_total(root: Path = ROOT) -> int:
    """Bytes of memory of the machine, or of its control group's limit where that is lower."""
    total, limit = physical_memory(root), memory_limit(root)
    return total if limit is None else min(total, limit)


def memory_available(root: Path = ROOT) -> int:
    """Bytes that this process could still allocate, by the system and its control group."""
    rooms = (_field(root / "proc/meminfo", "MemAvailable:"), memory_room(root))
    return min((room for room in rooms if room is not None), default=_UNKNOWN)


def memory_resident(root: Path = ROOT) -> int:
    """Resident bytes of this process."""
    return _field(root / "proc/self/status", "VmRSS:") or 0


def memory_peak(root: Path = ROOT) -> int:
    """Peak resident bytes of this process. (getrusage would include those of its parent.)"""
    return _field(root / "proc/self/status", "VmHWM:") or 0


def physical_memory(root: Path = ROOT) -> int:
    """Bytes of memory of the machine, without the limits of this process."""
    return _field(root / "proc/meminfo", "MemTotal:") or _UNKNOWN


def busy_seconds(root: Path = ROOT) -> float:
    """Processor seconds of all programs since the system started; 0 if unknown.

    The line of /proc/stat: "cpu user nice system idle iowait irq softirq steal ...".
    """
    try:
        words = (root / "proc/stat").read_text(encoding="ascii").split()[:9]
        counts = [int(word) for word in words[1:]]
    except (OSError, ValueError):
        return 0.0
    return (sum(counts) - sum(counts[3:5])) / os.sysconf("SC_CLK_TCK") if words[:1] == ["cpu"] else 0.0


def identity(root: Path = ROOT) -> dict[str, str | int]:
    """What a measured profile depends on: rates change with any of these."""
    return {
        "cpu_model": _cpu(root, "model name") or os.uname().machine,
        "processors": processors(root),
        "memory_bytes": physical_memory(root),
        "instruction_set": _instruction_set(root),
    }


def title(threads: int, root: Path = ROOT) -> str:
    """This machine in a few words: its processor, the threads in use, its memory."""
    model = _cpu(root, "model name")[:50] or os.uname().machine
    return f"{model}, {threads} threads, {format_bytes(memory_total(root))}"


def last_cache_bytes(root: Path = ROOT) -> int:
    """Bytes of the last-level cache, of all processors together; 0 if unknown."""
    sizes: dict[tuple[int, str], int] = {}
    for folder in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level = int((folder / "level").read_text(encoding="ascii"))
            size = int((folder / "size").read_text(encoding="ascii").strip().removesuffix("K")) << 10
            sizes[level, (folder / "shared_cpu_list").read_text(encoding="ascii")] = size
        except (OSError, ValueError):
            continue
    last = max((level for level, _ in sizes), default=0)
    return sum(size for (level, _), size in sizes.items() if level == last)


def _instruction_set(root: Path) -> str:
    """The best of the kernels' instruction sets that the processor names and the environment does not hide, or
    "reference"; the kernels themselves may have reasons not to use it."""
    flags, settings = set(_cpu(root, "flags").split()), read_settings()
    own = next((name for name, needed in _SETS if needed <= flags), "portable")
    return min({own, settings.cpu, settings.kernels} - {"auto"}, key=KERNEL_CHOICES.index)


def _cpu(root: Path, key: str) -> str:
    """The first processor's value of a line such as "model name : AMD EPYC", at most 4096 printable characters."""
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    value = next((line.partition(":")[2] for line in lines if line.partition(":")[0].strip() == key), "")
    return "".join(filter(str.isprintable, value)).strip()[:4096]


def _field(file: Path, name: str) -> int | None:
    """A line such as "MemAvailable:  24000000 kB", in bytes."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
