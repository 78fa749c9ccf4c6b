"""Which tokens of which replies each step computes: continuous batching over one pool of pages.

Every turn ends what was cancelled, brings waiting requests in, and computes one step. Prompts pass through the model
together, layer by layer, each with a fair share of a sweep. Replies that are being written ride along where the sweep
is expected to take no longer than `max_stall`; else they take steps of their own between the sweep's layers and, where
experts stream, between groups of them, as often as that bound asks (or, where a step takes long itself, so that the
sweep keeps half of the time). When pages run out, the last in order gives its own back and waits; its full pages stay
in the cache as long as there is room, and on disk.

The invariant: no reply's tokens depend on which others there are. One thread runs this; nothing here blocks on another.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from earthshine.engine.admission import Admission, in_order
from earthshine.engine.ceiling import WATCHED_ROWS, Ceiling
from earthshine.engine.pace import Pace, fair_shares
from earthshine.engine.reply import Reply
from earthshine.engine.step import Model, StepRow, step
from earthshine.errors import ContextError, EarthshineError
from earthshine.kv import PagePool, PrefixCache

_LOGGER = logging.getLogger("earthshine.engine")

LEAST_SWEEP = 256  # tokens: below that a resident model's kernels lose speed
_LOAD_SHARE = 0.25  # of max_stall that a turn may spend on reading pages from disk


class _Abandoned(Exception):
    """Nobody waits any more for any prompt of a sweep."""


class Scheduler(Admission):
    """`most`: replies that are computed at once; `streams`: experts come from disk, so that a sweep costs as much for
    few tokens as for many; `poll` is called between layers and may add and cancel; `set_pause` names what experts are
    to call in the middle of a layer, as ExpertStore.pause says."""

    def __init__(
        self,
        decoder: Model,
        pool: PagePool,
        cache: PrefixCache,
        *,
        most: int,
        context_tokens: int,
        prefill_tokens: int,
        max_stall: float,
        streams: bool = True,
        ceiling: Ceiling | None = None,
        poll: Callable[[], None] = lambda: None,
        set_pause: Callable[[Callable[[], None] | None], None] = lambda pause: None,
    ) -> None:
        super().__init__(pool, cache, most, max_stall * _LOAD_SHARE)
        self._decoder, self._ceiling = decoder, ceiling
        self._context_tokens, self._prefill_tokens = context_tokens, prefill_tokens
        self._max_stall, self._poll, self._set_pause, self._streams = max_stall, poll, set_pause, streams
        self.pace = Pace()
        self._spent = 0.0  # seconds within sweeps that went to others

    def turn(self) -> None:
        """One step, or whatever can be done without one. Raises nothing that a single reply can bear."""
        self._cache.settle()
        self._end()
        self._admit()
        self._load()
        ready = [reply for reply in self.running if reply not in self._loading]
        writing = [reply for reply in ready if reply.decoding]
        prompts = [reply for reply in ready if not reply.decoding]
        rows = self._prompt_rows(prompts, self._sweep_tokens(bool(writing)) - len(writing))
        expected = self.pace.sweep_seconds(sum(rows.values())) if rows else 0.0
        if writing and rows and (expected is None or expected > self._max_stall):
            self._sweep(rows, writing)
        else:
            self._compute(rows | dict.fromkeys(writing, 1))
        self._end()

    def _sweep_tokens(self, others_write: bool) -> int:
        """As many as activations have room for, but while others write no more than let them be served in time: where
        smaller sweeps cost no more by the token, the whole sweep ends within `max_stall`; where experts stream, no more
        than the bound goes by between two moments at which they can be."""
        if not self._streams:
            return min(self._prefill_tokens, max(LEAST_SWEEP, self.pace.tokens_within(self._max_stall)))
        most = self.pace.tokens_in_a_breath(self._bound) if others_write else None
        return self._prefill_tokens if most is None else min(self._prefill_tokens, max(LEAST_SWEEP, most))

    def _prompt_rows(self, prompts: Sequence[Reply], room: int) -> dict[Reply, int]:
        """How many tokens of each prompt the next sweep takes."""
        prompts = sorted(prompts, key=in_order)
        shares = fair_shares([reply.missing for reply in prompts], max(1, room))
        return {reply: share for reply, share in zip(prompts, shares, strict=True) if share}

    def _sweep(self, rows: dict[Reply, int], writing: Sequence[Reply]) -> None:
        """Prompts alone; those who write take steps of their own between layers and between groups of experts."""
        tokens = sum(rows.values())
        longest, last = 0.0, time.monotonic()

        def serve() -> None:
            nonlocal longest, last
            longest = max(longest, time.monotonic() - last)
            present = [reply for reply in writing if not reply.ended and not reply.cancelled and reply in self.running]
            if present and self._is_due(present, tokens):
                self._set_pause(None)
                self._compute(dict.fromkeys(present, 1))
                self._set_pause(pause)
            last = time.monotonic()

        def pause() -> None:
            self._poll()
            if all(reply.cancelled for reply in rows):
                raise _Abandoned
            paused = time.monotonic()
            serve()
            self._spent += time.monotonic() - paused

        self._sweeping = frozenset(rows)
        self._set_pause(pause)
        try:
            self._compute(rows, serve)
        finally:
            self._set_pause(None)
            self._sweeping = frozenset()
        if not all(reply.cancelled for reply in rows):  # a sweep that was left says nothing of a whole one
            self.pace.held_up(tokens, longest)

    @property
    def _bound(self) -> float:
        """Seconds that a sweep may hold up others: with steps that take long themselves it keeps half of the time."""
        return max(self._max_stall, 2 * self.pace.decode_seconds)

    def _is_due(self, writing: Sequence[Reply], tokens: int) -> bool:
        """Whether one of `writing` would wait beyond the bound if it were served at the next moment instead of at this
        one. Never before half of the bound, so that a sweep of long breaths goes on too."""
        bound, step = self._bound, self.pace.decode_seconds
        longest = max(bound / 2, bound - self.pace.breath_seconds(tokens)) - step
        return time.monotonic() - min(reply.said_at for reply in writing) >= longest

    def _compute(self, rows: dict[Reply, int], between: Callable[[], None] = lambda: None) -> None:
        """One step of these tokens, and what follows from it. A failure ends only whom it concerns."""
        self._make_room(rows)
        if not rows:
            return
        prompt_tokens = sum(count for reply, count in rows.items() if not reply.decoding)
        watched = self._ceiling is not None and sum(rows.values()) > WATCHED_ROWS
        began, spent_before = time.monotonic(), self._spent

        def after_layer(index: int) -> None:
            self._poll()
            if self._ceiling is not None and watched:
                self._ceiling.check()
            if all(reply.cancelled for reply in rows):
                raise _Abandoned
            paused = time.monotonic()
            between()
            self._spent += time.monotonic() - paused

        try:
            hidden = self._step(rows, after_layer)
        except _Abandoned:
            return
        except Exception as error:
            self._failed(rows, error, between)
            return
        self._timed(rows, prompt_tokens, time.monotonic() - began - (self._spent - spent_before))
        self._keep(rows, hidden)

    def _step(self, rows: dict[Reply, int], after_layer: Callable[[int], None]) -> list[Tensor]:
        if self._ceiling is not None:
            self._ceiling.check()
        asked = []
        for reply, count in rows.items():
            assert reply.timeline is not None
            begin = reply.timeline.length
            asked.append(StepRow(reply.timeline, reply.tokens[begin : begin + count]))
        return step(self._decoder, asked, after_layer=after_layer)

    def _make_room(self, rows: dict[Reply, int]) -> None:
        """Frees the pages that these tokens need; who must wait for them is taken out of `rows`."""
        while rows:
            needed = sum(self._new_pages(reply, count) for reply, count in rows.items())
            if self._cache.make_room(needed):
                return
            others = [reply for reply in self.running if reply not in self._sweeping or reply in rows]
            last = max(others, key=in_order)
            if len(self.running) == 1:
                last.fail(ContextError("The latent cache has no page left for this reply; shorten it, or allow more."))
                rows.pop(last, None)
                self._end()
                return
            rows.pop(last, None)
            self._preempt(last)

    def _new_pages(self, reply: Reply, count: int) -> int:
        assert reply.timeline is not None
        length = reply.timeline.length
        return -(-(length + count) // self._pool.page_tokens) - len(reply.timeline.pages)

    def _timed(self, rows: dict[Reply, int], prompt_tokens: int, seconds: float) -> None:
        if prompt_tokens:
            self.pace.swept(sum(rows.values()), seconds)
            self.counts.prompt_tokens += prompt_tokens
        else:
            self.pace.decoded(seconds)

    def _keep(self, rows: dict[Reply, int], hidden: Sequence[Tensor]) -> None:
        """Shares the pages that are full now, and samples for those whose last token was computed."""
        last = []
        for (reply, count), states in zip(rows.items(), hidden, strict=True):
            assert reply.timeline is not None
            self._share(reply)
            if reply.scoring:
                self._guarded(reply, partial(reply.score, reply.timeline.length - count, states, self._logits))
            if reply.timeline.length == len(reply.tokens) and not reply.ended:
                last.append((reply, states[-1]))
        if not last:
            return
        logits: Sequence[Tensor | None]
        try:
            logits = self._logits(torch.stack([state for _, state in last])).unbind()
        except Exception:  # then each asks alone, and only whom the failure concerns bears it
            logits = [None] * len(last)
        for (reply, state), row in zip(last, logits, strict=True):
            self.counts.generated_tokens += 1
            self._guarded(reply, partial(self._sample, reply, state, row))

    def _sample(self, reply: Reply, state: Tensor, logits: Tensor | None) -> None:
        reply.sample(self._logits(state[None])[0] if logits is None else logits, self._context_tokens)

    def _share(self, reply: Reply) -> None:
        assert reply.timeline is not None
        for key in reply.keys(reply.timeline.length)[reply.shared :]:
            page = reply.timeline.pages[key.start // self._pool.page_tokens]
            self._cache.add(key, page, reply.tokens_of(key))
            reply.shared += 1

    def _logits(self, hidden: Tensor) -> Tensor:
        with torch.inference_mode():
            return self._decoder.logits(hidden)

    # --- what goes wrong

    def _guarded(self, reply: Reply, act: Callable[[], None]) -> None:
        """What fails here concerns one reply alone."""
        try:
            act()
        except Exception as error:
            reply.fail(as_ours(error))

    def _failed(self, rows: dict[Reply, int], error: Exception, between: Callable[[], None]) -> None:
        """A step of several is taken again one by one, so that only whom the failure concerns bears it."""
        if len(rows) == 1:
            next(iter(rows)).fail(as_ours(error))
            return
        for reply, count in rows.items():
            if not reply.ended and not reply.cancelled and reply in self.running:
                self._compute({reply: count}, between)


def as_ours(error: Exception) -> EarthshineError:
    """What a client may be told of any failure. One that is not ours is a bug, so its traceback is logged."""
    if isinstance(error, EarthshineError):
        return error
    _LOGGER.error("A request failed for a reason that has no message of its own.", exc_info=error)
    return EarthshineError(f"The engine failed at this reply: {type(error).__name__}.")
