"""The machine's own limits: what its matrix unit, memory and disk give, for ratios taken in the same run."""

import json
import os
import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("limits.cc")
PAGE = 4096


def processor_limits(n_threads: int, build: Path) -> dict[str, Any]:
    """FLOP/s of bf16 and fp32 and bytes read a second from memory, by limits.cc, built in `build`."""
    program = build / "limits"
    build.mkdir(parents=True, exist_ok=True)
    if not program.exists() or program.stat().st_mtime < SOURCE.stat().st_mtime:
        compiler = os.environ.get("CXX", "c++")
        command = [compiler, "-O3", "-march=native", "-pthread", str(SOURCE), "-o", str(program)]
        subprocess.run(command, check=True)
    printed = subprocess.run([str(program), str(n_threads)], check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(printed)
    return found


class Disk:
    """O_DIRECT reads of `block` bytes at random places of one file, by a program that does nothing else."""

    def __init__(self, file: Path, block: int) -> None:
        self._block = block // PAGE * PAGE
        self._places = (file.stat().st_size - self._block) // PAGE
        self._file = os.open(file, os.O_RDONLY | os.O_DIRECT)
        self._buffers = [mmap(-1, self._block) for _ in range(4)]
        self._draw = random.Random(0)

    def rate(self, reads: int = 12, depth: int = 2) -> float:
        """Bytes a second of `reads` reads, `depth` at once."""
        jobs = [(i, self._draw.randrange(self._places) * PAGE) for i in range(reads)]
        with ThreadPoolExecutor(depth) as pool:
            began = time.perf_counter()
            list(pool.map(self._read, jobs))
            return reads * self._block / (time.perf_counter() - began)

    def _read(self, job: tuple[int, int]) -> None:
        view = memoryview(self._buffers[job[0] % len(self._buffers)])
        done = 0
        while done < self._block:
            done += os.preadv(self._file, [view[done:]], job[1] + done)
