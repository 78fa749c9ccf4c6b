"""A session: one page table that callers address by whole token prefixes, and generation from it.

Invariant: after every call, event, failure or abandoned iterator, the page table holds the cache of the first tokens,
and only the last token, if it was sampled, may lack its own. Token ids out of range, and more tokens than the context
or the pages hold, are refused before anything changes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor

from earthshine.engine.memory_limit import WATCHED_ROWS, MemoryLimit
from earthshine.engine.progress import report_progress
from earthshine.engine.request import Constraint, Finished, PromptProgress, TokenEvent
from earthshine.engine.sampling import Sampler
from earthshine.engine.sampling_params import SamplingParams
from earthshine.engine.sequence import SCORE_ROWS
from earthshine.engine.step import ForwardPass, Model, StepRow
from earthshine.errors import BlobError, CheckpointError, ContextError, UsageError
from earthshine.kv import BlobHeader, BlobLayout, KVBlob, PagePool, PageTable, common_prefix


@dataclass(frozen=True, slots=True)
class Synced:
    """Of the tokens given to `sync`, how many were in the cache already and how many were computed."""

    reused: int
    computed: int


Event = TokenEvent | Finished


class Session:
    """Addresses the pages of `pool` by whole token prefixes. Raises UsageError if the pool does not fit the model.

    fingerprint: names the model's weights and numerics in snapshots.
    context_tokens: the most tokens of the session; by default the model's context.
    prefill_tokens: the most tokens of one prefill pass.
    memory_limit: checked before anything is allocated.
    on_close: called once, when the pool is no longer used.
    """

    def __init__(
        self,
        decoder: Model,
        pool: PagePool,
        *,
        fingerprint: str,
        context_tokens: int | None = None,
        prefill_tokens: int = 2048,
        memory_limit: MemoryLimit | None = None,
        on_close: Callable[[], object] = lambda: None,
    ) -> None:
        spec = decoder.spec
        if (pool.kept, pool.dtype) != (spec.kept, decoder.dtype):
            raise UsageError(
                f"The pool was made for what another model keeps: {pool.kept} in {pool.dtype} instead of {spec.kept} "
                f"in {decoder.dtype}."
            )
        if prefill_tokens < 1:
            raise UsageError(f"prefill_tokens must be at least 1, not {prefill_tokens}.")
        self._layout = BlobLayout.of(spec.kept, fingerprint, decoder.dtype)
        self._decoder, self._spec, self._prefill_tokens = decoder, spec, prefill_tokens
        self._context_tokens = min(context_tokens or spec.max_context, spec.max_context)
        self._memory_limit, self._on_close = memory_limit, on_close
        self._open: PageTable | None = PageTable(pool)
        self._tokens: list[int] = []
        self._last: Tensor | None = None  # [hidden] of the page table's last token, where it is known
        self._version = 0  # changes whenever the tokens do other than by the generation under way

    @property
    def tokens(self) -> tuple[int, ...]:
        """The session's tokens: those given and those sampled."""
        return tuple(self._tokens)

    def sync(self, tokens: Sequence[int], progress: Callable[[PromptProgress], None] | None = None) -> Synced:
        """Make `tokens` the session's tokens: keep the cache of the longest common prefix and compute the others.

        Unless `tokens` are the session's already, at least the last one is computed. `progress` is called at the
        beginning, at the end, and a few times per second in between. Raises UsageError for token ids outside the
        vocabulary, and ContextError for more tokens than the context or the pages hold; the session is then unchanged.
        """
        wanted = self._checked(tokens)
        reused = common_prefix(self._tokens[: self._page_table.length], wanted)
        if reused == len(wanted) and (self._last is None or self._page_table.length > reused):
            reused -= 1
        reused = self._page_table.nearest(reused)
        self._require_room(reused, len(wanted))
        self._replace(reused, wanted)
        try:
            self._latest(report_progress(len(wanted), reused, progress or (lambda event: None)))
        except BaseException:
            self._trim()
            raise
        return Synced(reused, len(wanted) - reused)

    def generate(self, params: SamplingParams, constraint: Constraint | None = None) -> Iterator[Event]:
        """Sample tokens that follow the session's: one event per token, then Finished. A stop token has no event.

        `constraint`: restricts the tokens of this reply. The iterator may be abandoned at any event. Raises UsageError
        for an empty session, and where another call changed the session between two events; and as `constraint` does.
        """
        if not self._tokens:
            raise UsageError("An empty session can't generate; sync it with a prompt first.")
        self._version += 1
        return self._events(params, constraint, self._version)

    def score(self, tokens: Sequence[int]) -> Tensor:
        """The log-likelihood of each token but the first, given those before it: fp32 [n - 1].

        `tokens` become the session's, and all of them are computed. Raises as `sync`; also UsageError for fewer than
        two tokens, and CheckpointError for weights whose results are not finite.
        """
        wanted = self._checked(tokens)
        if len(wanted) < 2:
            raise UsageError("A score needs at least two tokens.")
        self._require_room(0, len(wanted))
        self._replace(0, wanted)
        scores = torch.empty(len(wanted) - 1)
        try:
            for start, hidden in self._prefill(len(wanted) - 1):
                for at, rows in enumerate(hidden.split(SCORE_ROWS)):
                    begin = start + at * SCORE_ROWS
                    following = torch.tensor(wanted[begin + 1 : begin + 1 + len(rows)])
                    scores[begin : begin + len(rows)] = _likelihoods(self._decoder.logits(rows), following)
        except BaseException:
            self._trim()
            raise
        if not bool(torch.isfinite(scores).all()):
            raise CheckpointError("The model gives log-likelihoods that are NaN or infinite; its weights are damaged.")
        return scores

    def snapshot(self) -> KVBlob:
        """A copy of the state, which any session of the same model can restore. Raises BudgetError where it does not
        fit."""
        length = self._page_table.length
        if self._memory_limit is not None:
            pool = self._page_table.pool
            nbytes = -(-length * pool.bytes // (pool.n_pages * pool.page_tokens)) + pool.state_bytes
            self._memory_limit.require(nbytes, "A copy of the session's state")
        last = self._last if length == len(self._tokens) else None
        header = BlobHeader(self._layout, length, tuple(self._tokens), 0 if last is None else len(last))
        return KVBlob(header, tuple(self._page_table.copies()), None if last is None else last.clone())

    def restore(self, blob: KVBlob) -> None:
        """Replace the session's state by that of `blob`.

        Raises BlobError for another model, format or layout, and ContextError where it does not fit; the session is
        then unchanged.
        """
        header = blob.header
        header.layout.require(self._layout)
        if header.tail_dim not in (0, self._spec.hidden):
            raise BlobError(f"The state's tail has {header.tail_dim} values; this model's has {self._spec.hidden}.")
        if header.token_ids and max(header.token_ids) >= self._spec.vocab_size:
            raise BlobError(f"The state has token ids beyond this model's vocabulary of {self._spec.vocab_size}.")
        self._require_room(0, len(header.token_ids))
        self._replace(0, [])
        self._page_table.fill(header.n_tokens, blob.parts)
        self._tokens = list(header.token_ids)
        self._last = None if blob.tail is None else blob.tail.clone()

    def clear(self) -> None:
        """Remove all tokens. Raises UsageError on a closed session, as all methods do."""
        self._replace(0, [])

    def close(self) -> None:
        """Return the pages to the model. The session can't be used afterwards. Closing it again has no effect."""
        if self._open is not None:
            self.clear()
            self._open = self._last = None
            self._on_close()

    @property
    def _page_table(self) -> PageTable:
        if self._open is None:
            raise UsageError("This session is closed; open another one.")
        return self._open

    def _events(self, params: SamplingParams, constraint: Constraint | None, version: int) -> Iterator[Event]:
        sampler = Sampler(params, self._tokens)
        stops = set() if params.ignore_eos else {*params.stop_token_ids, *self._spec.stop_tokens}
        produced = 0
        while params.max_tokens is None or produced < params.max_tokens:
            if version != self._version:
                raise UsageError("The session was changed while it generated; start again with generate.")
            if len(self._tokens) >= self._context_tokens or self._room(self._page_table.length) < len(self._tokens):
                yield Finished("context")
                return
            sampled = sampler.constrained(self._decoder.logits(self._latest()[None])[0], constraint, stops)
            self._tokens.append(sampled.token)
            produced += 1
            if sampled.token in stops:
                yield Finished("stop", sampled.token)
                return
            yield TokenEvent(sampled.token, sampled.logprob, sampled.top)
        yield Finished("length")

    def _latest(self, report: Callable[[float], None] = lambda done: None) -> Tensor:
        """The hidden state [hidden] of the last token. Computes tokens that are missing up to it."""
        if self._last is None and self._page_table.length == len(self._tokens):
            self._page_table.truncate(len(self._tokens) - 1)
        for _ in self._prefill(len(self._tokens), report):
            pass
        assert self._last is not None
        return self._last

    def _prefill(self, end: int, report: Callable[[float], None] = lambda done: None) -> Iterator[tuple[int, Tensor]]:
        """Compute the tokens that are missing up to `end`. Yields each step's first position and hidden states [tokens,
        hidden]. `report` is called with the number of tokens done, in fractions too."""
        while (start := self._page_table.length) < end:
            self._last = None
            chunk = self._tokens[start : min(end, start + self._prefill_tokens)]
            if self._memory_limit is not None:
                self._memory_limit.check()
            with ForwardPass(self._decoder, [StepRow(self._page_table, chunk)]) as forward:
                while not forward.advance():
                    if self._memory_limit is not None and len(chunk) > WATCHED_ROWS:
                        self._memory_limit.check()
                    report(start + len(chunk) * forward.share)
            report(start + len(chunk))
            hidden = forward.hidden()[0]
            self._last = hidden[-1].clone()
            yield start, hidden

    def _replace(self, keep: int, tokens: list[int]) -> None:
        """Set the session's tokens, of which the first `keep` are in the page table."""
        self._version += 1
        if keep < self._page_table.length:
            self._last = None
            self._page_table.truncate(keep)
        self._tokens = tokens

    def _trim(self) -> None:
        """Remove tokens that were not computed."""
        del self._tokens[self._page_table.length :]

    def _checked(self, tokens: Sequence[int]) -> list[int]:
        try:
            wanted = [index(token) for token in tokens]
        except TypeError:
            raise UsageError("Token ids must be whole numbers.") from None
        if not wanted:
            raise UsageError("A session needs at least one token.")
        if min(wanted) < 0 or max(wanted) >= self._spec.vocab_size:
            raise UsageError(f"Token ids must be between 0 and {self._spec.vocab_size - 1} in this model.")
        return wanted

    def _room(self, keep: int) -> int:
        return self._page_table.capacity(keep)

    def _require_room(self, keep: int, n_tokens: int) -> None:
        if n_tokens > self._context_tokens:
            whole = self._context_tokens == self._spec.max_context
            whose = "the model's" if whole else "this session's"
            raise ContextError(f"The sequence has {n_tokens} tokens; {whose} context is {self._context_tokens}.")
        if n_tokens > self._room(keep):
            raise ContextError(
                f"The sequence has {n_tokens} tokens; its pages and the free ones hold {self._room(keep)}."
            )


def _likelihoods(logits: Tensor, following: Tensor) -> Tensor:
    """fp32 [rows, vocab] and int64 [rows] to fp32 [rows]."""
    return logits.log_softmax(-1).gather(1, following[:, None])[:, 0]
