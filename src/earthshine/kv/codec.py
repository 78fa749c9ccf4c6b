"""The one form in which a sequence's state is stored and sent; little-endian, version 5.

    0      8   magic "ESHKV\\r\\n\\x1a", which a transfer in text mode would damage
    8      4   version, 5
    12     4   bytes of the header's body, from 16 to its digest
    16     4   value format: 1 is bf16, 2 is fp32
    20    20   P (parts), start, n_tokens, n_ids, tail_dim, 4 bytes each
    40     4   1 where recurrent states, if there are any, follow too; else 0
    44    32   prior: a digest that names the `start` tokens before this piece and their tenant, or zeros
    76     4   F, bytes of the fingerprint
    80     F   the model's fingerprint, UTF-8
    80+F  12*P  for each part its layer, its kind (1: one row per token; 2 and 3: a recurrent state in the value format
               and in fp32) and its width, 4 bytes each
    ...   4*n_ids  token ids of this piece; n_ids is n_tokens, or one more where the last token is not computed yet
    ...   16   header digest: BLAKE3 of every byte before it, cut to 16 bytes
  then for each part that follows, in order, and for the tail if tail_dim is not 0, one block:
    0      4   index: 0 to P - 1; the tail's is P
    4      n   the part's rows [n_tokens, width], its state [width], or the tail [tail_dim] in the value format
    4+n   16   BLAKE3, cut to 16 bytes, of the header digest, the index and the values

Parts are what the model's attention keeps, layer by layer (`spec.attention`). A latent is `kv_lora_rank` values (512)
after their norm, then `rope.dim` values (64) of the key after rotation at the token's position. Grouped-query
attention keeps each key head's key after rotation, then its value. The tail is the last token's hidden state after the
final norm: with it, generation continues without computing anything again. It comes last because it is known last, so
that layers can be sent as soon as each is finished. A whole sequence has start 0; the disk cache stores pieces of one
page each.
Every length is compared with a limit, by the caller or the file's size, before it is used.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from earthshine.errors import BlobError
from earthshine.files import written_whole
from earthshine.kv.header import BlobHeader, pack_header, read_exactly, unpack_header
from earthshine.storage.blob import DIGEST_BYTES, INDEX, block_hasher
from earthshine.units import format_bytes
from earthshine.untrusted import open_regular, real_path

_CHUNK_BYTES = 1 << 20


class BlobWriter:
    """Writes the header at once, then each part as its layer is finished, then the tail. Does not close the file.

    Raises BlobError for parts out of order, or of another shape or dtype than the header has.
    """

    def __init__(self, file: BinaryIO, header: BlobHeader) -> None:
        self._file, self.header = file, header
        self._order = [*header.stored, *([len(header.layout.parts)] if header.tail_dim else [])]  # blocks still to come
        packed = pack_header(header)
        self._seed = packed[-DIGEST_BYTES:]
        file.write(packed)

    def part(self, index: int, values: Tensor) -> None:
        """values: rows [n_tokens, width] or a state [width], in the part's dtype."""
        if self._order[:1] != [index] or index >= len(self.header.layout.parts):
            raise BlobError(f"Part {index} is out of order; {self._missing()} comes next.")
        self._block(values, self.header.shape(index), self.header.dtype(index))

    def tail(self, hidden: Tensor) -> None:
        """hidden: [tail_dim], of the last token."""
        if self._order != [len(self.header.layout.parts)]:
            raise BlobError(f"The tail is out of order; {self._missing()} comes next.")
        self._block(hidden, (self.header.tail_dim,), self.header.layout.format.dtype)

    def close(self) -> None:
        """Raises BlobError if a block that the header announced is missing."""
        if self._missing() != "nothing":
            raise BlobError(f"The state is incomplete: {self._missing()} was not written.")

    def _missing(self) -> str:
        if not self._order:
            return "nothing"
        return f"part {self._order[0]}" if self._order[0] < len(self.header.layout.parts) else "the tail"

    def _block(self, values: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        _require_tensor(values, shape, dtype)
        index = INDEX.pack(self._order[0])
        digest = block_hasher(self._seed, index)
        self._file.write(index)
        for part in _parts(values):
            digest.update(part)
            self._file.write(part)
        self._file.write(digest.digest(DIGEST_BYTES))
        del self._order[0]


class BlobReader:
    """Reads the header at once, then `parts()` and `tail()`. Each block's checksum is verified before it is returned.

    `limit_bytes` limits the whole blob, and so every allocation. Raises BlobError, which names what is wrong.
    """

    def __init__(self, file: BinaryIO, limit_bytes: int) -> None:
        self._file = file
        self.header, self._seed = unpack_header(file, limit_bytes)
        if self.header.blob_bytes > limit_bytes:
            raise BlobError(
                f"The state needs {format_bytes(self.header.blob_bytes)}, but {format_bytes(limit_bytes)} are there "
                "or allowed; it is truncated or too large."
            )

    def parts(self) -> Iterator[Tensor]:
        """Each stored part's rows [n_tokens, width] or state [width], in order; all of them come before the tail."""
        for index in self.header.stored:
            values = self._block(index, self.header.part_bytes(index), f"part {index}", self.header.dtype(index))
            yield values.view(self.header.shape(index))

    def tail(self) -> Tensor | None:
        """hidden [tail_dim] of the last token, or None where the blob has none."""
        if not self.header.tail_dim:
            return None
        layout = self.header.layout
        return self._block(len(layout.parts), self.header.tail_bytes, "the tail", layout.format.dtype)

    def end(self) -> None:
        """Raises BlobError if bytes follow the last block."""
        if self._file.read(1):
            raise BlobError("The state is followed by bytes that do not belong to it.")

    def _block(self, index: int, size_bytes: int, what: str, dtype: torch.dtype) -> Tensor:
        stored = read_exactly(self._file, INDEX.size, what)
        digest = block_hasher(self._seed, stored)
        values = _buffer(size_bytes)
        view = memoryview(values)
        for start in range(0, size_bytes, _CHUNK_BYTES):
            part = read_exactly(self._file, min(_CHUNK_BYTES, size_bytes - start), what)
            digest.update(part)
            view[start : start + len(part)] = part
        if stored != INDEX.pack(index) or read_exactly(self._file, DIGEST_BYTES, what) != digest.digest(DIGEST_BYTES):
            raise BlobError(f"The state is damaged: the checksum of {what} does not match.")
        return torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)


