"""The header of one safetensors file: which tensors it holds, and where.

Invariant: every extent is within the file, its length follows from its dtype and shape, and the extents together
cover the data exactly once. Refuses all else with a CheckpointError before anything is allocated from a number in
the file. Format: 8 bytes little-endian length, that many bytes of JSON (padded with spaces), then the data.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earthshine.errors import CheckpointError
from earthshine.units import format_bytes
from earthshine.untrusted import open_regular, parse_object, shown

MAX_HEADER_BYTES = 100_000_000  # the limit that the safetensors library sets itself
_MAX_RANK = 8
_MAX_ELEMENTS = 2**63
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorExtent:
    """The place of one tensor: `nbytes` bytes at the absolute `offset` of `file`; `dtype` as safetensors spells it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a safetensors file. `extents` are in the order of their data."""

    metadata: dict[str, str]
    extents: tuple[TensorExtent, ...]


def read_exactly(descriptor: int, offset: int, nbytes: int, shown_name: str) -> bytearray:
    """Read `nbytes` bytes from `offset`. Raises CheckpointError for a file that ends earlier. The caller has checked
    `nbytes`."""
    try:
        buffer = bytearray(nbytes)
    except MemoryError:
        size = format_bytes(nbytes)
        raise CheckpointError(f"{shown(shown_name)} has a tensor of {size}, more memory than there is.") from None
    view = memoryview(buffer)
    done = 0
    while done < nbytes:
        try:
            count = os.preadv(descriptor, [view[done:]], offset + done)
        except OSError as error:
            raise CheckpointError(f"{shown(shown_name)} can't be read: {error.strerror}.") from None
        if count == 0:
            raise CheckpointError(f"{shown(shown_name)} ends at byte {offset + done}, before {offset + nbytes}.")
        done += count
    return buffer


def _shape(value: Any, problem: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MAX_RANK or not all(type(n) is int and n >= 0 for n in value):
        raise CheckpointError(f"{problem} a shape that is not a list of at most {_MAX_RANK} counts.")
    return tuple(value)


def _extent(name: str, entry: Any, path: Path, data_start: int, file_bytes: int, where: str) -> TensorExtent:
    problem = f"{where}: tensor {shown(name)} has"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{problem} other keys than dtype, shape and data_offsets.")
    dtype = entry["dtype"]
    item_bytes = ITEM_BYTES.get(dtype) if isinstance(dtype, str) else None
    if item_bytes is None:
        raise CheckpointError(f"{problem} a dtype that is not one of {', '.join(ITEM_BYTES)}.")
    shape = _shape(entry["shape"], problem)
    # Judged without the zeros: [2**62, 2**62, 0] is not an honest shape either.
    if math.prod(n for n in shape if n) * item_bytes >= _MAX_ELEMENTS:
        raise CheckpointError(f"{problem} a shape whose size overflows 63 bits.")
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise CheckpointError(f"{problem} data_offsets that are not two integers.")
    begin, end = offsets
    if not 0 <= begin <= end <= file_bytes - data_start:
        raise CheckpointError(f"{problem} data outside the file: is the file truncated?")
    if end - begin != math.prod(shape) * item_bytes:
        raise CheckpointError(f"{problem} {end - begin} bytes, but its dtype and shape need another number.")
    return TensorExtent(name, dtype, shape, path, data_start + begin, end - begin)


def _metadata(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise CheckpointError(f"{where}: __metadata__ should map strings to strings.")
    return value


def _check_cover(extents: list[TensorExtent], data_start: int, file_bytes: int, where: str) -> None:
    position = data_start
    for extent in extents:
        if extent.offset != position:
            kind = "overlaps" if extent.offset < position else "leaves a hole after"
            raise CheckpointError(f"{where}: tensor {shown(extent.name)} {kind} the tensor before it.")
        position += extent.nbytes
    if position != file_bytes:
        raise CheckpointError(f"{where}: {file_bytes - position} bytes after the last tensor belong to none.")


def _header_bytes(descriptor: int, file_bytes: int, where: str) -> bytes:
    if file_bytes < 8:
        raise CheckpointError(f"{where} is shorter than a safetensors header.")
    length = int.from_bytes(read_exactly(descriptor, 0, 8, where), "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, file_bytes - 8):
        raise CheckpointError(f"{where} claims a header of {length} bytes, which the file or the format rules out.")
    raw = bytes(read_exactly(descriptor, 8, length, where))
    if raw[:1] != b"{":
        raise CheckpointError(f"{where} is not a safetensors file: its header does not begin with a brace.")
    return raw


def read_header(path: Path, shown_name: str | None = None) -> Header:
    """The header of a safetensors file. Raises CheckpointError, naming the file, for one that is malformed."""
    where = path.name if shown_name is None else shown_name
    descriptor = open_regular(path, shown(where), CheckpointError)
    try:
        file_bytes = os.fstat(descriptor).st_size
        raw = _header_bytes(descriptor, file_bytes, where)
    finally:
        os.close(descriptor)
    entries = parse_object(raw, f"the header of {where}", CheckpointError)
    metadata = _metadata(entries.pop("__metadata__", {}), where)
    data_start = 8 + len(raw)
    extents = [_extent(name, entry, path, data_start, file_bytes, where) for name, entry in entries.items()]
    # An empty tensor may share its offset with the tensor that follows it.
    extents.sort(key=lambda extent: (extent.offset, extent.nbytes))
    _check_cover(extents, data_start, file_bytes, where)
    return Header(metadata, tuple(extents))
