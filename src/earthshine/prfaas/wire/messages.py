"""What the frames of each kind say, as values; to bytes by `framed`, and back by `read_message`.

`read_message` is a pure function of a frame's head and body. It raises WireError for what is malformed, and what it
returns is never larger than a few times the body. docs/wire.md has the layouts as a table.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from earthshine.errors import UsageError
from earthshine.prfaas.wire.fault import Reason, WireError
from earthshine.prfaas.wire.frames import (
    MAGIC,
    MOST_ACKED,
    MOST_BLOCK_BYTES,
    MOST_TEXT_BYTES,
    Head,
    Kind,
    check_body,
    frame,
)
from earthshine.prfaas.wire.request import PrefillRequest, encoded, packed, unpacked

SESSION_BYTES = 16
DIGEST_BYTES = 16  # of a block and of a header, as in a stored blob
_HELLO = struct.Struct("<8s16sIH")
_WELCOME = struct.Struct("<16sHII")
_REQUEST = struct.Struct("<QIIIHHHHH")  # credit, deadline, start, tokens, parts, four lengths
_BEGIN = struct.Struct("<II")
_BLOCK = struct.Struct("<IIIQ16s")
_SEQ = struct.Struct("<I")
_ACK = struct.Struct("<QH")
_CODE = struct.Struct("<IH")
_RESUME = struct.Struct("<IQI")
_RESUMED = struct.Struct("<QQII")
_PING = struct.Struct("<IIQQQ")
_MOST_MS = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Hello:
    session: bytes  # SESSION_BYTES, random: all connections of one client share it
    connection: int  # its number within the session, never used twice
    token: bytes

    def frame(self) -> bytes:
        return frame(Kind.HELLO, 0, _HELLO.pack(MAGIC, self.session, self.connection, len(self.token)), self.token)


@dataclass(frozen=True, slots=True)
class Welcome:
    instance: bytes  # SESSION_BYTES: another one where the server no longer knows the session
    most_connections: int  # of one session
    most_tokens: int
    most_requests: int
    about: bytes = b""  # MOST_TEXT_BYTES at most: what the server says of itself; see `prfaas.announce`

    def frame(self) -> bytes:
        numbers = (self.most_connections, self.most_tokens, self.most_requests)
        return frame(Kind.WELCOME, 0, _WELCOME.pack(self.instance, *numbers), self.about)


@dataclass(frozen=True, slots=True)
class Failure:
    """REFUSED, or FAILED where `transfer` is not 0."""

    transfer: int
    seq: int
    reason: Reason
    text: str

    def frame(self) -> bytes:
        text = encoded(self.text)[:MOST_TEXT_BYTES]
        kind = Kind.FAILED if self.transfer else Kind.REFUSED
        return frame(kind, self.transfer, _CODE.pack(self.seq, self.reason), text)


@dataclass(frozen=True, slots=True)
class Request:
    transfer: int
    credit: int  # bytes of blocks that may be sent
    deadline_ms: int  # from its arrival; no clock is compared
    request: PrefillRequest

    def frame(self) -> bytes:
        asked = self.request
        names = [encoded(text) for text in (asked.request_id, asked.tenant, asked.fingerprint)] + [asked.handle]
        numbers = (min(self.deadline_ms, _MOST_MS), asked.start, len(asked.token_ids), len(asked.parts))
        lengths = map(len, names)
        body = _REQUEST.pack(self.credit, *numbers, *lengths)
        return frame(Kind.REQUEST, self.transfer, body, *names, packed(asked.parts), packed(asked.token_ids))


@dataclass(frozen=True, slots=True)
class Begin:
    transfer: int
    seq: int
    piece: int
    header: bytes

    def frame(self) -> bytes:
        return frame(Kind.BEGIN, self.transfer, _BEGIN.pack(self.seq, self.piece), self.header)


@dataclass(frozen=True, slots=True)
class Block:
    transfer: int
    seq: int
    piece: int
    index: int
    nbytes: int  # of values that follow the frame
    digest: bytes

    def frame(self) -> bytes:
        body = _BLOCK.pack(self.seq, self.piece, self.index, self.nbytes, self.digest)
        return frame(Kind.BLOCK, self.transfer, body)


@dataclass(frozen=True, slots=True)
class End:
    transfer: int
    seq: int  # the number of items sent before it

    def frame(self) -> bytes:
        return frame(Kind.END, self.transfer, _SEQ.pack(self.seq))


@dataclass(frozen=True, slots=True)
class Ack:
    transfer: int
    credit: int  # bytes of blocks that may be sent in all
    seqs: Sequence[int]

    def frame(self) -> bytes:
        return frame(Kind.ACK, self.transfer, _ACK.pack(self.credit, len(self.seqs)), packed(self.seqs))


@dataclass(frozen=True, slots=True)
class Again:
    transfer: int
    seq: int

    def frame(self) -> bytes:
        return frame(Kind.AGAIN, self.transfer, _SEQ.pack(self.seq))


@dataclass(frozen=True, slots=True)
class Plain:
    """ACCEPTED, CANCEL or RESUMED."""

    kind: Kind
    transfer: int

    def frame(self) -> bytes:
        return frame(self.kind, self.transfer)


@dataclass(frozen=True, slots=True)
class Arrived:
    """What has arrived of one transfer: all items below `floor`, and `seqs`."""

    transfer: int
    credit: int
    floor: int
    seqs: Sequence[int]


@dataclass(frozen=True, slots=True)
class Resume:
    """After `connection` was lost. A transfer up to `newest` that is not named is over for the receiver."""

    connection: int
    newest: int  # the largest transfer that was begun
    transfers: tuple[Arrived, ...]

    def frame(self) -> bytes:
        body = [_RESUME.pack(self.connection, self.newest, len(self.transfers))]
        for one in self.transfers:
            body += [_RESUMED.pack(one.transfer, one.credit, one.floor, len(one.seqs)), packed(one.seqs)]
        return frame(Kind.RESUME, 0, *body)


@dataclass(frozen=True, slots=True)
class Ping:
    """Figures of the sender's side of the connection; all 0 where it has none."""

    rtt_us: int = 0
    rtt_least_us: int = 0
    sent_segments: int = 0
    retransmitted_segments: int = 0
    delivery_bytes_per_second: int = 0

    def frame(self) -> bytes:
        numbers = (self.sent_segments, self.retransmitted_segments, self.delivery_bytes_per_second)
        return frame(Kind.PING, 0, _PING.pack(self.rtt_us, self.rtt_least_us, *numbers))


