"""What attention sees of the sequences of a step: in one layer, their rows in pages and their recurrent states.

`None` in place of a state means whole sequences: the tokens of a call attend to each other alone, and nothing is kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from earthshine.kernels import PagedTokens

Sequences = TypeVar("Sequences", covariant=True)


@dataclass(frozen=True, slots=True)
class Run(Generic[Sequences]):
    """Tokens `first` to `last` - 1 of a batch, and the sequences that they belong to, in order."""

    first: int
    last: int
    sequences: Sequences


@dataclass(frozen=True, slots=True)
class Recurrent:
    """`count` tokens of one sequence, and the state parts that they extend in place, as the attention's spec names
    them."""

    count: int
    parts: Sequence[Tensor]


class LayerState(Protocol):
    """What every sequence of a step keeps in one layer."""

    @property
    def pieces(self) -> Sequence[Run[Sequence[PagedTokens]]]:
        """The whole batch, in order, a bounded number of tokens at a time."""
        ...

    def pool(self, part: int = 0) -> Tensor:
        """The pages [n_pages, page_tokens, width], in which the rows of the batch's tokens are there to be written."""
        ...

    def extend(self, rows: Tensor, part: int = 0) -> Tensor:
        """Keep the batch's rows [tokens, width] and return the pages [n_pages, page_tokens, width] that hold them.

        `part`: which of the rows that the attention's spec says it keeps.
        """
        ...

    def recurrences(self) -> Iterator[Run[Sequence[Recurrent]]]:
        """The whole batch, in order. Each run's states are there when it is asked for, and extended before the next."""
        ...


class States(Protocol):
    """What a step's sequences keep, by layer."""

    def layer(self, index: int) -> LayerState: ...
