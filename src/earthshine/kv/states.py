"""The pool of recurrent states. A slot holds the states of all recurrent layers at one length of one sequence.

A state has a constant size and can only be extended, so a sequence's step reads one slot and writes another; the first
stays valid until the step is committed. A slot with several holders is a checkpoint and is never written.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from earthshine.errors import ContextError, UsageError
from earthshine.kv.places import Places
from earthshine.spec.attention import Kept, State
from earthshine.units import format_bytes


class StatePool(Places):
    """`n_slots` slots for the `State` parts of `kept`. Raises ContextError where the memory can't be allocated.

    `reclaim` is called where no slot is free; it frees one that nobody needs, and returns whether it did.
    """

    def __init__(self, kept: Kept, n_slots: int, dtype: torch.dtype) -> None:
        super().__init__(n_slots, "state slot")
        self.n_slots = n_slots
        self.reclaim: Callable[[], bool] = lambda: False
        self._parts: dict[tuple[int, int], Tensor] = {}
        for layer, parts in enumerate(kept):
            for index, part in enumerate(parts):
                if isinstance(part, State):
                    own = torch.float32 if part.fp32 else dtype
                    self._parts[layer, index] = _allocated((n_slots, *part.shape), own)

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in self._parts.values())

    def part(self, layer: int, index: int) -> Tensor:
        """[n_slots, *shape]: part `index` of a layer's state."""
        return self._parts[layer, index]

    def slot(self, slot: int) -> list[Tensor]:
        """Views of a slot's parts, by layer and in order."""
        return [part[slot] for part in self._parts.values()]

    def write_slot(self, slot: int, parts: Sequence[Tensor]) -> None:
        """Write a slot; `parts` as returned by `slot`, in any shape. Raises UsageError for other sizes or dtypes."""
        own = self.slot(slot)
        if [(part.numel(), part.dtype) for part in parts] != [(mine.numel(), mine.dtype) for mine in own]:
            raise UsageError("These are not the parts of a recurrent state of this pool.")
        for mine, part in zip(own, parts, strict=True):
            mine.copy_(part.view_as(mine))

    def take(self) -> int:
        """A free slot with one holder; one is reclaimed where none is free. Raises ContextError."""
        if not self.free:
            self.reclaim()
        return self.allocate(1)[0]

    def start(self, layer: int, index: int, source: int | None, target: int) -> Tensor:
        """The part in `target`, holding what `source` has there, or zeros before the first token."""
        part = self._parts[layer, index]
        if source is None:
            part[target].zero_()
        else:
            part[target].copy_(part[source])
        return part[target]


def _allocated(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype)
    except (RuntimeError, MemoryError, OverflowError, TypeError):
        size = torch.Size(shape).numel() * dtype.itemsize
        raise ContextError(f"Recurrent states need {format_bytes(size)}, which this machine does not have.") from None
