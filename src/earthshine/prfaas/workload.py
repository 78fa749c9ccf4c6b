"""Requests for the simulator: from a recorded trace or drawn from a seed; their times evenly spaced, Poisson or rising
and falling.

Raises UsageError for a rate, a time or a number of requests out of range.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from earthshine.errors import UsageError
from earthshine.loadgen.trace import BLOCK_TOKENS, Arrival
from earthshine.prfaas.lengths import LogNormal

MOST_REQUESTS = 10_000_000
_MOST_RATE = 1e6


# The PrfaaS paper's requests (section 4.1): lengths of prompts, and of every reply.
PAPER_LENGTHS = LogNormal(mu=9.90, sigma=1.00, least=128, most=131072)
PAPER_OUTPUT_TOKENS = 1024


def evenly(n: int, rate: float) -> list[float]:
    """Times of `n` requests at `rate` per second with equal gaps."""
    _check(n, rate)
    return [i / rate for i in range(n)]


def poisson(seconds: float, rate: Callable[[float], float], most: float, seed: int) -> list[float]:
    """Times until `seconds` of a Poisson process of `rate(t)` requests per second, which never exceeds `most`."""
    _check(int(seconds * most), most)
    source, now, found = random.Random(f"times {seed}"), 0.0, list[float]()
    while True:
        now += source.expovariate(most)
        if now >= seconds:
            return found
        if source.random() * most < rate(now):
            found.append(now)


def drawn(
    times: Sequence[float],
    lengths: LogNormal,
    output_tokens: int,
    seed: int,
    shift: Callable[[float], float] | None = None,
) -> list[Arrival]:
    """A request at each of the times, without shared prefixes. shift(t): added to the mean of the log of its length."""
    source = random.Random(f"tokens {seed}")
    found = []
    for at in times:
        now = lengths if shift is None else replace(lengths, mu=lengths.mu + shift(at))
        found.append(Arrival(at, now.draw(source), output_tokens))
    return found


def at_rate(arrivals: Sequence[Arrival], rate: float) -> list[Arrival]:
    """A trace's requests with its gaps stretched or shrunk, so that `rate` arrive per second on average."""
    _check(len(arrivals), rate)
    factor = len(arrivals) / rate / max(arrivals[-1].seconds, 1e-9) if len(arrivals) > 1 else 1.0
    return [replace(arrival, seconds=arrival.seconds * factor) for arrival in arrivals]


def overlaid(arrivals: Sequence[Arrival], copies: int, shift_seconds: float) -> list[Arrival]:
    """A trace and copies of it, each begun `shift_seconds` after the one before and with blocks of its own.

    So a rate grows without shortening the time between the prompts of one conversation.
    """
    most = max((max(a.blocks, default=0) for a in arrivals), default=0) + 1
    found = [
        replace(a, seconds=a.seconds + i * shift_seconds, blocks=tuple(block + i * most for block in a.blocks))
        for i in range(copies)
        for a in arrivals
    ]
    return sorted(found, key=lambda a: a.seconds)


def whole_blocks(arrivals: Sequence[Arrival]) -> Iterator[tuple[int, ...]]:
    """For each request names of its prompt's whole blocks, from 1 on; equal names are equal prefixes, not just equal
    blocks. A prompt's last token is always computed, so a block that ends with it is left out."""
    names: dict[tuple[int, int], int] = {}
    for arrival in arrivals:
        if not arrival.blocks:
            yield ()
            continue
        name, found = 0, list[int]()
        for block in arrival.blocks[: (arrival.input_tokens - 1) // BLOCK_TOKENS]:
            name = names.setdefault((name, block), len(names) + 1)
            found.append(name)
        yield tuple(found)


def reply_blocks(arrivals: Sequence[Arrival], prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """For each request names of the whole blocks that its reply adds to its prompt's, where a later prompt shows them.

    prompts: of `whole_blocks`. A prompt goes on from the last one whose whole blocks, two or more, it begins with, if
    it is long enough for the reply too. Of such pairs in Mooncake's conversation trace 89% are, half of them by less
    than 30 tokens: a short question. Equal first blocks, such as a system's prompt, show nothing.
    """
    found: list[tuple[int, ...]] = [()] * len(prompts)
    if not any(prompts):
        return found
    last: dict[int, int] = {}  # the last request whose whole blocks end with a block
    for number, (arrival, blocks) in enumerate(zip(arrivals, prompts, strict=True)):
        n = next((n for n in range(len(blocks), 1, -1) if blocks[n - 1] in last), 0)
        if n:
            before = last[blocks[n - 1]]
            tokens = arrivals[before].input_tokens + arrivals[before].output_tokens
            if tokens <= arrival.input_tokens and not found[before]:
                found[before] = blocks[n : (tokens - 1) // BLOCK_TOKENS]
        if blocks:
            last[blocks[-1]] = number
    return found


def check_arrivals(arrivals: Sequence[Arrival]) -> None:
    """Raises UsageError for none, for times that run backwards and for lengths out of range."""
    _check(len(arrivals), 1.0)
    before = 0.0
    for number, arrival in enumerate(arrivals, 1):
        if not before <= arrival.seconds < math.inf:
            raise UsageError(
                f"Request {number} arrives at {arrival.seconds:g} s, the one before it at {before:g} s; times must be "
                "0 or more and ascend."
            )
        if arrival.input_tokens < 1 or arrival.output_tokens < 1:
            raise UsageError(
                f"Request {number} has {arrival.input_tokens} input and {arrival.output_tokens} output tokens; it must "
                "have 1 or more of both."
            )
        before = arrival.seconds


def _check(n: int, rate: float) -> None:
    if not 1 <= n <= MOST_REQUESTS:
        raise UsageError(f"A simulation takes 1 to {MOST_REQUESTS:,} requests, not {n:,}.")
    if not 0 < rate <= _MOST_RATE:
        raise UsageError(f"The rate of requests must be above 0 and at most {_MOST_RATE:g} per second, not {rate:g}.")
