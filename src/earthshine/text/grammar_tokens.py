"""Sets of tokens as bit masks, and walks: positions in a grammar, which give the mask of the next token.

Masks are int32 [ceil(vocab_size / 32)]; bit i of word w stands for token 32 w + i. Invariant: a walk allows only plain
tokens (all but control tokens) and the end tokens that its caller names. Refused, as TextError: a walk that no token
can continue, and one whose masks take over a second in all, since they delay the other replies of the batch.
"""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from earthshine.errors import TextError
from earthshine.text.decoding import ByteDecoder
from earthshine.text.tokenizer import Tokenizer

Mask = npt.NDArray[np.int32]

_SLOW_SECONDS = 0.01  # typical masks take 0.01 to 0.2 ms, the slowest seen 0.1 s
_SLOW_TOTAL_SECONDS = 1.0
_MAX_NUMBER_BYTES = 32  # a double has 17 digits, a 64-bit integer 20
_NUMERIC, _QUOTE, _BACKSLASH = b"0123456789+-.eE", 0x22, 0x5C
_DIGITS = frozenset(bytes([byte]) for byte in _NUMERIC)
_CLOSES_TEXT, _CLOSES, _OPENS_NOTHING = re.compile(rb'"[\]}]*'), re.compile(rb"[\]}]+"), re.compile(rb"[^\[{,]+")
_END = -1  # a trie's key for "a text ends here"


class Walk(Protocol):
    """A position in a grammar."""

    def mask(self, ends: Mask) -> Mask:
        """The plain tokens that may come next, and also `ends` if the text may end here."""
        ...

    def accept(self, token: int) -> None:
        """Advances by this plain token."""
        ...


