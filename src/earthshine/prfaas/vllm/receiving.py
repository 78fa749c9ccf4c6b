"""Fetches the latents of vLLM's requests from peers, into the blocks that vLLM holds for them.

A piece is taken only if its model, layout, position, token ids and the digest of what precedes them are those that were
asked for; a block is written to vLLM's cache after its checksum was verified. Every load ends, at its deadline at the
latest, and is then reported once: with all of its tokens, or with those that had arrived before the first gap.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from earthshine.errors import BlobError, EarthshineError
from earthshine.kv.header import BlobLayout, unpack_header
from earthshine.kv.page_key import PageKeys
from earthshine.prfaas.vllm.latents import WIDTH, LatentCache
from earthshine.prfaas.vllm.orders import Load
from earthshine.prfaas.wire.fault import Reason, WireError
from earthshine.prfaas.wire.request import PrefillRequest
from earthshine.prfaas.wire.transfer import PieceSink, Transfer
from earthshine.storage import PAGE_TOKENS

MOST_PIECE_TOKENS = 8192  # of a piece that is taken, 9 MiB per layer: Earthshine's largest prefill pass
_AT_FAULT = {
    Reason.PROTOCOL, Reason.VERSION, Reason.LOST, Reason.UNREACHABLE, Reason.CERTIFICATE, Reason.TOKEN, Reason.MODEL,
    Reason.CLOSED,
}  # fmt: skip
_log = logging.getLogger("vllm.earthshine")


class Peer(Protocol):
    """A `wire.PrefillPeer`."""

    def prefill(self, request: PrefillRequest, sink: PieceSink, deadline_seconds: float) -> Transfer: ...


@dataclass
class _Piece:
    start: int
    end: int
    blocks: dict[int, Tensor] = field(default_factory=dict)  # by layer, those that are arriving
    missing: int = 0


class LoadSink:
    """Takes the pieces of `load`. A block waits for its checksum in memory of its own, which the window of the transfer
    bounds."""

    def __init__(self, load: Load, cache: LatentCache, layout: BlobLayout) -> None:
        self._load, self._cache, self._layout = load, cache, layout
        self._keys = PageKeys(load.tenant, PAGE_TOKENS).of(load.tokens, len(load.tokens) // PAGE_TOKENS)
        self._limit_bytes = 4 * len(load.tokens) + (1 << 16) + 12 * len(layout.parts)
        self._lock = Lock()
        self._pieces: dict[int, _Piece] = {}
        self.error: WireError | None = None

    def begin(self, piece: int, header: bytes) -> None:
        """Raises BlobError for any piece but one of this load's."""
        found, _ = unpack_header(BytesIO(header), self._limit_bytes)
        found.layout.require(self._layout)
        start, end = found.start, found.start + found.n_tokens
        if start % PAGE_TOKENS or not start < end <= len(self._load.tokens) or end % PAGE_TOKENS or found.tail_dim:
            raise BlobError(
                f"Tokens {start} to {end} were sent; whole pages of {len(self._load.tokens)} were asked for."
            )
        if (
            list(found.token_ids) != self._load.tokens[start:end]
            or found.prior != self._keys[start // PAGE_TOKENS].prior
        ):
            raise BlobError(f"Tokens {start} to {end} that were sent are not those that were asked for.")
        with self._lock:
            if any(start < other.end and other.start < end for other in self._pieces.values()):
                raise BlobError(f"Tokens {start} to {end} were sent twice.")
            self._pieces[piece] = _Piece(start, end, missing=len(self._layout.parts))

    def buffers(self, piece: int, index: int) -> Sequence[memoryview]:
        if index >= len(self._layout.parts):
            raise BlobError(f"Block {index} was sent; the model has {len(self._layout.parts)} layers.")
        with self._lock:
            this = self._pieces[piece]
            rows = this.blocks.setdefault(index, torch.empty(this.end - this.start, WIDTH, dtype=torch.bfloat16))
        return [rows.view(torch.uint8).numpy().data]

    def block(self, piece: int, index: int) -> None:
        with self._lock:
            this = self._pieces[piece]
            rows = this.blocks.pop(index)
        known = max(0, self._load.start - this.start)  # rows that vLLM has itself
        if known < len(rows):
            self._cache.write(index, self._load.blocks, this.start + known, rows[known:])
        with self._lock:
            this.missing -= 1

    def ended(self, error: WireError | None) -> None:
        self.error = error

    @property
    def arrived(self) -> int:
        """Tokens before the first that is not in every layer."""
        with self._lock:
            end = self._load.start
            for piece in sorted(self._pieces.values(), key=lambda each: each.start):
                if piece.start > end or piece.missing:
                    break
                end = max(end, piece.end)
            return end


@dataclass(frozen=True, slots=True)
class Loaded:
    """A load that is over: tokens `load.start` to `end` are in the cache."""

    load: Load
    end: int

    @property
    def whole(self) -> bool:
        return self.end == len(self.load.tokens)


class Receiving:
    """`peers`: by name, tried in this order. One that could not be used is tried last for `retry_seconds`, and not for
    loads that waited meanwhile. At most `most_transfers` at once, each within `deadline_seconds` of its order."""

    def __init__(
        self,
        cache: LatentCache,
        layout: BlobLayout,
        peers: Mapping[str, Peer],
        *,
        most_transfers: int,
        deadline_seconds: float,
        retry_seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache, self._layout, self._peers, self._now = cache, layout, peers, now
        self._deadline_seconds, self._retry_seconds = deadline_seconds, retry_seconds
        self._pool = ThreadPoolExecutor(most_transfers, "earthshine-loads")
        self._lock = Lock()
        self._over: list[Loaded] = []
        self._running: set[Transfer] = set()
        self._failed_at = dict.fromkeys(peers, float("-inf"))
        self._closed = False

    def begin(self, load: Load) -> None:
        self._pool.submit(self._run, load, self._now())

    def over(self) -> list[Loaded]:
        """The loads that ended since the last call."""
        with self._lock:
            found, self._over = self._over, []
        return found

    def close(self) -> None:
        """End all transfers."""
        with self._lock:
            self._closed, running = True, list(self._running)
        for transfer in running:
            transfer.cancel()
        self._pool.shutdown(cancel_futures=True)

    def _run(self, load: Load, ordered: float) -> None:
        end, until = load.start, ordered + self._deadline_seconds
        try:
            for name in self._order(ordered):
                end = max(end, self._from(name, load, until))
                if end > load.start or self._now() >= until or self._closed:
                    break
        except Exception:
            _log.exception("Request %s could not be fetched", load.request_id)
        finally:
            with self._lock:
                self._over.append(Loaded(load, end))

    def _from(self, name: str, load: Load, until: float) -> int:
        """Up to which token the peer has sent what was asked for."""
        started, sink = self._now(), LoadSink(load, self._cache, self._layout)
        first = load.start // PAGE_TOKENS * PAGE_TOKENS
        fingerprint = self._layout.fingerprint
        try:
            request = PrefillRequest(load.request_id, load.tenant, fingerprint, load.tokens, first)
            transfer = self._peers[name].prefill(request, sink, max(0.0, until - started))
            with self._lock:
                self._running.add(transfer)
            try:
                if self._closed:
                    transfer.cancel()
                transfer.result()
            finally:
                with self._lock:
                    self._running.discard(transfer)
            if sink.arrived < len(load.tokens):
                raise WireError(Reason.WORKER, "It ended before all pages were sent.")
        except EarthshineError as error:
            if isinstance(error, WireError) and error.reason in _AT_FAULT:
                with self._lock:
                    self._failed_at[name] = self._now()
            got = sink.arrived - load.start
            _log.warning(
                "Request %s: %d of %d tokens from %s, the rest is computed here. %s",
                load.request_id, got, len(load.tokens) - load.start, name, error,
            )  # fmt: skip
        else:
            took = self._now() - started
            _log.info("Request %s: %d tokens from %s, %.2f s", load.request_id, sink.arrived - load.start, name, took)
        return sink.arrived

    def _order(self, ordered: float) -> list[str]:
        """The peers that have not failed since `ordered`, those that failed shortly before last."""
        with self._lock:
            usable = [name for name in self._peers if self._failed_at[name] < ordered]
            return sorted(usable, key=lambda name: ordered - self._failed_at[name] < self._retry_seconds)
