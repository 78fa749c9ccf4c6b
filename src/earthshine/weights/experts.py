"""Routed experts from disk: the seam that the mathematics calls, answered from slots or by reading the checkpoint.

The invariant: the result depends on the published values alone, never on slots, on what they hold, on the order in
which reads end or on earlier calls; a token's experts are summed in fp32, ascending. Beside its slots the store takes
at most 64 MiB for outputs that are not summed yet. Not safe to call from two threads at once.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from earthshine import kernels
from earthshine.errors import UsageError
from earthshine.kernels import Weight
from earthshine.weights.checkpoint import Checkpoint
from earthshine.weights.formats import dense
from earthshine.weights.manifest import Manifest
from earthshine.weights.reading import Reader
from earthshine.weights.residency import Arrivals, Held, Residency

_EACH_BYTES = 64 << 20  # of outputs that are not summed yet: 2340 pairs of Kimi-K2.6
_GROUP = 32  # experts between two pauses: 0.8 GB of Kimi-K2.6's


@dataclass(frozen=True, slots=True)
class ExpertStats:
    """What the store has done so far. An expert counts once a call, however many tokens chose it."""

    hits: int
    misses: int
    bytes_read: int  # published bytes of the misses
    read_wait_seconds: float  # in which nothing was computed
    compute_seconds: float
    direct: bool  # whether every read went past the page cache
    rereads: int  # reads repeated because what came first did not pass its check


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """A call's choices by expert, then token: expert i of `experts` has the pairs from begin[i] to begin[i + 1]."""

    experts: list[int]
    begin: list[int]
    token: Tensor  # int32 [pairs]
    weight: Tensor  # fp32 [pairs]

    def __len__(self) -> int:
        return self.begin[-1]

    def part(self, first: int, last: int) -> "_Pairs":
        """Of experts `first` to `last`."""
        begin = self.begin[first : last + 1]
        token, weight = self.token[begin[0] : begin[-1]], self.weight[begin[0] : begin[-1]]
        return _Pairs(self.experts[first:last], [at - begin[0] for at in begin], token, weight)


