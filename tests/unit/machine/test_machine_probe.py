"""Facts of the computer: confirmed by other sources, and robust against unusual systems."""

import os
import resource
import subprocess
import sys

import pytest

from earthshine import machine
from earthshine.machine import probe
from earthshine.settings import KERNEL_CHOICES

ALL = 32_000_000 * 1024
AVAILABLE = 24_000_000 * 1024
NONE_V1 = 9223372036854771712  # what version 1 shows for no limit


class TestThisMachine:
    def test_processors_are_those_that_this_process_may_use(self) -> None:
        allowed = os.sched_getaffinity(0)
        assert 1 <= machine.processors() <= len(allowed)
        try:
            os.sched_setaffinity(0, {min(allowed)})
            assert machine.processors() == 1
        finally:
            os.sched_setaffinity(0, allowed)

    def test_memory_that_is_held_is_seen(self) -> None:
        before = machine.memory_resident()
        held = bytearray(b"x") * (64 << 20)
        grown = machine.memory_resident() - before
        assert 60 << 20 < grown < 100 << 20
        del held
        assert machine.memory_resident() <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def test_what_is_available_is_less_than_there_is(self) -> None:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert 0 < machine.memory_available() < machine.memory_total() <= there

    def test_it_has_an_identity(self) -> None:
        found = probe.identity()
        assert list(found) == ["cpu_model", "processors", "memory_bytes", "instruction_set"]
        assert found["processors"] == machine.processors()
        assert found["cpu_model"]
        assert found["instruction_set"] in KERNEL_CHOICES[1:]

    def test_work_is_counted(self) -> None:
        """Computes until the system has noticed."""
        before = probe.busy_seconds()
        assert any(sum(range(100_000)) and probe.busy_seconds() > before for _ in range(100_000))


class TestVersion2:
    def test_a_limit_of_the_own_group_or_of_one_above_it_counts(self, system) -> None:
        """The least that any of them leaves, with page cache that can be given back counted as free."""
        system.groups("1:cpu:/other", "0::/user/job")
        assert probe.memory_available(system.root) == AVAILABLE
        system.memory2("user/job", "max", 10**9)
        assert (probe.memory_available(system.root), probe.memory_total(system.root)) == (AVAILABLE, ALL)
        system.memory2("user", 10**10, 4 * 10**9, cache=10**9)
        assert (probe.memory_available(system.root), probe.memory_total(system.root)) == (7 * 10**9, 10**10)
        system.memory2("user/job", 6 * 10**9, 10**9, cache=None)
        assert (probe.memory_available(system.root), probe.memory_total(system.root)) == (5 * 10**9, 6 * 10**9)
        system.memory2("user/job", 10**9, 3 * 10**9)
        assert (probe.memory_available(system.root), probe.memory_total(system.root)) == (0, 10**9)

    def test_a_limit_above_what_there_is_changes_nothing(self, system) -> None:
        system.groups("0::/")
        system.memory2(".", 10**13, 10**9)
        assert (probe.memory_available(system.root), probe.memory_total(system.root)) == (AVAILABLE, ALL)

    @pytest.mark.parametrize("text", ["", "0::", "nonsense", "0::/a/b/c", "3:memory:/x\n", "0::/../..", "x" * 10_000])
    def test_without_a_group_the_system_is_believed(self, system, text: str) -> None:
        system.write("proc/self/cgroup", text)
        assert (probe.memory_available(system.root), probe.memory_total(system.root)) == (AVAILABLE, ALL)

    def test_a_group_that_can_t_be_seen_from_a_container_is_the_mount_s_root(self, system) -> None:
        system.groups("0::/docker/abc")
        system.memory2(".", 8 * 10**9, 2 * 10**9)
        assert (probe.memory_available(system.root), probe.memory_total(system.root)) == (6 * 10**9, 8 * 10**9)

    @pytest.mark.parametrize("path", ["/../outside", "/job/../../x"])
    def test_a_path_that_leaves_the_mount_is_not_followed(self, system, path: str) -> None:
        system.groups(f"0::{path}")
        system.memory2("../outside", 10**9, 0)
        system.memory2("../x", 10**9, 0)
        system.memory2("job", 2 * 10**9, 0)
        system.memory2(".", 8 * 10**9, 0)
        assert probe.memory_total(system.root) == 8 * 10**9


