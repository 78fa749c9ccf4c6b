"""Reads of routed experts into slots.

Invariant: a slot is recorded here before its read can begin, so that `cancel` finds every read that could still write
into a slot, even after an interrupt. Refuses what a checkpoint refuses: bytes that can't be read, scales that are NaN
or infinite, an expert that does not match its checksum.
"""

import time
from dataclasses import dataclass

import torch

from earthshine.kernels import Expert, Weight
from earthshine.weights.checkpoint import Checkpoint
from earthshine.weights.manifest import Manifest
from earthshine.weights.placement import PlacedExpert, check_values, place, stored_expert, weights
from earthshine.weights.reading import Reader, Segment, Ticket
from earthshine.weights.slots import Arena

Key = tuple[int, int]  # layer, expert


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """An expert in memory: its slot, and views of its gate, up and down."""

    slot: int
    weights: Expert | tuple[Weight, Weight, Weight]  # the tuple where activations are fp32


class Arrivals:
    """Running reads into slots of `arena`, for activations of `dtype`."""

    def __init__(
        self, checkpoint: Checkpoint, arena: Arena, reader: Reader, dtype: torch.dtype, manifest: Manifest | None
    ) -> None:
        self._checkpoint, self._arena, self._reader = checkpoint, arena, reader
        self._dtype, self._manifest = dtype, manifest
        self._reads: dict[int, tuple[Ticket, PlacedExpert]] = {}  # by slot
        self.misses = self.bytes_read = 0
        self.wait_seconds = 0.0

    def begin(self, key: Key, slot: int) -> None:
        """Queue the read of an expert into a slot."""
        manifest, view = self._manifest, self._arena.view(slot)
        placed = place(self._checkpoint.expert_extents(*key), self._arena.slot_bytes)

        def check() -> None:
            if manifest is not None:
                manifest.check_expert(*key, placed.published(view), placed.ranges[0][0])
            check_values(placed, view)

        segments = [Segment(span.file, span.offset, span.nbytes, view[at:]) for span, at in placed.ranges]
        ticket = self._reader.ticket(segments, check)
        self._reads[slot] = ticket, placed  # before it can begin
        self._reader.queue(ticket)

    def has_ended(self, slot: int) -> bool:
        """Whether the slot's read has ended, so that `finish` returns at once."""
        return self._reads[slot][0].ended

    def finish(self, slot: int) -> Held:
        """Wait for a slot's read and return the expert. Raises CheckpointError where it can't be read."""
        began = time.perf_counter()
        ticket, placed = self._reads[slot]
        ticket.wait()
        self.wait_seconds += time.perf_counter() - began
        take = stored_expert if self._dtype == torch.bfloat16 else weights
        held = Held(slot, take(placed, self._arena.tensor(slot)))
        del self._reads[slot]
        self.misses += 1
        self.bytes_read += placed.nbytes
        return held

    def cancel(self) -> None:
        """Cancel all reads. Returns once none of them writes into a slot."""
        for ticket, _ in self._reads.values():
            if not ticket.cancel():
                ticket.settle()
        self._reads.clear()
