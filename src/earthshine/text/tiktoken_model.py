"""Kimi's tokenizer: `tiktoken.model`, 256 reserved ids after the ranks, and one fixed split pattern.

Format and rules are those of tokenization_kimi.py, published beside the weights. The vocabulary may be smaller than
Kimi's; the offsets of named control tokens from the first reserved id are the same. Refused: ranks other than 0..n-1,
repeated tokens, bad base64, a missing single byte, and names for ids outside the reserved range.
"""

import base64
import binascii
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import tiktoken

from earthshine.errors import TextError
from earthshine.text.control import ControlToken, ControlTokens
from earthshine.text.decoding import ByteDecoder, TokenDecoder
from earthshine.text.files import present, read_bytes, read_object
from earthshine.text.tokenizer import Tokenizer
from earthshine.untrusted import shown

_MAX_FILE_BYTES = 64 << 20
_MAX_CONFIG_BYTES = 16 << 20
_MAX_RANKS = 1 << 20
_MAX_TOKEN_BYTES = 4096
_MAX_NAME_CHARS = 256
N_RESERVED = 256

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

# Offset from the first reserved id -> (text, special flag), as in Kimi-K2.6's tokenizer_config.json.
_NAMES: dict[int, tuple[str, bool]] = {
    0: ("[BOS]", True),
    1: ("[EOS]", True),
    2: ("<|im_end|>", True),
    3: ("<|im_user|>", True),
    4: ("<|im_assistant|>", True),
    6: ("<|start_header_id|>", True),
    7: ("<|end_header_id|>", True),
    9: ("[EOT]", True),
    10: ("<|im_system|>", True),
    11: ("<|tool_calls_section_begin|>", False),
    12: ("<|tool_calls_section_end|>", False),
    13: ("<|tool_call_begin|>", False),
    14: ("<|tool_call_argument_begin|>", False),
    15: ("<|tool_call_end|>", False),
    17: ("<|im_middle|>", True),
    18: ("<|media_begin|>", True),
    19: ("<|media_content|>", True),
    20: ("<|media_end|>", True),
    21: ("<|media_pad|>", True),
    22: ("<think>", False),
    23: ("</think>", False),
    254: ("[UNK]", True),
    255: ("[PAD]", True),
}

_CHUNK_CHARS = 400_000
_RUN_CHARS = 25_000
_RUNS = re.compile(r"\s+|\S+")
_STEP_CHARS = 8192
_BORDER = re.compile(r"(?<=\S)(?= )|(?<=\n)(?=\S)")


