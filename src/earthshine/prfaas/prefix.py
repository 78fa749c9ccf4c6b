"""The simulator's prefix cache of one cluster: blocks of 512 tokens and recurrent states, bounded, least recently used.

A block is named by all that precedes it too, so equal names are equal prefixes. Rows may be reused up to any block; a
recurrent state only at exactly its length, and it takes the bytes of many blocks, so one is kept at a prompt's last
whole block and where a prompt was found to leave a known prefix, the two places from which a later one can go on.
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
        self._held: OrderedDict[int, float] = OrderedDict()  # bytes by name, least recently used first
        self.nbytes = 0.0

    def find(self, blocks: Sequence[int]) -> Cached:
        """What is held of a prompt's whole blocks."""
        held, n = self._held, 0
        for block in blocks:
            if block not in held:
                break
            n += 1
        if not n:
            return NOTHING
        if not self._recurrent:
            return Cached(n * BLOCK_TOKENS)
        states = tuple((at + 1) * BLOCK_TOKENS for at in range(n) if ~blocks[at] in held)
        return Cached(n * BLOCK_TOKENS, states)

    def keep(self, blocks: Sequence[int], branch: int = 0) -> None:
        """A prompt was computed, or its cache received: its whole blocks are held now, the last ones evicted first.

        branch: blocks of it that were known before, at whose end a recurrent state is kept too.
        """
        if not blocks:
            return
        for block in reversed(blocks):
            self._touch(block, self._block_bytes)
        if self._recurrent:
            for n in {len(blocks), branch} - {0}:
                self._touch(~blocks[n - 1], self._state_bytes)
        while self.nbytes > self._capacity:
            self.nbytes -= self._held.popitem(last=False)[1]

    def touch(self, blocks: Sequence[int]) -> None:
        """Blocks that were just used."""
        for block in reversed(blocks):
            for name in (block, ~block):
                if name in self._held:
                    self._held.move_to_end(name)

    def _touch(self, name: int, nbytes: float) -> None:
        if name in self._held:
            self._held.move_to_end(name)
        else:
            self._held[name] = nbytes
            self.nbytes += nbytes
