"""What the computer is, as far as the engine must know: probed facts, from the system's own files, without torch."""

import os
from pathlib import Path

__all__ = ["memory_available", "memory_resident", "processors"]

_UNKNOWN = 8 << 30  # where the system says nothing, what a small machine has


def processors() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_available() -> int:
    """Bytes that this process could still take: what the system calls available, or what its cgroup leaves it."""
    available = _field(Path("/proc/meminfo"), "MemAvailable:")
    limits = [_cgroup_room(folder) for folder in _cgroup_folders()]
    return min([value for value in (available, *limits) if value is not None], default=_UNKNOWN)


def memory_resident() -> int:
    """Bytes of memory that this process holds now."""
    return _field(Path("/proc/self/status"), "VmRSS:") or 0


def _field(file: Path, name: str) -> int | None:
    """A line such as "MemAvailable:  24000000 kB", in bytes."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _cgroup_folders() -> list[Path]:
    """This process's cgroup (version 2) and those above it."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    own = next((line[3:] for line in lines if line.startswith("0::/")), None)
    if own is None:
        return []
    root = Path("/sys/fs/cgroup")
    folder = root / own.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _cgroup_room(folder: Path) -> int | None:
    """What a cgroup's limit leaves, its reclaimable page cache counted as free; None where it has no limit."""
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        counts = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return None if limit == "max" else max(0, int(limit) - used + int(counts.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
