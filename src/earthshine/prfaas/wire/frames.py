"""Frames: the bytes that cross a connection, little-endian, version 1. docs/wire.md has the same as a table.

Everything here is a pure function of buffers. `read_head` and `read_body` raise WireError for whatever is not a sound
frame, and allocate no more than the buffers they are given.

A frame is a head of 20 bytes, a body, and for BLOCK the values themselves:
    0   1  version, 1
    1   1  kind
    2   2  lowest 16 bits of the CRC-32 of the head's other bytes before 16, so that no damaged length is waited for
    4   4  bytes of the body
    8   8  transfer, chosen by the receiver; 0 where the frame belongs to none
    16  4  CRC-32 of the 16 bytes before it and of the body
A BLOCK's values follow its body and are covered by the BLAKE3 digest in it, as in a stored blob (`kv.codec`).
"""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from earthshine.prfaas.wire.fault import Reason, WireError

VERSION = 1
MAGIC = b"ESHWIRE\x1a"
HEAD = struct.Struct("<BBHIQI")
_COVERED = struct.Struct("<BBHIQ")  # the part of the head that the body's CRC covers
_CHECKED = struct.Struct("<BBIQ")  # the part that the head's own covers
MOST_TOKENS = 1 << 20  # of a request
MOST_BLOCK_BYTES = 1 << 30
MOST_HEADER_BYTES = 4 * MOST_TOKENS + (256 << 10)  # of a piece
MOST_ACKED = 256  # sequence numbers in one ACK
MOST_TEXT_BYTES = 1 << 10


class Kind(IntEnum):
    """What a frame is; -> to the sender of caches (the server), <- to their receiver (the client)."""

    HELLO = 1  # -> first: who connects, with its token
    WELCOME = 2  # <- the connection is accepted
    REFUSED = 3  # <- it is not; the server closes it
    REQUEST = 4  # -> a prompt to prefill, or a cache to fetch by its handle
    ACCEPTED = 5  # <- the request has arrived
    BEGIN = 6  # <- a piece's header
    BLOCK = 7  # <- one block of a piece
    END = 8  # <- all pieces were sent
    FAILED = 9  # <- the request failed
    ACK = 10  # -> items that arrived and were verified, and new credit
    AGAIN = 11  # -> a block arrived damaged
    CANCEL = 12  # -> the transfer is not wanted any more
    RESUME = 13  # -> what arrived over a connection that was lost
    RESUMED = 14  # <- RESUME was read; `transfer` is the lost connection's number
    PING = 15  # both ways, when nothing else was sent; <- with figures of the connection


_SMALL = 2 << 10
MOST_BODY_BYTES = dict.fromkeys(Kind, _SMALL) | {
    Kind.REQUEST: 4 * MOST_TOKENS + (64 << 10),
    Kind.BEGIN: MOST_HEADER_BYTES + 8,
    Kind.RESUME: 1 << 20,
}


@dataclass(frozen=True, slots=True)
class Head:
    kind: Kind
    body_bytes: int
    transfer: int
    covered: int  # CRC-32 so far
    crc: int


def read_head(raw: bytes | bytearray | memoryview) -> Head:
    """The first HEAD.size bytes of a frame. Raises WireError: VERSION, PROTOCOL, or DAMAGED."""
    if len(raw) < HEAD.size:
        raise WireError(Reason.PROTOCOL, f"A frame's head has {HEAD.size} bytes; {len(raw)} arrived.")
    version, kind, check, body_bytes, transfer, crc = HEAD.unpack_from(raw)
    if check != check_of(version, kind, body_bytes, transfer):
        raise WireError(Reason.DAMAGED, "A frame's head is damaged, or the peer is no Earthshine.")
    if version != VERSION:
        raise WireError(Reason.VERSION, f"The peer's frames have version {version}; this Earthshine has {VERSION}.")
    if not 1 <= kind <= len(Kind):
        raise WireError(Reason.PROTOCOL, f"Frames of kind {kind} are unknown.")
    if body_bytes > MOST_BODY_BYTES[Kind(kind)]:
        most = MOST_BODY_BYTES[Kind(kind)]
        raise WireError(Reason.PROTOCOL, f"{Kind(kind).name} announces {body_bytes} bytes; the most is {most}.")
    return Head(Kind(kind), body_bytes, transfer, zlib.crc32(raw[: _COVERED.size]), crc)


def frame(kind: Kind, transfer: int = 0, *body: bytes) -> bytes:
    """A whole frame; a BLOCK's values are sent after it."""
    size = sum(map(len, body))
    head = _COVERED.pack(VERSION, kind, check_of(VERSION, kind, size, transfer), size, transfer)
    crc = zlib.crc32(head)
    for part in body:
        crc = zlib.crc32(part, crc)
    return b"".join((head, crc.to_bytes(4, "little"), *body))


def check_body(head: Head, body: bytes | bytearray | memoryview) -> None:
    """Raises WireError if the body is not the one that the head describes."""
    if len(body) != head.body_bytes or zlib.crc32(body, head.covered) != head.crc:
        raise WireError(Reason.DAMAGED, f"A {head.kind.name} frame is damaged: its CRC-32 does not match.")


def check_of(version: int, kind: int, body_bytes: int, transfer: int) -> int:
    """The 16 bits that a head carries about its own numbers."""
    return zlib.crc32(_CHECKED.pack(version, kind, body_bytes, transfer)) & 0xFFFF
