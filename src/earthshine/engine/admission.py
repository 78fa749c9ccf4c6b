"""Which replies run: a queue by priority and arrival, admitted as the pool has room, and who gives way when it has not.

A request whose next page another one computes waits for that page. Pages of a prefix come from the pool first, then
from disk, a bounded time each turn. The invariant: every request that was added is in exactly one of `waiting` and
`running` until it has ended, and one that waits holds no page.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from earthshine.engine.reply import Reply
from earthshine.engine.request import Finished
from earthshine.kv import PageKey, PagePool, PrefixCache, Timeline


@dataclass(slots=True)
class Counts:
    """Since the beginning: tokens of prompts that were looked up in the prefix cache, that were found there, that were
    computed; tokens sampled; replies that gave way."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0


class Admission:
    """`most`: replies that run at once; `load_seconds`: of a turn, at most, for pages from disk."""

    def __init__(self, pool: PagePool, cache: PrefixCache, most: int, load_seconds: float) -> None:
        self._pool, self._cache, self._most, self._load_seconds = pool, cache, most, load_seconds
        self.waiting: list[Reply] = []
        self.running: list[Reply] = []
        self.counts = Counts()
        self.finished: Counter[str] = Counter()  # by reason
        self._sweeping: frozenset[Reply] = frozenset()  # prompts of the sweep under way, which nothing takes out
        self._loading: dict[Reply, list[PageKey]] = {}  # pages that are to come from disk, first of all

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, reply: Reply) -> None:
        """Takes a request whose tokens were checked."""
        self.waiting.append(reply)
        self.waiting.sort(key=lambda waiting: waiting.order)

    def _end(self) -> None:
        """Takes out replies that have ended or were cancelled, but for those in the middle of a sweep."""
        for reply in [*self.running, *self.waiting]:
            if reply.cancelled:
                reply.finish(Finished("cancelled"))
            if reply.ended and reply not in self._sweeping:
                self._drop(reply)

    def _drop(self, reply: Reply) -> None:
        reply.release()
        self._loading.pop(reply, None)
        (self.running if reply in self.running else self.waiting).remove(reply)
        self.finished[reply.reason] += 1

    def _admit(self) -> None:
        """From the head of the queue, as long as there is room; one of higher priority may take a lower one's place."""
        coming = {key.key for reply in self.running if not reply.decoding for key in self._prompt_keys(reply)}
        for reply in list(self.waiting):
            keys = [] if reply.scoring else self._prompt_keys(reply)
            found = len(self._cache.pages(keys))
            if found < len(keys) and keys[found].key in coming:
                continue  # another computes that page now
            while not self._has_room(reply, keys):
                if not self.running or max(self.running, key=in_order).request.priority <= reply.request.priority:
                    return
                self._preempt(max(self.running, key=in_order))
            self._start(reply, keys)
            coming |= {key.key for key in self._prompt_keys(reply)}

    def _prompt_keys(self, reply: Reply) -> list[PageKey]:
        """Of full pages before the last token, which is computed in any case."""
        return reply.keys(len(reply.tokens) - 1)

    def _has_room(self, reply: Reply, keys: Sequence[PageKey]) -> bool:
        """For its prompt, with a page for each reply that is being written."""
        if len(self.running) >= self._most:
            return False
        if not self.running:
            return True
        found = self._cache.pages(keys)
        needed = -(-(len(reply.tokens) + 1) // self._pool.page_tokens) - len(found)
        promised = sum(-(-other.missing // self._pool.page_tokens) for other in self.running)
        return needed + promised <= self._cache.room(besides=found)

    def _start(self, reply: Reply, keys: list[PageKey]) -> None:
        self.waiting.remove(reply)
        self.running.append(reply)
        reply.timeline = Timeline(self._pool)
        pages = self._cache.find(keys)
        reply.timeline.adopt(pages)
        reply.shared = len(pages)
        stored = keys[len(pages) : len(pages) + self._cache.on_disk(keys[len(pages) :])]
        if stored:
            self._loading[reply] = stored
        else:
            self._admitted(reply)

    def _admitted(self, reply: Reply) -> None:
        assert reply.timeline is not None
        if reply.admitted_at is None:
            self.counts.prefix_queries += 0 if reply.scoring else reply.n_prompt
            self.counts.prefix_hits += reply.timeline.length
        reply.admit(reply.timeline.length)

    def _load(self) -> None:
        """Pages from disk, for a bounded time, so that nobody waits long for another's."""
        until = time.monotonic() + self._load_seconds
        for reply, keys in list(self._loading.items()):
            assert reply.timeline is not None
            while keys and time.monotonic() < until:
                key = keys[0]
                found = self._cache.find([key])
                if not found and self._cache.make_room(1):
                    page = self._cache.load(key, reply.tokens_of(key))
                    found = [] if page is None else [page]
                if not found:  # damaged or gone, or no room: it is computed instead
                    keys.clear()
                    break
                reply.timeline.adopt(found)
                reply.shared += 1
                keys.pop(0)
            if not keys:
                del self._loading[reply]
                self._cache.touch(reply.keys(reply.timeline.length))
                self._admitted(reply)

    def _preempt(self, reply: Reply) -> None:
        """It waits again, with its place in the order, and its pages move to disk if others need the room."""
        if reply.timeline is not None:
            self._cache.spill(reply.keys(reply.timeline.length))
        reply.release()
        self._loading.pop(reply, None)
        self.running.remove(reply)
        self.add(reply)
        self.counts.preemptions += 1


def in_order(reply: Reply) -> tuple[int, int]:
    """A key: the lowest goes first, the highest gives way."""
    return reply.order
