"""One forward step over several sequences: a flat batch of new tokens, each row over its own page table.

Invariant: a row's result depends on its own tokens and page table alone, so rows that share a step get what each
would get by itself. A step that fails or is closed leaves every page table as it was.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from earthshine import kernels
from earthshine.errors import UsageError
from earthshine.kv import PageTable, Segment
from earthshine.models import Recurrent, Run, States
from earthshine.spec.attention import State
from earthshine.spec.model import ModelSpec

PIECE_TOKENS = 256  # whose absorbed queries exist at once: 18 MiB, and as much of results, in Kimi-K2.6


class Model(Protocol):
    """What the engine needs of a decoder."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and what is kept."""
        ...

    def forward(
        self, tokens: Tensor, positions: Tensor, states: States | None = None, *, in_groups: bool = False
    ) -> Generator[None, None, Tensor]:
        """tokens, positions: int64 [n]. Returns [n, hidden] after the final norm; yields as Decoder.forward does."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[m, hidden] to fp32 [m, vocab_size]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class StepRow:
    """The new tokens of one sequence, which follow what its page table holds."""

    page_table: PageTable
    tokens: Sequence[int]


class PagedStates:
    """What each row's sequence keeps: pages that a step's tokens are written to first and then read where they lie."""

    def __init__(self, rows: Sequence[StepRow]) -> None:
        self.n_layers = 0  # that have begun
        self._spans: list[tuple[PageTable, int, int]] = []  # and where its tokens begin and end in the batch
        begin = 0
        for row in rows:
            self._spans.append((row.page_table, begin, begin + len(row.tokens)))
            begin += len(row.tokens)
        bounds = [(first, min(first + PIECE_TOKENS, begin)) for first in range(0, begin, PIECE_TOKENS)]
        self._pieces = [Run(first, last, kernels.PagedBatch(self._sequences(first, last))) for first, last in bounds]

    def layer(self, index: int) -> "PagedState":
        self.n_layers = index + 1
        return PagedState(index, self._spans, self._pieces)

    def _sequences(self, first: int, last: int) -> list[kernels.PagedTokens]:
        """Of every sequence, the tokens that lie from `first` to `last` in the batch."""
        return [
            kernels.PagedTokens(
                min(end, last) - max(begin, first), page_table.length + max(begin, first) - begin, page_table.tensor
            )
            for page_table, begin, end in self._spans
            if begin < last and end > first
        ]


@dataclass(frozen=True, slots=True)
class PagedState:
    """One layer's part of it, as `models.LayerState`."""

    _layer: int
    _spans: Sequence[tuple[PageTable, int, int]]
    pieces: Sequence[Run[Sequence[kernels.PagedTokens]]]

    def pool(self, part: int = 0) -> Tensor:
        """As models.LayerState: what ForwardPass has reserved may be written."""
        return self._spans[0][0].pool.rows(self._layer, part)

    def extend(self, rows: Tensor, part: int = 0) -> Tensor:
        """rows: [tokens, width]. Returns the pool's rows [n_pages, page_tokens, width] of this layer."""
        for page_table, begin, end in self._spans:
            page_table.write(self._layer, page_table.length, rows[begin:end], part)
        return self.pool(part)

    def recurrences(self) -> Iterator[Run[Sequence[Recurrent]]]:
        """As models.LayerState. One run for all sequences, unless one of them leaves a checkpoint on its way."""
        segments = [page_table.recurrence.segments if page_table.recurrence else [] for page_table, _, _ in self._spans]
        if all(len(own) == 1 for own in segments):
            yield Run(0, self._spans[-1][2], [self._recurrent(own[0]) for own in segments])
            return
        for own, (_, first, _) in zip(segments, self._spans, strict=True):
            for segment in own:
                yield Run(first, first + segment.count, [self._recurrent(segment)])
                first += segment.count

    def _recurrent(self, segment: Segment) -> Recurrent:
        pool = self._spans[0][0].pool
        assert pool.states is not None
        parts = [index for index, part in enumerate(pool.kept[self._layer]) if isinstance(part, State)]
        starts = [pool.states.start(self._layer, index, segment.source, segment.target) for index in parts]
        return Recurrent(segment.count, starts)


class ForwardPass:
    """The new tokens of several rows on their way through the model, a piece at a time.

    Reserves the pages that the tokens need. Raises ContextError if they do not suffice, and UsageError for a row
    without tokens or two rows of one page table; then no page table has changed. `in_groups`: as Decoder.forward.
    Between two calls of `advance` another pass may run, but must not change a page table of this one.
    """

    def __init__(self, decoder: Model, rows: Sequence[StepRow], *, in_groups: bool = False) -> None:
        _check(rows)
        self._rows = rows
        self._hidden: Tensor | None = None
        try:
            for row in rows:
                row.page_table.reserve(row.page_table.length + len(row.tokens))
            tokens = torch.tensor([token for row in rows for token in row.tokens], dtype=torch.int64)
            positions = torch.cat([_positions(row) for row in rows])
            self._n_layers, self._states = decoder.spec.n_layers, PagedStates(rows)
            self._forward = decoder.forward(tokens, positions, self._states, in_groups=in_groups)
        except BaseException:
            self._truncate()
            raise

    def advance(self) -> bool:
        """Compute up to the next point where the pass may be interrupted; returns whether it has ended.

        At the end the new tokens' state is kept. After an error the pass is closed.
        """
        try:
            with torch.inference_mode():  # not across a yield, where it would cover others' work
                next(self._forward)
        except StopIteration as end:
            for row in self._rows:
                row.page_table.commit(row.page_table.length + len(row.tokens))
            self._hidden = end.value
            return True
        except BaseException:
            self.close()
            raise
        return False

    @property
    def n_layers(self) -> int:
        """The first layers that have kept what they keep of the tokens: all that have begun, since a pass is
        interrupted only after a layer's attention."""
        return self._states.n_layers

    @property
    def share(self) -> float:
        """Of the layers, those that the tokens have passed for certain: all before the one that began last."""
        return 1.0 if self._hidden is not None else max(0, self._states.n_layers - 1) / self._n_layers

    def close(self) -> None:
        """Give up a pass that has not ended: its weights are no longer leased, and its pages are free."""
        if self._hidden is None:
            self._forward.close()
            self._truncate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def hidden(self) -> list[Tensor]:
        """Hidden states [tokens, hidden] of each row, once the pass has ended."""
        assert self._hidden is not None
        return list(self._hidden.split([len(row.tokens) for row in self._rows]))

    def _truncate(self) -> None:
        for row in self._rows:
            row.page_table.truncate(row.page_table.length)


def step(decoder: Model, rows: Sequence[StepRow]) -> list[Tensor]:
    """Compute the new tokens of every row, keep what they leave, and return each row's hidden states [tokens, hidden].

    Raises as ForwardPass; whatever is raised, no page table has changed.
    """
    with ForwardPass(decoder, rows) as forward:
        while not forward.advance():
            pass
    return forward.hidden()


def _check(rows: Sequence[StepRow]) -> None:
    if not rows or any(len(row.tokens) == 0 for row in rows):
        raise UsageError("A step needs at least one token in every row.")
    if len({id(row.page_table) for row in rows}) < len(rows):
        raise UsageError("Two rows of a step can't continue the same page table.")
    if len({id(row.page_table.pool) for row in rows}) > 1:
        raise UsageError("The rows of a step share one pool of pages.")


def _positions(row: StepRow) -> Tensor:
    return torch.arange(row.page_table.length, row.page_table.length + len(row.tokens))
