"""The execution of routed experts: grouped feed-forward networks over the experts that the store hands out.

Invariant: the result depends on the published values alone, never on what is in memory, on the order in which reads
end or on earlier calls; a token's experts are summed in fp32, in ascending order. Takes at most 64 MiB for outputs
that are not summed yet. Not for two threads at once.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from earthshine import kernels
from earthshine.kernels import Weight
from earthshine.models import result_of
from earthshine.weights import ExpertStats, ExpertStore, Held, Loan, dense

_EACH_BYTES = 64 << 20  # of outputs that are not summed yet: 2340 pairs of Kimi-K2.6
_GROUP = 32  # experts between two points where a pass may be interrupted: 0.8 GB of Kimi-K2.6's


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """The choices of a call by expert, then token: expert i of `experts` has the pairs begin[i] to begin[i + 1]."""

    experts: list[int]
    begin: list[int]
    token: Tensor  # int32 [pairs]
    weight: Tensor  # fp32 [pairs]

    def __len__(self) -> int:
        return self.begin[-1]

    def part(self, first: int, last: int) -> "_Pairs":
        """The pairs of experts `first` to `last`."""
        if last - first == len(self.experts):
            return self
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


class RoutedExperts:
    """Implements `models.Experts` over an ExpertStore."""

    def __init__(self, store: ExpertStore) -> None:
        self.store = store

    @property
    def stats(self) -> ExpertStats:
        """The store's counters."""
        return self.store.stats

    def table(self, layer: int) -> kernels.ExpertTable | None:
        """All experts of a layer; see models.ResidentExperts."""
        return self.store.table(layer)

    def ffn(self, layer: int, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        """The weighted sum of each token's chosen experts, `down(silu(gate x) * up x)`, in x's dtype.

        x: [tokens, hidden]; chosen: int64 [tokens, top_k], distinct in a row; weight: fp32 [tokens, top_k]. Raises
        CheckpointError where an expert can't be read; later calls are not affected.
        """
        return result_of(self._grouped(layer, x, chosen, weight, None))

    def ffn_in_groups(self, layer: int, x: Tensor, chosen: Tensor, weight: Tensor) -> Generator[None, None, Tensor]:
        """As `ffn`, but a generator that yields between groups of experts.

        Nothing of the store is held across a yield: other calls may run, and the store may shrink.
        """
        return self._grouped(layer, x, chosen, weight, _GROUP)

    def _grouped(
        self, layer: int, x: Tensor, chosen: Tensor, weight: Tensor, group: int | None
    ) -> Generator[None, None, Tensor]:
        total = torch.zeros(x.shape, dtype=torch.float32)
        if not chosen.numel():
            return total.to(x.dtype)
        pairs, rows = _pairs(chosen, weight), max(1, _EACH_BYTES // (4 * x.shape[1]))
        inner = x.to(self.store.dtype).contiguous()
        held = self.store.all_of(layer, pairs.experts) if len(pairs) <= rows else None
        if held is not None:
            each = torch.empty(len(pairs), x.shape[1])
            self._compute(held, inner, pairs.token, pairs.begin, each)
            kernels.moe_sum(each, pairs.token, pairs.weight, total)
            return total.to(x.dtype)
        self.store.learn(layer, chosen.numpy(), pairs.experts, np.diff(pairs.begin))
        count = len(pairs.experts)
        for first in range(0, count, group or count):
            if first:
                yield
            part, later = pairs.part(first, first + (group or count)), pairs.experts[first + (group or count) :]
            with self.store.lend(layer, part.experts, later) as loan:
                call = _Call(inner, part, loan)
                if part is pairs and 0 < len(loan.hits) < count and 2 * len(part) <= rows:
                    self._hits_first(call, total)  # the hits' outputs are there twice for a moment
                else:
                    self._in_waves(call, rows, total)
        return total.to(x.dtype)

    def _hits_first(self, call: "_Call", total: Tensor) -> None:
        """Computes experts in memory while the others are read, then these as they arrive; sums when all are done."""
        pairs, begin = call.pairs, call.pairs.begin
        each = torch.empty(len(pairs), total.shape[1])
        in_memory = set(call.loan.hits)
        hits = [i for i, expert in enumerate(pairs.experts) if expert in in_memory]
        rows = torch.from_numpy(np.concatenate([np.arange(begin[i], begin[i + 1]) for i in hits]))
        ends = np.cumsum([begin[i + 1] - begin[i] for i in hits]).tolist()
        outputs = torch.empty(len(rows), total.shape[1])
        held = [call.take(i) for i in hits]
        self._compute(held, call.x, pairs.token[rows], [0, *ends], outputs)
        each[rows] = outputs
        call.release(hits, held)
        misses = [i for i, expert in enumerate(pairs.experts) if expert not in in_memory]
        while misses:
            run = call.run(misses, len(pairs))
            misses = misses[len(run) :]
            self._compute_run(call, run, each[begin[run[0]] : begin[run[-1] + 1]])
        kernels.moe_sum(each, pairs.token, pairs.weight, total)

    def _in_waves(self, call: "_Call", rows: int, total: Tensor) -> None:
        """Computes and sums experts in ascending order, at most `rows` pairs at once, while later ones are read."""
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
        """As kernels.moe_ffn; in fp32 each matrix is decoded, used and dropped, one after another."""
        if self.store.dtype == torch.bfloat16:
            kernels.moe_ffn(x, [cast(kernels.Expert, one.weights) for one in held], token, begin, each)
            return
        for one, first, last in zip(held, begin[:-1], begin[1:], strict=True):
            rows = x[token[first:last].long()]
            gate, up, down = cast(tuple[Weight, Weight, Weight], one.weights)
            inner = kernels.swiglu(*(kernels.linear(rows, dense(weight, x.dtype)) for weight in (gate, up)))
            each[first:last] = kernels.linear(inner, dense(down, x.dtype))


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """The pairs of one loan. Experts go by their index in `pairs.experts`."""

    x: Tensor  # [tokens, hidden] in the dtype of activations
    pairs: _Pairs
    loan: Loan

    def run(self, left: list[int], rows: int) -> list[int]:
        """The first of `left` and those right after it that are in memory by now, together at most `rows` pairs."""
        begin, experts = self.pairs.begin, self.pairs.experts
        end = left[0] + 1
        for i in left[1:]:
            if i != end or begin[i + 1] - begin[left[0]] > rows or not self.loan.is_there(experts[i]):
                break
            end += 1
        return list(range(left[0], end))

    def take(self, i: int) -> Held:
        return self.loan.take(self.pairs.experts[i])

    def release(self, run: Sequence[int], held: Sequence[Held]) -> None:
        for i, one in zip(run, held, strict=True):
            self.loan.release(self.pairs.experts[i], one)
