"""The sequence of a running request: its tokens, page table and sampler, and the events sent to its client.

Invariant: the page table, where there is one, holds the cache of the first tokens, and full pages are in the prefix
cache. A preempted sequence continues from its tokens alone, with the same result.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from earthshine.engine.export import PieceExport
from earthshine.engine.progress import report_progress
from earthshine.engine.request import (
    Admitted,
    Failed,
    Finished,
    PromptProgress,
    PromptScores,
    ReplyEvent,
    Request,
    Sink,
    TokenEvent,
)
from earthshine.engine.sampling import Sampler, most_likely
from earthshine.errors import EarthshineError
from earthshine.kv import PageKey, PageKeys, PageTable

SCORE_ROWS = 64  # hidden states whose logits exist at once: 64 x 163840 fp32 are 40 MiB, their softmax as many


class TokenSequence:
    """`number`: of the request, in order of arrival. Among equal priorities the lower one comes first."""

    def __init__(self, number: int, request: Request, sink: Sink, page_tokens: int, stops: frozenset[int]) -> None:
        self.number, self.request, self._sink = number, request, sink
        self.tokens = list(request.tokens)
        self.n_prompt = len(self.tokens)
        self.page_table: PageTable | None = None  # while it runs
        self.shared = 0  # full pages that the cache has, or was offered
        self.cancelled = self.ended = False
        self.reason = "error"  # once it has ended
        self.asked_at = time.monotonic()
        self.last_token_at = self.asked_at  # when its client last got a token, or began to wait for one
        self.admitted_at: float | None = None
        # Tokens that were in the cache when the request came; what was computed elsewhere for it since does not count.
        self.most_cached: int | None = None
        self.progress: PromptProgress | None = None  # the latest, once it was admitted
        self._report: Callable[[float], None] | None = None
        self.export = PieceExport(request.pieces, self.n_prompt) if request.pieces is not None else None
        self._keys = PageKeys(request.tenant, page_tokens)
        self._page_tokens, self._stops = page_tokens, stops
        self._sampler: Sampler | None = None
        scores = request.params.prompt_logprobs is not None
        self._scored = 0 if scores else self.n_prompt  # tokens whose scores are sent

    @property
    def order(self) -> tuple[int, int]:
        """Lower ones first."""
        return self.priority, self.number

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def missing(self) -> int:
        """Tokens that are not in the cache: one for a sequence that decodes. May be asked by any thread."""
        page_table = self.page_table
        return len(self.tokens) - (page_table.length if page_table else 0)

    @property
    def decoding(self) -> bool:
        return self.missing == 1 and len(self.tokens) > self.n_prompt

    @property
    def scoring(self) -> bool:
        """Whether log-likelihoods of the prompt are still to be sent. Then no cached prefix can be used."""
        return self._scored < self.n_prompt

    @property
    def reusable(self) -> int:
        """The most tokens that may be found in the prefix cache: the last one is computed if a token is sampled."""
        return len(self.tokens) - (self.export is None)

    def keys(self, n_tokens: int) -> list[PageKey]:
        """Keys of the full pages of the first `n_tokens` tokens."""
        return self._keys.of(self.tokens, n_tokens // self._page_tokens)

    def tokens_of(self, key: PageKey) -> list[int]:
        return self.tokens[key.start : key.start + self._page_tokens]

    def admit(self, reused: int, expected: float | None = None) -> None:
        """Send Admitted, unless the sequence was admitted before and then preempted. `expected`: seconds until the rest
        of the prompt has been computed, if known."""
        if self.admitted_at is None:
            self.admitted_at = self.last_token_at = time.monotonic()
            self._send(Admitted(self.cached(reused)))
            self._report = report_progress(self.n_prompt, reused, self._progressed, expected)

    def cached(self, reused: int) -> int:
        """Of `reused` tokens, those that count as found in the cache."""
        return reused if self.most_cached is None else min(reused, self.most_cached)

    def hand_out(self, computed: int, n_layers: int) -> None:
        """Give the request's sink what the first `n_layers` layers keep of the first `computed` tokens."""
        if self.export is None or self.page_table is None or self.ended or self.cancelled:
            return
        try:
            self.export.advance(self.page_table, computed, n_layers)
        except Exception:  # the receiver can't be reached
            self.cancelled = True

    def report(self, done: float) -> None:
        """Report that `done` of the prompt's tokens have been computed or found, in fractions too."""
        if self._report is not None:
            self._report(min(done, self.n_prompt))

    def score(self, start: int, hidden: Tensor, logits: Callable[[Tensor], Tensor]) -> None:
        """Send the log-likelihood of the token after each of those from `start`.

        hidden: [n, hidden], their hidden states; logits: as Decoder.logits.
        """
        if not self.scoring:
            return
        alternatives, last = self.request.params.prompt_logprobs or 0, min(start + len(hidden), self.n_prompt - 1)
        for begin in range(max(start, self._scored), last, SCORE_ROWS):  # some were sent before a preemption
            end = min(begin + SCORE_ROWS, last)
            rows = logits(hidden[begin - start : end - start]).log_softmax(-1)
            self._send(PromptScores(tuple(_scores(rows, self.tokens[begin + 1 : end + 1], alternatives))))
        self._scored = max(self._scored, last) if last < self.n_prompt - 1 else self.n_prompt

    def sample(self, logits: Tensor, context_tokens: int) -> None:
        """Choose the next token and send it; finish the request where it is the last. logits: fp32 [vocab]."""
        if self._sampler is None:
            self._sampler = Sampler(self.request.params, self.tokens)
        params = self.request.params
        stops = frozenset() if params.ignore_eos else self._stops.union(params.stop_token_ids)
        sampled = self._sampler.constrained(logits, self.request.constraint, stops)
        self.tokens.append(sampled.token)
        self.last_token_at = time.monotonic()
        if sampled.token in stops:
            self.finish(Finished("stop", sampled.token))
            return
        self._send(TokenEvent(sampled.token, sampled.logprob, sampled.top))
        if params.max_tokens is not None and len(self.tokens) - self.n_prompt >= params.max_tokens:
            self.finish(Finished("length"))
        elif len(self.tokens) >= context_tokens:
            self.finish(Finished("context"))

    def finish(self, event: Finished) -> None:
        if not self.ended:
            self.ended, self.reason = True, event.reason
            self._send(event)

    def fail(self, error: EarthshineError) -> None:
        if not self.ended:
            self.ended = True
            self._send(Failed(error))

    def release(self) -> None:
        """Release the pages. Those of the prefix cache stay there."""
        if self.page_table is not None:
            self.page_table.release()
            self.page_table = None
        self.shared = 0

    def _progressed(self, event: PromptProgress) -> None:
        self.progress = event
        if self.request.progress:
            self._send(event)

    def _send(self, event: ReplyEvent) -> None:
        try:
            self._sink(event)
        except Exception:  # the client can't be reached
            self.cancelled = True


def _scores(rows: Tensor, following: Sequence[int], alternatives: int) -> list[TokenEvent]:
    """rows: fp32 [n, vocab] of log-likelihoods."""
    chosen = rows.gather(1, torch.tensor(following)[:, None])[:, 0].tolist()
    tops = [most_likely(row, alternatives) for row in rows]
    return [TokenEvent(*each) for each in zip(following, chosen, tops, strict=True)]
