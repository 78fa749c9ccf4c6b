"""The machine's own limits: what its matrix unit, memory and disk give, for ratios taken in the same run."""

import ctypes
import functools
import os
import random
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from earthshine.storage import ALIGNMENT
from earthshine.weights.slots import Arena

SOURCE = Path(__file__).with_name("limits.cc")


@functools.cache
def _library() -> ctypes.CDLL:
    """limits.cc, built for this processor."""
    built = Path(tempfile.gettempdir()) / "earthshine-limits.so"
    if not built.exists() or built.stat().st_mtime < SOURCE.stat().st_mtime:
        compiler = os.environ.get("CXX", "c++")
        options = ["-O3", "-march=native", "-pthread", "-shared", "-fPIC"]
        subprocess.run([compiler, *options, str(SOURCE), "-o", str(built)], check=True)
    library = ctypes.CDLL(str(built))
    for rate in (library.bf16_rate, library.fused_rate, library.read_rate, library.update_rate):
        rate.restype = ctypes.c_double
    return library


def matrix_peak(n_threads: int) -> tuple[float, str]:
    """FLOP/s of bf16 multiply-adds by the processor's fastest unit, and what it is called."""
    unit = ctypes.c_char_p()
    rate = float(_library().bf16_rate(n_threads, ctypes.byref(unit)))
    return rate, (unit.value or b"").decode()


def read_rate(n_threads: int, memory: Tensor) -> float:
    """Bytes per second at which `n_threads` threads read this memory, the best of five tries."""
    return float(_library().read_rate(n_threads, ctypes.c_void_p(memory.data_ptr()), ctypes.c_long(memory.nbytes)))


def vector_peak() -> float:
    """FLOP per second of processor time of fp32 multiply-adds by one thread's vector unit."""
    return float(_library().fused_rate())


def update_rate(memory: Tensor) -> float:
    """Bytes, read and written, per second of processor time when one thread changes this very memory."""
    return float(_library().update_rate(ctypes.c_void_p(memory.data_ptr()), ctypes.c_long(memory.nbytes)))


class Disk:
    """O_DIRECT reads of `block` bytes at random ones of some places, by a program that does nothing else.

    The places should be like those that the engine reads: a virtual disk answers from its host's memory what was read
    before, at twice the rate.
    """

    def __init__(self, places: list[tuple[Path, int]], block: int) -> None:
        self._block = block // ALIGNMENT * ALIGNMENT
        self._places = [(file, offset // ALIGNMENT * ALIGNMENT) for file, offset in places]
        self._files = {file: os.open(file, os.O_RDONLY | os.O_DIRECT) for file in {file for file, _ in places}}
        memory = Arena(self._block, 4)
        memory.touch()
        self._buffers = [memory.view(i) for i in range(4)]
        self._draw = random.Random(0)

    def rate(self, bursts: int, reads: int, pause_seconds: float, depth: int = 2) -> float:
        """Bytes per second of `bursts` times `reads` reads, `depth` at once, the pauses between them not counted.

        Reads come in bursts, because a disk with a rate limit per second gives more after a pause.
        """
        seconds, done = 0.0, 0
        with ThreadPoolExecutor(depth) as pool:
            for _ in range(bursts):
                jobs = list(enumerate(self._draw.sample(self._places, min(reads, len(self._places)))))
                time.sleep(pause_seconds)
                began = time.perf_counter()
                list(pool.map(self._read, jobs))
                seconds += time.perf_counter() - began
                done += len(jobs)
        return done * self._block / seconds

    def _read(self, job: tuple[int, tuple[Path, int]]) -> None:
        turn, (file, offset) = job
        view = self._buffers[turn % len(self._buffers)][: self._block]
        done = 0
        while done < self._block:
            done += os.preadv(self._files[file], [view[done:]], offset + done)