Message = Hello | Welcome | Failure | Request | Plain | Begin | Block | End | Ack | Again | Resume | Ping


def read_message(head: Head, body: bytes | bytearray | memoryview) -> Message:
    """The message of a frame whose head was read. Raises WireError: DAMAGED, PROTOCOL or LIMIT."""
    check_body(head, body)
    try:
        return _READERS[head.kind](head, memoryview(body))
    except (struct.error, ValueError, UsageError) as error:
        why = error if isinstance(error, UsageError) else "its body is too short or too long"
        raise WireError(Reason.PROTOCOL, f"A {head.kind.name} frame is malformed: {why}.") from None


def _hello(head: Head, body: memoryview) -> Hello:
    magic, session, connection, token_bytes = _HELLO.unpack_from(body)
    if magic != MAGIC:
        raise WireError(Reason.PROTOCOL, "The connection does not begin as Earthshine's do.")
    return Hello(session, connection, bytes(_rest(body, _HELLO.size, token_bytes)))


def _welcome(head: Head, body: memoryview) -> Welcome:
    if len(body) > _WELCOME.size + MOST_TEXT_BYTES:
        raise ValueError
    instance, connections, tokens, requests = _WELCOME.unpack_from(body)
    return Welcome(instance, connections, tokens, requests, bytes(body[_WELCOME.size :]))