class _Cuts:
    """Positions where the published code cuts a text before encoding: every 400,000 characters, and within such a chunk
    every 25,000 characters of a run of whitespace, or of other characters, that is longer than this."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._chunks: dict[int, list[int]] = {}  # start of a chunk -> the cuts within it

    def between(self, start: int, end: int) -> Iterator[int]:
        """The cuts after `start` and before `end`, ascending; each chunk is scanned when it is reached."""
        for low in range(start // _CHUNK_CHARS * _CHUNK_CHARS, end, _CHUNK_CHARS):
            if start < low:
                yield low
            inside = self._inside(low)
            yield from inside[bisect_right(inside, start) : bisect_right(inside, end - 1)]

    def _inside(self, low: int) -> list[int]:
        if low not in self._chunks:
            high = min(low + _CHUNK_CHARS, len(self._text))
            runs = _RUNS.finditer(self._text, low, high) if high - low > _RUN_CHARS else ()
            self._chunks[low] = [at for run in runs for at in range(run.start() + _RUN_CHARS, run.end(), _RUN_CHARS)]
        return self._chunks[low]


def _steps(text: str, start: int, end: int, size: int = _STEP_CHARS) -> Iterator[str]:
    """The text from `start` to `end` in parts of about `size` characters; encoding the parts gives the same tokens.

    `PATTERN` always splits between a character that is not whitespace and a space, and between a line break and a
    character that is not whitespace. It looks ahead only within whitespace.
    """
    while end - start > size and (border := _BORDER.search(text, start + size, end)):
        yield text[start : border.start()]
        start = border.start()
    yield text[start:end]


class TiktokenTokenizer(Tokenizer):
    """Byte-pair encoding by rank over `tokens`, which lists the bytes of ids 0..n-1."""

    def __init__(self, tokens: Sequence[bytes], controls: ControlTokens) -> None:
        super().__init__(controls, len(tokens) + N_RESERVED)
        self._tokens = tuple(tokens)
        ranks = {token: rank for rank, token in enumerate(tokens)}
        self._bpe = tiktoken.Encoding("earthshine", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})

    def token_bytes(self, token_id: int) -> bytes:
        if 0 <= token_id < len(self._tokens):
            return self._tokens[token_id]
        token = self.controls.by_id.get(token_id)
        if token is None:
            raise TextError(f"Token id {token_id} is outside the vocabulary of {self.vocab_size} ids.")
        return token.text.encode()

    def decoder(self) -> TokenDecoder:
        return ByteDecoder(self.token_bytes)

    def _parts(self, text: str, start: int, end: int, cuts: _Cuts) -> Iterator[list[int]]:
        at = start
        for cut in chain(cuts.between(start, end), (end,)):
            if at < cut:
                yield from map(self._bpe.encode_ordinary, _steps(text, at, cut))
            at = cut

    def _encode(self, text: str, literal: Sequence[int], limit: int | None) -> Iterator[list[int]]:
        # A cut inside a control token is left out. The published code splits the token there and so loses it.
        cuts, at = _Cuts(text), 0
        for start, end, token_id in self.controls.spans(text, literal):
            yield from self._parts(text, at, start, cuts)
            yield [token_id]
            at = end
        yield from self._parts(text, at, len(text), cuts)

    def _encode_plain(self, text: str, limit: int | None) -> Iterator[list[int]]:
        return self._parts(text, 0, len(text), _Cuts(text))


def _read_line(path: Path, number: int, line: bytes) -> bytes:
    token, separator, rank = line.partition(b" ")
    if not separator or rank != str(number).encode():
        raise TextError(f"{path} line {number + 1} must be a base64 token, one space and the rank {number}.")
    try:
        value = base64.b64decode(token, validate=True)
    except binascii.Error as error:
        raise TextError(f"{path} line {number + 1} holds no valid base64: {error}.") from error
    if not 0 < len(value) <= _MAX_TOKEN_BYTES:
        raise TextError(f"{path} line {number + 1} holds {len(value)} bytes; a token has 1 to {_MAX_TOKEN_BYTES}.")
    return value


def _read_tokens(folder: Path) -> list[bytes]:
    path = folder / "tiktoken.model"
    lines = read_bytes(folder, path.name, _MAX_FILE_BYTES).split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if not 256 <= len(lines) <= _MAX_RANKS:
        raise TextError(f"{path} has {len(lines)} lines; a vocabulary has 256 to {_MAX_RANKS}.")
    tokens = [_read_line(path, number, line) for number, line in enumerate(lines)]
    distinct = set(tokens)
    if len(distinct) != len(tokens):
        raise TextError(f"{path} lists a token twice; each rank needs its own token.")
    missing = [byte for byte in range(256) if bytes([byte]) not in distinct]
    if missing:
        raise TextError(f"{path} lacks the single byte {missing[0]:#04x}; all 256 must be tokens.")
    return tokens


def _read_entry(folder: Path, key: str, entry: Any, first: int) -> ControlToken:
    where = f"{folder / 'tokenizer_config.json'} added_tokens_decoder[{shown(key)}]"
    if not re.fullmatch(r"[0-9]{1,9}", key) or not first <= int(key) < first + N_RESERVED:
        raise TextError(f"{where} must name an id from {first} to {first + N_RESERVED - 1}.")
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(content, str) or not 2 <= len(content) <= _MAX_NAME_CHARS:
        raise TextError(f"{where} needs a content of 2 to {_MAX_NAME_CHARS} characters.")
    special = entry.get("special", False)
    if not isinstance(special, bool):
        raise TextError(f"{where} has a special flag that is neither true nor false.")
    return ControlToken(int(key), content, special)


def _named(folder: Path, first: int) -> dict[int, ControlToken]:
    if present(folder, "tokenizer_config.json"):
        config = read_object(folder, "tokenizer_config.json", _MAX_CONFIG_BYTES)
        entries = config.get("added_tokens_decoder")
        if entries is not None:
            if not isinstance(entries, dict):
                raise TextError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder must be an object.")
            read = [_read_entry(folder, key, entry, first) for key, entry in entries.items()]
            return {token.id: token for token in read}
    return {first + offset: ControlToken(first + offset, *name) for offset, name in _NAMES.items()}


def load_tiktoken(folder: Path) -> TiktokenTokenizer:
    """Reads `tiktoken.model` and, where present, the names in `tokenizer_config.json`; raises TextError.

    Reserved ids without a name are `<|reserved_token_{id}|>` and count as special.
    """
    tokens = _read_tokens(folder)
    first = len(tokens)
    named = _named(folder, first)
    reserved = (
        named.get(token_id) or ControlToken(token_id, f"<|reserved_token_{token_id}|>", True)
        for token_id in range(first, first + N_RESERVED)
    )
    return TiktokenTokenizer(tokens, ControlTokens(reserved))
