"""One sequence's recurrent state: the slot after its last token, the slot that a step writes, and its checkpoints.

A recurrent state can only be extended, so a sequence can be cut only at a checkpoint, where a state was kept. A step
leaves one at the last page boundary that it passes. Two are kept: during decoding that of the prompt and the latest, so
that the next prompt can continue from either. A sequence takes at most STATES_PER_SEQUENCE slots.
"""

from dataclasses import dataclass

from earthshine.errors import ContextError
from earthshine.kv.states import StatePool
from earthshine.spec.attention import MOST_CHECKPOINTS


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of a step: from the state in `source` (None: before the first token) to that in `target`."""

    count: int
    source: int | None
    target: int


class Recurrence:
    """Starts at length 0. `length` always equals the page table's."""

    def __init__(self, pool: StatePool, page_tokens: int) -> None:
        self._pool, self._page_tokens = pool, page_tokens
        self._slot: int | None = None  # the state after `length` tokens; None at length 0
        self._segments: list[Segment] = []  # of the step under way
        self._checkpoints: dict[int, int] = {}  # length to slot, the shortest first

    @property
    def slot(self) -> int | None:
        """The slot of the state after the last committed token."""
        return self._slot

    @property
    def segments(self) -> list[Segment]:
        """The segments of the current step, in order."""
        return self._segments

    @property
    def checkpoints(self) -> dict[int, int]:
        return dict(self._checkpoints)

    def reserve(self, length: int, end: int, checkpoint: bool) -> None:
        """Take slots for a step from `length` to `end`. Raises ContextError; nothing has changed then."""
        self.drop_step()
        boundary = end // self._page_tokens * self._page_tokens
        last = self._take()
        middle = self._take_another() if checkpoint and length < boundary < end else None
        if middle is None:
            self._segments = [Segment(end - length, self._slot, last)]
        else:
            self._segments = [
                Segment(boundary - length, self._slot, middle),
                Segment(end - boundary, middle, last),
            ]

    def commit(self, length: int) -> None:
        """Set the length after a step."""
        if not self._segments:
            return
        *middle, last = self._segments
        decoding = not middle and last.count == 1
        for segment in middle:
            self._checkpoints[length - last.count] = segment.target
        if self._slot is not None:
            self._pool.release([self._slot])
        self._slot, self._segments = last.target, []
        if length % self._page_tokens == 0:
            self._pool.hold([self._slot])
            self._drop_checkpoints(MOST_CHECKPOINTS - 1, newest_first=decoding)
            self._checkpoints[length] = self._slot

    def drop_step(self) -> None:
        """Release what a step reserved."""
        self._pool.release([segment.target for segment in self._segments])
        self._segments = []

    def rewind(self, length: int) -> int:
        """Go back to the longest checkpoint of at most `length` tokens. Returns its length, 0 where there is none."""
        self.drop_step()
        self._checkpoints, others = {}, self._checkpoints
        for at, slot in others.items():
            if at <= length:
                self._checkpoints[at] = slot
            else:
                self._pool.release([slot])
        if self._slot is not None:
            self._pool.release([self._slot])
        at = max(self._checkpoints, default=0)
        self._slot = self._checkpoints.get(at)
        if self._slot is not None:
            self._pool.hold([self._slot])
        return at

    def adopt(self, slot: int, length: int) -> None:
        """Continue from a checkpoint at `length`. The caller's hold on its slot becomes this sequence's."""
        self.drop_step()
        if self._slot is not None:
            self._pool.release([self._slot])
        self._slot = slot
        self._pool.hold([slot])
        self._checkpoints[length] = slot

    def nearest(self, length: int, current: int) -> int:
        """The length that rewind(length) would return; `current`: the length now."""
        return length if length == current else max((at for at in self._checkpoints if at <= length), default=0)

    def _take(self) -> int:
        """A slot, for which the sequence's own checkpoints are dropped where there is no other."""
        while True:
            try:
                return self._pool.take()
            except ContextError:
                if not self._checkpoints:
                    raise
                self._drop_checkpoints(len(self._checkpoints) - 1)

    def _take_another(self) -> int | None:
        """A slot for a checkpoint that a step can do without: instead of the oldest one of this sequence, or of what is
        kept for nobody in particular and was unused longest."""
        self._drop_checkpoints(MOST_CHECKPOINTS - 1)
        try:
            return self._pool.take()
        except ContextError:
            return None

    def _drop_checkpoints(self, most: int, newest_first: bool = False) -> None:
        """Keep `most` of them."""
        while len(self._checkpoints) > most:
            at = max(self._checkpoints) if newest_first else min(self._checkpoints)
            self._pool.release([self._checkpoints.pop(at)])
