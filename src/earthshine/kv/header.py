"""The header of a stored conversation state: what it is of, how it is laid out, and whether that can be true.

The bytes are described in `codec`. A header value that exists is consistent and within the format's bounds; one
that was read has also passed its checksum.
"""

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO

import torch
from blake3 import blake3

from earthshine.errors import BlobError

DIGEST_BYTES = 16
PRIOR_BYTES = 32
INDEX = struct.Struct("<I")
_NO_PRIOR = bytes(PRIOR_BYTES)
_MAGIC = b"ESHKV\r\n\x1a"
_VERSION = 3  # the layout of 2, whose writers could keep latents that were computed with another layer's weights
_START = struct.Struct("<8sII")
_FIXED = struct.Struct("<8I32sI")
_READ_BYTES = 1 << 20
_MOST = {
    "n_layers": 4096,
    "kv_lora_rank": 1 << 16,
    "rope_dim": 1 << 16,
    "start": 1 << 24,
    "n_tokens": 1 << 24,
    "tail_dim": 1 << 20,
}
_MOST_FINGERPRINT_BYTES = 256


class LatentFormat(StrEnum):
    """How each value of a latent is stored."""

    BF16 = "bf16"
    FP32 = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self is LatentFormat.BF16 else torch.float32

    @classmethod
    def of(cls, dtype: torch.dtype) -> "LatentFormat":
        """Raises BlobError for a dtype that has no stored form."""
        for known in cls:
            if known.dtype is dtype:
                return known
        raise BlobError(f"Latents of {dtype} have no stored form; bf16 and fp32 have.")


_CODES = {1: LatentFormat.BF16, 2: LatentFormat.FP32}


@dataclass(frozen=True, slots=True)
class BlobLayout:
    """What two sides must agree on before a state means the same to both. Raises BlobError out of bounds."""

    fingerprint: str  # of the model: its weights and config
    format: LatentFormat
    n_layers: int
    kv_lora_rank: int
    rope_dim: int

    def __post_init__(self) -> None:
        _require_range("n_layers", self.n_layers, 1)
        _require_range("kv_lora_rank", self.kv_lora_rank, 1)
        _require_range("rope_dim", self.rope_dim, 0)
        if not 1 <= len(_encoded(self.fingerprint)) <= _MOST_FINGERPRINT_BYTES:
            raise BlobError(f"A model's fingerprint has 1 to {_MOST_FINGERPRINT_BYTES} bytes in UTF-8.")

    @property
    def latent_dim(self) -> int:
        return self.kv_lora_rank + self.rope_dim

    def require(self, mine: "BlobLayout") -> None:
        """Raises BlobError naming the first thing in which this layout differs from `mine`."""
        if self.fingerprint != mine.fingerprint:
            raise BlobError(f"The state belongs to the model {self.fingerprint!r}; this one is {mine.fingerprint!r}.")
        for name in ("format", "n_layers", "kv_lora_rank", "rope_dim"):
            theirs, ours = getattr(self, name), getattr(mine, name)
            if theirs != ours:
                raise BlobError(f"The state's {name} is {theirs}, but this model's is {ours}.")


@dataclass(frozen=True, slots=True)
class BlobHeader:
    """All that is known before the first layer is computed. Raises BlobError where its numbers contradict.

    A whole conversation has start 0. A later piece of one says what it follows, since its latents mean nothing after
    other tokens; a first piece may also give a `prior`, which then says whose it is.
    """

    layout: BlobLayout
    n_tokens: int  # that have latents
    token_ids: tuple[int, ...]  # n_tokens, or one more: sampled, but not yet computed
    tail_dim: int  # the model's hidden size where a tail follows the layers, 0 where none does
    start: int = 0  # tokens of the conversation before this piece; they are not among token_ids
    prior: bytes = _NO_PRIOR  # PRIOR_BYTES: the digest that names those tokens and their tenant

    def __post_init__(self) -> None:
        _require_range("n_tokens", self.n_tokens, 0)
        _require_range("start", self.start, 0)
        if len(self.prior) != PRIOR_BYTES:
            raise BlobError(f"What precedes a state is named by {PRIOR_BYTES} bytes, not {len(self.prior)}.")
        if self.start and self.prior == _NO_PRIOR:
            raise BlobError(f"The state follows {self.start} tokens, but does not name them.")
        _require_range("tail_dim", self.tail_dim, 0)
        if not 0 <= len(self.token_ids) - self.n_tokens <= 1:
            raise BlobError(f"{self.n_tokens} tokens have latents, but {len(self.token_ids)} token ids are given.")
        if self.tail_dim and len(self.token_ids) != self.n_tokens:
            raise BlobError("A state whose last token is not computed has no tail.")
        if self.tail_dim and not self.n_tokens:
            raise BlobError("An empty state has no tail.")
        if self.token_ids and not 0 <= min(self.token_ids) <= max(self.token_ids) < 1 << 32:
            raise BlobError("A token id lies outside 0 to 4294967295.")

    @property
    def layer_bytes(self) -> int:
        """Of one layer's values."""
        return self.n_tokens * self.layout.latent_dim * self.layout.format.dtype.itemsize

    @property
    def tail_bytes(self) -> int:
        return self.tail_dim * self.layout.format.dtype.itemsize

    @property
    def blob_bytes(self) -> int:
        """Of the whole blob, headers and digests included."""
        framing = INDEX.size + DIGEST_BYTES
        tail = self.tail_bytes + framing if self.tail_dim else 0
        return len(pack_header(self)) + self.layout.n_layers * (self.layer_bytes + framing) + tail


