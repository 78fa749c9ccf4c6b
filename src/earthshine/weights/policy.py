"""Decides which of a layer's experts should have slots: those used last, and those used after earlier steps like the
present one.

Routing repeats itself: after steps that chose similar experts, similar experts came next. An expert's score is how
recently it was used plus how often it was used right after recent steps, each weighted by its similarity to the present
one. A missed expert gets a slot only where its score is higher than a resident's. Pure arithmetic over small arrays,
without tensors or I/O. Constants: tools/replay_routing.py prints the hit rates that they reach. Only speed depends on
these choices, never a result.
"""

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Shares = NDArray[np.float64]

# Replayed at 4, 6 and 8 slots a layer, as a share of what Belady's optimum hits. Kimi-Linear: frequency decayed with a
# half-life of 8 steps .583 .612 .631; half-lives 1 and 128 together .657 .684 .695; this score .706 .732 .742.
# OLMoE, seen meanwhile but not what the constants were chosen by: .675 .672 .687; .707 .720 .748; .784 .792 .809.
_MEMORY_STEPS = 256  # 128 lose half a point on Kimi-Linear, 512 gain nothing
_SHARPNESS = 4.0  # power of the similarity; 2 loses a point, 6 gains at 4 slots and loses at 8
_FLOOR = 0.05  # added to each similarity, so that a step like no other is answered by plain frequency
_RECALL_WEIGHT = 4.0  # against recency, whose half-life is one step; 2 loses up to half a point


class LayerPolicy:
    """The recent past of one layer: the experts of up to 256 steps, fewer where a step uses more than `top_k`.

    Takes 48 KB where top_k is 8, and 25 microseconds a step of one token.
    """

    def __init__(self, n_experts: int, top_k: int) -> None:
        self._n_experts = n_experts
        entries = _MEMORY_STEPS * max(1, top_k)
        # One entry an expert and step, the oldest overwritten first; `_step` is the step's place in a ring.
        self._step = np.zeros(entries, dtype=np.int64)
        self._expert = np.zeros(entries, dtype=np.int64)
        self._share = np.zeros(entries)  # 0 where nothing is remembered yet
        self._next = 0
        self._n_steps = 0
        self._norm = np.ones(_MEMORY_STEPS)
        self._recency = np.zeros(n_experts)
        self._now = np.zeros(n_experts)

    def step(self, experts: Ids, share: Shares) -> None:
        """Takes note of one step: the distinct experts that were used, and what share of the tokens used each."""
        self._now = np.zeros(self._n_experts)
        self._now[experts] = share
        self._recency *= 0.5
        self._recency += 0.5 * self._now
        place = self._n_steps % _MEMORY_STEPS
        entries = len(self._step)
        most = min(len(experts), entries)
        first = self._next
        where = slice(first, first + most) if first + most <= entries else np.arange(first, first + most) % entries
        self._step[where], self._expert[where], self._share[where] = place, experts[:most], share[:most]
        self._next = (first + most) % entries
        self._n_steps += 1
        self._norm[place] = max(float(np.sqrt(share @ share)), 1e-9)

    def score(self) -> Shares:
        """Of each expert [n_experts]: the likelier it is used soon, the higher."""
        if not self._n_steps:
            return self._recency
        place, now = (self._n_steps - 1) % _MEMORY_STEPS, self._now
        alike = np.bincount(self._step, self._share * now[self._expert], _MEMORY_STEPS) / self._norm
        alike /= self._norm[place]
        alike += _FLOOR
        alike **= _SHARPNESS
        alike[min(self._n_steps, _MEMORY_STEPS) :] = 0.0
        alike[place] = 0.0  # what follows the present step is not known yet
        total = alike.sum()
        followed = np.roll(alike, 1)[self._step]  # of each entry: how like the present the step before it was
        followed *= self._share
        recall = np.bincount(self._expert, followed, self._n_experts)
        return self._recency + (_RECALL_WEIGHT / total if total > 0 else 0.0) * recall

    def kept(self, resident: Ids, missed: Ids, n_slots: int) -> Ids:
        """At most `n_slots` experts to hold from now on, by score; of equal ones those in memory."""
        candidates = np.concatenate((resident, missed))
        if len(candidates) <= n_slots:
            return candidates
        return candidates[np.argsort(-self.score()[candidates], kind="stable")[:n_slots]]
