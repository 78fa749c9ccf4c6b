"""One page as a blob of `codec`: the form in which tiers store and send it.

What is read is the page that was asked for: checksums, model, place in the sequence and token ids are compared.
"""

from collections.abc import Sequence
from typing import BinaryIO

from torch import Tensor

from earthshine.errors import BlobError, UsageError
from earthshine.kv.codec import BlobReader, BlobWriter
from earthshine.kv.header import BlobHeader, BlobLayout
from earthshine.kv.page_folder import KEY_BYTES
from earthshine.kv.page_key import PageKey


class PageBlobs:
    """Pages of `page_tokens` tokens in `layout`. Raises UsageError for pages without a token."""

    def __init__(self, layout: BlobLayout, page_tokens: int) -> None:
        if page_tokens < 1:
            raise UsageError(f"A page has at least 1 token, not {page_tokens}.")
        self._layout, self._page_tokens = layout, page_tokens
        self.pattern = BlobHeader(layout, page_tokens, (0,) * page_tokens, 0)  # of the size that all have

    def header(self, key: PageKey, tokens: Sequence[int]) -> BlobHeader:
        """Raises UsageError or BlobError for arguments that name no page."""
        if len(key.key) != KEY_BYTES or len(tokens) != self._page_tokens:
            raise UsageError(f"A page has a key of {KEY_BYTES} bytes and {self._page_tokens} tokens.")
        return BlobHeader(self._layout, self._page_tokens, tuple(tokens), 0, key.start, key.prior)

    @staticmethod
    def write(file: BinaryIO, header: BlobHeader, rows: Sequence[Tensor]) -> None:
        """rows: each part's [page_tokens, width]. Raises BlobError for others, and what the file does."""
        writer = BlobWriter(file, header)
        for index, part in enumerate(rows):
            writer.part(index, part)
        writer.close()

    @staticmethod
    def read(file: BinaryIO, header: BlobHeader) -> list[Tensor]:
        """Each part's rows [page_tokens, width] of the page that `header` describes. Raises BlobError for any other."""
        reader = BlobReader(file, limit_bytes=header.blob_bytes)
        if reader.header != header:
            raise BlobError("The blob holds another page than was asked for.")
        parts = list(reader.parts())
        reader.end()
        return parts
