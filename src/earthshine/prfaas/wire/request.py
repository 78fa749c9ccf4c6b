"""What a receiver asks a sender of caches for: a prompt to prefill, or a cache that a handle names."""

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from earthshine.errors import UsageError
from earthshine.prfaas.wire.frames import MOST_TOKENS

MOST_NAME_BYTES = 256  # of a request id, a tenant or a model's fingerprint
MOST_PARTS = 1 << 14
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class PrefillRequest:
    """A prompt, the receiver's part of it, and whose it is. Raises UsageError for values that can't be sent.

    `handle`: a handle from `Handles.issue` of the peer where its cache is to be fetched; b"" to prefill.
    """

    request_id: str
    tenant: str
    fingerprint: str  # of the model, as in a blob's header
    token_ids: Sequence[int]  # the whole prompt, each below 2**32
    start: int = 0  # tokens whose cache the receiver has: whole pages
    parts: tuple[int, ...] = ()  # of the blob's layout; () for all
    handle: bytes = b""

    def __post_init__(self) -> None:
        for name in ("request_id", "tenant", "fingerprint"):
            text = getattr(self, name)
            if len(encoded(text)) > MOST_NAME_BYTES:
                raise UsageError(f"{name} has more than {MOST_NAME_BYTES} bytes.", name)
        if not 1 <= len(self.token_ids) <= MOST_TOKENS:
            raise UsageError(f"A prompt has 1 to {MOST_TOKENS} tokens, not {len(self.token_ids)}.", "token_ids")
        if not 0 <= self.start < len(self.token_ids):
            raise UsageError(f"start is a position in the prompt's {len(self.token_ids)} tokens.", "start")
        if len(self.parts) > MOST_PARTS or any(not 0 <= part < MOST_PARTS for part in self.parts):
            raise UsageError(f"parts has at most {MOST_PARTS} numbers below {MOST_PARTS}.", "parts")
        if len(self.handle) > MOST_NAME_BYTES:
            raise UsageError("handle is longer than any that a peer makes.", "handle")

    def token_digest(self) -> bytes:
        """32 bytes that name the prompt's tokens."""
        return blake3(packed(self.token_ids)).digest(_DIGEST_BYTES)

    def binding(self) -> bytes:
        """32 bytes that name request, tenant, model and tokens, to which a handle is bound."""
        names = [encoded(text) for text in (self.request_id, self.tenant, self.fingerprint)]
        framed = b"".join(len(name).to_bytes(4, "little") + name for name in names)
        return blake3(framed + self.token_digest()).digest(_DIGEST_BYTES)


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def packed(numbers: Sequence[int]) -> bytes:
    """32-bit numbers, little-endian. Raises UsageError for one out of range."""
    try:
        found = numbers if isinstance(numbers, array) and numbers.typecode == "I" else array("I", numbers)
    except (OverflowError, TypeError):
        raise UsageError("Token ids are whole numbers from 0 to 4294967295.", "token_ids") from None
    if sys.byteorder == "big":
        found = found[:]
        found.byteswap()
    return found.tobytes()


def unpacked(raw: bytes | memoryview) -> "array[int]":
    """Numbers as `packed` wrote them; 4 bytes each, as they were sent."""
    found = array("I")
    found.frombytes(raw)
    if sys.byteorder == "big":
        found.byteswap()
    return found
