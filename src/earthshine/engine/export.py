"""Hands out what the layers keep of a prompt while they compute it: whole pages, layer by layer, as views of the pool.

The views stay valid until their piece is released: full pages are never written again, and those of a piece are held.
So nothing is copied but recurrent states, which are small in number and needed again at once. A pass that fails, or a
sequence that is preempted, is computed again with the same bits, and its piece goes on with the layer that it lacks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from earthshine.kv import PageTable
from earthshine.spec.attention import Rows

MOST_TOKENS = 4096  # of a piece whose pages were in the prefix cache, so that each is soon whole


@dataclass(frozen=True, slots=True, eq=False)
class PromptPiece:
    """Tokens `start` to `end` - 1 of a prompt, whole pages, in every layer; `with_states`: and the recurrent states
    after them."""

    start: int
    end: int
    with_states: bool
    _lent: list[Callable[[], None]] = field(default_factory=list)

    def release(self) -> None:
        """To be called once, by any thread, when its views are no longer read: after the piece's end, or where that
        does not come, after the request's last event."""
        for give_back in self._lent:
            give_back()


class PieceSink(Protocol):
    """Called on the engine's thread; returns at once. `start`: tokens that the receiver has, in whole pages."""

    @property
    def start(self) -> int: ...

    def begin(self, piece: PromptPiece) -> None:
        """A piece begins, which follows the one before. Its parts come next, in the order of the blob's header."""
        ...

    def part(self, index: int, views: Sequence[Tensor]) -> None:
        """A part's rows [tokens, width], one view after the other, or its state [size]."""
        ...

    def end(self) -> None:
        """All parts of the piece were given."""
        ...


class PieceExport:
    """The pieces of one prompt of `n_tokens` tokens, from its sink's start on. The last one has the recurrent states.
    For the engine's thread."""

    def __init__(self, sink: PieceSink, n_tokens: int) -> None:
        self._sink, self._end, self._given = sink, n_tokens, sink.start
        self._piece: PromptPiece | None = None  # under way
        self._pages: tuple[int, ...] = ()  # that are lent for it
        self._layer = 0  # the first that it lacks

    def advance(self, page_table: PageTable, computed: int, n_layers: int) -> None:
        """Give what is new: the first `n_layers` layers have kept their parts of the first `computed` tokens."""
        size = page_table.pool.page_tokens
        whole = min(computed, self._end) // size * size
        while self._piece is not None or whole > self._given:
            if self._piece is None:
                ready = n_layers == len(page_table.pool.kept)
                self._begin(min(whole, self._given + MOST_TOKENS // size * size) if ready else whole, page_table)
            assert self._piece is not None
            if self._piece.end > whole or not self._give(self._piece, page_table, n_layers):
                return

    def _begin(self, end: int, page_table: PageTable) -> None:
        self._piece = PromptPiece(self._given, end, end == self._end and page_table.pool.states is not None)
        self._pages, self._layer = (), 0
        self._sink.begin(self._piece)

    def _give(self, piece: PromptPiece, page_table: PageTable, n_layers: int) -> bool:
        """Returns whether the piece is whole now."""
        pool = page_table.pool
        pages = page_table.pages[piece.start // pool.page_tokens : piece.end // pool.page_tokens]
        if pages != self._pages:  # again after a preemption
            self._pages = pages
            piece._lent.append(pool.lend(pages))
        for layer in range(self._layer, n_layers):
            index = sum(map(len, pool.kept[:layer]))
            for number, part in enumerate(pool.kept[layer]):
                if isinstance(part, Rows):
                    self._sink.part(index + number, pool.runs(layer, number, pages))
                elif piece.with_states:
                    self._sink.part(index + number, [_state(page_table, layer, number, piece.end)])
        self._layer = max(self._layer, n_layers)
        if self._layer < len(pool.kept):
            return False
        self._given, self._piece = piece.end, None
        self._sink.end()
        return True


def _state(page_table: PageTable, layer: int, part: int, length: int) -> Tensor:
    """A copy: slots are few, and the sequences that run next need them."""
    slot, states = page_table.state_after(length), page_table.pool.states
    assert slot is not None, "a prompt's last state is kept"
    assert states is not None
    return states.part(layer, part)[slot].flatten().clone()
