"""Decides which requests start and which sequences are preempted, in the queue's order and as pages are free.

A request waits while another one computes its next page. Pages of a prefix are fetched from the prefix cache while
other sequences are computed. Invariant: a waiting sequence holds no page.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from earthshine.engine.request import Finished
from earthshine.engine.request_queue import RequestQueue
from earthshine.engine.sequence import TokenSequence
from earthshine.kv import PageFetch, PageKey, PagePool, PageTable, PrefixCache


@dataclass(slots=True)
class Counts:
    """Counters since the start: prompt tokens looked up in the prefix cache, found there and computed; tokens sampled;
    preemptions."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0


class Admission:
    """Over a queue and a pool, whose pages the cache may share. `expected`: seconds for what a sequence lacks."""

    def __init__(
        self,
        queue: RequestQueue,
        pool: PagePool,
        cache: PrefixCache,
        counts: Counts,
        expected: Callable[[TokenSequence], float | None],
    ) -> None:
        self._queue, self._pool, self._cache, self._counts, self._expected = queue, pool, cache, counts, expected
        self.loading: dict[TokenSequence, PageFetch] = {}  # those that run once their pages have arrived

    def admit(self, besides: Collection[TokenSequence]) -> None:
        """Start requests from the head of the queue while there is room. A request preempts sequences of lower
        priority, except those in `besides`."""
        running = self._queue.running
        coming = {key.key for each in running if not each.decoding for key in self._prompt_keys(each)}
        for sequence in list(self._queue.waiting):
            keys = [] if sequence.scoring else self._prompt_keys(sequence)
            found = len(self._cache.pages(keys))
            if found < len(keys) and keys[found].key in coming:
                continue  # another computes that page now
            while not self._has_room(sequence, keys):
                last = self._queue.last(besides)
                if last is None or last.priority <= sequence.priority:
                    return
                self.preempt(last)
            fetch = self._cache.fetch(keys, sequence.tokens)
            if fetch is None:
                return  # its pages are still being written
            self._start(sequence, fetch)
            coming |= {key.key for key in self._prompt_keys(sequence)}

    def preempt(self, sequence: TokenSequence) -> None:
        """Put the sequence back into the queue. Its pages are written to disk if their room is needed."""
        if sequence.page_table is not None:
            fetched = self._pool.page_tokens * len(self.loading.get(sequence, ()))
            keys = sequence.keys(max(fetched, sequence.page_table.length))
            self._cache.spill(keys, _checkpoints(sequence))
        self.release(sequence)
        self._queue.stop(sequence)
        self._counts.preemptions += 1

    def end(self, sequence: TokenSequence) -> None:
        """Release the pages of a sequence that has ended."""
        self._cache.keep(_checkpoints(sequence))
        self.release(sequence)

    def release(self, sequence: TokenSequence) -> None:
        """Release the sequence's pages. Those in the prefix cache stay there."""
        sequence.release()
        fetch = self.loading.pop(sequence, None)
        if fetch is not None:
            self._cache.drop_fetch(fetch)

    def take_pages(self) -> None:
        """Start the sequences whose pages have all arrived. Where a page of a prefix is damaged, the tokens from it on
        are computed."""
        for sequence, fetch in list(self.loading.items()):
            if fetch.ended:
                self._take(sequence, fetch)
            else:
                self._cache.share(fetch)

    def wait(self, seconds: float) -> None:
        """Wait at most this long until a page has been read or written. Returns at once where no read or write is under
        way."""
        self._cache.wait(seconds)

    def _prompt_keys(self, sequence: TokenSequence) -> list[PageKey]:
        """Keys of the full pages that need not be computed."""
        return sequence.keys(sequence.reusable)

    def _has_room(self, sequence: TokenSequence, keys: Sequence[PageKey]) -> bool:
        """Whether the pool has room for the prompt and one more page for each sequence that decodes."""
        if self._queue.is_full:
            return False
        if not self._queue.running:
            return True
        found = self._cache.pages(keys)
        needed = -(-(len(sequence.tokens) + 1) // self._pool.page_tokens) - len(found)
        promised = sum(-(-other.missing // self._pool.page_tokens) for other in self._queue.running)
        promised -= sum(map(len, self.loading.values()))  # those have their pages already
        return needed + promised <= self._cache.room(besides=found)

    def _start(self, sequence: TokenSequence, fetch: PageFetch) -> None:
        self._queue.start(sequence)
        sequence.page_table = PageTable(self._pool)
        self.loading[sequence] = fetch
        if fetch.ended:
            self._take(sequence, fetch)

    def _take(self, sequence: TokenSequence, fetch: PageFetch) -> None:
        assert sequence.page_table is not None
        del self.loading[sequence]
        pages, state = self._cache.end_fetch(fetch)
        sequence.page_table.adopt(pages, state)
        sequence.shared = len(pages)
        self._cache.touch(sequence.keys(sequence.page_table.length))
        self._admitted(sequence)

    def _admitted(self, sequence: TokenSequence) -> None:
        assert sequence.page_table is not None
        if sequence.admitted_at is None:
            self._counts.prefix_queries += 0 if sequence.scoring else sequence.n_prompt
            self._counts.prefix_hits += sequence.cached(sequence.page_table.length)
        sequence.admit(sequence.page_table.length, self._expected(sequence))
        if sequence.export is not None:
            sequence.hand_out(sequence.page_table.length, len(self._pool.kept))
            if not sequence.missing:
                sequence.finish(Finished("length"))


def _checkpoints(sequence: TokenSequence) -> list[PageKey]:
    """The pages of a sequence after which it keeps a recurrent state."""
    lengths = sequence.page_table.checkpoints if sequence.page_table is not None else []
    return [sequence.keys(length)[-1] for length in lengths]
