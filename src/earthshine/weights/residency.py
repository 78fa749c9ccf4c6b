"""Which experts are in memory, and the reads that bring others: slots, who has them, and what becomes of them.

The invariant: a slot is free, holds one whole checked expert, is being read into, or was given back for good, and no
layer has more residents than slots, so that a call inside another one's pause finds the transit slots free. A call is
bracketed by `begin` and `end`; after one that failed or was interrupted anywhere, the next `begin` takes back every
slot that holds no whole expert. What is in memory never changes a result. Refuses fewer slots than can work.
"""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from earthshine.errors import UsageError
from earthshine.kernels import Expert, Weight
from earthshine.spec.layout import moe_layers
from earthshine.weights.checkpoint import Checkpoint
from earthshine.weights.manifest import Manifest, shard_sizes
from earthshine.weights.placement import PlacedExpert, check_values, place, slot_bytes, stored_expert, weights
from earthshine.weights.policy import Ids, LayerPolicy
from earthshine.weights.reading import Reader, Segment, Ticket
from earthshine.weights.slots import Arena

Key = tuple[int, int]  # layer, expert

_MOST_AHEAD = 64  # reads queued at once; two keep the disk busy
# A call of more tokens is taken for a prompt, whose last positions the policy sees one by one, as it will see what is
# generated: worth 2 to 5 points of hits over the 60 tokens that follow, against one step of the prompt's frequencies.
_BATCH_TOKENS = 32
_PROMPT_STEPS = 256
_LEAST_TRANSIT = 2  # of a store that held every expert, once it no longer does: two reads keep the disk busy


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """An expert in memory: its slot, and gate, up and down as they lie there."""

    slot: int
    weights: Expert | tuple[Weight, Weight, Weight]  # the tuple where activations are fp32


