"""What attention sees of the sequences of a step: their rows in the pages of one layer.

`None` in place of a state means whole sequences: the tokens of a call attend to each other alone, and nothing is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from earthshine.kernels import PagedTokens


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `first` to `last` - 1 of a batch, and the sequences that they belong to, in order."""

    first: int
    last: int
    sequences: Sequence[PagedTokens]


class LayerState(Protocol):
    """One layer's rows of every sequence of a step."""

    @property
    def pieces(self) -> Sequence[Piece]:
        """The whole batch, in order, a bounded number of tokens at a time."""
        ...

    def extend(self, rows: Tensor, part: int = 0) -> Tensor:
        """Keep the batch's rows [tokens, width] and return the pages [n_pages, page_tokens, width] that hold them.

        `part`: which of the rows that the attention's spec says it keeps.
        """
        ...


class States(Protocol):
    """What a step's sequences keep, by layer."""

    def layer(self, index: int) -> LayerState: ...
