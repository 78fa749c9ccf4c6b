"""The checksums of a stored or sent state (`kv.codec`): of a header, and of each block, which begins with the header's.

Both are BLAKE3, cut to DIGEST_BYTES.
"""

import struct
from collections.abc import Iterable

from blake3 import blake3

DIGEST_BYTES = 16
INDEX = struct.Struct("<I")  # of a block, before its values


def header_digest(header: bytes) -> bytes:
    """The digest of a header's bytes, without the digest that ends them."""
    return blake3(header).digest(DIGEST_BYTES)


def block_hasher(seed: bytes, index: bytes) -> blake3:
    """A block's digest before its values. `seed`: the digest of its header; `index`: as INDEX packs it."""
    return blake3(seed + index)


def block_digest(seed: bytes, index: int, buffers: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """The digest of a block whose values are `buffers`."""
    hasher = block_hasher(seed, INDEX.pack(index))
    for buffer in buffers:
        hasher.update(buffer)
    return hasher.digest(DIGEST_BYTES)
