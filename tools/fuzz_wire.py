"""Shows the wire's parser damaged frames: each is read, or refused by a WireError, within a bound of memory.

    python tools/fuzz_wire.py [--inputs 1000000] [--seed 0]

An input is noise, a sound frame of some kind that was cut, extended or changed in places, or one whose checksums were
made right again afterwards, so that what lies behind them is reached. Every hundredth is watched for its memory.
Prints how many were read and refused, by reason, and the most memory that one took.
"""

import argparse
import random
import tracemalloc
import zlib
from collections import Counter
from dataclasses import dataclass, field

from earthshine.prfaas.wire import PrefillRequest, Reason, WireError
from earthshine.prfaas.wire.frames import HEAD, Kind, check_of, read_head
from earthshine.prfaas.wire.messages import (
    Ack,
    Again,
    Arrived,
    Begin,
    Block,
    End,
    Failure,
    Hello,
    Message,
    Ping,
    Plain,
    Request,
    Resume,
    Welcome,
    read_message,
)

_FIXED_BYTES, _TIMES = 20_000, 40  # of Python's objects; memory per byte of input, for the numbers of a RESUME
_WATCHED_EVERY = 100


def samples() -> list[bytes]:
    """A sound frame of every kind, small and larger."""
    asked = PrefillRequest("a request", "tenant", "fingerprint", range(100), 64, (0, 3, 9), b"h" * 56)
    found: list[Message] = [
        Hello(bytes(16), 3, b"token"),
        Welcome(bytes(16), 8, 1 << 20, 64),
        Welcome(bytes(16), 1, 1, 1, b"about"),
        Failure(0, 0, Reason.TOKEN, "no token"),
        Failure(5, 9, Reason.WORKER, "it failed"),
        Request(1, 1 << 25, 60_000, asked),
        Request(2, 0, 0, PrefillRequest("", "", "", [1])),
        Plain(Kind.ACCEPTED, 4),
        Plain(Kind.CANCEL, 4),
        Plain(Kind.RESUMED, 4),
        Begin(1, 0, 0, b"header" * 40),
        Block(1, 2, 0, 7, 4096, bytes(16)),
        End(1, 77),
        Ack(1, 1 << 40, list(range(40))),
        Again(1, 3),
        Resume(2, 9, (Arrived(1, 5, 3, [5, 6, 9]), Arrived(2, 0, 0, []))),
        Ping(10, 5, 3, 1, 1 << 33),
    ]
    return [message.frame() for message in found]


def mended(raw: bytearray) -> bytearray:
    """The frame with its lengths and checksums made right, where it is long enough to have them."""
    if len(raw) < HEAD.size:
        return raw
    version, kind, _, _, transfer, _ = HEAD.unpack_from(raw)
    size = len(raw) - HEAD.size
    raw[: HEAD.size] = HEAD.pack(version, kind, check_of(version, kind, size, transfer), size, transfer, 0)
    crc = zlib.crc32(raw[HEAD.size :], zlib.crc32(raw[: HEAD.size - 4]))
    raw[HEAD.size - 4 : HEAD.size] = crc.to_bytes(4, "little")
    return raw


def damaged(chance: random.Random, sound: list[bytes]) -> bytes:
    if chance.random() < 0.1:
        return chance.randbytes(chance.randrange(200))
    raw = bytearray(chance.choice(sound))
    for _ in range(chance.choice((0, 1, 1, 2, 8))):
        way, at = chance.randrange(5), chance.randrange(len(raw) or 1)
        if way == 0:
            del raw[at:]
        elif way == 1:
            raw[at:at] = chance.randbytes(chance.randrange(40))
        elif way == 2 and len(raw) > at:
            raw[at] ^= 1 << chance.randrange(8)
        elif way == 3:
            raw[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", bytes(4), b"\0\0\0\x80", b"\xff\xff\xff\x7f"))
        else:
            raw[at : at + 2] = chance.randbytes(2)
    return bytes(mended(raw) if chance.random() < 0.7 else raw)


def read(raw: bytes) -> Message:
    """As a connection reads a frame: the head, then as many bytes as it announces, if they come."""
    head = read_head(raw)
    return read_message(head, raw[HEAD.size : HEAD.size + head.body_bytes])


@dataclass
class Outcome:
    read: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    most_bytes: int = 0


def fuzz(inputs: int, seed: int) -> Outcome:
    """Raises whatever is not a WireError, and AssertionError for memory beyond the bound."""
    chance, sound, found = random.Random(seed), samples(), Outcome()
    for number in range(inputs):
        raw = damaged(chance, sound)
        watched = number % _WATCHED_EVERY == 0
        if watched:
            tracemalloc.start()
        try:
            found.read[type(read(raw)).__name__] += 1
        except WireError as error:
            found.refused[error.reason.name] += 1
        if watched:
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert most <= _FIXED_BYTES + _TIMES * len(raw), f"{most} bytes for {raw.hex()}"
            found.most_bytes = max(found.most_bytes, most)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = fuzz(args.inputs, args.seed)
    print(f"{args.inputs} inputs: {found.read.total()} read, {found.refused.total()} refused")
    print("read:", dict(found.read.most_common()))
    print("refused:", dict(found.refused.most_common()))
    print(f"most memory for one: {found.most_bytes} bytes")


if __name__ == "__main__":
    main()
