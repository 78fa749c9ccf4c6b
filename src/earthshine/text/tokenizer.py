"""The interface of tokenizers; each file format has a module of its own.

No code from a model's folder is run. Encoding adds no tokens (no BOS), and the text of a control token becomes its id
only if the caller allows it.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from earthshine.errors import TextError
from earthshine.text.control import ControlTokens
from earthshine.text.decoding import TokenDecoder

_SURROGATES = re.compile("[\ud800-\udfff]")


class Tokenizer(ABC):
    """Text to ids and back for one vocabulary; safe to share between threads."""

    def __init__(self, controls: ControlTokens, vocab_size: int) -> None:
        self.controls = controls
        self.vocab_size = vocab_size

    def encode(
        self, text: str, allow_special: bool, literal: Sequence[int] = (), limit: int | None = None
    ) -> list[int]:
        """The ids of a text; with `allow_special`, texts of control tokens become their single ids.

        `literal`: ascending positions; a control token with one of them inside is encoded as ordinary text. Lone
        surrogates become U+FFFD, since UTF-8 has no form for them. `limit`: encoding may stop once there are more ids
        than this. A result of at most `limit` ids is the whole text's; a longer one is its beginning.
        """
        text = _SURROGATES.sub("�", text)
        ids: list[int] = []
        for part in self._encode(text, literal, limit) if allow_special else self._encode_plain(text, limit):
            ids += part
            if limit is not None and len(ids) > limit:
                break
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids, control tokens included; they may end inside a UTF-8 character."""
        return b"".join(self.token_bytes(token_id) for token_id in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, invalid UTF-8 as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def special_id(self, name: str) -> int | None:
        """The id of the control token with this text, or None."""
        token = self.controls.by_text.get(name)
        return None if token is None else token.id

    def is_special(self, token_id: int) -> bool:
        """Whether skip_special_tokens drops this id. False for think and tool markers, which parsers need."""
        token = self.controls.by_id.get(token_id)
        return token is not None and token.special

    def require_fit(self, vocab_size: int, stop_tokens: Sequence[int]) -> None:
        """Raises TextError unless all ids are below `vocab_size` and `<|im_end|>`, if it exists, is a stop token."""
        end = self.special_id("<|im_end|>")
        if self.vocab_size > vocab_size or (end is not None and end not in stop_tokens):
            raise TextError(
                f"The tokenizer's {self.vocab_size} ids do not fit the model's {vocab_size} and its stop tokens "
                f"{list(stop_tokens)}; both must come from the same release."
            )

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one id; raises TextError if the vocabulary has no such id."""

    @abstractmethod
    def decoder(self) -> TokenDecoder:
        """A new incremental decoder, which decodes control tokens like any others."""

    @abstractmethod
    def _encode(self, text: str, literal: Sequence[int], limit: int | None) -> Iterable[list[int]]:
        """The ids in parts, so that the caller can stop. Only a part of more than `limit` ids may be incomplete."""

    @abstractmethod
    def _encode_plain(self, text: str, limit: int | None) -> Iterable[list[int]]:
        """The same, without control tokens."""
