"""Memory for reads: one region, divided into equal slots.

Invariant: a slot begins at a page and never moves. Memory is committed as slots are used, or all at once, and is
returned to the system slot by slot. Refuses a region that the machine can't map.
"""

import mmap

import torch
from torch import Tensor

from earthshine.errors import UsageError
from earthshine.storage import aligned
from earthshine.units import format_bytes

_MADV_POPULATE_WRITE = 23  # Linux 5.14; Python has no name for it
_TOUCHED_AT_ONCE = 64 << 20  # so that an interrupt is noticed


class Arena:
    """`n_slots` slots of `slot_bytes`, rounded up to pages, in private memory; huge pages where the system has them."""

    def __init__(self, slot_bytes: int, n_slots: int) -> None:
        if slot_bytes < 1 or n_slots < 1:
            raise UsageError("An arena needs one slot of one byte or more.")
        self.slot_bytes = aligned(slot_bytes)
        self.n_slots = n_slots
        self.nbytes = self.slot_bytes * n_slots
        try:
            self._map = mmap.mmap(-1, self.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError):
            size = format_bytes(self.nbytes)
            raise UsageError(f"{n_slots} slots take {size}, more memory than this machine can map.") from None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._huge()
        self._view = memoryview(self._map)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    def _huge(self) -> None:
        try:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without them: the same memory, a little slower
            return

    def touch(self) -> None:
        """Commit all of the memory now: a read into pages that were never used takes twice as long.

        24 GB/s, and 2 GB/s where a host gives its guest memory only then. Does nothing where the system can't.
        """
        for start in range(0, self.nbytes, _TOUCHED_AT_ONCE):
            try:
                self._map.madvise(_MADV_POPULATE_WRITE, start, min(_TOUCHED_AT_ONCE, self.nbytes - start))
            except (OSError, ValueError):
                return

    def give_back(self, slot: int) -> None:
        """Return a slot's whole pages to the system. Its contents are lost."""
        start = -(-slot * self.slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (slot + 1) * self.slot_bytes // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0:
            self._map.madvise(mmap.MADV_DONTNEED, start, length)

    def view(self, slot: int) -> memoryview:
        """A slot's bytes as a buffer that begins at a page."""
        return self._view[slot * self.slot_bytes : (slot + 1) * self.slot_bytes]

    def tensor(self, slot: int) -> Tensor:
        """A slot's bytes as uint8 [slot_bytes]."""
        return self._bytes[slot * self.slot_bytes : (slot + 1) * self.slot_bytes]
