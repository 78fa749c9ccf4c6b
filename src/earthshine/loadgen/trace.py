"""Requests to send to a server: when each arrives, its lengths, and the prefixes that it shares.

A trace has Mooncake's format (JSON lines: timestamp in ms, input_length, output_length, hash_ids of 512-token blocks)
or Azure's (CSV: TIMESTAMP, ContextTokens, GeneratedTokens). Neither has text, so prompts are drawn from a seed; equal
leading ids give equal leading tokens. Lengths can be scaled. A line in neither format is refused by its number.
"""

import datetime
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any

from earthshine.errors import UsageError
from earthshine.untrusted import open_regular, parse_object, real_path, shown

BLOCK_TOKENS = 512  # tokens of one id in a Mooncake trace
MOST_TOKENS = 10_000_000
_LINE_BYTES = 4 << 20  # an id takes about 8 bytes, and the longest prompt has MOST_TOKENS / BLOCK_TOKENS of them
_CSV_HEADER = b"TIMESTAMP,ContextTokens,GeneratedTokens"
_SYNTHETIC_TOKENS = ((1024, 0.9), (192, 0.8))  # median and sigma of lengths: like Azure's conversations
_FIRST_TOKEN, _N_TOKENS = 100, 1024  # ordinary tokens, not control tokens, in every published vocabulary
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: its time in seconds since the first, its tokens, and the ids of its prompt's leading blocks."""

    seconds: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


def read_trace(path: Path, most: int) -> list[Arrival]:
    """The first `most` requests of a file; the first line decides the format. Raises UsageError, naming the line."""
    what = shown(path)
    try:
        with open(open_regular(real_path(path, UsageError), what, UsageError), "rb") as file:
            arrivals = list(islice(_arrivals(_lines(file, what), what), most))
    except OSError as error:
        raise UsageError(f"{what} can't be read: {error.strerror}.") from None
    if not arrivals:
        raise UsageError(f"{what} has no requests.")
    for number, (before, after) in enumerate(pairwise(arrivals), 2):
        if after.seconds < before.seconds:
            raise UsageError(f"{what}: request {number} arrives before the one above it; sort them by time.")
    first = arrivals[0].seconds
    return [replace(arrival, seconds=arrival.seconds - first) for arrival in arrivals]


def synthetic_trace(n: int, seed: int) -> list[Arrival]:
    """`n` requests with exponential gaps, one per second on average, lognormal lengths, and no shared prefixes."""
    draw, now, found = random.Random(f"arrivals {seed}"), 0.0, []
    for _ in range(n):
        tokens, reply = (
            max(1, round(draw.lognormvariate(math.log(middle), sigma))) for middle, sigma in _SYNTHETIC_TOKENS
        )
        found.append(Arrival(now, tokens, reply))
        now += draw.expovariate(1.0)
    return found


def fitting_scale(arrivals: Sequence[Arrival], context_tokens: int) -> float:
    """The factor, at most 1, by which the longest request and its reply fit the context."""
    longest = max(arrival.input_tokens + arrival.output_tokens for arrival in arrivals)
    return min(1.0, max(context_tokens - 2, 1) / longest)  # two are lost to rounding


@dataclass(frozen=True, slots=True)
class Shape:
    """How a trace becomes prompts. `per_token`: units of text per token of the trace, scaling included; `overhead`:
    what the server's chat template adds to a prompt, in the same units."""

    seed: int
    scale: float
    per_token: float
    overhead: float = 0.0

    @classmethod
    def of_tokens(cls, seed: int, scale: float) -> "Shape":
        """For prompts of token ids: a unit is a token."""
        return cls(seed, scale, scale)

    @classmethod
    def of_words(cls, seed: int, scale: float, tokens_per_word: float, overhead_tokens: float) -> "Shape":
        """For prompts of text: a unit is a word."""
        return cls(seed, scale, scale / tokens_per_word, overhead_tokens / tokens_per_word)

    def input_units(self, arrival: Arrival) -> int:
        return max(1, round(arrival.input_tokens * self.per_token - self.overhead))

    def output_tokens(self, arrival: Arrival) -> int:
        return max(1, round(arrival.output_tokens * self.scale))

    def units(self, arrival: Arrival, index: int) -> list[int]:
        """The prompt of request number `index`: values below 1024. After its blocks it is unique."""
        wanted, found = self.input_units(arrival), list[int]()
        for at, block in enumerate(arrival.blocks):
            until = min(self._edge(at + 1), wanted)
            found += _stream(f"{self.seed} block {block}", until - len(found))
        return found + _stream(f"{self.seed} request {index}", wanted - len(found))

    def shared_units(self, arrivals: Sequence[Arrival]) -> list[int]:
        """Units of each in leading blocks that an earlier one had: what an unlimited prefix cache would find."""
        nodes: dict[tuple[int, int], int] = {}  # block after node, to node: equal nodes are equal prefixes
        shared = []
        for arrival in arrivals:
            wanted, node, found = self.input_units(arrival), 0, 0
            for at, block in enumerate(arrival.blocks):
                known = nodes.get((node, block))
                if known is not None and found == self._edge(at):
                    found = min(self._edge(at + 1), wanted)
                node = nodes.setdefault((node, block), len(nodes) + 1)
            shared.append(found)
        return shared

    def _edge(self, at: int) -> int:
        return round(at * BLOCK_TOKENS * self.per_token)


