"""A page, or a run of pages, as a blob of `codec`: the form in which tiers store and send it.

When a page is read, checksums, model, position in the sequence and token ids are compared with the page that was asked
for.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import BinaryIO

from torch import Tensor

from earthshine.errors import BlobError, UsageError
from earthshine.kv.codec import BlobReader, BlobWriter
from earthshine.kv.header import BlobHeader, BlobLayout, PartKind
from earthshine.kv.page_folder import KEY_BYTES
from earthshine.kv.page_key import PageKey
from earthshine.kv.page_tier import PageParts


def piece_header(
    layout: BlobLayout, first: PageKey, tokens: Sequence[int], page_tokens: int, with_states: bool
) -> BlobHeader:
    """The header of a run of whole pages, of which `first` is the key of the first one; `tokens`: the run's own.

    `with_states` says nothing about a model without recurrent states. Raises UsageError or BlobError for invalid
    arguments.
    """
    if len(first.key) != KEY_BYTES or not tokens or len(tokens) % page_tokens:
        raise UsageError(f"A piece has a key of {KEY_BYTES} bytes and whole pages of {page_tokens} tokens.")
    with_states = with_states or all(part.kind is PartKind.ROWS for part in layout.parts)
    return BlobHeader(layout, len(tokens), tuple(tokens), 0, first.start, first.prior, with_states)


class PageBlobs:
    """Pages of `page_tokens` tokens in `layout`. Raises UsageError for `page_tokens` below 1."""

    def __init__(self, layout: BlobLayout, page_tokens: int) -> None:
        if page_tokens < 1:
            raise UsageError(f"A page has at least 1 token, not {page_tokens}.")
        self._layout, self._page_tokens = layout, page_tokens
        self._has_states = any(part.kind is not PartKind.ROWS for part in layout.parts)
        self.pattern = BlobHeader(layout, page_tokens, (0,) * page_tokens, 0)

    @property
    def sizes(self) -> dict[int, bool]:
        """Possible sizes of a page in bytes, and whether each includes the recurrent state after it."""
        whole = self.pattern.blob_bytes
        return (
            {replace(self.pattern, with_states=False).blob_bytes: False, whole: True}
            if self._has_states
            else {whole: False}
        )

    def header(self, key: PageKey, tokens: Sequence[int], with_state: bool = False) -> BlobHeader:
        """The header of a page. Raises UsageError or BlobError for invalid arguments."""
        if len(tokens) != self._page_tokens:
            raise UsageError(f"A page has {self._page_tokens} tokens, not {len(tokens)}.")
        return piece_header(self._layout, key, tokens, self._page_tokens, with_state)

    @staticmethod
    def write(file: BinaryIO, header: BlobHeader, parts: PageParts) -> None:
        """Write a page. Raises BlobError for parts that do not match the header, and errors of the file."""
        writer = BlobWriter(file, header)
        rows, state = list(parts.rows), list(parts.state or ())
        for index in header.stored:
            given = rows if header.layout.parts[index].kind is PartKind.ROWS else state
            if not given:
                break
            part = given.pop(0)
            writer.part(index, part if given is rows else part.flatten())
        writer.close()
        if rows or state:
            raise BlobError(f"The page has {len(rows) + len(state)} parts too many.")

    @staticmethod
    def read(file: BinaryIO, header: BlobHeader) -> PageParts:
        """The page that `header` describes, with or without its state. Raises BlobError for any other."""
        whole = replace(header, with_states=True)
        reader = BlobReader(file, limit_bytes=whole.blob_bytes)
        found = reader.header
        if replace(found, with_states=True) != whole:
            raise BlobError("The blob holds another page than was asked for.")
        rows: list[Tensor] = []
        state: list[Tensor] = []
        for index, part in zip(found.stored, reader.parts(), strict=True):
            (rows if found.layout.parts[index].kind is PartKind.ROWS else state).append(part)
        reader.end()
        return PageParts(rows, state or None)
