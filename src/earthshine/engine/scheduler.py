"""Continuous batching over one pool of pages: what each step computes, its computation, and what follows from it.

`schedule` returns a step as data, `run` computes it and `commit` keeps what it gave. Prompts pass through the model
together, layer by layer, each with a fair share of a prefill pass. Sequences that decode share that step where it is
expected to take no longer than `max_stall`; else the prefill pass is advanced a piece at a time, and decode steps run
between its pieces as often as that limit asks for (or, where a step takes long itself, so that the prefill pass keeps
half of the time). When pages run out, the last in order is preempted; its full pages stay in the cache as long as there
is room, and on disk.

Invariant: no sequence's tokens depend on which others there are. One thread runs this, and waits for another only where
no sequence can be computed.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from earthshine.engine.admission import Admission, Counts
from earthshine.engine.chunks import Chunk, Outcome, Step, is_current, next_chunk, next_token
from earthshine.engine.durations import Durations, fair_shares
from earthshine.engine.memory_limit import WATCHED_ROWS, MemoryLimit
from earthshine.engine.request import Finished
from earthshine.engine.request_queue import RequestQueue, in_order
from earthshine.engine.sequence import TokenSequence
from earthshine.engine.step import ForwardPass, Model
from earthshine.engine.waits import PromptWaits
from earthshine.errors import ContextError, EarthshineError
from earthshine.kv import PagePool, PrefixCache

_LOGGER = logging.getLogger("earthshine.engine")

LEAST_PREFILL = 256  # tokens: below that a resident model's kernels lose speed
_PAGE_SECONDS = 0.01  # to wait for pages where nothing else can be done, before new requests are looked for


@dataclass(slots=True, eq=False)
class _Prefill:
    """An interruptible step under way, and the time that it took so far."""

    step: Step
    forward: ForwardPass
    seconds: float = 0.0
    longest: float = 0.0  # of a piece
    advanced: bool = False  # since the last decode step beside it


class Scheduler:
    """`max_running`: sequences that are computed at once; `streams`: experts come from disk, so that a prefill pass
    costs as much for few tokens as for many; `poll` is called between layers and may add and cancel."""

    def __init__(
        self,
        decoder: Model,
        pool: PagePool,
        cache: PrefixCache,
        *,
        max_running: int,
        context_tokens: int,
        prefill_tokens: int,
        max_stall: float,
        streams: bool = True,
        memory_limit: MemoryLimit | None = None,
        poll: Callable[[], None] = lambda: None,
    ) -> None:
        self.queue, self.counts, self.durations = RequestQueue(max_running), Counts(), Durations()
        waits = PromptWaits(self.queue, self.durations, prefill_tokens, streams)
        self._admission = Admission(self.queue, pool, cache, self.counts, waits.seconds)
        self._decoder, self._pool, self._cache, self._memory_limit = decoder, pool, cache, memory_limit
        self._context_tokens, self._prefill_tokens = context_tokens, prefill_tokens
        self._max_stall, self._poll, self._streams = max_stall, poll, streams
        self._prefill: _Prefill | None = None
        self._again: deque[Step] = deque()  # chunks of a step that failed, each to be computed alone

    def step(self) -> None:
        """One step or a piece of one. An error of a request ends that request and is not raised."""
        scheduled = self.schedule()
        if scheduled is None:
            self._admission.wait(_PAGE_SECONDS)
        elif (outcome := self.run(scheduled)) is not None:
            self.commit(outcome)
        self._remove_ended()

    # --- what is computed next

    def schedule(self) -> Step | None:
        """What `run` is to compute: the prefill pass under way, or a new step. None where nothing can be computed now.

        Ends what was cancelled, starts what waits, and frees the pages that the step needs.
        """
        self._cache.settle()
        if self._prefill is not None and self._prefill.step.is_cancelled:
            self._prefill.forward.close()
            self._prefill = None
        self._remove_ended()
        self._admission.take_pages()
        if self._prefill is not None:
            return self._failed_before(interruptible=False) or self._due_decode() or self._prefill.step
        self._admission.admit(self._in_prefill)
        return self._failed_before(interruptible=True) or self._new_step()

    @property
    def _in_prefill(self) -> Collection[TokenSequence]:
        """Sequences whose pages are being written: neither preempted nor removed."""
        return () if self._prefill is None else self._prefill.step.sequences

    def _new_step(self) -> Step | None:
        others = {*self._admission.loading, *(each for step in self._again for each in step.sequences)}
        ready = [each for each in self.queue.running if each not in others]
        decoding = [each for each in ready if each.decoding]
        prompts = [each for each in ready if not each.decoding]
        chunks = self._prompt_chunks(prompts, self._prefill_size(bool(decoding)) - len(decoding))
        expected = self.durations.prefill_seconds(sum(chunk.n_tokens for chunk in chunks)) if chunks else 0.0
        apart = bool(decoding and chunks) and (expected is None or expected > self._max_stall)
        found = self._with_pages(chunks if apart else [*chunks, *map(next_token, decoding)], apart)
        if found is None and apart:
            return self._with_pages(map(next_token, (each for each in decoding if each in self.queue.running)))
        return found

    def _due_decode(self) -> Step | None:
        """A decode step beside the prefill pass under way, where one of its sequences would wait beyond the limit if it
        were computed after the next piece instead of before."""
        assert self._prefill is not None
        others = {*self._in_prefill, *self._admission.loading}
        decoding = [each for each in self.queue.running if each.decoding and each not in others]
        if not decoding or not self._prefill.advanced:
            return None
        limit, step = self._stall_limit, self.durations.decode_seconds
        piece = self.durations.interval_seconds(self._prefill.step.n_tokens)
        longest = max(limit / 2, limit - piece) - step  # never before half of it, so that the pass goes on too
        if time.monotonic() - min(each.last_token_at for each in decoding) < longest:
            return None
        self._prefill.advanced = False
        return self._with_pages(map(next_token, decoding))

    def _failed_before(self, interruptible: bool) -> Step | None:
        """A chunk of a step that failed, by itself, so that only the request that caused it fails."""
        while self._again and (interruptible or not self._again[0].interruptible):
            step = self._again.popleft()
            if is_current(step) and (found := self._with_pages(step.chunks, step.interruptible)) is not None:
                return found
            if is_current(step):  # its pages are still being written
                self._again.appendleft(step)
                return None
        return None

    def _prefill_size(self, others_decode: bool) -> int:
        """Tokens of the next prefill pass: what activations have room for, but while others decode no more than lets
        them be computed in time. Where experts stream, that is by the longest time in which a pass can't be
        interrupted; elsewhere smaller passes cost no more by the token, so the whole pass ends within `max_stall`."""
        if not self._streams:
            return min(self._prefill_tokens, max(LEAST_PREFILL, self.durations.prefill_tokens(self._max_stall)))
        most = self.durations.tokens_per_interval(self._stall_limit) if others_decode else None
        return self._prefill_tokens if most is None else min(self._prefill_tokens, max(LEAST_PREFILL, most))

    def _prompt_chunks(self, prompts: Sequence[TokenSequence], room: int) -> list[Chunk]:
        prompts = sorted(prompts, key=in_order)
        shares = fair_shares([each.missing for each in prompts], max(1, room))
        return [next_chunk(each, share) for each, share in zip(prompts, shares, strict=True) if share]

    @property
    def _stall_limit(self) -> float:
        """Seconds that a prefill pass may hold up others: beside steps that take long it keeps half of the time."""
        return max(self._max_stall, 2 * self.durations.decode_seconds)

    def _with_pages(self, chunks: Iterable[Chunk], interruptible: bool = False) -> Step | None:
        """A step of these chunks, without those whose sequences must wait for pages."""
        chunks = tuple(chunks)
        while chunks and not self._cache.make_room(needed := sum(map(self._new_pages, chunks))):
            if self._cache.room() >= needed:  # once some have been written; those that need none don't wait for them
                chunks = tuple(chunk for chunk in chunks if not self._new_pages(chunk))
                continue
            last = self.queue.last(self._in_prefill)
            assert last is not None  # those of the chunks are among them
            chunks = tuple(chunk for chunk in chunks if chunk.sequence is not last)
            if len(self.queue.running) == 1:
                last.fail(
                    ContextError(
                        "The KV cache has no free page for this request; shorten it, or use a larger memory budget.",
                        f"{len(last.tokens)} tokens, no free page",
                    )
                )
            else:
                self._admission.preempt(last)
        return Step(chunks, interruptible) if chunks else None

    def _new_pages(self, chunk: Chunk) -> int:
        return -(-chunk.end // self._pool.page_tokens) - len(chunk.page_table.pages)

    def _remove_ended(self) -> None:
        removed = self.queue.remove_ended(self._in_prefill)
        for sequence in removed:
            self._admission.end(sequence)
        if removed:
            self._again = deque(filter(is_current, self._again))

    # --- its computation

    def run(self, step: Step) -> Outcome | None:
        """Compute a step, or the next piece of one that is interruptible. None: it has not ended yet, or nobody waits
        for it any more."""
        try:
            return self._run_piece(step) if step.interruptible else self._run_whole(step)
        except Exception as error:
            return Outcome(step, error=error)

    def _run_whole(self, step: Step) -> Outcome | None:
        began = time.monotonic()
        self._check_memory()
        with ForwardPass(self._decoder, step.chunks) as forward:
            while not forward.advance():
                step.report(forward.share)
                step.hand_out(forward.n_layers)
                self._poll()
                if step.n_tokens > WATCHED_ROWS:
                    self._check_memory()
                if step.is_cancelled:
                    return None
        return Outcome(step, forward.hidden(), time.monotonic() - began)

    def _run_piece(self, step: Step) -> Outcome | None:
        if self._prefill is None:
            self._prefill = _Prefill(step, ForwardPass(self._decoder, step.chunks, in_groups=True))
        prefill, began, ended = self._prefill, time.monotonic(), True
        try:
            self._check_memory()
            ended = prefill.forward.advance()
        finally:
            if ended:  # or failed
                prefill.forward.close()
                self._prefill = None
        seconds = time.monotonic() - began
        prefill.advanced, prefill.seconds = True, prefill.seconds + seconds
        prefill.longest = max(prefill.longest, seconds)
        if not ended:
            step.report(prefill.forward.share)
            step.hand_out(prefill.forward.n_layers)
            return None
        self.durations.add_interval(step.n_tokens, prefill.longest)
        return Outcome(step, prefill.forward.hidden(), prefill.seconds)

    def _check_memory(self) -> None:
        if self._memory_limit is not None:
            self._memory_limit.check()

    # --- what follows from it

    def commit(self, outcome: Outcome) -> None:
        """Share the pages that are full now, and sample for those whose last token was computed. A step that failed is
        taken again, each chunk by itself."""
        chunks = outcome.step.chunks
        if outcome.error is not None:
            if len(chunks) == 1:
                chunks[0].sequence.fail(as_ours(outcome.error))
            else:
                self._again.extendleft(Step((chunk,), outcome.step.interruptible) for chunk in reversed(chunks))
            return
        self._time(outcome)
        outcome.step.report(1)
        outcome.step.hand_out(self._decoder.spec.n_layers)
        last = []
        for chunk, states in zip(chunks, outcome.hidden, strict=True):
            sequence = chunk.sequence
            self._share(sequence)
            if sequence.scoring:
                _guarded(sequence, partial(sequence.score, chunk.begin, states, self._logits))
            if chunk.end < len(sequence.tokens) or sequence.ended:
                continue
            if sequence.export is not None:
                sequence.finish(Finished("length"))
            else:
                last.append((sequence, states[-1]))
        if last:
            self._sample(last)

    def _time(self, outcome: Outcome) -> None:
        prompt_tokens = sum(chunk.n_tokens for chunk in outcome.step.chunks if not chunk.decodes)
        if prompt_tokens:
            self.durations.add_prefill(outcome.step.n_tokens, outcome.seconds)
            self.counts.prompt_tokens += prompt_tokens
        else:
            self.durations.add_decode(outcome.seconds)

    def _share(self, sequence: TokenSequence) -> None:
        assert sequence.page_table is not None
        for key in sequence.keys(sequence.page_table.length)[sequence.shared :]:
            page = sequence.page_table.pages[key.start // self._pool.page_tokens]
            state = sequence.page_table.checkpoint(key.start + self._pool.page_tokens)
            self._cache.add(key, page, sequence.tokens_of(key), state)
            sequence.shared += 1

    def _sample(self, last: Sequence[tuple[TokenSequence, Tensor]]) -> None:
        """Of each sequence, the hidden state [hidden] of its last token."""
        logits: Sequence[Tensor | None]
        try:
            logits = self._logits(torch.stack([state for _, state in last])).unbind()
        except Exception:  # then each alone, so that only the request that caused it fails
            logits = [None] * len(last)
        for (sequence, state), row in zip(last, logits, strict=True):
            self.counts.generated_tokens += 1
            _guarded(sequence, partial(self._sample_one, sequence, state, row))

    def _sample_one(self, sequence: TokenSequence, state: Tensor, logits: Tensor | None) -> None:
        sequence.sample(self._logits(state[None])[0] if logits is None else logits, self._context_tokens)

    def _logits(self, hidden: Tensor) -> Tensor:
        with torch.inference_mode():
            return self._decoder.logits(hidden)


def _guarded(sequence: TokenSequence, act: Callable[[], None]) -> None:
    """What fails here concerns one sequence alone."""
    try:
        act()
    except Exception as error:
        sequence.fail(as_ours(error))


def as_ours(error: Exception) -> EarthshineError:
    """A failure as an error for the client. One that is not ours is a bug, so its traceback is logged."""
    if isinstance(error, EarthshineError):
        return error
    _LOGGER.error("A request failed for a reason that has no message of its own.", exc_info=error)
    return EarthshineError(f"The engine failed at this reply: {type(error).__name__}.")
