"""A memory limit around a process and all that it starts, page cache counted, enforced by the kernel's control groups.

Version 1 (`/sys/fs/cgroup/memory`) and version 2 are served, systemd's scopes where this user may not make a group.
No swap is given in place of the memory refused. Where no limit can be set, that is an error, not skipped.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from earthshine.errors import UsageError

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A limit in force: `prefix` goes before a command's words; `peak` gives the most bytes held so far, or None."""

    prefix: tuple[str, ...]
    group: Path | None
    version: int

    def peak(self) -> int | None:
        """The group's highest use in bytes, page cache counted, where the kernel keeps it."""
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        try:
            return int((self.group / name).read_text()) if self.group else None
        except (OSError, ValueError):
            return None

    def killed(self) -> bool:
        """Whether the kernel killed a process of the group because memory ran out."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        try:
            fields = (self.group / name).read_text().split() if self.group else []
        except OSError:
            return False
        return any(word == "oom_kill" and fields[i + 1] != "0" for i, word in enumerate(fields[:-1]))


@contextlib.contextmanager
def memory_limit(limit_bytes: int | None, root: Path = ROOT) -> Iterator[MemoryLimit]:
    """A group of its own with this limit for the commands started under its `prefix`; None limits nothing.

    Raises UsageError where neither a control group nor systemd-run can limit memory for this user.
    """
    if limit_bytes is None:
        yield MemoryLimit((), None, 0)
        return
    made = _make(limit_bytes, root)
    if made is None:
        yield _scope(limit_bytes)
        return
    group, version = made
    try:
        yield MemoryLimit(("/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")), group, version)
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def _make(limit_bytes: int, root: Path) -> tuple[Path, int] | None:
    """The group, made and limited, and the version of control groups; None where this user can't."""
    first = root / "memory"
    version, parent = (1, first) if (first / "memory.limit_in_bytes").exists() else (2, root)
    group = parent / f"earthshine-{os.getpid()}"
    limits: Sequence[tuple[str, int]] = (
        [("memory.limit_in_bytes", limit_bytes), ("memory.memsw.limit_in_bytes", limit_bytes)]
        if version == 1
        else [("memory.max", limit_bytes), ("memory.swap.max", 0)]
    )
    try:
        if version == 2 and "memory" not in (root / "cgroup.subtree_control").read_text().split():
            (root / "cgroup.subtree_control").write_text("+memory")
        group.mkdir(exist_ok=True)
        (group / limits[0][0]).write_text(str(limits[0][1]))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        return None
    for name, value in limits[1:]:  # absent where the kernel does not count swap
        with contextlib.suppress(OSError):
            (group / name).write_text(str(value))
    return group, version


def _scope(limit_bytes: int) -> MemoryLimit:
    words = ("systemd-run", "--scope", "--quiet", "-p", f"MemoryMax={limit_bytes}", "-p", "MemorySwapMax=0")
    for more in ((), ("--user",)):
        command = (*words, *more)
        tried = subprocess.run((*command, "true"), capture_output=True, check=False) if shutil.which(words[0]) else None
        if tried is not None and tried.returncode == 0:
            return MemoryLimit(command, None, 2)
    raise UsageError(
        "A memory limit needs a control group: neither could one be made under /sys/fs/cgroup nor did systemd-run "
        "make one. Run this as root, or leave the limit out."
    )
