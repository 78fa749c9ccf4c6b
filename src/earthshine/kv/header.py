"""The header of a sequence's stored state: its model, layout and tokens.

The bytes are described in `codec`. Invariant: a BlobHeader is consistent and within the format's limits; one that was
read has also passed its checksum.
"""

import math
import struct
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import BinaryIO

import torch

from earthshine.errors import BlobError
from earthshine.spec.attention import Kept, Rows, State
from earthshine.storage.blob import DIGEST_BYTES, INDEX, header_digest

PRIOR_BYTES = 32
_NO_PRIOR = bytes(PRIOR_BYTES)
_MAGIC = b"ESHKV\r\n\x1a"
VERSION = 5  # 4 had no recurrent states; 2 could hold latents computed with another layer's weights
_START = struct.Struct("<8sII")
_FIXED = struct.Struct("<7I32sI")
_PART = struct.Struct("<3I")
_READ_BYTES = 1 << 20
_MOST = {
    "layer": 4095,
    "width": 1 << 20,
    "start": 1 << 24,
    "n_tokens": 1 << 24,
    "tail_dim": 1 << 20,
}
_MOST_FINGERPRINT_BYTES = 256
_MOST_PARTS = 1 << 14


class ValueFormat(StrEnum):
    """How the values of a part are stored."""

    BF16 = "bf16"
    FP32 = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self is ValueFormat.BF16 else torch.float32

    @classmethod
    def of(cls, dtype: torch.dtype) -> "ValueFormat":
        """Raises BlobError for a dtype that has no stored form."""
        for known in cls:
            if known.dtype is dtype:
                return known
        raise BlobError(f"Values of {dtype} have no stored form; bf16 and fp32 have.")


_CODES = {1: ValueFormat.BF16, 2: ValueFormat.FP32}


class PartKind(IntEnum):
    """What a part is, and the format of its values where that is not the blob's."""

    ROWS = 1  # one row per token
    STATE = 2  # of constant size, after the last token
    STATE_FP32 = 3


@dataclass(frozen=True, slots=True)
class Part:
    """A part of what a sequence keeps in `layer`: `width` values, per token or in all. Raises BlobError for values out
    of range."""

    layer: int
    width: int
    kind: PartKind = PartKind.ROWS

    def __post_init__(self) -> None:
        _require_range("layer", self.layer, 0)
        _require_range("width", self.width, 1)

    @property
    def described(self) -> str:
        per = "values per token" if self.kind is PartKind.ROWS else "values of recurrent state"
        return f"{self.width} {per} in layer {self.layer}"

    @classmethod
    def of(cls, layer: int, kept: Rows | State) -> "Part":
        if isinstance(kept, Rows):
            return cls(layer, kept.width)
        return cls(layer, kept.size, PartKind.STATE_FP32 if kept.fp32 else PartKind.STATE)


@dataclass(frozen=True, slots=True)
class BlobLayout:
    """What writer and reader of a blob must agree on. Raises BlobError for values out of range."""

    fingerprint: str  # of the model: its weights and config
    format: ValueFormat
    parts: tuple[Part, ...]  # by layer, in the order in which they are stored

    def __post_init__(self) -> None:
        if not 1 <= len(self.parts) <= _MOST_PARTS:
            raise BlobError(f"A state has 1 to {_MOST_PARTS} parts, so {len(self.parts)} are impossible.")
        layers = [part.layer for part in self.parts]
        if layers != sorted(layers):
            raise BlobError("A state's parts follow each other by layer.")
        if not 1 <= len(_encoded(self.fingerprint)) <= _MOST_FINGERPRINT_BYTES:
            raise BlobError(f"A model's fingerprint has 1 to {_MOST_FINGERPRINT_BYTES} bytes in UTF-8.")

    @classmethod
    def of(cls, kept: Kept, fingerprint: str, dtype: torch.dtype) -> "BlobLayout":
        """The layout of a model whose layers keep `kept` in `dtype`."""
        parts = tuple(Part.of(layer, part) for layer, parts in enumerate(kept) for part in parts)
        return cls(fingerprint, ValueFormat.of(dtype), parts)

    def require(self, mine: "BlobLayout") -> None:
        """Raises BlobError, which names the first difference between this layout and `mine`."""
        if self.fingerprint != mine.fingerprint:
            raise BlobError(f"The state belongs to the model {self.fingerprint!r}; this one is {mine.fingerprint!r}.")
        if self.format is not mine.format:
            raise BlobError(f"The state's values are {self.format}, but this model's are {mine.format}.")
        if len(self.parts) != len(mine.parts):
            raise BlobError(f"The state has {len(self.parts)} parts, but this model keeps {len(mine.parts)}.")
        for number, (theirs, ours) in enumerate(zip(self.parts, mine.parts, strict=True)):
            if theirs != ours:
                raise BlobError(
                    f"Part {number} of the state is {theirs.described}, but this model keeps {ours.described}."
                )


