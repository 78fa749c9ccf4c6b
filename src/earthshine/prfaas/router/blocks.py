"""A prompt's text as a chain of digests: two prompts with an equal digest have the same text up to that block's end.

Blocks end at fixed lengths, close together in the beginning of a text and further apart later, so that a short common
beginning is found and a long prompt has few blocks. A digest that collides misleads the choice of a place, never an
answer.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_STEPS = ((256, 4 << 10), (1 << 10, 64 << 10), (4 << 10, 4 << 20), (64 << 10, 1 << 40))  # bytes, up to this length
_DIGEST_BYTES = 8


class Blocks(NamedTuple):
    """Digests of a text's whole blocks, and the length in bytes up to each one's end."""

    digests: Sequence[int]
    ends: Sequence[int]


NO_BLOCKS = Blocks((), ())


def block_ends() -> Iterator[int]:
    """The lengths in bytes at which blocks end, ascending and without end."""
    end = 0
    for step, last in _STEPS:
        while end < last:
            end += step
            yield end


def blocks_of(text: bytes, tenant: bytes) -> Blocks:
    """The whole blocks of `text`. Texts of different tenants have no digest in common: places share no cache there."""
    digests, ends, before, begin = [], [], hashlib.blake2b(tenant, digest_size=_DIGEST_BYTES).digest(), 0
    view = memoryview(text)
    for end in block_ends():
        if end > len(text):
            break
        chain = hashlib.blake2b(before, digest_size=_DIGEST_BYTES)
        chain.update(view[begin:end])
        before, begin = chain.digest(), end
        digests.append(int.from_bytes(before, "little"))
        ends.append(end)
    return Blocks(digests, ends)
