"""Keys that identify full pages by their content.

A page's key is a digest of the tenant and of every token up to the page's end. So equal keys mean equal pages, and a
tenant can neither find another's pages nor detect them by timing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from earthshine.kv.page_folder import KEY_BYTES


@dataclass(frozen=True, slots=True)
class PageKey:
    """`prior`: the key of the page before, or the tenant's root; `start`: the position of the page's first token."""

    key: bytes
    prior: bytes
    start: int


class PageKeys:
    """The keys of one sequence's full pages. Keys that were computed are kept as the sequence grows."""

    def __init__(self, tenant: str, page_tokens: int) -> None:
        self._root = blake2b(tenant.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()
        self._page_tokens = page_tokens
        self._keys: list[PageKey] = []

    def of(self, tokens: Sequence[int], n_pages: int) -> list[PageKey]:
        """Keys of the first `n_pages` pages of `tokens`, which must begin with the tokens of all earlier calls."""
        while len(self._keys) < n_pages:
            start = len(self._keys) * self._page_tokens
            prior = self._keys[-1].key if self._keys else self._root
            page = np.asarray(tokens[start : start + self._page_tokens], dtype="<u4").tobytes()
            self._keys.append(PageKey(blake2b(page, digest_size=KEY_BYTES, key=prior).digest(), prior, start))
        return self._keys[:n_pages]
