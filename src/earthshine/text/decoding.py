"""Incremental decoding: token ids to text, one id at a time.

`ByteDecoder` is for vocabularies whose tokens are bytes, `PrefixDecoder` for those where a token's text depends on its
neighbours. Invariant: the pieces returned, joined, equal the whole text; a UTF-8 character is never split.
"""

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

_REPLACEMENT = "�"


class TokenDecoder(Protocol):
    """`push` returns text that will not change any more. After `flush` the decoder can be used for another text."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class ByteDecoder:
    """Tokens that are byte strings, through Python's incremental UTF-8 decoder: invalid bytes become U+FFFD."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class PrefixDecoder:
    """Decodes the last few ids with and without the new one; the difference is the new text.

    A text that ends in U+FFFD may be a character whose bytes have not all arrived, so it is held back. After 16 ids the
    text may really be U+FFFD, written as bytes: then the last 0 to 3 ids are held back, whichever number leaves the
    fewest U+FFFD in the rest.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._n_shown = 0  # ids[:n_shown] were returned as text and are kept as context

    def push(self, token_id: int) -> str:
        text = self._decode([*self._ids, token_id])  # first, since it refuses unknown ids
        self._ids.append(token_id)
        n_back = 0
        if text.endswith(_REPLACEMENT):
            if len(self._ids) - self._n_shown < 16:
                return ""
            n_back = min(range(4), key=lambda back: self._decode(self._ids[: -back or None]).count(_REPLACEMENT))
            text = self._decode(self._ids[: -n_back or None])
        shown = self._decode(self._ids[: self._n_shown])
        self._ids = self._ids[self._n_shown :]
        self._n_shown = len(self._ids) - n_back
        return text[len(shown) :]

    def flush(self) -> str:
        shown, text = self._decode(self._ids[: self._n_shown]), self._decode(self._ids)
        self._ids, self._n_shown = [], 0
        return text[len(shown) :]
