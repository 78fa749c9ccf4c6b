"""Hugging Face's `tokenizer.json`, read and applied by the `tokenizers` library.

The library turns the text of an added token into its id wherever it occurs. Users' text is therefore encoded by a
second copy without control tokens. Refused: files that the library refuses, and added tokens without an id and a text.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from earthshine.errors import TextError
from earthshine.text.control import ControlToken, ControlTokens
from earthshine.text.decoding import ByteDecoder, PrefixDecoder, TokenDecoder
from earthshine.text.files import read_object
from earthshine.text.tokenizer import Tokenizer
from earthshine.untrusted import shown

_MAX_FILE_BYTES = 128 << 20
_MAX_ADDED = 1 << 16
_PROBE_CHARS, _PROBE_MARGIN = 1 << 16, 1024
_T = TypeVar("_T")


def byte_alphabet() -> dict[str, int]:
    """Character -> byte: byte-level vocabularies write each byte as a printable character (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


_ALPHABET = byte_alphabet()


def _guard(what: str, work: Callable[[], _T]) -> _T:
    """Calls the library, and raises its errors as TextError. A panic of its Rust code is not an Exception."""
    try:
        return work()
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TextError(f"{what}: {str(error)[:200]}.") from error
        raise


def _is_control(entry: dict[str, Any]) -> bool:
    """Special tokens, and others that look like markers: `<think>` is not special in these files, nor are added runs of
    spaces, which are not control tokens."""
    text = entry["content"]
    marker = text[0] in "<[" and text[-1] in ">]" and any(letter.isalpha() for letter in text)
    return len(text) > 1 and (entry["special"] or marker)


def _read_added(path: Path, data: dict[str, Any]) -> list[dict[str, Any]]:
    added = data.get("added_tokens", [])
    if not isinstance(added, list) or len(added) > _MAX_ADDED:
        raise TextError(f"{path}: added_tokens must be a list of at most {_MAX_ADDED}.")
    for entry in added:
        right = (
            isinstance(entry, dict)
            and type(entry.get("id")) is int
            and 0 <= entry["id"] < 1 << 31
            and isinstance(entry.get("content"), str)
            and entry["content"] != ""
            and isinstance(entry.setdefault("special", False), bool)
        )
        if not right:
            raise TextError(f"{path}: each of added_tokens needs an id, a content and a special flag.")
    return added


class HuggingFaceTokenizer(Tokenizer):
    """`full` has all added tokens, `plain` only those that are not control tokens. `byte_level`: tokens are bytes."""

    def __init__(
        self, full: tokenizers.Tokenizer, plain: tokenizers.Tokenizer, controls: ControlTokens, byte_level: bool
    ) -> None:
        vocabulary = full.get_vocab(with_added_tokens=True)
        super().__init__(controls, max(vocabulary.values(), default=-1) + 1)
        self._full, self._plain, self._byte_level = full, plain, byte_level
        # A copy without control tokens may number the remaining added tokens differently.
        self._renumber = {
            number: vocabulary[text]
            for text, number in plain.get_vocab(with_added_tokens=True).items()
            if vocabulary.get(text, number) != number
        }

    def token_bytes(self, token_id: int) -> bytes:
        token = self._token(token_id)
        if token_id in self.controls.by_id:
            return token.encode()
        if not self._byte_level:
            return self._decode([token_id]).encode()
        if all(letter in _ALPHABET for letter in token):
            return bytes(_ALPHABET[letter] for letter in token)
        return token.encode()

    def decode_bytes(self, ids: Any) -> bytes:
        ids = list(ids)
        if self._byte_level:
            return super().decode_bytes(ids)
        return self._decode(ids).encode()

    def decoder(self) -> TokenDecoder:
        return ByteDecoder(self.token_bytes) if self._byte_level else PrefixDecoder(self._decode)

    def _token(self, token_id: int) -> str:
        token = self._full.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
        if token is None:
            raise TextError(f"Token id {token_id} is outside the vocabulary of {self.vocab_size} ids.")
        return token

    def _decode(self, ids: Sequence[int]) -> str:
        for token_id in ids:
            self._token(token_id)
        return _guard("The tokenizer could not decode", lambda: self._full.decode(list(ids), skip_special_tokens=False))

    def _ids(self, encoder: tokenizers.Tokenizer, text: str, limit: int | None) -> list[int]:
        """With `limit`, encodes longer and longer beginnings of a text until one has over twice the limit. What follows
        can only change ids near the end of a beginning, so the whole text is then over the limit too."""
        size = 0 if limit is None else _PROBE_CHARS + 16 * limit
        while limit is not None and size < len(text):
            ids = self._ids(encoder, text[:size], None)
            if len(ids) > 2 * limit + _PROBE_MARGIN:
                return ids
            size *= 4
        # The batch function releases Python's interpreter lock, encode does not.
        batch = _guard(
            "The tokenizer could not encode", lambda: encoder.encode_batch_fast([text], add_special_tokens=False)
        )
        return list(batch[0].ids)

    def _encode(self, text: str, literal: Sequence[int], limit: int | None) -> Iterator[list[int]]:
        if not literal:
            yield self._ids(self._full, text, limit)
            return
        at = 0
        for start, end, token_id in self.controls.spans(text, literal):
            yield from self._encode_plain(text[at:start], limit)
            yield [token_id]
            at = end
        yield from self._encode_plain(text[at:], limit)

    def _encode_plain(self, text: str, limit: int | None) -> Iterator[list[int]]:
        while text:
            ids, done = self._plain_ids(text, limit)
            yield ids
            text = text[done:]

    def _plain_ids(self, text: str, limit: int | None) -> tuple[list[int], int]:
        """The ids of the first characters of the text, and the number of these characters."""
        ids = [self._renumber.get(number, number) for number in self._ids(self._plain, text, limit)]
        if not any(number in self.controls.by_id for number in ids):
            return ids, len(text)
        # The vocabulary itself has a control token's text as a token: encode its first letter separately.
        spans = self.controls.spans(text)
        if not spans:
            raise TextError("The tokenizer turns ordinary text into a control token; its vocabulary is unsafe to use.")
        cut = spans[0][0] + 1
        return [self._renumber.get(number, number) for number in self._ids(self._plain, text[:cut], limit)], cut


def _is_byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    steps = decoder.get("decoders") if decoder.get("type") == "Sequence" else [decoder]
    return isinstance(steps, list) and [isinstance(step, dict) and step.get("type") for step in steps] == ["ByteLevel"]


def load_hugging_face(folder: Path) -> HuggingFaceTokenizer:
    """Reads `tokenizer.json`; raises TextError if the file or one of its added tokens is malformed."""
    path = folder / "tokenizer.json"
    data = read_object(folder, path.name, _MAX_FILE_BYTES)
    added = _read_added(path, data)
    controls = ControlTokens(
        ControlToken(entry["id"], entry["content"], entry["special"]) for entry in added if _is_control(entry)
    )
    without = data | {"added_tokens": [entry for entry in added if not _is_control(entry)]}
    copies = []
    for content in (data, without):
        text = json.dumps(content)
        copy = _guard(f"{path} is not a tokenizer", partial(tokenizers.Tokenizer.from_str, text))
        copy.no_truncation()
        copy.no_padding()
        copies.append(copy)
    full, plain = copies
    for token in controls.by_id.values():
        if full.token_to_id(token.text) != token.id:
            raise TextError(f"{path} gives {shown(token.text)} the id {token.id}, but its vocabulary says otherwise.")
    return HuggingFaceTokenizer(full, plain, controls, _is_byte_level(data.get("decoder")))
