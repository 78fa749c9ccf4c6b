"""The worker: takes prompts through the wire, prefills them, and sends whole pages while they are computed.

A request's pages stay in the pool until the receiver has verified them, so requests are admitted, first come first
served, only as far as their pages fit the pool together. Those that find too many in front of them are refused as busy.
Pages stay in the worker's own prefix cache afterwards. Invariant: when a handler has returned, the request computes
nothing and no page is lent, however it ended.
"""

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from torch import Tensor

from earthshine.engine import Admitted, Engine, Failed, Finished, PromptPiece, ReplyEvent, Request, SamplingParams
from earthshine.errors import EarthshineError, OverloadError
from earthshine.kv import PageKeys, bytes_of, piece_header
from earthshine.kv.header import pack_header
from earthshine.prfaas.figures import Figure, LogEvent
from earthshine.prfaas.wire import PieceWriter, PrefillRequest, Reason, WireError
from earthshine.units import counted, format_bytes

_CHECK_SECONDS = 0.1  # between two looks whether the receiver still wants a prompt that is being computed
_NOTHING_SAMPLED = SamplingParams(temperature=0.0, max_tokens=1)


@dataclass(slots=True)
class _Counts:
    """Of one worker, since its start."""

    tokens: int = 0  # whose cache was asked for
    cached_tokens: int = 0  # of these, found in the worker's cache
    sent_bytes: int = 0