class Residency:
    """`slots_per_layer` slots of each layer and `transit_slots` for what is on its way through."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        slots_per_layer: int,
        transit_slots: int,
        reader: Reader,
        dtype: torch.dtype,
        manifest: Manifest | None,
    ) -> None:
        """Opens every shard in `reader`; CheckpointError if one changed. UsageError for fewer slots than work."""
        moes = dict(moe_layers(checkpoint.spec))
        self.n_experts = {layer: moe.n_experts for layer, moe in moes.items()}
        self.n_slots = {layer: min(slots_per_layer, count) for layer, count in self.n_experts.items()}
        self.whole = self.n_slots == self.n_experts
        if slots_per_layer < 0 or transit_slots < (0 if self.whole else 1):
            raise UsageError("Experts need one transit slot or more, unless every expert has a slot of its own.")
        for file, nbytes in shard_sizes(checkpoint).items():
            reader.open(file, nbytes)
        n_slots = sum(self.n_slots.values()) + transit_slots
        self.arena = Arena(max(1, slot_bytes(checkpoint)), max(1, n_slots))
        if not self.whole:  # else they are filled at once
            self.arena.touch()
        self._checkpoint, self._reader, self._dtype, self._manifest = checkpoint, reader, dtype, manifest
        self._top_k = {layer: moe.top_k for layer, moe in moes.items()}
        self._policy: dict[int, LayerPolicy] = {}
        for layer in moes:
            self._renew_policy(layer)
        self._given_back: set[int] = set()  # slots
        self._resident: dict[int, dict[int, Held]] = {layer: {} for layer in moes}
        self._free = list(range(self.arena.n_slots))
        self._reads: dict[int, tuple[Ticket, PlacedExpert]] = {}  # slot to what is being read into it
        self._in_call = False
        self.misses = self.bytes_read = 0
        self.read_wait_seconds = 0.0

    def begin(self) -> None:
        """Before the first use of a call."""
        if self._in_call:
            self._recover()
        self._in_call = True

    def end(self) -> None:
        """After the last use of a call that went well."""
        self._in_call = False

    def give_back(self, n_slots: int) -> int:
        """Lets the system have the memory of up to `n_slots` slots, and returns of how many; not within a call.

        Layers with the most slots lose them first, each the expert that its policy wants least. What is on its way
        through keeps its slots, so that a store without any other still works.
        """
        self.begin()  # takes back what a failed call left
        if self.whole and n_slots > 0:
            self.whole = False
            for _ in range(min(_LEAST_TRANSIT, sum(self.n_slots.values()))):
                self._lose()
        given = 0
        while given < n_slots and any(self.n_slots.values()):
            self._lose()
            slot = self._free.pop()
            self._given_back.add(slot)
            self.arena.give_back(slot)
            given += 1
        self.end()
        return given

    def _lose(self) -> None:
        """One slot of one layer becomes free."""
        layer = max(self.n_slots, key=lambda layer: self.n_slots[layer])
        self.n_slots[layer] -= 1
        self._renew_policy(layer)
        resident, left = self._resident[layer], self.n_slots[layer]
        policy = self._policy.get(layer)
        kept = set(policy.kept(_ids(resident), _ids(()), left).tolist()) if policy else set()
        for expert in resident.keys() - kept:
            self._free.append(resident.pop(expert).slot)

    def _renew_policy(self, layer: int) -> None:
        """A policy where there is something to choose."""
        if not 0 < self.n_slots[layer] < self.n_experts[layer]:
            self._policy.pop(layer, None)
        elif layer not in self._policy:
            self._policy[layer] = LayerPolicy(self.n_experts[layer], self._top_k[layer])

    def resident(self, layer: int) -> dict[int, Held]:
        """The layer's experts that have slots, by number; not to be changed."""
        found = self._resident.get(layer)
        if found is None:
            raise UsageError(f"Layer {layer} has no routed experts.")
        return found

    def learn(self, layer: int, chosen: NDArray[np.int64], experts: list[int], n_pairs: NDArray[np.int64]) -> None:
        """Tells the policy of a step. chosen: [tokens, top_k]; experts: the distinct ones, ascending; n_pairs: how
        often each was chosen."""
        policy = self._policy.get(layer)
        if policy is None:
            return
        if len(chosen) > _BATCH_TOKENS:
            once = np.ones(chosen.shape[1])
            for row in chosen[-_PROMPT_STEPS:]:
                policy.step(row, once)
        else:
            policy.step(_ids(experts), n_pairs / len(chosen))

    def keep(self, layer: int, experts: list[int]) -> set[int]:
        """The experts that should have slots once `experts` are used; slots neither kept nor used are freed now."""
        resident = self._resident[layer]
        policy = self._policy.get(layer)
        if policy is None:
            return resident.keys() | set(experts) if self.n_slots[layer] else set()
        missed = _ids(expert for expert in experts if expert not in resident)
        kept = set(policy.kept(_ids(resident), missed, self.n_slots[layer]).tolist())
        for expert in resident.keys() - kept - set(experts):
            self._free.append(resident.pop(expert).slot)
        return kept

    def arrivals(self, keys: Iterable[Key]) -> "Arrivals":
        """The reads of experts that are not resident, in the order in which they will be taken; they begin now."""
        return Arrivals(self, keys)

    def _recover(self) -> None:
        for ticket, _ in self._reads.values():
            if not ticket.cancel():
                ticket.settle()
        self._reads.clear()
        for layer, resident in self._resident.items():  # those that were to give up their slots may still be there
            for expert in list(resident)[self.n_slots[layer] :]:
                del resident[expert]
        taken = {held.slot for held_there in self._resident.values() for held in held_there.values()}
        self._free = [slot for slot in range(self.arena.n_slots) if slot not in taken | self._given_back]

    def _begin_read(self, key: Key) -> int:
        """Queues an expert's read into a free slot, which it returns."""
        slot, manifest = self._free[-1], self._manifest
        view = self.arena.view(slot)
        placed = place(self._checkpoint.expert_extents(*key), self.arena.slot_bytes)

        def check() -> None:
            if manifest is not None:
                manifest.check_expert(*key, placed.published(view), placed.ranges[0][0])
            check_values(placed, view)

        segments = [Segment(span.file, span.offset, span.nbytes, view[at:]) for span, at in placed.ranges]
        ticket = self._reader.ticket(segments, check)
        self._reads[slot] = ticket, placed  # noted before it can begin, so that no interruption loses it
        self._free.pop()
        self._reader.queue(ticket)
        return slot

    def _has_ended(self, slot: int) -> bool:
        return self._reads[slot][0].ended

    def _end_read(self, slot: int) -> Held:
        """Waits for a read and makes matrices of what it brought."""
        begun = time.perf_counter()
        ticket, placed = self._reads[slot]
        ticket.wait()
        self.read_wait_seconds += time.perf_counter() - begun
        take = stored_expert if self._dtype == torch.bfloat16 else weights
        held = Held(slot, take(placed, self.arena.tensor(slot)))
        del self._reads[slot]
        self.misses += 1
        self.bytes_read += placed.nbytes
        return held


class Arrivals:
    """Experts on their way in, each to be taken once and then released."""

    def __init__(self, home: Residency, keys: Iterable[Key]) -> None:
        self._home = home
        self._todo = deque(keys)
        self._slots: dict[Key, int] = {}
        self._read_ahead()

    def is_there(self, key: Key) -> bool:
        """Whether `take` would not wait."""
        slot = self._slots.get(key)
        return slot is not None and self._home._has_ended(slot)

    def take(self, key: Key) -> Held:
        """The expert, once it has been read. Raises CheckpointError where it can't be."""
        held = self._home._end_read(self._slots[key])
        del self._slots[key]
        return held

    def release(self, key: Key, held: Held, keep: bool) -> None:
        """After an expert's use, whether it was resident or has arrived: it keeps its slot, or the slot is free.

        What has arrived keeps it only where its layer has one left: residents that are still to be used count too.
        """
        layer, expert = key
        resident, free = self._home._resident[layer], self._home._free
        if expert in resident:
            if not keep:
                del resident[expert]
                free.append(held.slot)
        elif keep and len(resident) < self._home.n_slots[layer]:
            resident[expert] = held
        else:
            free.append(held.slot)
        self._read_ahead()

    def _read_ahead(self) -> None:
        while self._todo and self._home._free and len(self._slots) < _MOST_AHEAD:
            key = self._todo[0]
            self._slots[key] = self._home._begin_read(key)
            self._todo.popleft()


def _ids(experts: Iterable[int]) -> Ids:
    return np.fromiter(experts, dtype=np.int64)