@dataclass(frozen=True, slots=True)
class BlobHeader:
    """Everything that is known before the first layer is computed. Raises BlobError for inconsistent numbers.

    The header of a whole sequence has start 0. That of a later piece names the tokens before it in `prior`, since its
    rows are valid only after these. A first piece may have a `prior` too, which then names its tenant.
    """

    layout: BlobLayout
    n_tokens: int  # that were computed
    token_ids: tuple[int, ...]  # n_tokens, or one more: sampled, but not yet computed
    tail_dim: int  # the model's hidden size where a tail follows the layers, 0 where none does
    start: int = 0  # tokens of the sequence before this piece; they are not among token_ids
    prior: bytes = _NO_PRIOR  # PRIOR_BYTES: the digest that names those tokens and their tenant
    with_states: bool = True  # whether the layout's recurrent states after the last token follow too

    def __post_init__(self) -> None:
        _require_range("n_tokens", self.n_tokens, 0)
        _require_range("start", self.start, 0)
        if len(self.prior) != PRIOR_BYTES:
            raise BlobError(f"What precedes a state is named by {PRIOR_BYTES} bytes, not {len(self.prior)}.")
        if self.start and self.prior == _NO_PRIOR:
            raise BlobError(f"The state follows {self.start} tokens, but does not name them.")
        _require_range("tail_dim", self.tail_dim, 0)
        if not 0 <= len(self.token_ids) - self.n_tokens <= 1:
            raise BlobError(f"{self.n_tokens} tokens were computed, but {len(self.token_ids)} token ids are given.")
        if self.tail_dim and len(self.token_ids) != self.n_tokens:
            raise BlobError("A state whose last token is not computed has no tail.")
        if self.tail_dim and not self.n_tokens:
            raise BlobError("An empty state has no tail.")
        if self.token_ids and not 0 <= min(self.token_ids) <= max(self.token_ids) < 1 << 32:
            raise BlobError("A token id must be between 0 and 4294967295.")

    @property
    def stored(self) -> list[int]:
        """Indices of the parts that follow, in order."""
        parts = enumerate(self.layout.parts)
        return [number for number, part in parts if part.kind is PartKind.ROWS or (self.with_states and self.n_tokens)]

    def shape(self, part: int) -> tuple[int, ...]:
        """[n_tokens, width] for rows, [width] for a state."""
        described = self.layout.parts[part]
        return (self.n_tokens, described.width) if described.kind is PartKind.ROWS else (described.width,)

    def dtype(self, part: int) -> torch.dtype:
        fp32 = self.layout.parts[part].kind is PartKind.STATE_FP32
        return torch.float32 if fp32 else self.layout.format.dtype

    def part_bytes(self, part: int) -> int:
        """Bytes of one part's values."""
        return math.prod(self.shape(part)) * self.dtype(part).itemsize

    @property
    def tail_bytes(self) -> int:
        return self.tail_dim * self.layout.format.dtype.itemsize

    @property
    def blob_bytes(self) -> int:
        """Bytes of the whole blob, with headers and digests."""
        framing = INDEX.size + DIGEST_BYTES
        tail = self.tail_bytes + framing if self.tail_dim else 0
        return len(pack_header(self)) + sum(self.part_bytes(part) + framing for part in self.stored) + tail


