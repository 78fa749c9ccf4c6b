"""A model that serves many requests: the scheduler runs on its own thread, and a mailbox takes requests from other
threads.

Any thread may submit, cancel and read the gauges without waiting for a step. Invariant: an accepted request gets its
last event, even if the engine's thread fails. Refuses requests that can't be computed, and requests beyond `max_queue`.
"""

import os
import shutil
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from operator import index
from pathlib import Path

from earthshine.engine.gauges import Gauges
from earthshine.engine.load import LoadedModel
from earthshine.engine.request import Finished, Request, Sink
from earthshine.engine.scheduler import Scheduler, as_ours
from earthshine.engine.sequence import TokenSequence
from earthshine.engine.waits import prompts_under_way
from earthshine.errors import ContextError, EarthshineError, OverloadError, UsageError
from earthshine.kv import Arrival, BlobLayout, PageFiles, PageKey, PageKeys, PrefixCache
from earthshine.machine import memory_resident
from earthshine.storage import PAGE_TOKENS

_FLUSH_SECONDS = 60.0
_IDLE_SECONDS = 0.1  # between two looks at what is being written while no request is there
SPILL_BYTES = 1 << 20
_SPILL = "earthshine-pages-"
_RETRY_SECONDS = (1, 60)  # the least and the most that a refused request is asked to wait


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of the engine.

    max_stall: most seconds that a prefill pass may delay the next token of a reply, beyond one layer.
    max_queue: most requests that wait.
    disk_cache_bytes: size of the disk cache in `disk_cache_folder`, which outlasts a restart. 0: only pages of
        preempted requests go to disk, and are deleted at the end.
    """

    max_stall: float = 1.0
    max_queue: int = 256
    disk_cache_bytes: int = 0
    disk_cache_folder: Path | None = None

    def __post_init__(self) -> None:
        if not 0.01 <= self.max_stall <= 3600:
            raise UsageError(f"max_stall must be between 0.01 and 3600 seconds, not {self.max_stall}.", "max_stall")
        if not 1 <= self.max_queue <= 1 << 20:
            raise UsageError(f"max_queue must be between 1 and {1 << 20}, not {self.max_queue}.", "max_queue")
        if self.disk_cache_bytes < 0 or (self.disk_cache_bytes and self.disk_cache_folder is None):
            raise UsageError("A disk cache needs a size above zero and a folder.")


class Ticket:
    """Identifies an accepted request for `Engine.cancel`."""

    __slots__ = ("_sequence",)

    def __init__(self, sequence: TokenSequence) -> None:
        self._sequence = sequence


class Engine:
    """Takes all pages of the model that no session has. Raises UsageError where they are too few, or where the disk
    cache can't be used."""

    def __init__(self, model: LoadedModel, options: EngineOptions | None = None) -> None:
        self._model, self.options = model, options or EngineOptions()
        memory = model.plan.memory
        self._pool = model.pool()
        kept = self.options.disk_cache_folder if self.options.disk_cache_bytes else None
        self._folder = kept or _spill_folder()
        self.layout = layout = BlobLayout.of(model.spec.kept, model.fingerprint, self._pool.dtype)
        states_bytes = 0 if self._pool.states is None else self._pool.states.bytes
        limit = self.options.disk_cache_bytes or 2 * (self._pool.bytes + states_bytes) + SPILL_BYTES
        self._files = PageFiles(self._folder, layout, self._pool.page_tokens, limit)
        keep_all = bool(self.options.disk_cache_bytes)
        self._cache = PrefixCache(self._pool, [self._files], self._files, keep_all=keep_all)
        self._scheduler = Scheduler(
            model.decoder,
            self._pool,
            self._cache,
            max_running=memory.batch,
            context_tokens=memory.context_tokens,
            prefill_tokens=memory.prefill_tokens,
            streams=bool(memory.transit_slots),
            max_stall=self.options.max_stall,
            memory_limit=model.memory_limit,
            poll=self._poll,
        )
        self._mail: deque[TokenSequence] = deque()
        self._accepted: set[TokenSequence] = set()  # that have not begun
        self._expected: deque[tuple[Request | None, Future[Arrival | None]]] = deque()
        self._changed = threading.Condition()
        self._count, self._open = 0, 0
        self._accepting, self._closing, self._ending = True, False, False  # ending: what is left is cancelled
        self._sign = time.monotonic()  # of progress
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="earthshine-engine", daemon=True)
        self._thread.start()

    @property
    def context_tokens(self) -> int:
        """The most tokens of a sequence: prompt and reply."""
        return self._model.plan.memory.context_tokens

    @property
    def page_tokens(self) -> int:
        return self._pool.page_tokens

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, request: Request, sink: Sink) -> Ticket:
        """Queue a request. `sink` is called with its events on the engine's thread.

        Raises UsageError for invalid token ids, ContextError for a prompt that fills the context, and OverloadError
        where the queue is full or the engine is shutting down.
        """
        ticket = self.accept(request, sink)
        self.begin(ticket)
        return ticket

    def accept(self, request: Request, sink: Sink) -> Ticket:
        """Accept a request that is not to be computed before `begin`, which must follow. Raises as `submit`."""
        self._check(request)
        spec = self._model.spec
        with self._changed:
            if not self._accepting or not self.alive:
                raise OverloadError("The engine is shutting down; retry later.", _RETRY_SECONDS[0])
            waiting = self._open - self._model.plan.memory.batch  # those that start at once do not count as waiting
            if waiting >= self.options.max_queue:
                raise OverloadError(
                    f"{waiting} requests are waiting, the most that may; ask again later.",
                    self._retry_seconds(),
                )
            sequence = TokenSequence(self._count, request, sink, self._pool.page_tokens, frozenset(spec.stop_tokens))
            self._count += 1
            self._open += 1
            self._accepted.add(sequence)
        return Ticket(sequence)

    def begin(self, ticket: Ticket, most_cached: int | None = None) -> None:
        """Queue an accepted request. `most_cached`: as TokenSequence.most_cached."""
        sequence = ticket._sequence
        with self._changed:
            if sequence in self._accepted:
                self._accepted.remove(sequence)
                sequence.most_cached = most_cached
                self._mail.append(sequence)
                self._changed.notify_all()

    def known_tokens(self, request: Request) -> int:
        """Tokens of a prompt that its pages in memory and on disk are expected to spare, as of now."""
        return self._cache.known(self._keys(request)) * self._pool.page_tokens

    def waiting_tokens(self) -> int:
        """Tokens of prompts that are to be computed before those of a request that comes now."""
        queue = self._scheduler.queue
        return sum(each.missing for each in (*queue.running, *queue.waiting) if not each.decoding)

    def expect(self, request: Request) -> "Future[Arrival | None]":
        """Pages into which another thread receives what a request's prompt lacks; None where nothing is missing or
        there is no room. The caller closes an arrival that it gets; a request submitted after that finds its pages."""
        return self._ask_cache(request)

    def share_arrived(self) -> "Future[Arrival | None]":
        """Done, with None, once what has arrived and was verified can be found."""
        return self._ask_cache(None)

    def _ask_cache(self, request: Request | None) -> "Future[Arrival | None]":
        found: Future[Arrival | None] = Future()
        with self._changed:
            if self._accepting and self.alive:
                self._expected.append((request, found))
                self._changed.notify_all()
            else:
                found.set_result(None)
        return found

    def cancel(self, ticket: Ticket) -> None:
        """End a request within one step, or at the next layer if no other request shares the step. Has no effect after
        its end."""
        with self._changed:
            ticket._sequence.cancelled = True
            self._changed.notify_all()

    def stalled_seconds(self) -> float:
        """Seconds since the last progress while there is work; 0 otherwise."""
        return time.monotonic() - self._sign if self._busy or not self.alive else 0.0

    def gauges(self) -> Gauges:
        queue, counts, stats = self._scheduler.queue, self._scheduler.counts, self._model.experts.stats
        files = self._files.stats
        under_way = prompts_under_way(list(queue.running))
        return Gauges(
            running=len(queue.running),
            waiting=max(0, self._open - len(queue.running)),
            pages=self._pool.n_pages,
            pages_free=self._pool.free_pages,
            pages_cached=self._cache.idle_pages,
            prefix_queries=counts.prefix_queries,
            prefix_hits=counts.prefix_hits,
            preemptions=counts.preemptions,
            prompt_tokens=counts.prompt_tokens,
            generated_tokens=counts.generated_tokens,
            expert_hits=stats.hits,
            expert_misses=stats.misses,
            expert_bytes_read=stats.bytes_read,
            disk_cache_bytes=files.bytes,
            disk_cache_pages=files.pages,
            pages_read=files.pages_read,
            pages_written=files.pages_written,
            damaged_pages=files.damaged,
            resident_bytes=memory_resident(),
            budget_bytes=self._model.plan.memory.budget_bytes,
            finished=dict(queue.finished),
            problem=self._files.problem,
            prefill_tokens=under_way[0],
            prefill_processed=under_way[1],
            prefill_seconds_left=under_way[2],
        )

    def drain(self, seconds: float) -> bool:
        """Accept no more requests and wait for those accepted, then cancel the others. Returns whether all could
        finish."""
        with self._changed:
            self._accepting = False
            finished = self._changed.wait_for(lambda: self._open == 0 or not self.alive, seconds)
            self._ending = True
        return bool(finished)

    def close(self) -> None:
        """Cancel all requests, write what the disk cache is to keep, and end the thread."""
        with self._changed:
            self._accepting, self._closing, self._ending = False, True, True
            self._changed.notify_all()
        self._thread.join()
        with self._changed:
            left, self._accepted = [*self._accepted, *self._mail], set()
        for sequence in left:
            sequence.finish(Finished("cancelled"))
        if self.options.disk_cache_bytes:
            self._cache.flush(_FLUSH_SECONDS)
        self._cache.close()
        if not self.options.disk_cache_bytes:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _check(self, request: Request) -> None:
        vocab_size, room = self._model.spec.vocab_size, self.context_tokens
        try:
            tokens = [index(token) for token in request.tokens]
        except TypeError:
            raise UsageError("Token ids must be whole numbers.") from None
        if not tokens:
            raise UsageError("A request needs at least one token.")
        if request.pieces is not None and any(n % PAGE_TOKENS for n in (len(tokens), request.pieces.start)):
            raise UsageError(f"A prompt that is only prefilled fills whole pages of {PAGE_TOKENS} tokens.")
        if not isinstance(request.priority, int):
            raise UsageError("A priority is a whole number; lower ones come first.")
        if min(tokens) < 0 or max(tokens) >= vocab_size:
            raise UsageError(f"Token ids must be between 0 and {vocab_size - 1} in this model.")
        if len(tokens) >= room:
            raise ContextError(
                f"This model's maximum context length is {room} tokens here, and the request has {len(tokens)}; "
                "shorten it.",
                f"{len(tokens)} of {room} tokens",
            )

    def _keys(self, request: Request) -> list[PageKey]:
        """Of the pages that a reply can go on from."""
        size = self._pool.page_tokens
        return PageKeys(request.tenant, size).of(request.tokens, (len(request.tokens) - 1) // size)

    def _retry_seconds(self) -> int:
        """How long the longest-waiting request has waited: an estimate of the queue's length in time."""
        longest = max((time.monotonic() - each.asked_at for each in list(self._scheduler.queue.waiting)), default=0.0)
        least, most = _RETRY_SECONDS
        return min(most, max(least, round(longest)))

    # --- the thread

    def _run(self) -> None:
        try:
            while self._next():
                self._scheduler.step()
                self._finished()
        except BaseException as error:  # a bug: nobody may be left waiting for it
            with self._changed:
                self._accepting = False  # before the last look at the mail
                queue = self._scheduler.queue
                left = [*queue.running, *queue.waiting, *self._mail, *self._accepted]
            for sequence in left:
                sequence.fail(
                    as_ours(error) if isinstance(error, Exception) else EarthshineError("The engine has ended.")
                )
            raise
        finally:
            with self._changed:
                self._open = 0
                self._accepting = False
                while self._expected:
                    self._expected.popleft()[1].set_result(None)
                self._changed.notify_all()

    def _next(self) -> bool:
        """Wait for work. Returns False once the engine is to end."""
        with self._changed:
            self._busy = self._scheduler.queue.busy
            while not self._changed.wait_for(
                lambda: self._mail or self._expected or self._scheduler.queue.busy or self._closing,
                _IDLE_SECONDS if self._cache.is_writing else None,
            ):
                self._cache.settle()  # so that recurrent states are written one after the other
            self._sign, self._busy = time.monotonic(), True
        self._poll()
        if self._scheduler.queue.busy:
            return True
        self._busy = False
        return not self._closing

    def _poll(self) -> None:
        """Called between layers: records progress and takes new requests from the mailbox."""
        self._sign = time.monotonic()
        while self._expected:
            request, found = self._expected.popleft()
            try:
                self._cache.settle()
                found.set_result(None if request is None else self._cache.expect(self._keys(request), request.tokens))
            except Exception as error:
                found.set_exception(error)
        while self._mail:
            self._scheduler.queue.add(self._mail.popleft())
        if self._ending:
            for sequence in (*self._scheduler.queue.running, *self._scheduler.queue.waiting):
                sequence.cancelled = True

    def _finished(self) -> None:
        left = len(self._scheduler.queue)
        with self._changed:
            self._open = left + len(self._mail) + len(self._accepted)
            if not self._open:
                self._changed.notify_all()


def _spill_folder() -> Path:
    """A new folder beside others of this kind. Those that ended processes left behind are removed."""
    base = Path("/var/tmp")  # on a disk everywhere, where /tmp may be memory
    base = base if os.access(base, os.W_OK) else Path(tempfile.gettempdir())
    for old in base.glob(f"{_SPILL}*"):
        process = old.name.removeprefix(_SPILL).partition("-")[0]
        if process.isdigit() and not Path(f"/proc/{process}").exists() and old.lstat().st_uid == os.getuid():
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=base, prefix=f"{_SPILL}{os.getpid()}-"))