def _pairs(chosen: Tensor, weight: Tensor) -> _Pairs:
    if chosen.shape[0] == 1:  # a decoded token: 20 us less
        only, place = chosen[0].sort()
        top_k = only.shape[0]
        first = torch.zeros(top_k, dtype=torch.int32)
        return _Pairs(only.tolist(), list(range(top_k + 1)), first, weight[0, place])
    flat = chosen.numpy().reshape(-1)
    order = np.argsort(flat, kind="stable")
    ids = flat[order]
    firsts = np.flatnonzero(ids[1:] != ids[:-1]) + 1
    begin = [0, *firsts.tolist(), len(ids)]
    token = torch.from_numpy((order // chosen.shape[1]).astype(np.int32))
    shares = torch.from_numpy(weight.detach().numpy().reshape(-1)[order])
    return _Pairs(ids[begin[:-1]].tolist(), begin, token, shares)


class ExpertStore:
    """`models`' Experts over a checkpoint, holding `slots_per_layer` experts of each layer and reading the rest.

    `pause`, where it is set, is called between groups of the experts of a call. Inside it one other forward pass may
    run: it may call `ffn` of any layer, with `pause` unset, and `give_back`. The paused call keeps nothing of the store
    across it: its sum, its input and its choices are its own, and residents are looked up anew in each group.
    """

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
        """`transit_slots`: for experts on their way through, read ahead of their use; one is enough, and none is where
        every expert has a slot. `dtype`: of activations inside an expert. Opens every shard in `reader`.

        UsageError for fewer slots than work, or more memory than can be mapped; CheckpointError for changed shards.
        """
        self._residency = Residency(
            checkpoint,
            slots_per_layer=slots_per_layer,
            transit_slots=transit_slots,
            reader=reader,
            dtype=dtype,
            manifest=manifest,
        )
        self._checkpoint, self._reader, self._dtype = checkpoint, reader, dtype
        self.pause: Callable[[], None] | None = None
        self._hits = 0
        self._compute_seconds = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return self._residency.arena.nbytes

    @property
    def stats(self) -> ExpertStats:
        """A snapshot of the counters since construction."""
        home, reader = self._residency, self._reader
        waited, computed = home.read_wait_seconds, self._compute_seconds
        return ExpertStats(self._hits, home.misses, home.bytes_read, waited, computed, reader.direct, reader.rereads)

    def give_back(self, nbytes: int) -> int:
        """Lets the system have the memory of slots, `nbytes` or a little more where there are so many, and returns of
        how much; between calls, or where a call is paused. No result changes."""
        each = self._residency.arena.slot_bytes
        return self._residency.give_back(-(-nbytes // each)) * each

    def ffn(self, layer: int, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        """The weighted sum of each token's chosen experts, `down(silu(gate x) * up x)`, in x's dtype.

        x: [tokens, hidden]; chosen: int64 [tokens, top_k], distinct in a row; weight: fp32 [tokens, top_k]. Raises
        CheckpointError where an expert can't be read; later calls are none the worse for it.
        """
        total = torch.zeros(x.shape, dtype=torch.float32)
        home, resident = self._residency, self._residency.resident(layer)
        if not chosen.numel():
            return total.to(x.dtype)
        pairs = _pairs(chosen, weight)
        rows = max(1, _EACH_BYTES // (4 * x.shape[1]))
        if home.whole and len(resident) == home.n_experts[layer] and len(pairs) <= rows:
            self._all_held([resident[expert] for expert in pairs.experts], x, pairs, total)
            return total.to(x.dtype)
        home.learn(layer, chosen.numpy(), pairs.experts, np.diff(pairs.begin))
        wanted, x, pause = x.dtype, x.to(self._dtype).contiguous(), self.pause
        each = _GROUP if pause is not None else len(pairs.experts)
        for first in range(0, len(pairs.experts), each):
            if first and pause is not None:
                pause()
            self._group(layer, x, pairs, first, min(first + each, len(pairs.experts)), total)
        return total.to(wanted)

    def _group(self, layer: int, x: Tensor, pairs: "_Pairs", first: int, last: int, total: Tensor) -> None:
        """Adds what experts `first` to `last` of `pairs` give. Before and after it no read is under way."""
        home, resident = self._residency, self._residency.resident(layer)
        home.begin()
        kept = home.keep(layer, pairs.experts[first:])
        part = pairs if last - first == len(pairs.experts) else pairs.part(first, last)
        rows = max(1, _EACH_BYTES // (4 * x.shape[1]))
        arrivals = home.arrivals((layer, expert) for expert in part.experts if expert not in resident)
        call = _Call(layer, x, part, kept, resident, arrivals)
        n_hits = sum(expert in resident for expert in part.experts)
        if 0 < n_hits < len(part.experts) == len(pairs.experts) and 2 * len(part) <= rows:
            self._hits_first(call, total)  # the hits' outputs are there twice for a moment
        else:
            self._in_waves(call, rows, total)
        self._hits += n_hits
        home.end()

    def preload(self, progress: Callable[[int, int], None]) -> None:
        """Fills the slots of a store that has one for every expert; `progress` is told bytes done and bytes in all.

        UsageError where experts outnumber slots; CheckpointError as for `ffn`.
        """
        home = self._residency
        if not home.whole:
            raise UsageError("Experts can be loaded ahead only where each has a slot of its own.")
        home.begin()
        counts = home.n_experts.items()
        missing = [(layer, e) for layer, count in counts for e in range(count) if e not in home.resident(layer)]
        total = sum(self._checkpoint.expert_extents(*key).nbytes for key in missing)
        before = home.bytes_read
        arrivals = home.arrivals(missing)
        for key in missing:
            arrivals.release(key, arrivals.take(key), keep=True)
            progress(home.bytes_read - before, total)
        home.end()

    def _all_held(self, held: Sequence[Held], x: Tensor, pairs: _Pairs, total: Tensor) -> None:
        """Where nothing is read and no slot changes hands, less is to be done."""
        each = torch.empty(len(pairs), total.shape[1])
        self._compute(held, x.to(self._dtype).contiguous(), pairs.token, pairs.begin, each)
        kernels.moe_sum(each, pairs.token, pairs.weight, total)
        self._hits += len(held)

    def _hits_first(self, call: "_Call", total: Tensor) -> None:
        """Computes what is in memory while the rest is read, the rest as it arrives, and sums once all is there."""
        pairs, begin = call.pairs, call.pairs.begin
        each = torch.empty(len(pairs), total.shape[1])
        hits = [i for i, expert in enumerate(pairs.experts) if expert in call.resident]
        rows = torch.from_numpy(np.concatenate([np.arange(begin[i], begin[i + 1]) for i in hits]))
        ends = np.cumsum([begin[i + 1] - begin[i] for i in hits]).tolist()
        outputs = torch.empty(len(rows), total.shape[1])
        held = [call.take(i) for i in hits]
        self._compute(held, call.x, pairs.token[rows], [0, *ends], outputs)
        each[rows] = outputs
        call.release(hits, held)
        misses = [i for i in range(len(pairs.experts)) if i not in set(hits)]
        while misses:
            run = call.run(misses, len(pairs))
            misses = misses[len(run) :]
            self._compute_run(call, run, each[begin[run[0]] : begin[run[-1] + 1]])
        kernels.moe_sum(each, pairs.token, pairs.weight, total)

    def _in_waves(self, call: "_Call", rows: int, total: Tensor) -> None:
        """Computes and sums what is there in ascending order, at most `rows` pairs at once, while the rest is read."""
        pairs, begin = call.pairs, call.pairs.begin
        each = torch.empty(min(rows, len(pairs)), total.shape[1])
        left = list(range(len(pairs.experts)))
        while left:
            run = call.run(left, rows)
            left = left[len(run) :]
            first, last = begin[run[0]], begin[run[-1] + 1]
            if last - first <= rows:
                self._compute_run(call, run, each[: last - first])
                kernels.moe_sum(each[: last - first], pairs.token[first:last], pairs.weight[first:last], total)
                continue
            held = call.take(run[0])  # one expert with more pairs than rows
            for at in range(first, last, rows):
                end = min(at + rows, last)
                part, token = each[: end - at], pairs.token[at:end]
                self._compute([held], call.x, token, [0, end - at], part)
                kernels.moe_sum(part, token, pairs.weight[at:end], total)
            call.release(run, [held])

    def _compute_run(self, call: "_Call", run: list[int], each: Tensor) -> None:
        """The outputs of a run of experts whose pairs follow one another; each: [pairs of the run, hidden]."""
        begin = call.pairs.begin[run[0] : run[-1] + 2]
        held = [call.take(i) for i in run]
        token = call.pairs.token[begin[0] : begin[-1]]
        self._compute(held, call.x, token, [end - begin[0] for end in begin], each)
        call.release(run, held)

    def _compute(self, held: Sequence[Held], x: Tensor, token: Tensor, begin: Sequence[int], each: Tensor) -> None:
        """As kernels.moe_ffn; in fp32 each matrix is decoded, used and dropped in turn."""
        started = time.perf_counter()
        if self._dtype == torch.bfloat16:
            kernels.moe_ffn(x, [cast(kernels.Expert, one.weights) for one in held], token, begin, each)
        else:
            for one, first, last in zip(held, begin[:-1], begin[1:], strict=True):
                rows = x[token[first:last].long()]
                gate, up, down = cast(tuple[Weight, Weight, Weight], one.weights)
                inner = kernels.swiglu(*(kernels.linear(rows, dense(weight, x.dtype)) for weight in (gate, up)))
                each[first:last] = kernels.linear(inner, dense(down, x.dtype))
        self._compute_seconds += time.perf_counter() - started


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """One call of `ffn`: what it wants and where that comes from. Experts go by their index in `pairs.experts`."""

    layer: int
    x: Tensor  # [tokens, hidden] in the dtype of activations
    pairs: _Pairs
    kept: set[int]
    resident: Mapping[int, Held]
    arrivals: Arrivals

    def run(self, left: list[int], rows: int) -> list[int]:
        """The first of `left` and those right after it that are in memory by now, together at most `rows` pairs."""
        begin = self.pairs.begin
        end = left[0] + 1
        for i in left[1:]:
            if i != end or begin[i + 1] - begin[left[0]] > rows or not self._is_there(i):
                break
            end += 1
        return list(range(left[0], end))

    def take(self, i: int) -> Held:
        expert = self.pairs.experts[i]
        found = self.resident.get(expert)
        return self.arrivals.take((self.layer, expert)) if found is None else found

    def release(self, run: Sequence[int], held: Sequence[Held]) -> None:
        for i, one in zip(run, held, strict=True):
            expert = self.pairs.experts[i]
            self.arrivals.release((self.layer, expert), one, expert in self.kept)

    def _is_there(self, i: int) -> bool:
        expert = self.pairs.experts[i]
        return expert in self.resident or self.arrivals.is_there((self.layer, expert))
