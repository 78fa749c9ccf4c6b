"""The simulator's prefix cache of one cluster: blocks of 512 tokens and recurrent states, bounded, least recently used.

A block is named by all that precedes it too, so equal names are equal prefixes. Rows may be reused up to any block; a
recurrent state only at exactly its length, and it takes the bytes of many blocks, so one is kept at a prompt's last
whole block and where a prompt was found to leave a known prefix, the two places from which a later one can go on. It is
evicted with the block that it ends with.
"""

from collections import OrderedDict
from collections.abc import Sequence

from earthshine.loadgen.trace import BLOCK_TOKENS
from earthshine.prfaas.profile import Profile
from earthshine.prfaas.route import Cached

NOTHING = Cached(0)


class PrefixCache:
    """`capacity_bytes` bounds rows and states together, by the sizes of `profile`."""

    def __init__(self, profile: Profile, capacity_bytes: float) -> None:
        self._recurrent = profile.recurrent
        base = profile.cache(0)
        self._state_bytes = base
        self._block_bytes = (profile.cache(1 << 16) - base) / (1 << 16) * BLOCK_TOKENS
        self._capacity = capacity_bytes
        self._has_state: OrderedDict[int, bool] = OrderedDict()  # by block, least recently used first
        self.nbytes = 0.0

    def find(self, blocks: Sequence[int]) -> Cached:
        """What is held of a prompt's whole blocks."""
        held, n = self._has_state, 0
        for block in blocks:
            if block not in held:
                break
            n += 1
        if not n:
            return NOTHING
        if not self._recurrent:
            return Cached(n * BLOCK_TOKENS)
        return Cached(n * BLOCK_TOKENS, tuple((at + 1) * BLOCK_TOKENS for at in range(n) if held[blocks[at]]))

    def keep(self, blocks: Sequence[int], branch: int = 0) -> None:
        """A prompt was computed, or its cache received: its whole blocks are held now, the last ones evicted first.

        branch: blocks of it that were known before, at whose end a recurrent state is kept too.
        """
        if not blocks:
            return
        held = self._has_state
        for block in reversed(blocks):
            if block in held:
                held.move_to_end(block)
            else:
                held[block] = False
                self.nbytes += self._block_bytes
        if self._recurrent:
            for n in {len(blocks), branch} - {0}:
                if not held[blocks[n - 1]]:
                    held[blocks[n - 1]] = True
                    self.nbytes += self._state_bytes
        while held and self.nbytes > self._capacity:
            has_state = held.popitem(last=False)[1]
            self.nbytes -= self._block_bytes + (self._state_bytes if has_state else 0.0)

    def touch(self, blocks: Sequence[int]) -> None:
        """Blocks that were just used."""
        for block in reversed(blocks):
            if block in self._has_state:
                self._has_state.move_to_end(block)
