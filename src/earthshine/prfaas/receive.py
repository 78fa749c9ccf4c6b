"""Receives the pieces of one remote prefill into pages of the pool: a sink of `wire`.

Each piece's header must be exactly that of the pages which were asked for: model, layout, positions, tokens and tenant.
Pages are shared once all of their blocks, and those of all pages before them, were verified.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from threading import Lock

from earthshine.errors import BlobError
from earthshine.kv import Arrival, BlobHeader, BlobLayout, bytes_of, piece_header
from earthshine.kv.header import unpack_header
from earthshine.prfaas.wire import WireError


@dataclass(slots=True)
class _Piece:
    header: BlobHeader
    missing: set[int]  # blocks that were not verified

    @property
    def end(self) -> int:
        return self.header.start + self.header.n_tokens


class PieceReceiver:
    """`over` is called once, when nothing is written any more; the arrival is closed by then. Its methods raise
    BlobError for pieces and blocks that were not asked for."""

    def __init__(
        self, arrival: Arrival, layout: BlobLayout, page_tokens: int, over: Callable[[WireError | None], None]
    ) -> None:
        self._arrival, self._layout, self._page_tokens, self._over = arrival, layout, page_tokens, over
        self._lock = Lock()
        self._pieces: dict[int, _Piece] = {}
        self._next = arrival.start  # up to there everything is verified

    def begin(self, piece: int, header: bytes) -> None:
        """As wire.PieceSink."""
        file = BytesIO(header)
        found, _ = unpack_header(file, len(header))
        if file.read(1):
            raise BlobError("A piece's header is followed by other bytes.")
        found.layout.require(self._layout)
        own, end = self._arrival, found.start + found.n_tokens
        if not own.start <= found.start < end <= own.end or (found.start - own.start) % self._page_tokens:
            raise BlobError(f"A piece has tokens {found.start} to {end}; pages of {own.start} to {own.end} were asked.")
        tokens = own.tokens[found.start - own.start : end - own.start]
        first = own.keys[(found.start - own.start) // self._page_tokens]
        if found != piece_header(self._layout, first, tokens, self._page_tokens, found.with_states):
            raise BlobError("A piece holds other tokens than were asked for, or a part of them that was not.")
        with self._lock:
            if any(found.start < other.end and other.header.start < end for other in self._pieces.values()):
                raise BlobError(f"The tokens {found.start} to {end} come twice.")
            self._pieces[piece] = _Piece(found, set(found.stored))

    def buffers(self, piece: int, index: int) -> Sequence[memoryview]:
        """As wire.PieceSink."""
        with self._lock:
            known = self._pieces[piece]
            if index not in known.missing:
                raise BlobError(f"Block {index} is not one that the piece still lacks.")
        return [bytes_of(values) for values in self._arrival.values(index, known.header.start, known.end)]

    def block(self, piece: int, index: int) -> None:
        """As wire.PieceSink."""
        with self._lock:
            self._pieces[piece].missing.discard(index)
            while (whole := self._whole(self._next)) is not None:
                self._next = whole.end
                self._arrival.verified(whole.end, whole.header.with_states)

    def ended(self, error: WireError | None) -> None:
        """As wire.PieceSink."""
        self._arrival.close()
        self._over(error)

    def _whole(self, start: int) -> _Piece | None:
        found = (each for each in self._pieces.values() if each.header.start == start and not each.missing)
        return next(found, None)
