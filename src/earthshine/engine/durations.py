"""Expected durations of steps, from those measured so far. An expected duration is never below a measured one.

With a streamed model a prefill pass of 256 tokens reads nearly as many experts as one of 8192; with a resident model
its cost grows with the tokens. So durations are kept by powers of two of the number of tokens, and the longer one
counts in between. Costs per token are those of the largest pass, by its own number of tokens.
"""

_OLD = 0.5  # the share of what was known before, since disks and neighbours change


class Durations:
    """Measured seconds of prefill passes, by number of tokens, and of decode steps."""

    def __init__(self) -> None:
        self._prefill: dict[int, float] = {}  # by the exponent of the least power of two that holds the tokens
        self._per_token: dict[int, float] = {}  # seconds, by the same exponent
        self.decode_seconds = 0.0  # of the last steps without a prompt
        self._interval = 0.0  # seconds per token of the longest time in which a prefill pass could not be interrupted

    def add_prefill(self, tokens: int, seconds: float) -> None:
        size = (tokens - 1).bit_length()
        for measured, value in ((self._prefill, seconds), (self._per_token, seconds / tokens)):
            known = measured.get(size)
            measured[size] = value if known is None else _OLD * known + (1 - _OLD) * value

    def add_decode(self, seconds: float) -> None:
        known = self.decode_seconds
        self.decode_seconds = seconds if known == 0 else _OLD * known + (1 - _OLD) * seconds

    def add_interval(self, tokens: int, seconds: float) -> None:
        """Record the longest time for which a prefill pass of `tokens` could not be interrupted."""
        known, seen = self._interval, seconds / tokens
        self._interval = seen if known == 0 else _OLD * known + (1 - _OLD) * seen

    def interval_seconds(self, tokens: int) -> float:
        """The longest time for which a pass of `tokens` can't be interrupted; 0 before the first measurement."""
        return self._interval * tokens

    def tokens_per_interval(self, seconds: float) -> int | None:
        """The most tokens of a pass that can be interrupted every `seconds`; None before the first measurement."""
        return None if self._interval == 0 else int(seconds / self._interval)

    def prefill_seconds(self, tokens: int) -> float | None:
        """Expected seconds of a prefill pass; None before the first one. A pass larger than any measured is taken to
        cost as much per token, a smaller one as much in all."""
        size = (tokens - 1).bit_length()
        larger = [seconds for known, seconds in sorted(self._prefill.items()) if known >= size]
        if larger:
            return larger[0]
        if not self._prefill:
            return None
        return self._token_seconds() * tokens

    def prompt_seconds(self, tokens: int, pass_tokens: int, by_token: bool) -> float | None:
        """Expected seconds of a prompt in passes of at most `pass_tokens`; None before the first pass. `by_token`: the
        cost of a pass grows with its tokens, from that of a decode step."""
        whole, rest = divmod(tokens, pass_tokens)
        each, last = self.prefill_seconds(pass_tokens), self.prefill_seconds(max(1, rest))
        if each is None or last is None:
            return None
        if by_token:
            rate = self._token_seconds()
            each, last = (max(self.decode_seconds, rate * count) for count in (pass_tokens, rest))
        return whole * each + (last if rest else 0.0)

    def prefill_tokens(self, seconds: float) -> int:
        """The most tokens of a pass that is to end within `seconds`, at the rate of the largest one measured; 0 before
        the first."""
        if not self._prefill:
            return 0
        return int(seconds / max(self._token_seconds(), 1e-12))

    def _token_seconds(self) -> float:
        """Seconds per token of the largest passes measured."""
        return self._per_token[max(self._per_token)]


def fair_shares(wanted: list[int], room: int) -> list[int]:
    """Divides `room` tokens among prompts that still need `wanted` tokens each: equal shares, except that none exceeds
    what its prompt needs.

    So a short prompt does not wait for a long one. In the list's order, each gets at least one token as long as there
    is room.
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
