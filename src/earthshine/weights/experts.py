"""Lends routed experts: from their slots in memory, or read from the checkpoint.

Invariant: a lent expert is whole, has its published values, and stays in place until it is released. The next call
cleans up after a loan that failed or was interrupted. Not thread-safe, except `stats`.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast

import numpy as np
import torch
from numpy.typing import NDArray

from earthshine.errors import UsageError
from earthshine.kernels import Expert, ExpertTable, UseCount
from earthshine.spec.layout import moe_layers
from earthshine.weights.arrivals import Arrivals, Held, Key
from earthshine.weights.checkpoint import Checkpoint
from earthshine.weights.manifest import Manifest, shard_sizes
from earthshine.weights.placement import slot_bytes
from earthshine.weights.reading import Reader, ReadProgress
from earthshine.weights.residency import Residency
from earthshine.weights.slots import Arena

_MOST_AHEAD = 64  # reads queued at once; two keep the disk busy


@dataclass(frozen=True, slots=True)
class ExpertStats:
    """Counts since construction. An expert counts once per loan, however many tokens chose it."""

    hits: int
    misses: int
    bytes_read: int  # published bytes of the misses
    read_wait_seconds: float  # in which nothing was computed
    direct: bool  # whether every read went past the page cache
    rereads: int  # reads repeated after a failed check


class ExpertStore:
    """The routed experts of a checkpoint: `slots_per_layer` of each layer in memory, the others on disk."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        slots_per_layer: int,
        transit_slots: int,
        reader: Reader,
        dtype: torch.dtype,
        manifest: Manifest | None = None,
    ) -> None:
        """Opens every shard in `reader`.

        Args:
            transit_slots: slots for experts that are read for one use only; 0 only where every expert has a slot.
            dtype: of activations inside an expert.

        Raises UsageError for too few slots and for more memory than can be mapped, CheckpointError for changed shards.
        """
        moes = dict(moe_layers(checkpoint.spec))
        self._home = Residency(
            {layer: moe.n_experts for layer, moe in moes.items()},
            {layer: moe.top_k for layer, moe in moes.items()},
            slots_per_layer=slots_per_layer,
            transit_slots=transit_slots,
        )
        for file, nbytes in shard_sizes(checkpoint).items():
            reader.open(file, nbytes)
        self._arena = Arena(max(1, slot_bytes(checkpoint)), self._home.n_all)
        if not self._home.whole:  # else they are filled at once
            self._arena.touch()
        self._home.recover()
        self._arrivals = Arrivals(checkpoint, self._arena, reader, dtype, manifest)
        self._checkpoint, self._reader, self.dtype = checkpoint, reader, dtype
        self._lending = False
        self._hits = UseCount()  # one for all tables, which come and go while other threads read it
        self._tables: dict[int, ExpertTable] = {}  # by layer, while every expert has a permanent slot

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return self._arena.nbytes

    @property
    def stats(self) -> ExpertStats:
        """A snapshot of the counters. May be called on any thread."""
        read, reader = self._arrivals, self._reader
        counts = (self._hits.n, read.misses, read.bytes_read)
        return ExpertStats(*counts, read.wait_seconds, reader.direct, reader.rereads)

    def all_of(self, layer: int, experts: Sequence[int]) -> list[Held] | None:
        """The experts, if every expert of the layer has a permanent slot; None otherwise."""
        resident = self._whole(layer)
        if resident is None:
            return None
        self._hits.n += len(experts)
        return [resident[expert] for expert in experts]

    def table(self, layer: int) -> ExpertTable | None:
        """All experts of the layer in the kernels' form, where each has a permanent slot; None otherwise. Valid until
        the store shrinks."""
        found = self._tables.get(layer)
        if found is None and self.dtype == torch.bfloat16:
            resident = self._whole(layer)
            if resident is not None:
                experts = [cast(Expert, resident[expert].weights) for expert in range(len(resident))]
                found = self._tables[layer] = ExpertTable(experts, self._hits)
        return found

    def _whole(self, layer: int) -> Mapping[int, Held] | None:
        resident = self._home.resident(layer)
        return resident if self._home.whole and len(resident) == self._home.n_experts[layer] else None

    def learn(self, layer: int, chosen: NDArray[np.int64], experts: list[int], n_pairs: NDArray[np.int64]) -> None:
        """Update the policy that decides which experts stay in memory; arguments as Residency.learn."""
        self._home.learn(layer, chosen, experts, n_pairs)

    def lend(self, layer: int, experts: Sequence[int], later: Sequence[int] = ()) -> "Loan":
        """Lend experts of a layer. Those that are not in memory are read in this order. `later`: experts of the loans
        that follow, which keep their slots. One loan at a time."""
        return Loan(self, layer, experts, later)

    def shrink(self, nbytes: int) -> int:
        """Return the memory of slots to the system: `nbytes`, rounded up to whole slots, or all slots. Returns the
        bytes freed. Must not be called within a loan. No result changes."""
        self._begin()  # takes back what a failed loan left
        self._tables.clear()
        gone = self._home.shrink(-(-nbytes // self._arena.slot_bytes))
        for slot in gone:
            self._arena.give_back(slot)
        self._end()
        return len(gone) * self._arena.slot_bytes

    def preload(self, progress: ReadProgress) -> None:
        """Read all experts of a store that has a slot for each. `progress` is called with bytes done and bytes in all.

        Raises UsageError where experts outnumber slots, and CheckpointError as a loan does.
        """
        home, arrivals = self._home, self._arrivals
        if not home.whole:
            raise UsageError("Experts can be loaded ahead only where every one has a slot.")
        self._begin()
        counts = home.n_experts.items()
        missing = [(layer, e) for layer, count in counts for e in range(count) if e not in home.resident(layer)]
        total = sum(self._checkpoint.expert_extents(*key).nbytes for key in missing)
        before = arrivals.bytes_read
        ahead = _ReadAhead(home, arrivals, missing)
        for key in missing:
            home.settle(*key, ahead.take(key), keep=True)
            ahead.go_on()
            progress(arrivals.bytes_read - before, total)
        self._end()

    def _begin(self) -> None:
        """Before slots are reassigned; cleans up what a failed loan left."""
        if self._lending:
            self._arrivals.cancel()
            self._home.recover()
        self._lending = True

    def _end(self) -> None:
        """After slots were reassigned without an error."""
        self._lending = False


class Loan:
    """A context manager. Within it each expert is taken once and released once, in any order."""

    def __init__(self, store: ExpertStore, layer: int, experts: Sequence[int], later: Sequence[int]) -> None:
        self._store, self._home = store, store._home
        self._layer, self._experts, self._later = layer, experts, later

    def __enter__(self) -> Self:
        home, layer = self._home, self._layer
        self._store._begin()
        self._resident = home.resident(layer)
        self._kept = home.keep(layer, [*self._experts, *self._later])
        self.hits = [expert for expert in self._experts if expert in self._resident]
        self._ahead = _ReadAhead(
            home, self._store._arrivals, [(layer, e) for e in self._experts if e not in self._resident]
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._store._hits.n += len(self.hits)
            self._store._end()

    def is_there(self, expert: int) -> bool:
        """Whether the expert is in memory, so that `take` returns at once."""
        return expert in self._resident or self._ahead.is_there((self._layer, expert))

    def take(self, expert: int) -> Held:
        """The expert, once it has been read. Raises CheckpointError where it can't be read."""
        found = self._resident.get(expert)
        return self._ahead.take((self._layer, expert)) if found is None else found

    def release(self, expert: int, held: Held) -> None:
        """End the expert's use. It keeps its slot, or the slot serves the next read."""
        self._home.settle(self._layer, expert, held, expert in self._kept)
        self._ahead.go_on()


class _ReadAhead:
    """Reads experts in the order in which they will be taken, as far as there are free slots. Begins at once."""

    def __init__(self, home: Residency, arrivals: Arrivals, keys: Sequence[Key]) -> None:
        self._home, self._arrivals = home, arrivals
        self._todo = deque(keys)
        self._slots: dict[Key, int] = {}
        self.go_on()

    def go_on(self) -> None:
        while self._todo and self._home.n_free and len(self._slots) < _MOST_AHEAD:
            key, slot = self._todo[0], self._home.take_slot()
            self._arrivals.begin(key, slot)
            self._slots[key] = slot
            self._todo.popleft()

    def is_there(self, key: Key) -> bool:
        slot = self._slots.get(key)
        return slot is not None and self._arrivals.has_ended(slot)

    def take(self, key: Key) -> Held:
        held = self._arrivals.finish(self._slots[key])
        del self._slots[key]
        return held
