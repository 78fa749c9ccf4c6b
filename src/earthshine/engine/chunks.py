"""Steps as data: which consecutive tokens of which sequences are computed together, and what that gave."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from earthshine.engine.sequence import TokenSequence
from earthshine.engine.step import StepRow


@dataclass(frozen=True, slots=True, eq=False)
class Chunk(StepRow):
    """A step's row with its sequence: consecutive tokens of `sequence`, computed over the `begin` tokens
    before them."""

    sequence: TokenSequence
    begin: int

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def end(self) -> int:
        return self.begin + len(self.tokens)

    @property
    def decodes(self) -> bool:
        """Whether it is a sampled token, not a part of the prompt, until the next one is sampled."""
        return self.n_tokens == 1 and self.end == len(self.sequence.tokens) > self.sequence.n_prompt


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What is computed together; where `interruptible`, in pieces between which decode steps may run."""

    chunks: tuple[Chunk, ...]
    interruptible: bool = False

    def report(self, share: float) -> None:
        """Tell the requests whose prompts it computes that `share` of the layers is done."""
        for chunk in self.chunks:
            if chunk.begin < chunk.sequence.n_prompt:
                chunk.sequence.report(chunk.begin + chunk.n_tokens * share)

    def hand_out(self, n_layers: int) -> None:
        """Give the requests that ask for it what `n_layers` layers, the first ones, keep of their tokens."""
        for chunk in self.chunks:
            if chunk.sequence.export is not None:
                chunk.sequence.hand_out(chunk.end, n_layers)

    @property
    def n_tokens(self) -> int:
        return sum(chunk.n_tokens for chunk in self.chunks)

    @property
    def sequences(self) -> frozenset[TokenSequence]:
        return frozenset(chunk.sequence for chunk in self.chunks)

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for any of it."""
        return all(chunk.sequence.cancelled for chunk in self.chunks)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a step gave: hidden states [tokens, hidden] of each chunk, or an error."""

    step: Step
    hidden: Sequence[Tensor] = ()
    seconds: float = 0.0
    error: Exception | None = None


def next_chunk(sequence: TokenSequence, count: int) -> Chunk:
    """Its next `count` tokens."""
    assert sequence.page_table is not None
    begin = sequence.page_table.length
    return Chunk(sequence.page_table, sequence.tokens[begin : begin + count], sequence, begin)


def is_current(step: Step) -> bool:
    """Whether its chunks are still what their sequences need next."""
    return all(
        each.sequence.page_table is each.page_table and each.page_table.length == each.begin and not each.sequence.ended
        for each in step.chunks
    )


def next_token(sequence: TokenSequence) -> Chunk:
    return next_chunk(sequence, 1)
