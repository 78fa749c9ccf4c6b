"""Measures reads of a file past the page cache: blocks of several sizes, several concurrent reads.

The file is given, or is written for the measurement and unlinked at once, so that it disappears however the process
ends. Each read is of a whole, aligned block, in an order drawn from a seed, into memory that is in no cache, as a
model's reads are. Refuses a file that is too small or mostly holes, a folder without space, and file systems in memory.
Where a file system has no O_DIRECT, the page cache is asked to drop the file before each round, and `Rates.direct` is
False.
"""

import fcntl
import itertools
import mmap
import os
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from earthshine.errors import UsageError
from earthshine.machine.profile import DiskRate
from earthshine.storage import ALIGNMENT
from earthshine.units import format_bytes
from earthshine.untrusted import open_regular, real_path, shown

BLOCKS = (1 << 20, 8 << 20, 6048 * ALIGNMENT)  # the last is Kimi-K2.6's expert, rounded down
DEPTHS = (1, 2, 4)
MOST_BYTES = 2 << 30  # of a file written for the purpose
LEAST_BYTES = 256 << 20  # of any file: ten of the largest blocks
_SHARE_OF_FREE = 0.25
_ROUND_BYTES = 256 << 20
_ROUND_SECONDS = 0.4  # of a disk on which a round takes longer
_SOLID = 0.9  # of a file's bytes must be on the disk
_PATTERN_BYTES = 16 << 20
_TARGET_BYTES = 256 << 20  # on a virtual disk, reads of 1 MiB into one place gave 5.3 GB/s, and through this 2.5
_IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second of each repeat, by block and depth; `direct`: whether reads went past the page cache."""

    samples: Mapping[tuple[int, int], tuple[float, ...]]
    direct: bool

    def medians(self) -> tuple[DiskRate, ...]:
        """One entry for each block and depth, in order."""
        return tuple(DiskRate(*key, statistics.median(rates)) for key, rates in sorted(self.samples.items()))


def measure_file(path: Path, repeats: int = 3) -> Rates:
    """Rates of an existing file, which is only read. Raises UsageError for a file that can't represent the disk."""
    descriptor = open_regular(real_path(path, UsageError), shown(path), UsageError)
    try:
        found = os.fstat(descriptor)
        _refuse_memory(path, found.st_dev)
        if found.st_size < LEAST_BYTES:
            raise UsageError(f"{shown(path)} has {format_bytes(found.st_size)}; {_enough()} are needed.")
        if found.st_blocks * 512 < _SOLID * found.st_size:
            raise UsageError(f"{shown(path)} is mostly holes, which no disk reads; name a file that is all written.")
        return _measure(descriptor, found.st_size, repeats)
    except OSError as error:
        raise UsageError(f"{shown(path)} can't be read: {error.strerror}.") from None
    finally:
        os.close(descriptor)


def measure_folder(folder: Path, repeats: int = 3, most_bytes: int = MOST_BYTES) -> Rates:
    """Rates of a new file of at most `most_bytes` and a quarter of the free space, which is removed.

    Raises UsageError where the folder has too little space or can't be written.
    """
    try:
        _refuse_memory(folder, os.stat(folder).st_dev)
        system = os.statvfs(folder)
        size = min(most_bytes, int(system.f_bavail * system.f_frsize * _SHARE_OF_FREE)) // ALIGNMENT * ALIGNMENT
        if size < LEAST_BYTES:
            free = format_bytes(system.f_bavail * system.f_frsize)
            raise UsageError(f"{shown(folder)} has {free} free; a quarter of it is used, and {_enough()} are needed.")
        with _written(folder, size) as descriptor:
            return _measure(descriptor, size, repeats)
    except OSError as error:
        raise UsageError(f"{shown(folder)} can't be measured: {error.strerror}; name another folder.") from None


def _refuse_memory(path: Path, device: int, mounts: Path = Path("/proc/self/mountinfo")) -> None:
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # unknown to the system
        return
    kinds = {line.partition(" - ")[2].split(" ")[0] for line in lines if line.split(" ")[2:3] == [number]}
    if kinds.intersection(_IN_MEMORY):
        raise UsageError(f"{shown(path)} is in memory ({min(kinds)}); give a folder on a disk.")


def _enough() -> str:
    return f"{format_bytes(LEAST_BYTES)} or more"


@contextmanager
def _written(folder: Path, size: int) -> Iterator[int]:
    """A descriptor of a file without a name, all written and on the disk."""
    descriptor, name = tempfile.mkstemp(prefix=".earthshine-", dir=folder)
    try:
        os.unlink(name)
        pattern = memoryview(random.Random(0).randbytes(_PATTERN_BYTES))
        for part_number in itertools.count():
            left = size - part_number * _PATTERN_BYTES
            if left <= 0:
                break
            at = part_number * 17 * ALIGNMENT % _PATTERN_BYTES  # no two parts begin alike
            for part in (pattern[at:], pattern[:at]):
                _write(descriptor, part[: max(0, left)])
                left -= len(part)
        os.fsync(descriptor)
        yield descriptor
    finally:
        with suppress(FileNotFoundError):  # an interrupt may come between the two
            os.unlink(name)
        os.close(descriptor)


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _measure(descriptor: int, size: int, repeats: int) -> Rates:
    direct = _pass_by_cache(descriptor)
    keys = [(block, depth) for block in BLOCKS for depth in DEPTHS]
    samples: dict[tuple[int, int], list[float]] = {key: [] for key in keys}
    draw = random.Random(0)
    with mmap.mmap(-1, _TARGET_BYTES) as memory, ThreadPoolExecutor(max(DEPTHS)) as pool:
        memory[:: mmap.PAGESIZE] = bytes(len(memory) // mmap.PAGESIZE)  # reads into untouched pages take twice as long
        whole = memoryview(memory)
        try:
            # Interleaved, so that a slow minute of the disk affects every figure.
            for _, (block, depth) in itertools.product(range(repeats), keys):
                if not direct:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                rate = _round(descriptor, whole, pool, draw.sample(range(size // block), size // block), block, depth)
                samples[block, depth].append(rate)
        finally:
            whole.release()
    return Rates({key: tuple(rates) for key, rates in samples.items()}, direct)


def _pass_by_cache(descriptor: int) -> bool:
    flag = getattr(os, "O_DIRECT", 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | flag)
        return flag != 0
    except OSError:
        return False


def _round(
    descriptor: int, memory: memoryview, pool: ThreadPoolExecutor, places: list[int], block: int, depth: int
) -> float:
    """Bytes per second of reads by `depth` threads until there are enough, into one part of `memory` after another."""
    targets = itertools.cycle(range(0, len(memory) - block + 1, block))
    reads = deque(zip(places[: max(depth, _ROUND_BYTES // block)], targets, strict=False))
    began = time.perf_counter()

    def read(_: int) -> int:
        done = 0
        while True:
            try:
                place, target = reads.popleft()
            except IndexError:
                return done
            done += _read(descriptor, memory[target : target + block], place * block)
            if time.perf_counter() - began > _ROUND_SECONDS:
                return done

    nbytes = sum(pool.map(read, range(depth)))
    return nbytes / (time.perf_counter() - began)


def _read(descriptor: int, view: memoryview, offset: int) -> int:
    done = 0
    while done < len(view):
        step = os.preadv(descriptor, [view[done:]], offset + done)
        if step == 0:
            raise OSError(5, "it became shorter while it was read")
        done += step
    return done
