"""How long steps take, from those before: never expected to be shorter than measured.

A prefill pass of a streamed model reads nearly all experts for 256 tokens as for 8192, one of a resident model costs by
the token. So times are kept by powers of two of the tokens, and between them the longer one counts.
"""

_OLD = 0.5  # the share of what was known before, since disks and neighbours change


class Durations:
    """Seconds of prefill passes by their tokens, and of decode steps."""

    def __init__(self) -> None:
        self._prefill: dict[int, float] = {}  # by the exponent of the least power of two that holds the tokens
        self.decode_seconds = 0.0  # of the last steps without a prompt
        self._interval = 0.0  # seconds per token of the longest time in which a prefill pass could not be interrupted

    def add_prefill(self, tokens: int, seconds: float) -> None:
        size = (tokens - 1).bit_length()
        known = self._prefill.get(size)
        self._prefill[size] = seconds if known is None else _OLD * known + (1 - _OLD) * seconds

    def add_decode(self, seconds: float) -> None:
        known = self.decode_seconds
        self.decode_seconds = seconds if known == 0 else _OLD * known + (1 - _OLD) * seconds

    def add_interval(self, tokens: int, seconds: float) -> None:
        """The longest time between two points at which a prefill pass of `tokens` could be interrupted."""
        known, seen = self._interval, seconds / tokens
        self._interval = seen if known == 0 else _OLD * known + (1 - _OLD) * seen

    def interval_seconds(self, tokens: int) -> float:
        """That time for a pass of `tokens`; 0 where none was seen."""
        return self._interval * tokens

    def tokens_per_interval(self, seconds: float) -> int | None:
        """The most tokens of a pass that can be interrupted every `seconds`; None where none was seen."""
        return None if self._interval == 0 else int(seconds / self._interval)

    def prefill_seconds(self, tokens: int) -> float | None:
        """None where no pass was seen. Larger ones than were seen cost by the token, smaller ones as much."""
        size = (tokens - 1).bit_length()
        larger = [seconds for known, seconds in sorted(self._prefill.items()) if known >= size]
        if larger:
            return larger[0]
        if not self._prefill:
            return None
        most = max(self._prefill)
        return self._prefill[most] * float(1 << (size - most))

    def prompt_seconds(self, tokens: int, pass_tokens: int, by_token: bool) -> float | None:
        """Of a prompt in passes of `pass_tokens` at most; None where no pass was seen. `by_token`: a pass costs by the
        token, but at least a decode step."""
        whole, rest = divmod(tokens, pass_tokens)
        each, last = self.prefill_seconds(pass_tokens), self.prefill_seconds(max(1, rest))
        if each is None or last is None:
            return None
        if by_token and self._prefill:
            size = max(self._prefill)
            rate = self._prefill[size] / (1 << size)
            each, last = (max(self.decode_seconds, rate * count) for count in (pass_tokens, rest))
        return whole * each + (last if rest else 0.0)

    def prefill_tokens(self, seconds: float) -> int:
        """The most tokens that a pass of `seconds` computes, at the rate of the largest one seen; 0 where none was."""
        if not self._prefill:
            return 0
        most = max(self._prefill)
        return int((1 << most) * seconds / max(self._prefill[most], 1e-9))


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
