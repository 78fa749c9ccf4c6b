"""Expected seconds of prefill and bytes of cache over a band of lengths, exactly: curves are linear between points.

The sums up to each point are kept, so that a band costs two look-ups however many points there are.
"""

import bisect
import functools
from collections.abc import Sequence
from itertools import accumulate

from earthshine.prfaas.curve import Curve
from earthshine.prfaas.lengths import Band, Lengths, between

CUTS = 256  # a threshold is looked for among this many lengths first


class Work:
    """For each stage (a curve of seconds, a curve of bytes): the expected value per request of the whole workload."""

    def __init__(self, lengths: Lengths, stages: Sequence[tuple[Curve, Curve]]) -> None:
        self._lengths, self._stages = lengths, stages
        bends = {size for pair in stages for curve in pair for size, _ in curve.points[1:-1]}
        inner = {size for size in bends if lengths.shortest < size < lengths.longest}
        self.cuts = [0.0, *sorted(inner.union(lengths.cuts(CUTS)))]
        self._bands = [lengths.upto(cut) for cut in self.cuts]
        self.shares = [band.share for band in self._bands]
        cells = [between(lengths, low, high) for low, high in zip(self.cuts, self.cuts[1:], strict=False)]
        self.sums = [
            [list(accumulate((c.share * curve(c.mean) for c in cells), initial=0.0)) for curve in pair]
            for pair in stages
        ]

    def between(self, stage: int, low: float, high: float) -> tuple[float, float]:
        """Seconds and bytes of prompts above `low` and up to `high` tokens, per request of all."""
        (_, begin, first), (_, end, last) = self.upto(stage, low), self.upto(stage, high)
        return max(0.0, end - begin), max(0.0, last - first)

    def upto(self, stage: int, tokens: float) -> tuple[float, float, float]:
        """Share, seconds and bytes of prompts up to `tokens` tokens, the latter two per request of all."""
        at = bisect.bisect_right(self.cuts, tokens) - 1
        below, all_ = self._bands[at], self._lengths.upto(tokens)
        cell = Band(max(0.0, all_.share - below.share), max(0.0, all_.tokens - below.tokens))
        (seconds, nbytes), (time, size) = self.sums[stage], self._stages[stage]
        share = self.shares[at] + cell.share
        return share, seconds[at] + cell.share * time(cell.mean), nbytes[at] + cell.share * size(cell.mean)


@functools.lru_cache(maxsize=32)
def work_of(lengths: Lengths, stages: tuple[tuple[Curve, Curve], ...]) -> Work:
    """The sums for a workload and the stages' curves; kept, since a search asks for the same ones many times."""
    return Work(lengths, stages)
