"""Routed experts from disk: the seam that the mathematics calls, answered from slots or by reading the checkpoint.

The invariant: the result depends on the published values alone, never on the budget, on what the slots hold or on
the order of earlier calls; sums are fp32 in ascending order of expert. Refuses a budget below one expert.
Not safe to call from two threads at once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from earthshine import kernels
from earthshine.errors import UsageError
from earthshine.spec.layout import moe_layers
from earthshine.weights.checkpoint import Checkpoint, ExpertExtents
from earthshine.weights.formats import StoredLinear, exactly
from earthshine.weights.shards import read_bytes, view_tensor
from earthshine.weights.slots import LruSlots


@dataclass(frozen=True, slots=True)
class ExpertStats:
    """What the store has done so far: experts found in a slot, experts read, and the bytes of those reads."""

    hits: int
    misses: int
    bytes_read: int


@dataclass(frozen=True, slots=True, eq=False)
class StoredExpert:
    """One routed expert as published."""

    gate: StoredLinear  # [intermediate, hidden]
    up: StoredLinear  # [intermediate, hidden]
    down: StoredLinear  # [hidden, intermediate]


def read_expert(extents: ExpertExtents) -> StoredExpert:
    """Reads the merged ranges and checks the scales and stored shapes; raises CheckpointError."""
    buffers = [(span, read_bytes(span.file, span.offset, span.nbytes)) for span in extents.ranges]
    linears = []
    for published, parts in extents.parts:
        tensors = []
        for extent in parts:
            span, buffer = next(
                (span, buffer)
                for span, buffer in buffers
                if span.file == extent.file and 0 <= extent.offset - span.offset <= span.nbytes - extent.nbytes
            )
            tensors.append(view_tensor(buffer, extent.offset - span.offset, extent))
        names = tuple(extent.name for extent in parts)
        linears.append(StoredLinear(published.shape, published.storage, names, tuple(tensors)))
        linears[-1].check()
    return StoredExpert(*linears)


class StoredExperts:
    """`models`' Experts over a checkpoint, holding at most `budget_bytes` of published experts in memory."""

    def __init__(self, checkpoint: Checkpoint, *, dtype: torch.dtype, budget_bytes: int) -> None:
        """`dtype` is that of activations inside an expert. UsageError for a small budget names the least that works."""
        smallest = max(
            (checkpoint.expert_extents(layer, 0).nbytes for layer, _ in moe_layers(checkpoint.spec)), default=0
        )
        if budget_bytes < smallest:
            raise UsageError(
                f"{budget_bytes} bytes hold no expert; the smallest budget that works is {smallest} bytes."
            )
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._slots: LruSlots[StoredExpert] = LruSlots(budget_bytes)
        self._hits = 0
        self._misses = 0
        self._bytes_read = 0

    @property
    def stats(self) -> ExpertStats:
        """A snapshot of the counters since construction."""
        return ExpertStats(self._hits, self._misses, self._bytes_read)

    def _fetch(self, layer: int, expert: int) -> StoredExpert:
        found = self._slots.look((layer, expert))
        if found is not None:
            self._hits += 1
            return found
        extents = self._checkpoint.expert_extents(layer, expert)
        self._slots.make_room(extents.nbytes)
        stored = read_expert(extents)
        self._misses += 1
        self._bytes_read += extents.nbytes
        self._slots.keep((layer, expert), stored, extents.nbytes)
        return stored

    def ffn(self, layer: int, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        """The weighted sum of each token's chosen experts, `down(silu(gate x) * up x)`, in x's dtype.

        x: [tokens, hidden]; chosen: int64 [tokens, top_k]; weight: fp32 [tokens, top_k]. An expert's output is
        weighted and summed in fp32, ascending in expert, whatever order a token's choices are in.
        """
        total = torch.zeros_like(x, dtype=torch.float32)
        inputs = x.to(self._dtype)
        for expert in torch.unique(chosen).tolist():
            picks = chosen == expert
            tokens = picks.any(-1).nonzero().squeeze(-1)
            share = torch.where(picks, weight, 0.0).sum(-1)[tokens]  # [picked]
            total[tokens] += self._expert(layer, expert, inputs[tokens]).float() * share[:, None]
        return total.to(x.dtype)

    def _expert(self, layer: int, expert: int, x: Tensor) -> Tensor:
        """[picked, hidden] to [picked, hidden]; each matrix is decoded, used and dropped in turn."""
        stored = self._fetch(layer, expert)
        gate = kernels.linear(x, _used(stored.gate, x.dtype))
        up = kernels.linear(x, _used(stored.up, x.dtype))
        return kernels.linear(kernels.swiglu(gate, up), _used(stored.down, x.dtype))


def _used(linear: StoredLinear, dtype: torch.dtype) -> Tensor:
    return exactly(linear.decode(), dtype, linear.names[0])
