"""Earthshine at either end of a transfer: a sink that collects latents, and a handler that computes them."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO

import torch
from torch import Tensor

from earthshine.engine import Engine, EngineOptions, LoadedModel
from earthshine.errors import UnavailableError
from earthshine.kv import BlobHeader, BlobLayout, KVBlob, PageKeys
from earthshine.kv.header import pack_header, unpack_header
from earthshine.prfaas.wire import PieceWriter, PrefillPeer, PrefillRequest, WireError

PAGE = 64
_COMPUTING = threading.Lock()


class Latents:
    """Collects pieces: `parts` are the latents of tokens `start` to `end`, by layer."""

    def __init__(self) -> None:
        self.headers: dict[int, BlobHeader] = {}
        self.blocks: dict[tuple[int, int], Tensor] = {}
        self.verified: set[tuple[int, int]] = set()
        self.error: WireError | None = None

    def begin(self, piece: int, header: bytes) -> None:
        self.headers[piece] = unpack_header(BytesIO(header), 1 << 20)[0]

    def buffers(self, piece: int, index: int) -> Sequence[memoryview]:
        rows = self.blocks[piece, index] = torch.empty(self.headers[piece].shape(index), dtype=torch.bfloat16)
        return [rows.view(torch.uint8).numpy().data]

    def block(self, piece: int, index: int) -> None:
        self.verified.add((piece, index))

    def ended(self, error: WireError | None) -> None:
        self.error = error

    @property
    def start(self) -> int:
        return self.headers[0].start

    @property
    def end(self) -> int:
        """Tokens up to which every layer was verified."""
        end = self.start
        for piece, header in self.headers.items():
            if any((piece, index) not in self.verified for index in header.stored):
                break
            end = header.start + header.n_tokens
        return end

    @property
    def parts(self) -> list[Tensor]:
        layers = range(len(self.headers[0].layout.parts))
        whole = [piece for piece, header in self.headers.items() if header.start < self.end]
        return [torch.cat([self.blocks[piece, layer] for piece in whole]) for layer in layers]

    def blob(self, model: LoadedModel) -> KVBlob:
        """As a sequence's state, which a session of `model` restores."""
        tokens = [token for header in self.headers.values() for token in header.token_ids][: self.end]
        layout = BlobLayout.of(model.spec.kept, model.fingerprint, torch.bfloat16)
        return KVBlob(BlobHeader(layout, self.end, tuple(tokens), 0), tuple(self.parts), None)


def fetched(
    model: str, port: int, tokens: list[int], start: int = 0, *, seconds: float = 60.0, salt: str = ""
) -> Latents:
    """What the peer at `port` sends of a prompt, whole or not."""
    peer, sink = PrefillPeer(f"earthshine+plain://127.0.0.1:{port}"), Latents()
    try:
        peer.prefill(PrefillRequest("pulled", salt, model, tokens, start), sink, seconds).wait()
    finally:
        peer.close()
    return sink


class Prefill:
    """A worker that can fail: computes prompts on Earthshine. `damaged`: every block has another block's digest."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self.damaged = False
        self._piece_tokens = 1 << 20
        self._stop: Callable[[int, PieceWriter], None] = _go_on

    def __call__(self, request: PrefillRequest, out: PieceWriter) -> None:
        tokens = list(request.token_ids)
        parts = computed(self._model, tokens)
        layout = BlobLayout.of(self._model.spec.kept, self._model.fingerprint, torch.bfloat16)
        n_pages = len(tokens) // PAGE
        keys = PageKeys(request.tenant, PAGE).of(tokens, n_pages)
        blocks = 0
        for start in range(request.start, n_pages * PAGE, self._piece_tokens):
            end = min(start + self._piece_tokens, n_pages * PAGE)
            own = tuple(tokens[start:end])
            out.begin(pack_header(BlobHeader(layout, len(own), own, 0, start, keys[start // PAGE].prior)))
            for index, part in enumerate(parts):
                self._stop(blocks, out)
                rows = part[start:end].contiguous().view(torch.uint8).numpy().data
                out.block(index, [rows], bytes(16) if self.damaged else None)
                blocks += 1
        out.end()

    @contextmanager
    def stopped(self, after: int) -> Iterator[threading.Event]:
        """The next request stops after `after` blocks, which sets the event, until the context ends."""
        reached, ended = threading.Event(), threading.Event()

        def stop(blocks: int, out: PieceWriter) -> None:
            if blocks == after:
                reached.set()
                ended.wait()

        self._stop = stop
        try:
            yield reached
        finally:
            self._stop = _go_on
            ended.set()

    @contextmanager
    def failing(self, piece_tokens: int) -> Iterator[None]:
        """Requests fail in the middle of their second piece of `piece_tokens`, once the first has arrived."""

        def stop(blocks: int, out: PieceWriter) -> None:
            if blocks == len(self._model.spec.kept) + 2:
                while out._outstanding_bytes:  # what was not sent when a handler fails is dropped
                    out.check()
                    time.sleep(0.01)
                raise UnavailableError("This prefill fails.")

        self._piece_tokens, self._stop = piece_tokens, stop
        try:
            yield
        finally:
            self._piece_tokens, self._stop = 1 << 20, _go_on


def _go_on(blocks: int, out: PieceWriter) -> None:
    """Neither stops nor fails."""


def engine_of(model: LoadedModel) -> Engine:
    """One with pages of its own, as if the plan were its alone."""
    own = replace(model, pages=type(model.pages)(model.plan.memory.pages, model.pages.states_left))
    return Engine(own, EngineOptions())


def computed(model: LoadedModel, tokens: list[int]) -> tuple[Tensor, ...]:
    """Earthshine's own latents of `tokens`, by layer."""
    with _COMPUTING:  # the plan has room for few sessions
        session = model.session()
        try:
            session.sync(tokens)
            return session.snapshot().parts
        finally:
            session.close()
