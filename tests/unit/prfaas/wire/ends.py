"""Both ends of the wire in one process, on real sockets: made pieces, a sink that keeps them, and a relay between."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from earthshine.net.listen import ListenOptions
from earthshine.prfaas.wire import PieceWriter, PrefillPeer, PrefillRequest, WireError, WireServer
from earthshine.storage.blob import header_digest

SECONDS = 60  # a bound on a wait that should end at once; never a measure


def request(request_id: str = "r1", n_tokens: int = 300, **changes: Any) -> PrefillRequest:
    given = {"tenant": "t", "fingerprint": "model-1", "token_ids": list(range(n_tokens))} | changes
    return PrefillRequest(request_id, **given)


def header(piece: int) -> bytes:
    """Wire knows nothing of a header but its digest at the end."""
    body = b"a piece's header %d" % piece
    return body + header_digest(body)


def values(piece: int, index: int, nbytes: int) -> bytes:
    """Bytes that no other block has."""
    seed = hashlib.shake_128(b"%d.%d" % (piece, index)).digest(min(nbytes, 4096))
    return (seed * (nbytes // len(seed) + 1))[:nbytes] if nbytes else b""


class Pieces:
    """`n_pieces` pieces of `n_blocks` blocks; a block is `pages` buffers of `page_bytes`."""

    def __init__(self, n_pieces: int = 2, n_blocks: int = 5, pages: int = 3, page_bytes: int = 10_000) -> None:
        self.n_pieces, self.n_blocks, self.pages, self.page_bytes = n_pieces, n_blocks, pages, page_bytes

    @property
    def nbytes(self) -> int:
        return self.n_pieces * self.n_blocks * self.pages * self.page_bytes

    def buffers(self, piece: int, index: int) -> list[memoryview]:
        whole = memoryview(values(piece, index, self.pages * self.page_bytes))
        return [whole[page * self.page_bytes :][: self.page_bytes] for page in range(self.pages)]

    def send(self, asked: PrefillRequest, out: PieceWriter, after: Callable[[int, int], None] | None = None) -> None:
        """A handler. `after`: called once each block was given to the writer."""
        for piece in range(self.n_pieces):
            out.begin(header(piece))
            for index in range(self.n_blocks):
                out.block(index, self.buffers(piece, index))
                if after is not None:
                    after(piece, index)
        out.end()


class Sink:
    """Keeps what arrives in pages of its own, and all calls."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces
        self.headers: dict[int, bytes] = {}
        self.pages: dict[tuple[int, int], list[bytearray]] = {}
        self.verified: list[tuple[int, int]] = []
        self.ends: list[WireError | None] = []
        self.progress = threading.Condition()

    def begin(self, piece: int, header: bytes) -> None:
        self.headers[piece] = header

    def buffers(self, piece: int, index: int) -> list[bytearray]:
        found = [bytearray(self.pieces.page_bytes) for _ in range(self.pieces.pages)]
        self.pages[piece, index] = found
        return found

    def block(self, piece: int, index: int) -> None:
        with self.progress:
            self.verified.append((piece, index))
            self.progress.notify_all()

    def ended(self, error: WireError | None) -> None:
        self.ends.append(error)

    def wait_for(self, n_blocks: int) -> None:
        with self.progress:
            assert self.progress.wait_for(lambda: len(self.verified) >= n_blocks, SECONDS)

    def require_sound(self, complete: bool = True) -> None:
        """Every verified block has its bytes, each once; with `complete`, all have arrived."""
        assert len(set(self.verified)) == len(self.verified)
        if complete:
            assert len(self.verified) == self.pieces.n_pieces * self.pieces.n_blocks
            assert self.headers == {piece: header(piece) for piece in range(self.pieces.n_pieces)}
        for piece, index in self.verified:
            assert list(map(bytes, self.pages[piece, index])) == list(map(bytes, self.pieces.buffers(piece, index)))


@contextmanager
def serving(handler: Callable[..., None], **options: Any) -> Iterator[WireServer]:
    listen = options.pop("listen", ListenOptions(port=0))
    server = WireServer(listen, handler, **options)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def connected(port: int, **options: Any) -> Iterator[PrefillPeer]:
    peer = PrefillPeer(options.pop("url", f"earthshine+plain://127.0.0.1:{port}"), **options)
    try:
        yield peer
    finally:
        peer.close()


def eventually(true: Callable[[], bool]) -> None:
    """Waits until `true`, which nothing else can be waited for."""
    until = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