def pack_header(header: BlobHeader) -> bytes:
    """From the magic to the header's own digest, which is the last DIGEST_BYTES."""
    layout = header.layout
    name, ids = _encoded(layout.fingerprint), header.token_ids
    code = next(code for code, known in _CODES.items() if known is layout.format)
    numbers = (layout.n_layers, layout.kv_lora_rank, layout.rope_dim, header.start, header.n_tokens, len(ids))
    fixed = _FIXED.pack(code, *numbers, header.tail_dim, header.prior, len(name))
    body = fixed + name + struct.pack(f"<{len(ids)}I", *ids)
    packed = _START.pack(_MAGIC, _VERSION, len(body)) + body
    return packed + blake3(packed).digest(DIGEST_BYTES)


def unpack_header(file: BinaryIO, limit_bytes: int) -> tuple[BlobHeader, bytes]:
    """The header and its digest, with which every block's checksum begins. Raises BlobError."""
    start = read_exactly(file, _START.size, "its header")
    magic, version, body_bytes = _START.unpack(start)
    if magic != _MAGIC:
        raise BlobError("This is not a stored conversation state; its first bytes are not ESHKV.")
    if version != _VERSION:
        raise BlobError(f"The state has version {version}; this Earthshine reads version {_VERSION}.")
    most = _FIXED.size + _MOST_FINGERPRINT_BYTES + 4 * (_MOST["n_tokens"] + 1)
    if not _FIXED.size <= body_bytes <= min(most, limit_bytes):
        raise BlobError(f"The state's header can't have {body_bytes} bytes; it is damaged or truncated.")
    body = read_exactly(file, body_bytes, "its header")
    stored = read_exactly(file, DIGEST_BYTES, "its header")
    if stored != blake3(start + body).digest(DIGEST_BYTES):
        raise BlobError("The state is damaged: the checksum of its header does not match.")
    return _header(body), stored


def _header(body: bytes) -> BlobHeader:
    code, n_layers, rank, rope_dim, start, n_tokens, n_ids, tail_dim, prior, name_bytes = _FIXED.unpack_from(body)
    if len(body) != _FIXED.size + name_bytes + 4 * n_ids:
        raise BlobError("The state's header does not have the length that its own numbers give.")
    if code not in _CODES:
        raise BlobError(f"The state's latent format {code} is unknown; 1 is bf16 and 2 is fp32.")
    try:
        fingerprint = body[_FIXED.size : _FIXED.size + name_bytes].decode()
    except UnicodeDecodeError:
        raise BlobError("The state's fingerprint is not UTF-8.") from None
    ids = struct.unpack_from(f"<{n_ids}I", body, _FIXED.size + name_bytes)
    layout = BlobLayout(fingerprint, _CODES[code], n_layers, rank, rope_dim)
    return BlobHeader(layout, n_tokens, ids, tail_dim, start, prior)


def read_exactly(file: BinaryIO, count: int, what: str) -> bytes:
    """`count` bytes of `what`, in pieces, so that memory follows what arrives. Raises BlobError at an early end."""
    parts: list[bytes] = []
    while count:
        part = file.read(min(count, _READ_BYTES))
        if not part:
            raise BlobError(f"The state ends inside {what}; it is truncated.")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _encoded(fingerprint: str) -> bytes:
    try:
        return fingerprint.encode()
    except UnicodeEncodeError:
        raise BlobError("A model's fingerprint must be valid Unicode.") from None


def _require_range(name: str, value: int, least: int) -> None:
    if not least <= value <= _MOST[name]:
        raise BlobError(f"A state's {name} lies between {least} and {_MOST[name]}, so {value} is impossible.")