def _failure(head: Head, body: memoryview) -> Failure:
    seq, code = _CODE.unpack_from(body)
    if (head.kind is Kind.FAILED) != bool(head.transfer) or len(body) > _CODE.size + MOST_TEXT_BYTES:
        raise ValueError
    reason = Reason(code) if code in set(Reason) else Reason.PROTOCOL
    return Failure(head.transfer, seq, reason, str(body[_CODE.size :], "utf-8", "replace"))


def _request(head: Head, body: memoryview) -> Request:
    credit, deadline_ms, start, n_tokens, n_parts, *lengths = _REQUEST.unpack_from(body)
    sizes = [*lengths, 4 * n_parts, 4 * n_tokens]
    fields, at = [], _REQUEST.size
    for size in sizes:
        fields.append(body[at : at + size])
        at += size
    if at != len(body):
        raise ValueError
    names = [str(field, "utf-8", "surrogatepass") for field in fields[:3]]
    parts = tuple(unpacked(fields[4]))
    request = PrefillRequest(names[0], names[1], names[2], unpacked(fields[5]), start, parts, bytes(fields[3]))
    return Request(head.transfer, credit, deadline_ms, request)


def _begin(head: Head, body: memoryview) -> Begin:
    seq, piece = _BEGIN.unpack_from(body)
    if len(body) < _BEGIN.size + DIGEST_BYTES:
        raise ValueError
    return Begin(head.transfer, seq, piece, bytes(body[_BEGIN.size :]))


def _block(head: Head, body: memoryview) -> Block:
    block = Block(head.transfer, *_BLOCK.unpack(body))
    if block.nbytes > MOST_BLOCK_BYTES:
        raise WireError(Reason.LENGTH, f"A block announces {block.nbytes} bytes; the most is {MOST_BLOCK_BYTES}.")
    return block


def _ack(head: Head, body: memoryview) -> Ack:
    credit, count = _ACK.unpack_from(body)
    if count > MOST_ACKED:
        raise ValueError
    return Ack(head.transfer, credit, unpacked(_rest(body, _ACK.size, 4 * count)))


def _plain(head: Head, body: memoryview) -> Plain:
    if body:
        raise ValueError
    return Plain(head.kind, head.transfer)


def _resume(head: Head, body: memoryview) -> Resume:
    connection, newest, count = _RESUME.unpack_from(body)
    found, at = [], _RESUME.size
    for _ in range(count):  # each needs at least _RESUMED.size bytes of the body, or unpack_from ends the loop
        transfer, credit, floor, n_seqs = _RESUMED.unpack_from(body, at)
        at += _RESUMED.size
        if at + 4 * n_seqs > len(body):
            raise ValueError
        found.append(Arrived(transfer, credit, floor, unpacked(body[at : at + 4 * n_seqs])))
        at += 4 * n_seqs
    if at != len(body):
        raise ValueError
    return Resume(connection, newest, tuple(found))


def _rest(body: memoryview, start: int, size: int) -> memoryview:
    if len(body) != start + size:
        raise ValueError
    return body[start:]


_READERS: dict[Kind, Callable[[Head, memoryview], Message]] = {
    Kind.HELLO: _hello,
    Kind.WELCOME: _welcome,
    Kind.REFUSED: _failure,
    Kind.REQUEST: _request,
    Kind.ACCEPTED: _plain,
    Kind.BEGIN: _begin,
    Kind.BLOCK: _block,
    Kind.END: lambda head, body: End(head.transfer, *_SEQ.unpack(body)),
    Kind.FAILED: _failure,
    Kind.ACK: _ack,
    Kind.AGAIN: lambda head, body: Again(head.transfer, *_SEQ.unpack(body)),
    Kind.CANCEL: _plain,
    Kind.RESUME: _resume,
    Kind.RESUMED: _plain,
    Kind.PING: lambda head, body: Ping(*_PING.unpack(body)),
}