def token_ids(units: Sequence[int]) -> list[int]:
    """Units as ids of ordinary tokens."""
    return [_FIRST_TOKEN + unit for unit in units]


def words(units: Sequence[int]) -> str:
    """Units as made-up words of four letters, each of which a tokenizer always splits in the same way."""
    return " ".join(map(_WORDS.__getitem__, units))


def _stream(key: str, n: int) -> list[int]:
    """`n` values below 1024; a shorter stream of the same key is a prefix of a longer one."""
    if n <= 0:
        return []
    return [value >> 6 for value in memoryview(random.Random(key).randbytes(2 * n)).cast("H")]


def _lines(file: Any, what: str) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, numbered from 1."""
    for number in range(1, 1 << 62):
        line = file.readline(_LINE_BYTES + 1)
        if not line:
            return
        if len(line) > _LINE_BYTES:
            raise UsageError(f"{what}, line {number}, has more than {_LINE_BYTES} bytes.")
        if line.strip():
            yield number, line.strip()


def _arrivals(lines: Iterator[tuple[int, bytes]], what: str) -> Iterator[Arrival]:
    parse = None
    for number, line in lines:
        place = f"{what}, line {number},"
        if parse is None:
            parse = _mooncake if line.startswith(b"{") else _azure
            if parse is _azure:
                if line != _CSV_HEADER:
                    raise UsageError(f"{place} is neither a JSON object nor the header {_CSV_HEADER.decode()}.")
                continue
        yield parse(line, place)


def _mooncake(line: bytes, place: str) -> Arrival:
    fields = parse_object(line, place, UsageError)
    at, blocks = fields.get("timestamp"), fields.get("hash_ids", [])
    if isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at < 1e15:
        raise UsageError(f"{place} has the timestamp {shown(at)}; it must be milliseconds, 0 or more.")
    if not isinstance(blocks, list) or not all(type(block) is int and 0 <= block < 1 << 63 for block in blocks):
        raise UsageError(f"{place} has hash_ids that are not a list of whole numbers, 0 or more.")
    tokens, reply = (_length(fields.get(name), name, place) for name in ("input_length", "output_length"))
    return Arrival(at / 1000, tokens, reply, tuple(blocks))


def _azure(line: bytes, place: str) -> Arrival:
    fields = line.decode("ascii", "replace").split(",")
    if len(fields) != 3:
        raise UsageError(f"{place} has {len(fields)} fields; it must have three, {_CSV_HEADER.decode()}.")
    try:
        at = datetime.datetime.fromisoformat(fields[0]).replace(tzinfo=datetime.UTC).timestamp()
    except ValueError:
        raise UsageError(f"{place} begins with {shown(fields[0])}, which is not a time YYYY-MM-DD hh:mm:ss.") from None
    tokens, reply = (
        _length(int(text) if text.isdecimal() and len(text) < 10 else text, name, place)
        for name, text in (("ContextTokens", fields[1]), ("GeneratedTokens", fields[2]))
    )
    return Arrival(at, tokens, reply)


def _length(value: object, name: str, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_TOKENS:
        raise UsageError(f"{place} has {name} {shown(value)}; it must be 1 to {MOST_TOKENS} tokens.")
    return value


_WORDS = tuple(map("".join, product(_CONSONANTS, _VOWELS, _CONSONANTS, _VOWELS)))[::4][:_N_TOKENS]