class TestVersion1:
    def test_a_limit_of_the_own_group_or_of_one_above_it_counts(self, system) -> None:
        system.groups("5:cpu,cpuacct:/x", "4:memory:/user/job", "0::/")
        system.memory1(".", NONE_V1, 20 * 10**9)
        system.memory1("user", NONE_V1, 9 * 10**9)
        system.memory1("user/job", NONE_V1, 10**9)
        assert (probe.memory_available(system.root), probe.memory_total(system.root)) == (AVAILABLE, ALL)
        system.memory1("user/job", 6 * 10**9, 2 * 10**9, cache=10**9)
        assert (probe.memory_available(system.root), probe.memory_total(system.root)) == (5 * 10**9, 6 * 10**9)
        system.memory1("user", 5 * 10**9, 4 * 10**9)
        assert (probe.memory_available(system.root), probe.memory_total(system.root)) == (10**9, 5 * 10**9)

    def test_a_limit_of_groups_that_can_t_be_seen_counts(self, system) -> None:
        system.groups("4:memory:/elsewhere")
        system.memory1(".", NONE_V1, 10**9, above=4 * 10**9)
        assert (probe.memory_available(system.root), probe.memory_total(system.root)) == (3 * 10**9, 4 * 10**9)

    def test_a_group_above_without_hierarchy_sets_no_limit(self, system) -> None:
        system.groups("4:memory:/user/job")
        system.memory1("user/job", 6 * 10**9, 10**9)
        system.memory1("user", 10**9, 0)
        assert probe.memory_total(system.root) == 10**9
        system.write("sys/fs/cgroup/memory/user/memory.use_hierarchy", "0\n")
        assert probe.memory_total(system.root) == 6 * 10**9

    def test_both_versions_at_once_give_the_narrower(self, system) -> None:
        system.groups("4:memory:/job", "0::/job")
        system.memory1("job", 6 * 10**9, 10**9)
        system.memory2("job", 5 * 10**9, 10**9, at="sys/fs/cgroup/unified")
        assert probe.memory_total(system.root) == 6 * 10**9  # nothing says that the other one is mounted there
        mounts = (
            "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            "41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n"
        )
        system.groups("4:memory:/job", "0::/job", mounts=mounts)
        assert probe.memory_total(system.root) == 5 * 10**9

    def test_a_mount_that_shows_a_part_is_understood(self, system) -> None:
        """As in a container without a namespace of its own, whose mount begins at its group; a space is an octal."""
        mounts = "nonsense\n35 31 0:32 /docker/a\\040b /odd\\040place rw - cgroup cgroup rw,memory\n"
        system.groups("4:memory:/docker/a b/inner", mounts=mounts)
        system.memory1("inner", 3 * 10**9, 10**9, at="odd place")
        system.memory1(".", 7 * 10**9, 10**9, at="odd place")
        assert probe.memory_total(system.root) == 3 * 10**9
        system.groups("4:memory:/docker/other", mounts=mounts)
        assert probe.memory_total(system.root) == 7 * 10**9

    @pytest.mark.parametrize("text", ["", "-1", "0", "many", "9" * 30, "5 GB", "5e9", "\xff"])
    def test_limit_that_is_not_a_number_is_ignored(self, system, text: str) -> None:
        system.groups("4:memory:/")
        system.write("sys/fs/cgroup/memory/memory.limit_in_bytes", text)
        system.write("sys/fs/cgroup/memory/memory.stat", f"hierarchical_memory_limit {text}\nalone\n")
        assert (probe.memory_available(system.root), probe.memory_total(system.root)) == (AVAILABLE, ALL)


class TestProcessors:
    @pytest.fixture(autouse=True)
    def _eight(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    @pytest.mark.parametrize(
        ("text", "expected"),
        [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("9900000 100000", 8),
         ("0 100000", 8), ("200000", 8), ("200000 0", 8), ("", 8), ("-5 100000", 8), ("two 100000", 8)],
    )  # fmt: skip
    def test_a_quota_of_version_2(self, system, text: str, expected: int) -> None:
        system.groups("0::/job")
        system.write("sys/fs/cgroup/job/cpu.max", text)
        assert probe.processors(system.root) == expected

    @pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("400000", 4), ("50000", 1), ("x", 8)])
    def test_a_quota_of_version_1(self, system, quota: str, expected: int) -> None:
        system.groups(
            "7:cpu,cpuacct:/user/job", mounts="32 31 0:29 / /sys/fs/cgroup/both rw - cgroup cgroup rw,cpu,cpuacct\n"
        )
        system.write("sys/fs/cgroup/both/user/job/cpu.cfs_quota_us", "-1")
        system.write("sys/fs/cgroup/both/user/job/cpu.cfs_period_us", "100000")
        system.write("sys/fs/cgroup/both/user/cpu.cfs_quota_us", quota)
        system.write("sys/fs/cgroup/both/user/cpu.cfs_period_us", "100000")
        assert probe.processors(system.root) == expected