class _Export:
    """A sink of pieces that passes them from the engine's thread to the handler's."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.items: SimpleQueue[PromptPiece | tuple[int, Sequence[Tensor]] | ReplyEvent] = SimpleQueue()
        self.pieces: list[PromptPiece] = []

    def begin(self, piece: PromptPiece) -> None:
        self.pieces.append(piece)
        self.items.put(piece)

    def part(self, index: int, views: Sequence[Tensor]) -> None:
        self.items.put((index, views))

    def end(self) -> None: ...

    def event(self, event: ReplyEvent) -> None:
        self.items.put(event)


class _Room:
    """Pages of the pool, for requests in the order in which they ask."""

    def __init__(self, n_pages: int, most_waiting: int) -> None:
        self._free, self._n_pages, self._most = n_pages, n_pages, most_waiting
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def take(self, n_pages: int, check: Callable[[], None]) -> None:
        """Waits for `n_pages`. Raises WireError where they are more than all, or too many wait, or as `check` does."""
        if n_pages > self._n_pages:
            raise WireError(Reason.LIMIT, f"The prompt takes {n_pages} pages; this worker has {self._n_pages}.")
        me = object()
        with self._changed:
            if len(self._waiting) >= self._most:
                raise WireError(Reason.BUSY, f"{len(self._waiting)} prompts wait for this worker, the most that may.")
            self._waiting.append(me)
            try:
                while not self._changed.wait_for(lambda: self._waiting[0] is me and self._free >= n_pages, 0.25):
                    check()
                self._free -= n_pages
            finally:
                self._waiting.remove(me)
                self._changed.notify_all()

    def give(self, n_pages: int) -> None:
        with self._changed:
            self._free += n_pages
            self._changed.notify_all()


class PrefillWorker:
    """A handler of `wire.WireServer` over an engine. `log` gets one event for each request.

    most_waiting: prompts that wait for pages. Refuses with a WireError: positions that are not on a page's boundary,
    part lists (all parts are sent), and requests while it drains.
    """

    def __init__(self, engine: Engine, *, most_waiting: int, log: LogEvent) -> None:
        self._engine, self._log = engine, log
        self._page_tokens = engine.page_tokens
        self._room = _Room(engine.gauges().pages, most_waiting)
        self._changed = threading.Condition()
        self._running, self._draining = 0, False
        self._counts, self._ends = _Counts(), Counter[str]()

    def __call__(self, request: PrefillRequest, out: PieceWriter) -> None:
        began, end = time.monotonic(), "failed"
        export = _Export(request.start)
        with self._changed:
            if self._draining:
                raise WireError(Reason.CLOSED, "The worker is shutting down.")
            self._running += 1
        try:
            self._check(request)
            self._prefill(request, export, out)
            end = "sent"
        except EarthshineError as error:
            reason = error.reason if isinstance(error, WireError) else Reason.WORKER
            reason = Reason.BUSY if isinstance(error, OverloadError) else reason
            end = reason.name.lower()
            out.fail(reason, str(error))
        finally:
            with contextlib.suppress(WireError):
                out.check()  # which waits until no connection reads the pages any more
            for piece in export.pieces:
                piece.release()
            self._ended(request, out, end, time.monotonic() - began)

    def drain(self, seconds: float) -> bool:
        """Refuse new requests and wait for those accepted. Returns whether all could end."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._running, seconds)

    def figures(self) -> Iterable[Figure]:
        """For /metrics."""
        counts = self._counts
        yield "prefill_requests_running", "Prompts that are computed or sent, or wait.", "gauge", {"": self._running}
        yield "prefill_requests_waiting", "Prompts that wait for pages.", "gauge", {"": self._room.waiting}
        yield "prefill_asked_tokens", "Tokens whose cache was asked for.", "counter", {"": counts.tokens}
        yield "prefill_cached_tokens", "Of these, tokens found in the cache.", "counter", {"": counts.cached_tokens}
        yield "prefill_sent_bytes", "Bytes of caches sent.", "counter", {"": counts.sent_bytes}
        yield "prefill_requests", "Requests by how they ended.", "counter", dict(self._ends)

    def _check(self, request: PrefillRequest) -> None:
        size = self._page_tokens
        if request.start % size or len(request.token_ids) % size:
            raise WireError(Reason.REFUSED, f"A cache is sent in whole pages of {size} tokens; cut the prompt there.")
        if request.parts:
            raise WireError(Reason.REFUSED, "This worker sends all parts of a cache; ask for () parts.")

    def _prefill(self, request: PrefillRequest, export: _Export, out: PieceWriter) -> None:
        n_pages = len(request.token_ids) // self._page_tokens
        self._room.take(n_pages, out.check)
        try:
            tenant = f"{len(out.user)}:{out.user}{request.tenant}"  # one token's receivers find no other's pages
            asked = Request(request.token_ids, _NOTHING_SAMPLED, tenant, pieces=export)
            ticket = self._engine.submit(asked, export.event)
            try:
                self._send(request, export, out)
            except BaseException:
                self._engine.cancel(ticket)
                while not isinstance(export.items.get(), Finished | Failed):
                    pass
                raise
        finally:
            self._room.give(n_pages)

    def _send(self, request: PrefillRequest, export: _Export, out: PieceWriter) -> None:
        """Everything that the engine gives, until its last event; then waits until all has arrived."""
        keys = PageKeys(request.tenant, self._page_tokens)
        while True:
            try:
                item = export.items.get(timeout=_CHECK_SECONDS)
            except Empty:
                out.check()
                continue
            if isinstance(item, PromptPiece):
                own = request.token_ids[item.start : item.end]
                first = keys.of(request.token_ids, item.end // self._page_tokens)[item.start // self._page_tokens]
                header = piece_header(self._engine.layout, first, own, self._page_tokens, item.with_states)
                out.begin(pack_header(header))
            elif isinstance(item, tuple):
                out.block(item[0], [bytes_of(view) for view in item[1]])
            elif isinstance(item, Admitted):
                self._admitted(request, item.reused)
            elif isinstance(item, Failed):
                export.items.put(item)
                raise item.error
            elif isinstance(item, Finished):
                export.items.put(item)  # for the thread that waits for the last event
                if item.reason == "cancelled":
                    raise WireError(Reason.CLOSED, "The worker was shut down before the prompt was computed.")
                out.end()
                return

    def _admitted(self, request: PrefillRequest, reused: int) -> None:
        with self._changed:
            self._counts.tokens += len(request.token_ids) - request.start
            self._counts.cached_tokens += max(0, reused - request.start)

    def _ended(self, request: PrefillRequest, out: PieceWriter, end: str, seconds: float) -> None:
        with self._changed:
            self._running -= 1
            self._ends[end] += 1
            self._counts.sent_bytes += out.sent_bytes
            self._changed.notify_all()
        tokens = len(request.token_ids)
        sent = f"{counted(tokens, 'token')} ({request.start} held), {format_bytes(out.sent_bytes)} sent"
        fields = {
            "request": request.request_id,
            "end": end,
            "prompt_tokens": tokens,
            "held_tokens": request.start,
            "sent_bytes": out.sent_bytes,
            "seconds": round(seconds, 3),
        }
        self._log("prefill", [end, sent, f"{seconds:.2f} s in all"], fields)
