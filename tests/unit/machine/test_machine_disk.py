"""Measuring a disk: every figure comes from real reads, no file is left, and what is not a disk is refused."""

import errno
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from earthshine.errors import UsageError
from earthshine.machine import disk

KIB = 1 << 10


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and files a thousandth of the true ones."""
    monkeypatch.setattr(disk, "BLOCKS", (4 * KIB, 64 * KIB))
    monkeypatch.setattr(disk, "LEAST_BYTES", 512 * KIB)
    monkeypatch.setattr(disk, "_PATTERN_BYTES", 64 * KIB)
    monkeypatch.setattr(disk, "_ROUND_BYTES", 256 * KIB)
    monkeypatch.setattr(disk, "_TARGET_BYTES", 256 * KIB)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    kinds = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    if any(kind[2] in disk._IN_MEMORY and str(tmp_path).startswith(f"{kind[1]}/") for kind in kinds):
        pytest.skip("the folder for temporary files lies in memory")
    return tmp_path


@pytest.fixture
def solid(folder: Path) -> Path:
    file = folder / "solid"
    file.write_bytes(random.Random(1).randbytes(700 * KIB))
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    return file


class TestFolder:
    def test_every_block_and_depth_is_measured_and_nothing_stays(self, folder: Path) -> None:
        rates = disk.measure_folder(folder, repeats=2, most_bytes=1 << 20)
        assert set(rates.samples) == {(block, depth) for block in (4096, 65536) for depth in (1, 2, 4)}
        assert all(len(samples) == 2 and min(samples) > 0 for samples in rates.samples.values())
        assert [(rate.block_bytes, rate.depth) for rate in rates.medians()] == sorted(rates.samples)
        assert list(folder.iterdir()) == []

    def test_the_file_is_all_written_and_of_the_size_asked_for(self, folder: Path) -> None:
        with disk._written(folder, 300 * KIB) as descriptor:
            found = os.fstat(descriptor)
            assert (found.st_size, found.st_nlink) == (300 * KIB, 0)
            assert found.st_blocks * 512 >= 300 * KIB
            content = os.pread(descriptor, 1 << 20, 0)
            assert len({content[at : at + 4096] for at in range(0, 300 * KIB, 4096)}) >= 16  # no zeros, little repeats
            assert list(folder.iterdir()) == []

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
    def test_nothing_stays_after_a_failure(self, folder: Path, monkeypatch: pytest.MonkeyPatch, error) -> None:
        def fail(*_: object) -> None:
            raise error

        opened = len(os.listdir("/proc/self/fd"))
        for name in ("_write", "_measure"):
            with monkeypatch.context() as patched:
                patched.setattr(disk, name, fail)
                with pytest.raises((KeyboardInterrupt, UsageError)):
                    disk.measure_folder(folder, most_bytes=1 << 20)
            assert list(folder.iterdir()) == []
        assert len(os.listdir("/proc/self/fd")) == opened

    def test_a_disk_without_room_is_refused(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Full:
            f_bavail, f_frsize = 100, 4096

        monkeypatch.setattr(os, "statvfs", lambda _: Full)
        with pytest.raises(UsageError, match=r"400.00 KiB free; .* 512.00 KiB or more are needed"):
            disk.measure_folder(folder)

    def test_a_path_that_is_not_a_folder_is_refused(self, folder: Path, solid: Path) -> None:
        with pytest.raises(UsageError, match="can't be measured: No such file"):
            disk.measure_folder(folder / "absent")
        with pytest.raises(UsageError, match="can't be measured: Not a directory"):
            disk.measure_folder(solid)

    def test_file_system_in_memory_is_not_a_disk(self) -> None:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        place = next((line.split()[1] for line in mounts if line.split()[2] == "tmpfs"), None)
        if place is None:
            pytest.skip("nothing here lies in memory")
        with pytest.raises(UsageError, match=r"is in memory \(tmpfs\); give a folder on a disk"):
            disk.measure_folder(Path(place))


class TestFile:
    def test_a_file_is_read_and_left_as_it_is(self, solid: Path) -> None:
        before = solid.read_bytes()
        rates = disk.measure_file(solid, repeats=1)
        assert all(len(samples) == 1 for samples in rates.samples.values())
        assert solid.read_bytes() == before

    def test_holes_are_no_data(self, folder: Path) -> None:
        with (folder / "holes").open("wb") as file:
            file.truncate(10 << 20)
        with pytest.raises(UsageError, match="mostly holes"):
            disk.measure_file(folder / "holes")

    def test_a_small_file_is_refused(self, folder: Path) -> None:
        (folder / "small").write_bytes(bytes(1000))
        with pytest.raises(UsageError, match=r"has 1000 B; 512.00 KiB or more are needed"):
            disk.measure_file(folder / "small")

    def test_a_path_that_is_not_a_file_is_refused(self, folder: Path) -> None:
        os.mkfifo(folder / "pipe")
        for name, text in (("pipe", "not a regular file"), (".", "not a regular file"), ("absent", "can't be opened")):
            with pytest.raises(UsageError, match=text):
                disk.measure_file(folder / name)


class TestReading:
    @pytest.mark.parametrize("depth", [1, 2, 4])
    def test_a_round_reads_each_place_once_into_its_own_memory(self, solid: Path, depth: int, monkeypatch) -> None:
        found: list[tuple[int, bytes]] = []
        lock, read = threading.Lock(), disk._read

        def seen(descriptor: int, view: memoryview, offset: int) -> int:
            done = read(descriptor, view, offset)
            with lock:
                found.append((offset, bytes(view)))
            return done

        monkeypatch.setattr(disk, "_read", seen)
        monkeypatch.setattr(disk, "_ROUND_SECONDS", 60.0)
        content = solid.read_bytes()
        descriptor = os.open(solid, os.O_RDONLY)
        try:
            with ThreadPoolExecutor(4) as pool:
                memory = memoryview(bytearray(64 * KIB))
                places = list(range(0, 170, 2))
                rate = disk._round(descriptor, memory, pool, places, 4096, depth)
        finally:
            os.close(descriptor)
        assert rate > 0
        assert sorted(offset for offset, _ in found) == [place * 4096 for place in places[:64]]  # 256 KiB are enough
        if depth == 1:
            assert all(content[offset : offset + 4096] == data for offset, data in found)

    def test_a_slow_disk_ends_a_round_early(self, solid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        offsets = []
        monkeypatch.setattr(disk, "_ROUND_SECONDS", 0.0)
        monkeypatch.setattr(disk, "_read", lambda _, view, offset: offsets.append(offset) or len(view))
        with ThreadPoolExecutor(1) as pool:
            assert disk._round(-1, memoryview(bytearray(8192)), pool, [5, 1, 2], 4096, 1) > 0
        assert offsets == [5 * 4096]

    def test_file_that_became_shorter_ends_the_read(self, solid: Path) -> None:
        descriptor = os.open(solid, os.O_RDONLY)
        with pytest.raises(OSError, match="shorter"):
            disk._read(descriptor, memoryview(bytearray(4096)), 10 << 20)
        os.close(descriptor)

    def test_without_direct_reads_the_page_cache_is_dropped_and_reported(self, folder: Path, monkeypatch) -> None:
        asked = []
        monkeypatch.setattr(disk, "_pass_by_cache", lambda _: False)
        monkeypatch.setattr(os, "posix_fadvise", lambda *call: asked.append(call[3]))
        rates = disk.measure_folder(folder, repeats=2, most_bytes=1 << 20)
        assert not rates.direct
        assert asked == [os.POSIX_FADV_DONTNEED] * 12

    def test_a_descriptor_that_refuses_direct_reads_is_found_out(self) -> None:
        reader, writer = os.pipe()
        try:
            assert disk._pass_by_cache(reader) in (True, False)
            os.close(reader)
            assert disk._pass_by_cache(reader) is False
        finally:
            os.close(writer)
