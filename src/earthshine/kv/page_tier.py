"""The interface of a place outside the pool where pages are kept: a disk, a peer, or a dictionary in tests.

A tier is called from several threads. It returns only pages that it has verified. A page that is absent, damaged or of
other tokens is None, never an error of the request.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from earthshine.kv.page_key import PageKey


@dataclass(frozen=True, slots=True, eq=False)
class PageParts:
    """Rows [page_tokens, width] of each part, in the order of `PagePool.page`; for models with recurrent layers also
    the state after the page's last token, where it is kept, in the order of `StatePool.slot` and in any shape."""

    rows: Sequence[Tensor]
    state: Sequence[Tensor] | None = None


class PageTier(Protocol):
    """Full pages that can be read."""

    def __contains__(self, key: PageKey, /) -> bool:
        """Whether a read is expected to find the page. Returns at once and raises nothing."""
        ...

    def has_state(self, key: PageKey) -> bool:
        """Whether it is expected to find the recurrent state after the page too. Returns at once and raises nothing."""
        ...

    def read(self, key: PageKey, tokens: Sequence[int]) -> PageParts | None:
        """The page, or None. May block.

        `tokens`: the page's own, which the tier compares. An exception counts as None and is logged.
        """
        ...

    def close(self) -> None:
        """End the tier's threads. Later reads find nothing."""
        ...


class PageStore(PageTier, Protocol):
    """A tier that pages can be written to."""

    def write(
        self,
        key: PageKey,
        tokens: Sequence[int],
        parts: Callable[[], PageParts],
        done: Callable[[bool], None],
        *,
        with_state: bool = False,
    ) -> None:
        """Queue a page and return at once. Later another thread calls `parts`, and then once `done` with whether the
        page is kept.

        `with_state`: whether `parts` gives a state. A page that was kept without one is replaced. Where the page is
        refused, `done` is called before this returns.
        """
        ...

    def used(self, keys: Iterable[PageKey]) -> None:
        """Record that these pages were just used, the last one last. Returns at once."""
        ...
