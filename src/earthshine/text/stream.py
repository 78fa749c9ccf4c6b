"""Streaming text: detokenization, and the search for stop strings across pieces.

Invariant: text that `push` has returned is final, and with `flush` no text is lost.
"""

from collections.abc import Sequence

from earthshine.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns the ids of one sequence into text. With `skip_special`, tokens whose `special` flag is set are left out."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = tokenizer.decoder()

    def push(self, token_id: int) -> str:
        """The new text; "" while a character's bytes are incomplete. Raises TextError for an unknown id."""
        if self._skip_special and self._tokenizer.is_special(token_id):
            return ""
        return self._decoder.push(token_id)

    def flush(self) -> str:
        """What was held back, incomplete bytes as U+FFFD; the detokenizer can then be used for another sequence."""
        return self._decoder.flush()


class StopStrings:
    """Ends a stream before the first stop string; `met` is that string, "" until it is found.

    `stops`: texts, none of them empty. The result does not depend on how the text is cut into pieces. If several stop
    strings match, the one that ends first counts; of those that end together, the one that begins first.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self._passed = 0  # characters of the held text in which no stop string may end
        self.met = ""

    def push(self, text: str, *, may_end: bool = True) -> tuple[str, bool]:
        """(text that can't be part of a stop string, whether one was found); after one was found, ("", True).

        `may_end` False: stop strings that are complete within this text do not count.
        """
        if self.met:
            return "", True
        text = self._held + text
        if not may_end:
            self._passed = len(text)
        hits = [(at + len(stop), at) for stop in self._stops if (at := self._find(text, stop)) >= 0]
        if hits:
            end, start = min(hits)
            self._held, self.met = "", text[start:end]
            return text[:start], True
        keep = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        self._passed = max(0, self._passed - (len(text) - keep))
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """The text held back when the stream ends without a stop string; "" after one."""
        held, self._held, self._passed = self._held, "", 0
        return held

    def _find(self, text: str, stop: str) -> int:
        return text.find(stop, max(0, self._passed - len(stop) + 1))

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
        for size in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:size]):
                return size
        return 0
