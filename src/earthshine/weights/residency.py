"""Which experts have a slot in memory, and which lose theirs when others need one. Bookkeeping only: no reads.

Invariant: a slot is free, holds one whole expert, is on loan for a read, or was returned to the system, and no layer
has more residents than slots. What is in memory never changes a result. Refuses fewer slots than can work.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from earthshine.errors import UsageError
from earthshine.weights.arrivals import Held
from earthshine.weights.policy import Ids, LayerPolicy

# A call of more tokens is taken for a prompt, whose last positions the policy sees one by one, as it will see what is
# generated: worth 2 to 5 points of hits over the 60 tokens that follow, against one step of the prompt's frequencies.
_BATCH_TOKENS = 32
_PROMPT_STEPS = 256
_LEAST_TRANSIT = 2  # of a store that held every expert, once it no longer does: two reads keep the disk busy


class Residency:
    """`slots_per_layer` slots of each layer and `transit_slots` for experts on their way through.

    `n_experts` and `top_k` are by layer. Raises UsageError for fewer slots than work.
    """

    def __init__(
        self, n_experts: Mapping[int, int], top_k: Mapping[int, int], *, slots_per_layer: int, transit_slots: int
    ) -> None:
        self.n_experts, self._top_k = dict(n_experts), dict(top_k)
        self.n_slots = {layer: min(slots_per_layer, count) for layer, count in n_experts.items()}
        self.whole = self.n_slots == self.n_experts
        if slots_per_layer < 0 or transit_slots < (0 if self.whole else 1):
            raise UsageError("transit_slots must be at least 1, unless slots_per_layer covers every expert.")
        self.n_all = max(1, sum(self.n_slots.values()) + transit_slots)
        self._policy: dict[int, LayerPolicy] = {}
        for layer in n_experts:
            self._renew_policy(layer)
        self.given_back: set[int] = set()  # slots
        self._resident: dict[int, dict[int, Held]] = {layer: {} for layer in n_experts}
        self._free: list[int] = []  # until `recover`, once there is memory for that many

    @property
    def n_free(self) -> int:
        return len(self._free)

    def resident(self, layer: int) -> Mapping[int, Held]:
        """The layer's experts that have slots, by number."""
        found = self._resident.get(layer)
        if found is None:
            raise UsageError(f"Layer {layer} has no routed experts.")
        return found

    def learn(self, layer: int, chosen: NDArray[np.int64], experts: list[int], n_pairs: NDArray[np.int64]) -> None:
        """Update the layer's policy with what a step chose.

        chosen: [tokens, top_k]; experts: the distinct ones, ascending; n_pairs: how often each was chosen.
        """
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
        """The experts that should have slots after `experts` were used. Slots that are neither kept nor used are freed
        now."""
        resident = self._resident[layer]
        policy = self._policy.get(layer)
        if policy is None:
            return resident.keys() | set(experts) if self.n_slots[layer] else set()
        missed = _ids(expert for expert in experts if expert not in resident)
        kept = set(policy.kept(_ids(resident), missed, self.n_slots[layer]).tolist())
        for expert in resident.keys() - kept - set(experts):
            self._free.append(resident.pop(expert).slot)
        return kept

    def take_slot(self) -> int:
        """A free slot, on loan until `settle`."""
        return self._free.pop()

    def settle(self, layer: int, expert: int, held: Held, keep: bool) -> None:
        """End an expert's use, resident or arrived. It keeps its slot, or the slot is free.

        An arrival keeps its slot only where its layer has one left; residents that are still to be used count too.
        """
        resident = self._resident[layer]
        if expert in resident:
            if not keep:
                del resident[expert]
                self._free.append(held.slot)
        elif keep and len(resident) < self.n_slots[layer]:
            resident[expert] = held
        else:
            self._free.append(held.slot)

    def recover(self) -> None:
        """Free every slot that holds no whole expert. No read may be running."""
        for layer, resident in self._resident.items():  # those that were to give up their slots may still be there
            for expert in list(resident)[self.n_slots[layer] :]:
                del resident[expert]
        taken = {held.slot for experts in self._resident.values() for held in experts.values()}
        self._free = [slot for slot in range(self.n_all) if slot not in taken | self.given_back]

    def shrink(self, n_slots: int) -> list[int]:
        """Remove up to `n_slots` slots, which are returned to the system.

        Layers with the most slots lose them first, each the expert with the lowest score. Transit slots stay, so that a
        store with no others still works.
        """
        if self.whole and n_slots > 0:
            self.whole = False
            for _ in range(min(_LEAST_TRANSIT, sum(self.n_slots.values()))):
                self._lose()
        gone: list[int] = []
        while len(gone) < n_slots and any(self.n_slots.values()):
            self._lose()
            gone.append(self._free.pop())
            self.given_back.add(gone[-1])
        return gone

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


def _ids(experts: Iterable[int]) -> Ids:
    return np.fromiter(experts, dtype=np.int64)
