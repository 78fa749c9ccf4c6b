"""What the prefix cache asks of a place where pages are kept outside the pool: a disk, a peer, a test's dictionary.

A tier is called from several threads. It hands out only what it has checked: a page that is absent, damaged or of
other tokens is None, never an error for the request that wanted it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from earthshine.kv.page_key import PageKey


@dataclass(frozen=True, slots=True, eq=False)
class PageParts:
    """Rows [page_tokens, width] of each part, as `PagePool.page` orders them; and of models with recurrent layers the
    state after the page's last token, as `StatePool.slot` orders it, in any shape of that size, where it is kept."""

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
        """The page, or None. May take its time.

        `tokens`: the page's own, which the tier compares. What is raised counts as None and is logged.
        """
        ...

    def close(self) -> None:
        """Ends what the tier runs; reads find nothing afterwards."""
        ...


class PageStore(PageTier, Protocol):
    """A tier that keeps what it is given."""

    def write(
        self,
        key: PageKey,
        tokens: Sequence[int],
        parts: Callable[[], PageParts],
        done: Callable[[bool], None],
        *,
        with_state: bool = False,
    ) -> None:
        """Queue a page. `parts` is called later, by another thread; then `done`, once, with whether the page is kept.

        `with_state`: whether `parts` gives a state; a page that was kept without one is replaced. Returns at once. What
        is refused has called `done` by then.
        """
        ...

    def used(self, keys: Iterable[PageKey]) -> None:
        """Count pages as just used, the last one last. Returns at once."""
        ...