class TokenSets:
    """Masks for one tokenizer and a model of `vocab_size` ids. Ids that the tokenizer has no text for are in none."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_tokens: Sequence[int]) -> None:
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.stops = frozenset(stop_tokens)
        self.texts = [self._text(token) for token in range(vocab_size)]
        self.stop_mask = self.only(*self.stops)
        self.plain = self._mask([bool(text) for text in self.texts])
        self.numeric = self._mask([text[:1] in _DIGITS for text in self.texts])  # tokens that continue a number
        # Tokens that end a string; that close lists or objects; that open neither.
        self.closes_text, self.closes, self.opens_nothing = (
            self._mask([form.fullmatch(text) is not None for text in self.texts])
            for form in (_CLOSES_TEXT, _CLOSES, _OPENS_NOTHING)
        )

    def _text(self, token: int) -> bytes:
        if token >= self.tokenizer.vocab_size or token in self.tokenizer.controls.by_id:
            return b""
        try:
            return self.tokenizer.token_bytes(token)
        except TextError:  # Hugging Face's vocabularies may have gaps
            return b""

    def _mask(self, flags: Sequence[bool]) -> Mask:
        """The mask of the flagged ids, without stop tokens; read-only."""
        bits = np.zeros((self.vocab_size + 31) // 32 * 32, np.bool_)
        bits[: self.vocab_size] = flags
        mask: Mask = np.packbits(bits, bitorder="little").view("<i4").astype(np.int32) & ~self.stop_mask
        mask.flags.writeable = False
        return mask

    @property
    def is_exact(self) -> bool:
        """Whether a token's bytes do not depend on its neighbours, which grammars need."""
        return isinstance(self.tokenizer.decoder(), ByteDecoder)

    def only(self, *tokens: int) -> Mask:
        """The mask of these tokens; read-only."""
        words = np.zeros((self.vocab_size + 31) // 32, np.uint32)
        for token in tokens:
            words[token >> 5] |= np.uint32(1 << (token & 31))
        mask = words.view(np.int32)
        mask.flags.writeable = False
        return mask

    def has(self, mask: Mask, token: int) -> bool:
        """Whether the mask has this id; False for ids outside the vocabulary."""
        return 0 <= token < self.vocab_size and bool(int(mask[token >> 5]) >> (token & 31) & 1)


class Literals:
    """A choice among texts, each as the tokens that the tokenizer encodes it to. `texts`: text -> name."""

    def __init__(self, tokens: TokenSets, texts: Mapping[str, str]) -> None:
        self._root: dict[int, Any] = {}
        self._tokens = tokens
        for text, name in texts.items():
            node = self._root
            for token in tokens.tokenizer.encode(text, allow_special=False):
                node = node.setdefault(token, {})
            node[_END] = name

    def start(self) -> "Choosing":
        return Choosing(self._tokens, self._root)


class Choosing:
    """A walk through Literals. `chosen`: the name of the text, once it is complete."""

    def __init__(self, tokens: TokenSets, root: dict[int, Any]) -> None:
        self._tokens, self._node = tokens, root

    @property
    def chosen(self) -> str:
        name: str = self._node[_END]
        return name

    def mask(self, ends: Mask) -> Mask:
        mask = self._tokens.only(*(token for token in self._node if token != _END))
        return mask | ends if _END in self._node else mask

    def accept(self, token: int) -> None:
        self._node = self._node[token]


class JsonPlace:
    """Where in JSON a reply is: within a string, or within a number and how many bytes of it. JSON's grammar has no
    limit for a number's digits, so small models can write them without end."""

    def __init__(self) -> None:
        self.n_digits = 0
        self.in_text = self._escaped = False

    @property
    def is_long(self) -> bool:
        return self.n_digits >= _MAX_NUMBER_BYTES

    def push(self, raw: bytes) -> None:
        for byte in raw:
            if self.in_text:
                self.in_text = self._escaped or byte != _QUOTE
                self._escaped = byte == _BACKSLASH and not self._escaped
            else:
                self.in_text = byte == _QUOTE
                self.n_digits = self.n_digits + 1 if byte in _NUMERIC else 0


class Matching:
    """A walk through a grammar of llguidance; owns its matcher. With `place`, for JSON, long numbers are ended."""

    def __init__(self, tokens: TokenSets, matcher: Any, place: JsonPlace | None = None) -> None:
        self._tokens, self._matcher, self.place = tokens, matcher, place
        self._seconds_left = _SLOW_TOTAL_SECONDS

    def mask(self, ends: Mask) -> Mask:
        started = time.thread_time()
        raw = self._matcher.compute_bitmask()
        accepting = self._matcher.is_accepting()
        self._spend(time.thread_time() - started)
        if self._matcher.is_error():
            raise TextError("The answer's grammar became too complex to follow; make it simpler.")
        mask: Mask = np.frombuffer(raw, "<i4")[: len(ends)] & self._tokens.plain
        if self.place is not None and self.place.is_long:
            shorter = mask & ~self._tokens.numeric
            if accepting or shorter.any():  # otherwise the number can't end here
                mask = shorter
        if accepting:
            return mask | ends
        if not mask.any():
            raise TextError("The answer's grammar leads to a place where no token can follow; change it.")
        return mask

    def brief(self, mask: Mask, ends: Mask) -> Mask:
        """The tokens of `mask` that lead to the end of the JSON: those that close a string, list or object, otherwise
        those that open none. All of `mask` if there are no such tokens."""
        tokens = self._tokens
        if self.place is None:
            return mask
        if self.place.in_text:
            wanted = [tokens.closes_text]
        else:
            wanted = [ends, tokens.closes, ~tokens.numeric if self.place.n_digits else tokens.opens_nothing]
        return next((shorter for each in wanted if (shorter := mask & each).any()), mask)

    def _spend(self, seconds: float) -> None:
        if seconds > _SLOW_SECONDS:
            self._seconds_left -= seconds
            if self._seconds_left < 0:
                raise TextError("The answer's grammar takes too long to follow; make it simpler.")

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise TextError("The answer left its grammar, which became too complex to follow; make it simpler.")
        if self.place is not None:
            self.place.push(self._tokens.texts[token])


def library_tokenizer(tokens: TokenSets) -> Any:
    """llguidance's tokenizer of the plain tokens. Control tokens have no text in it, so no grammar can name one."""
    from llguidance import LLTokenizer

    stops = sorted(tokens.stops)
    return LLTokenizer(_Vocabulary(tokens, stops[0]), n_vocab=tokens.vocab_size, eos_token=stops)  # type: ignore[arg-type]


class _Vocabulary:
    """The interface that llguidance expects. One special token needs a text: without one, it panics if a grammar names
    an unknown token."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: TokenSets, stop: int) -> None:
        self.eos_token_id = stop
        self.special_token_ids = [stop]
        self.tokens = [*tokens.texts[:stop], b"<|end|>", *tokens.texts[stop + 1 :]]
        self._tokenizer = tokens.tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", errors="ignore")
        return self._tokenizer.encode(text, allow_special=False)