@dataclass(frozen=True, slots=True, eq=False)
class KVBlob:
    """A whole sequence's state in memory.

    Raises BlobError for a piece that starts after other tokens, and for tensors of another shape or format than the
    header's.
    """

    header: BlobHeader
    parts: tuple[Tensor, ...]  # those of header.stored: rows [n_tokens, width], states [width]
    tail: Tensor | None  # [tail_dim]

    def __post_init__(self) -> None:
        layout = self.header.layout
        if self.header.start:
            raise BlobError(f"The state follows {self.header.start} tokens that it lacks; a whole one starts at 0.")
        if not self.header.with_states:
            raise BlobError("The state lacks its recurrent states; a whole one has them.")
        stored = self.header.stored
        if len(self.parts) != len(stored) or (self.tail is not None) != bool(self.header.tail_dim):
            raise BlobError(f"This header needs {len(stored)} parts and a tail of {self.header.tail_dim} values.")
        for index, values in zip(stored, self.parts, strict=True):
            _require_tensor(values, self.header.shape(index), self.header.dtype(index))
        if self.tail is not None:
            _require_tensor(self.tail, (self.header.tail_dim,), layout.format.dtype)

    def write(self, file: BinaryIO) -> None:
        """The whole blob, in the order of the module's description."""
        writer = BlobWriter(file, self.header)
        for index, values in zip(self.header.stored, self.parts, strict=True):
            writer.part(index, values)
        if self.tail is not None:
            writer.tail(self.tail)
        writer.close()

    @classmethod
    def read(cls, file: BinaryIO, limit_bytes: int) -> "KVBlob":
        """Raises BlobError if the file holds anything but one sound blob of at most `limit_bytes`."""
        reader = BlobReader(file, limit_bytes)
        blob = cls(reader.header, tuple(reader.parts()), reader.tail())
        reader.end()
        return blob

    def to_bytes(self) -> bytes:
        file = BytesIO()
        self.write(file)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "KVBlob":
        return cls.read(BytesIO(data), limit_bytes=len(data))

    def save(self, path: Path) -> None:
        """Write to `path`, which is replaced as a whole or not at all. Raises BlobError."""
        try:
            with written_whole(path) as file:
                self.write(file)
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise BlobError(f"The state could not be written to {path}: {error}.") from None

    @classmethod
    def load(cls, path: Path) -> "KVBlob":
        """Raises BlobError if the file is absent, unreadable or damaged."""
        try:
            with open(open_regular(real_path(path, BlobError), f"The state in {path}", BlobError), "rb") as file:
                return cls.read(file, limit_bytes=os.fstat(file.fileno()).st_size)
        except (OSError, ValueError) as error:
            raise BlobError(f"The state could not be read from {path}: {error}.") from None


def read_header(file: BinaryIO, limit_bytes: int) -> BlobHeader:
    """The header alone, from which the caller can decide whether to read the rest. Raises BlobError."""
    return unpack_header(file, limit_bytes)[0]


def bytes_of(values: Tensor) -> memoryview:
    """The bytes of a contiguous tensor where they lie, as a block has them on a little-endian machine."""
    return values.view(torch.uint8).numpy().data.cast("B")


def _require_tensor(values: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(values.shape) != shape or values.dtype is not dtype:
        raise BlobError(
            f"A block of {list(shape)} values in {dtype} was announced, not of {list(values.shape)} in {values.dtype}."
        )


def _buffer(size_bytes: int) -> bytearray:
    try:
        return bytearray(size_bytes)
    except MemoryError:
        raise BlobError(f"A block of the state needs {format_bytes(size_bytes)}, which is not free.") from None


def _parts(values: Tensor) -> Iterator[bytearray]:
    """The values' bytes in pieces of at most _CHUNK_BYTES, as a little-endian machine holds them."""
    flat = values.reshape(-1)
    step = _CHUNK_BYTES // values.itemsize
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step]
        buffer = bytearray(part.nbytes)
        torch.frombuffer(buffer, dtype=values.dtype).copy_(part)
        yield buffer