class TestStrangeSystems:
    @pytest.mark.parametrize("text", ["", "MemAvailable:", "MemAvailable: many kB", "MemFree: 7 kB"], ids=repr)
    def test_without_any_number_a_modest_one_is_assumed(self, system, text: str) -> None:
        system.write("proc/meminfo", text)
        system.write("proc/self/status", text)
        assert probe.memory_available(system.root) == probe.memory_total(system.root) == 8 << 30
        assert probe.memory_resident(system.root) == 0

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            ("fma avx2 avx512f avx512bw avx512dq avx512vl avx512_bf16 avx512vbmi amx_tile amx_bf16", "amx"),
            ("fma avx2 avx512f avx512bw avx512dq avx512vl avx512_bf16 avx512vbmi amx_tile", "avx512_bf16"),
            ("fma avx2 avx512f avx512bw avx512dq avx512vl avx512_bf16", "avx512"),
            ("avx2 fma avx512f avx512bw", "avx2"),
            ("avx2", "portable"),
        ],
    )
    def test_identity_is_the_first_processor_s(self, system, monkeypatch, flags: str, expected: str) -> None:
        monkeypatch.delenv("EARTHSHINE_CPU", raising=False)
        monkeypatch.delenv("EARTHSHINE_KERNELS", raising=False)
        text = f"processor\t: 0\nmodel name\t: A \x1b[31mCPU \nflags\t\t: {flags}\n\nmodel name\t: Another\nflags\t: \n"
        system.write("proc/cpuinfo", text)
        found = probe.identity(system.root)
        assert found["cpu_model"] == "A [31mCPU"
        assert found["instruction_set"] == expected
        assert found["memory_bytes"] == ALL

    @pytest.mark.parametrize(
        ("cpu", "kernels", "expected"),
        [
            ("avx2", "", "avx2"),
            ("", "portable", "portable"),
            ("avx2", "portable", "portable"),
            ("portable", "avx2", "portable"),
            ("auto", "auto", "avx512"),
            ("avx2", "reference", "reference"),
            ("amx", "", "avx512"),
        ],
    )
    def test_what_the_environment_hides_is_not_measured(
        self, system, monkeypatch, cpu: str, kernels: str, expected: str
    ) -> None:
        system.write("proc/cpuinfo", "flags\t\t: fma avx2 avx512f avx512bw avx512dq avx512vl\n")
        monkeypatch.setenv("EARTHSHINE_CPU", cpu)
        monkeypatch.setenv("EARTHSHINE_KERNELS", kernels)
        assert probe.identity(system.root)["instruction_set"] == expected

    def test_identity_where_the_system_says_nothing(self, system, monkeypatch) -> None:
        monkeypatch.delenv("EARTHSHINE_KERNELS", raising=False)
        found = probe.identity(system.root)
        assert found["cpu_model"] == os.uname().machine
        assert found["instruction_set"] == "portable"

    @pytest.mark.parametrize(
        ("text", "expected"),
        [("cpu  100 20 30 4000 500 6 7 8 90 10\ncpu0 1 1", 171.0), ("cpu  100 20 30 4000", 150.0), ("", 0.0),
         ("cpu x", 0.0), ("intr 5 6", 0.0)],
    )  # fmt: skip
    def test_idle_time_does_not_count_as_work(self, system, text: str, expected: float) -> None:
        system.write("proc/stat", text)
        assert probe.busy_seconds(system.root) * os.sysconf("SC_CLK_TCK") == expected

    def test_caches_are_added_once_each(self, system) -> None:
        assert probe.last_cache_bytes(system.root) == 0
        for cpu, level, size, shared in ((0, 2, "1024K", "0"), (0, 3, "32768K", "0-1"), (1, 3, "32768K", "0-1"),
                                         (2, 3, "32768K", "2"), (3, 3, "huge", "3")):  # fmt: skip
            folder = f"sys/devices/system/cpu/cpu{cpu}/cache/index{level}"
            system.write(f"{folder}/level", f"{level}\n")
            system.write(f"{folder}/size", f"{size}\n")
            system.write(f"{folder}/shared_cpu_list", f"{shared}\n")
        assert probe.last_cache_bytes(system.root) == 64 << 20


def test_the_peak_is_this_process_s_own_and_no_less_than_what_it_holds() -> None:
    """A child's peak does not include that of its parent."""
    ballast = bytearray(64 << 20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    held = machine.memory_resident()
    here = machine.memory_peak()
    assert here >= held > len(ballast)
    script = "from earthshine.machine import memory_peak; print(memory_peak())"
    child = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert 4 << 20 < child < here
