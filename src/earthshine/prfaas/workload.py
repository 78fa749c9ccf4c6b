"""Requests for the simulator: from a recorded trace or drawn from a seed; their times evenly spaced, Poisson or rising
and falling.

Raises UsageError for a rate or a number of requests out of range.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from earthshine.errors import UsageError
from earthshine.loadgen.trace import BLOCK_TOKENS, Arrival

MOST_REQUESTS = 10_000_000
_MOST_RATE = 1e6


@dataclass(frozen=True, slots=True)
class TokensDrawn:
    """Prompt lengths of a log-normal, cut off by drawing again; replies have one length. The paper's, by default."""

    mu: float = 9.90
    sigma: float = 1.00
    least: int = 128
    most: int = 131072
    output_tokens: int = 1024

    def draw(self, source: random.Random, shift: float = 0.0) -> int:
        """One length; `shift` is added to `mu`."""
        while True:
            tokens = round(source.lognormvariate(self.mu + shift, self.sigma))
            if self.least <= tokens <= self.most:
                return tokens


PAPER_TOKENS = TokensDrawn()


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
    times: Sequence[float], tokens: TokensDrawn, seed: int, shift: Callable[[float], float] = lambda _: 0.0
) -> list[Arrival]:
    """A request at each of the times, without shared prefixes; `shift(t)` moves the mean of the log of its length."""
    source = random.Random(f"tokens {seed}")
    return [Arrival(at, tokens.draw(source, shift(at)), tokens.output_tokens) for at in times]


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
        name, found = 0, list[int]()
        for block in arrival.blocks[: (arrival.input_tokens - 1) // BLOCK_TOKENS]:
            name = names.setdefault((name, block), len(names) + 1)
            found.append(name)
        yield tuple(found)


def _check(n: int, rate: float) -> None:
    if not 1 <= n <= MOST_REQUESTS:
        raise UsageError(f"A simulation takes 1 to {MOST_REQUESTS:,} requests, not {n:,}.")
    if not 0 < rate <= _MOST_RATE:
        raise UsageError(f"The rate of requests must be above 0 and at most {_MOST_RATE:g} per second, not {rate:g}.")