def pack_header(header: BlobHeader) -> bytes:
    """The header's bytes, which end with its own digest of DIGEST_BYTES."""
    layout = header.layout
    name, ids = _encoded(layout.fingerprint), header.token_ids
    code = next(code for code, known in _CODES.items() if known is layout.format)
    numbers = (code, len(layout.parts), header.start, header.n_tokens, len(ids), header.tail_dim)
    flags = int(header.with_states)
    fixed = _FIXED.pack(*numbers, flags, header.prior, len(name))
    parts = b"".join(_PART.pack(part.layer, part.kind, part.width) for part in layout.parts)
    body = fixed + name + parts + struct.pack(f"<{len(ids)}I", *ids)
    packed = _START.pack(_MAGIC, VERSION, len(body)) + body
    return packed + header_digest(packed)


def unpack_header(file: BinaryIO, limit_bytes: int) -> tuple[BlobHeader, bytes]:
    """The header and its digest, with which every block's checksum begins. Raises BlobError."""
    start = read_exactly(file, _START.size, "its header")
    magic, version, body_bytes = _START.unpack(start)
    if magic != _MAGIC:
        raise BlobError("This is not a sequence's stored state; its first bytes are not ESHKV.")
    if version != VERSION:
        raise BlobError(f"The state has version {version}; this Earthshine reads version {VERSION}.")
    most = _FIXED.size + _MOST_FINGERPRINT_BYTES + _MOST_PARTS * _PART.size + 4 * (_MOST["n_tokens"] + 1)
    if not _FIXED.size <= body_bytes <= min(most, limit_bytes):
        raise BlobError(f"The state's header can't have {body_bytes} bytes; it is damaged or truncated.")
    body = read_exactly(file, body_bytes, "its header")
    stored = read_exactly(file, DIGEST_BYTES, "its header")
    if stored != header_digest(start + body):
        raise BlobError("The state is damaged: the checksum of its header does not match.")
    return _header(body), stored


def _header(body: bytes) -> BlobHeader:
    code, n_parts, start, n_tokens, n_ids, tail_dim, flags, prior, name_bytes = _FIXED.unpack_from(body)
    first_part = _FIXED.size + name_bytes
    first_id = first_part + n_parts * _PART.size
    if len(body) != first_id + 4 * n_ids:
        raise BlobError("The state's header does not have the length that its own numbers give.")
    if code not in _CODES:
        raise BlobError(f"The state's value format {code} is unknown; 1 is bf16 and 2 is fp32.")
    try:
        fingerprint = body[_FIXED.size : first_part].decode()
    except UnicodeDecodeError:
        raise BlobError("The state's fingerprint is not UTF-8.") from None
    stored = list(_PART.iter_unpack(body[first_part:first_id]))
    unknown = [kind for _, kind, _ in stored if kind not in set(PartKind)]
    if unknown or flags > 1:
        what = f"a part of the unknown kind {unknown[0]}" if unknown else f"unknown flags, {flags}"
        raise BlobError(f"The state has {what}; a newer version may have written it.")
    parts = tuple(Part(layer, width, PartKind(kind)) for layer, kind, width in stored)
    layout = BlobLayout(fingerprint, _CODES[code], parts)
    ids = struct.unpack_from(f"<{n_ids}I", body, first_id)
    return BlobHeader(layout, n_tokens, ids, tail_dim, start, prior, bool(flags))


def read_exactly(file: BinaryIO, count: int, what: str) -> bytes:
    """Reads `count` bytes of `what` in pieces, so that memory grows only with what arrives. Raises BlobError at an
    early end."""
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
        raise BlobError(f"A state's {name} must be between {least} and {_MOST[name]}, not {value}.")
