"""The kernel's cache of files: emptied before a cold run, filled before a warm one.

Emptying all of it needs root; without, the pages of the named files are given back one file at a time, which the
kernel may decline, and `empty` says which of the two was done.
"""

import os
from collections.abc import Iterable
from pathlib import Path

DROP = Path("/proc/sys/vm/drop_caches")
_BLOCK = 1 << 24


def empty(files: Iterable[Path], drop: Path = DROP) -> str:
    """Empties the cache and says how: "dropped" wholly, or "asked" for the files alone."""
    os.sync()
    try:
        drop.write_text("3\n")
        return "dropped"
    except OSError:
        pass
    for path in _regular(files):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return "asked"


def fill(files: Iterable[Path]) -> int:
    """Reads the files once, so that they are in the cache as far as memory allows. Returns the bytes read."""
    total = 0
    for path in _regular(files):
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                total += len(block)
    return total


def _regular(paths: Iterable[Path]) -> list[Path]:
    """The files themselves, and those directly in the folders among them."""
    found = [inner for path in paths for inner in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return [path for path in found if path.is_file()]
