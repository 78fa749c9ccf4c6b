"""Pages that were computed once, found again by what they hold: in the pool first, then on disk.

Invariant: a cached page is full and never written again; one that only the cache holds may be evicted, the longest
unused and the deepest of its sequence first. Reads and writes of the files are other threads' work; the
rest is for the thread that owns the pool.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from torch import Tensor

from earthshine.kv.page_files import PageFiles
from earthshine.kv.page_key import PageKey
from earthshine.kv.page_reads import PageFetch, PageRead, PageReads
from earthshine.kv.pages import PagePool

_TRIES = 2  # at once, and when the page must go
_WRITE_SECONDS = 5.0


@dataclass(slots=True)
class _Held:
    """A page in the pool. `tries`: how often it may still be offered to the files; `state`: the slot of the recurrent
    state after its last token, if that is kept."""

    key: PageKey
    page: int
    tokens: Sequence[int]
    tries: int
    state: int | None = None


class PrefixCache:
    """`files`: where pages are kept beyond the pool, if anywhere: with `keep_all` as soon as they are full, so that
    forgetting one in memory costs no more than reading it; else only those that `spill` names. Of models with recurrent
    layers, pages stay in memory, and what is found ends where a state is kept. `threaded` as in PageReads."""

    def __init__(
        self, pool: PagePool, files: PageFiles | None = None, *, keep_all: bool = True, threaded: bool = True
    ) -> None:
        self._pool, self.files = pool, None if pool.states else files
        self.reads = PageReads(pool, self._read, threaded=threaded)
        self._tries = _TRIES if keep_all and self.files is not None else 0
        if pool.states is not None:
            pool.states.reclaim = self._drop_state
        self._held: OrderedDict[bytes, _Held] = OrderedDict()  # the longest unused first
        self._writing: set[int] = set()  # pages that the files hold until they are written
        self._written: deque[int] = deque()  # pages that the writing thread is done with; it alone appends

    @property
    def idle_pages(self) -> int:
        """Pages that are in no conversation now. May be asked by any thread."""
        return sum(self._idle(held.page) for held in list(self._held.values()))

    def pages(self, keys: Sequence[PageKey]) -> list[int]:
        """The pages in the pool that `keys` begin with, as they are now."""
        found = [self._held[each.key] for each in takewhile(lambda each: each.key in self._held, keys)]
        while self._pool.states is not None and found and found[-1].state is None:
            found.pop()
        return [held.page for held in found]

    def find(self, keys: Sequence[PageKey]) -> list[int]:
        """The same, held once more for the caller, and used just now."""
        found = self.pages(keys)
        self.touch(keys[: len(found)])
        self._pool.hold(found)
        return found

    def state_after(self, keys: Sequence[PageKey]) -> int | None:
        """The slot of the recurrent state after the last of the pages that were found, held for the caller."""
        slot = self._held[keys[-1].key].state if keys else None
        if slot is not None:
            assert self._pool.states is not None
            self._pool.states.hold([slot])
        return slot

    def touch(self, keys: Sequence[PageKey]) -> None:
        """Count these pages of one conversation as used just now, so that its first goes last."""
        used = [each.key for each in reversed(keys)]
        for key in used:
            if key in self._held:
                self._held.move_to_end(key)
        if self.files is not None:
            self.files.used(used)

    def on_disk(self, keys: Sequence[PageKey]) -> int:
        """How many leading `keys` are in the files, as far as their names say."""
        if self.files is None:
            return 0
        return next((at for at, each in enumerate(keys) if each.key not in self.files), len(keys))

    def fetch(self, keys: Sequence[PageKey], tokens: Sequence[int]) -> PageFetch:
        """Begin to read the leading `keys` that are on disk into pages of the pool, as far as there is room.

        `tokens`: of the whole sequence. The caller must call `end_fetch` once nobody waits for it.
        """
        count = min(self.on_disk(keys), self.room())
        if not self.make_room(count):
            count = 0
        pages, page_tokens = self._pool.allocate(count), self._pool.page_tokens
        return self.reads.fetch(
            [
                PageRead(key, tokens[key.start : key.start + page_tokens], page)
                for key, page in zip(keys, pages, strict=False)
            ]
        )

    def arrived(self, fetch: PageFetch) -> list[int]:
        """The pages of a fetch that have arrived since the last call: shared now, and held for the caller."""
        taken = fetch.take()
        for each in taken:
            if each.key.key not in self._held:
                self._pool.hold([each.page])
                self._held[each.key.key] = _Held(each.key, each.page, each.tokens, 0)
        return [each.page for each in taken]

    def end_fetch(self, fetch: PageFetch) -> None:
        """Pages that have not been asked for with `arrived` are free again."""
        self._pool.release(self.reads.close_fetch(fetch))

    def _read(self, key: PageKey, tokens: Sequence[int]) -> Sequence[Tensor] | None:
        return None if self.files is None else self.files.read(key.key, key.prior, key.start, tokens)

    def add(self, key: PageKey, page: int, tokens: Sequence[int], state: int | None = None) -> None:
        """Share a full page of `tokens`; what is known by the same key already stays.

        `state`: the slot of the recurrent state after it, where there is one.
        """
        held = self._held.get(key.key)
        if held is None:
            self._pool.hold([page])
            self._held[key.key] = held = _Held(key, page, tokens, self._tries)
            self._offer(held)
        if state is not None and held.state is None:
            assert self._pool.states is not None
            self._pool.states.hold([state])
            held.state = state

    def spill(self, keys: Sequence[PageKey]) -> None:
        """These will be needed again, as after a preemption: they go to the files before they are evicted."""
        for each in keys:
            held = self._held.get(each.key)
            if held is not None and self.files is not None:
                held.tries = _TRIES

    def settle(self) -> None:
        """Lets go of the pages that have been written meanwhile."""
        while self._written:
            page = self._written.popleft()
            self._pool.release([page])
            self._writing.discard(page)

    def room(self, besides: Sequence[int] = ()) -> int:
        """Pages that are free or could be, without forgetting `besides`."""
        return self._pool.free_pages + self.idle_pages - sum(map(self._idle, besides))

    def make_room(self, count: int) -> bool:
        """Whether `count` pages are free now, after as many as it takes were forgotten; none is where that is too few.

        Waits a few seconds for pages that are being written first.
        """
        if self._pool.free_pages >= count:
            return True
        until = time.monotonic() + _WRITE_SECONDS
        while self.room() >= count:
            if self._forget(count):
                return True
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
            self.settle()
        return False

    def clear(self) -> None:
        """Forget all pages in the pool; what is on disk stays."""
        for held in self._held.values():
            self._release(held)
        self._held.clear()

    def _idle(self, page: int) -> bool:
        """Whether nobody but the cache, and the files while they write it, holds this page of the cache."""
        return self._pool.holders(page) == 1 + (page in self._writing)

    def _forget(self, count: int) -> bool:
        """Whether `count` pages are free; if not, enough others are on their way to the files."""
        coming = sum(map(self._idle, self._writing))
        for name, held in list(self._held.items()):
            if self._pool.free_pages + coming >= count:
                break
            if self._pool.holders(held.page) > 1:
                continue
            while self._pool.holders(held.page) == 1:
                if self._offer(held):
                    self.settle()  # what the files refuse at once comes back at once
                else:
                    del self._held[name]
                    self._release(held)
            coming += held.page in self._writing
        return self._pool.free_pages >= count

    def _release(self, held: _Held) -> None:
        self._pool.release([held.page])
        if held.state is not None:
            assert self._pool.states is not None
            self._pool.states.release([held.state])

    def _drop_state(self) -> bool:
        """Frees the slot of the state that was unused longest and that no sequence holds, if there is one."""
        states = self._pool.states
        assert states is not None
        for held in self._held.values():
            if held.state is not None and states.holders(held.state) == 1:
                states.release([held.state])
                held.state = None
                return True
        return False

    def _offer(self, held: _Held) -> bool:
        """Whether the page is on its way to the files now."""
        files, key, page = self.files, held.key, held.page
        if files is None or held.tries == 0 or key.key in files:
            return False
        held.tries -= 1
        self._pool.hold([page])  # until it is written
        self._writing.add(page)

        def done(_: bool) -> None:
            self._written.append(page)

        files.write(key.key, key.prior, key.start, held.tokens, lambda: self._pool.page(page), done)
        return True
