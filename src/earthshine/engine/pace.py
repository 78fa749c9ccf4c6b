"""How long a sweep of prompts will take, from those before: never guessed shorter than measured.

A sweep of a streamed model reads nearly all experts for 256 tokens as for 8192, one of a resident model costs by the
token; so times are kept by powers of two of the tokens, and between them the dearer reading counts.
"""

_OLD = 0.5  # the share of what was known before, since disks and neighbours change


class Pace:
    """Seconds of sweeps by tokens, and of decoding steps."""

    def __init__(self) -> None:
        self._sweeps: dict[int, float] = {}  # by the exponent of the least power of two that holds the tokens
        self.decode_seconds = 0.0  # of the last steps without a prompt
        self._breath = 0.0  # seconds a token of the longest time within a sweep in which nobody else could be served

    def swept(self, tokens: int, seconds: float) -> None:
        size = (tokens - 1).bit_length()
        known = self._sweeps.get(size)
        self._sweeps[size] = seconds if known is None else _OLD * known + (1 - _OLD) * seconds

    def held_up(self, tokens: int, seconds: float) -> None:
        """The longest time between two moments of a sweep at which others could be served."""
        self._breath = seconds / tokens if self._breath == 0 else _OLD * self._breath + (1 - _OLD) * seconds / tokens

    def breath_seconds(self, tokens: int) -> float:
        """That time for a sweep of so many tokens, as far as it is known."""
        return self._breath * tokens

    def tokens_in_a_breath(self, seconds: float) -> int | None:
        """How many tokens a sweep may have to let others be served within `seconds`; None where none was seen."""
        return None if self._breath == 0 else int(seconds / self._breath)

    def decoded(self, seconds: float) -> None:
        known = self.decode_seconds
        self.decode_seconds = seconds if known == 0 else _OLD * known + (1 - _OLD) * seconds

    def sweep_seconds(self, tokens: int) -> float | None:
        """None where no sweep was seen. Larger ones than were seen cost by the token, smaller ones as much."""
        size = (tokens - 1).bit_length()
        larger = [seconds for known, seconds in sorted(self._sweeps.items()) if known >= size]
        if larger:
            return larger[0]
        if not self._sweeps:
            return None
        most = max(self._sweeps)
        return self._sweeps[most] * float(1 << (size - most))

    def tokens_within(self, seconds: float) -> int:
        """The most that a sweep of `seconds` took, at the rate of the largest one seen; 0 where none was."""
        if not self._sweeps:
            return 0
        most = max(self._sweeps)
        return int((1 << most) * seconds / max(self._sweeps[most], 1e-9))


def fair_shares(wanted: list[int], room: int) -> list[int]:
    """`room` tokens among prompts that lack `wanted` each: all get as much, but for those that need less.

    So a short prompt passes beside a long one. At least one token each, as far as room goes, in the list's order.
    """
    shares = [0] * len(wanted)
    left = [place for place, tokens in enumerate(wanted) if tokens > 0]
    while left and room >= len(left):
        each = room // len(left)
        for place in left:
            given = min(each, wanted[place] - shares[place])
            shares[place] += given
            room -= given
        left = [place for place in left if shares[place] < wanted[place]]
    for place in left[:room]:
        shares[place] += 1
    return shares
