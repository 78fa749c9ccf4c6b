"""What the computer is: numbers that other sources confirm, and none that a strange system could make up."""

import os
import resource
from pathlib import Path

import pytest

from earthshine import machine


def test_processors_are_those_that_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    assert machine.processors() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert machine.processors() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_memory_that_is_held_is_seen() -> None:
    before = machine.memory_resident()
    held = bytearray(b"x") * (64 << 20)
    grown = machine.memory_resident() - before
    assert 60 << 20 < grown < 100 << 20
    del held
    assert machine.memory_resident() <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_what_is_available_is_less_than_there_is() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.memory_available() < total


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of the system's files, in place of / for this module."""
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / str(path).lstrip("/"))
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 32000000 kB\nMemAvailable:   24000000 kB\n")
    return tmp_path


def limit(system: Path, group: str, most: str, used: int, cache: int | None = 0) -> None:
    folder = system / "sys/fs/cgroup" / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text("anon 5\n" + ("" if cache is None else f"inactive_file {cache}\n"))


def test_a_limit_of_the_own_cgroup_or_of_one_above_it_counts(system: Path) -> None:
    """The least that any of them leaves, with page cache that can be given back counted as free."""
    (system / "proc/self/cgroup").write_text("1:cpu:/other\n0::/user/job\n")
    assert machine.memory_available() == 24_000_000 * 1024
    limit(system, "user/job", "max", 10**9)
    assert machine.memory_available() == 24_000_000 * 1024
    limit(system, "user", str(10**10), 4 * 10**9, cache=10**9)
    assert machine.memory_available() == 7 * 10**9
    limit(system, "user/job", str(6 * 10**9), 10**9, cache=None)
    assert machine.memory_available() == 5 * 10**9
    limit(system, "user/job", str(10**9), 3 * 10**9)
    assert machine.memory_available() == 0


@pytest.mark.parametrize("text", ["", "0::", "nonsense", "0::/a/b/c", "3:memory:/x\n"], ids=repr)
def test_without_a_cgroup_the_system_is_believed(system: Path, text: str) -> None:
    (system / "proc/self/cgroup").write_text(text)
    assert machine.memory_available() == 24_000_000 * 1024


@pytest.mark.parametrize("text", ["", "MemAvailable:", "MemAvailable: many kB", "MemFree: 7 kB"], ids=repr)
def test_without_any_number_a_modest_one_is_assumed(system: Path, text: str) -> None:
    (system / "proc/meminfo").write_text(text)
    assert machine.memory_available() == 8 << 30
    assert machine.memory_resident() == 0
