"""Which prefixes each place holds, as far as the router knows: those of the prompts that the place served lately.

A place evicts without saying so, hence an entry counts for a while only. Bounded: of each place the blocks used least
recently are forgotten first, of one prompt the last ones.
"""

import math
from collections import OrderedDict

from earthshine.prfaas.route import Cached
from earthshine.prfaas.router.blocks import Blocks

_NOTHING = Cached(0)


class PrefixIndex:
    """`capacity`: blocks of each place; `seconds`: for how long an entry counts after its last use."""

    def __init__(self, capacity: int = 1 << 16, seconds: float = 3600.0) -> None:
        self._capacity, self._seconds = capacity, seconds
        self._held: dict[str, OrderedDict[int, float]] = {}  # by place: when each block was used last, ascending

    def find(self, place: str, blocks: Blocks, now: float, tokens_per_byte: float) -> Cached:
        """What the place holds of a text: its leading blocks, and where a prompt ended that it served."""
        held = self._held.get(place)
        if not held:
            return _NOTHING
        oldest, n, states = now - self._seconds, 0, list[int]()
        for digest, end in zip(blocks.digests, blocks.ends, strict=True):
            if held.get(digest, -math.inf) < oldest:
                break
            n = int(end * tokens_per_byte)
            if held.get(~digest, -math.inf) >= oldest:
                states.append(n)
        return Cached(n, tuple(states)) if n else _NOTHING

    def keep(self, place: str, blocks: Blocks, now: float) -> None:
        """The place has served a prompt with these blocks."""
        held = self._held.setdefault(place, OrderedDict())
        if blocks.digests:  # a recurrent state is kept where a prompt ends
            held[~blocks.digests[-1]] = now
            held.move_to_end(~blocks.digests[-1])
        for digest in reversed(blocks.digests):
            held[digest] = now
            held.move_to_end(digest)
        while len(held) > self._capacity or (held and next(iter(held.values())) < now - self._seconds):
            held.popitem(last=False)

    def forget(self, place: str) -> None:
        """The place was removed, or has started again."""
        self._held.pop(place, None)

    def __len__(self) -> int:
        """Entries of all places."""
        return sum(map(len, self._held.values()))
