"""Checksums of a checkpoint's blocks, in a small file beside its shards: one of each routed expert and trunk tensor.

Invariant: a loaded manifest has a BLAKE3 hash of every block of exactly these shards, by size. A block's
hash covers its published bytes in the order of their files and offsets. Refuses a manifest that is malformed or was
made from other files, rather than ignoring it. A manifest detects damage since it was made; it is not a signature.
"""

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from earthshine.errors import CheckpointError, UsageError
from earthshine.spec.layout import moe_layers, trunk_tensors
from earthshine.storage import ALIGNMENT, padded
from earthshine.untrusted import parse_object, read_file, resolve_in, shown
from earthshine.weights.checkpoint import ByteRange, Checkpoint
from earthshine.weights.checkpoint.names import published_trunk
from earthshine.weights.reading import Reader, ReadProgress, Ticket
from earthshine.weights.shards import read_bytes
from earthshine.weights.slots import Arena

MANIFEST_NAME = "earthshine.manifest.json"
_KEYS = {"version", "hash", "shards", "trunk", "experts"}
_VERSION = 1
_MAX_BYTES = 64 << 20  # a K2.6's takes 1.6 MB
_DIGEST = 32
_CHUNK = 32 << 20
_AHEAD = 3

Buffer = bytes | bytearray | memoryview


def digest_of(parts: Sequence[Buffer]) -> bytes:
    """The 32 bytes of a block's hash."""
    digest = blake3()
    for part in parts:
        digest.update(part)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Manifest:
    """`experts`: by layer, the hashes of its experts one after the other, 32 bytes each: 0.7 MB for Kimi-K2.6."""

    trunk: dict[str, bytes]  # by Earthshine's name
    experts: dict[int, bytes]

    def check_expert(self, layer: int, expert: int, parts: Sequence[Buffer], where: ByteRange) -> None:
        """Raises CheckpointError, naming expert, shard and offset, for bytes that do not match the hash."""
        if digest_of(parts) != self.experts[layer][expert * _DIGEST : (expert + 1) * _DIGEST]:
            raise _damaged(f"expert {expert} of layer {layer}", where)

    def check_trunk(self, name: str, parts: Sequence[Buffer], where: ByteRange) -> None:
        """Raises CheckpointError for a trunk tensor that does not match its hash. `parts`: as by `trunk_ranges`."""
        if digest_of(parts) != self.trunk.get(name):
            raise _damaged(f"the trunk tensor {name}", where)

    def check_stored(self, name: str, ranges: Sequence[ByteRange]) -> None:
        """As `check_trunk`, for a tensor on disk, which is read 32 MiB at a time and not kept."""
        for _ in range(2):
            digest = blake3()
            for span in ranges:
                for done in range(0, span.nbytes, _CHUNK):
                    digest.update(read_bytes(span.file, span.offset + done, min(_CHUNK, span.nbytes - done)))
            if digest.digest() == self.trunk.get(name):
                return
        raise _damaged(f"the trunk tensor {name}", ranges[0])


def _damaged(what: str, where: ByteRange) -> CheckpointError:
    return CheckpointError(
        f"{what} does not match its checksum, twice read: {shown(where.file.name)} is damaged at or after byte "
        f"{where.offset}. Download that file again."
    )


def trunk_ranges(checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[ByteRange, ...]]]:
    """Every trunk tensor's name and the bytes that its hash covers: its published parts, by file and offset."""
    for published in published_trunk(checkpoint.spec):
        extents = [checkpoint.shards[part.name] for part in published.parts]
        extents.sort(key=lambda extent: (extent.file, extent.offset))
        yield published.name, tuple(ByteRange(part.file, part.offset, part.nbytes) for part in extents)


def shard_sizes(checkpoint: Checkpoint) -> dict[Path, int]:
    """The size of each shard, from its header."""
    sizes: dict[Path, int] = {}
    for extent in checkpoint.shards.values():
        sizes[extent.file] = max(sizes.get(extent.file, 0), extent.offset + extent.nbytes)
    return sizes


def load_manifest(checkpoint: Checkpoint) -> Manifest | None:
    """The folder's manifest, or None if it has none. Raises CheckpointError where it does not fit the shards.

    Kimi-K2.6's has 1.6 MB and takes 3 ms; reading the sizes of its shards takes 40 ms.
    """
    folder = checkpoint.shards.folder
    if not os.path.lexists(folder / MANIFEST_NAME):
        return None
    remedy = _remedy(folder)
    raw = read_file(resolve_in(folder, MANIFEST_NAME, CheckpointError), MANIFEST_NAME, _MAX_BYTES, CheckpointError)
    found = parse_object(raw, MANIFEST_NAME, CheckpointError)
    if found.keys() != _KEYS or found["version"] != _VERSION or found["hash"] != "blake3":
        keys = ", ".join(sorted(_KEYS))
        raise CheckpointError(f"{MANIFEST_NAME} should hold {keys}, of version {_VERSION} and blake3. {remedy}")
    sizes = {file.name: nbytes for file, nbytes in shard_sizes(checkpoint).items()}
    listed = found["shards"] if isinstance(found["shards"], dict) else {}
    differing = [name for name in {**sizes, **listed} if sizes.get(name) != listed.get(name)]
    if differing:
        raise CheckpointError(
            f"{MANIFEST_NAME} was made of other shards than these: {shown(differing[0])} differs. {remedy}"
        )
    names = [tensor.name for tensor in trunk_tensors(checkpoint.spec)]
    counts = {layer: moe.n_experts for layer, moe in moe_layers(checkpoint.spec)}
    trunk = _table(found["trunk"], {name: 1 for name in names}, "trunk", remedy)
    experts = _table(found["experts"], {str(layer): count for layer, count in counts.items()}, "experts", remedy)
    return Manifest(trunk, {int(layer): digests for layer, digests in experts.items()})


def _remedy(folder: Path) -> str:
    return f"Remove {shown(folder / MANIFEST_NAME)}, then create it again with earthshine inspect --hash."


def _table(found: Any, counts: dict[str, int], key: str, remedy: str) -> dict[str, bytes]:
    """Each name's hashes from hexadecimal digits; exactly the names and numbers of hashes that the model has."""
    if not isinstance(found, dict) or found.keys() != counts.keys():
        raise CheckpointError(f"{MANIFEST_NAME} should have under {key} what the model has. {remedy}")
    table = {}
    for name, digits in found.items():
        try:
            table[name] = bytes.fromhex(digits)
        except (TypeError, ValueError):
            table[name] = b""
        if len(table[name]) != counts[name] * _DIGEST or len(digits) != 2 * len(table[name]):
            raise CheckpointError(f"{MANIFEST_NAME} should have {counts[name]} hashes for {key} {name}. {remedy}")
    return table


def write_manifest(checkpoint: Checkpoint, reader: Reader, progress: ReadProgress) -> Path:
    """Read the whole checkpoint once and write its manifest beside the shards. Returns the manifest's path.

    Takes 100 MB of memory. `progress` is called after every 32 MiB. Raises CheckpointError where a file can't be read
    or the folder can't be written, and where an existing manifest does not match these files; it is kept then.
    """
    before = load_manifest(checkpoint)
    sizes = shard_sizes(checkpoint)
    if len({file.name for file in sizes}) != len(sizes):
        raise UsageError("Two shards have the same file name, and a manifest names shards by it.")
    for file, nbytes in sizes.items():
        reader.open(file, nbytes)
    trunk = dict(trunk_ranges(checkpoint))
    layers = dict(moe_layers(checkpoint.spec))
    blocks = list(trunk.values())
    for layer, moe in layers.items():
        blocks += [checkpoint.expert_extents(layer, expert).ranges for expert in range(moe.n_experts)]
    digests = _digests(blocks, reader, progress)
    made = Manifest(
        {name: next(digests) for name in trunk},
        {layer: b"".join(next(digests) for _ in range(moe.n_experts)) for layer, moe in layers.items()},
    )
    if before is not None:
        _require_same(before, made, checkpoint)
    document = {
        "version": _VERSION,
        "hash": "blake3",
        "shards": {file.name: nbytes for file, nbytes in sizes.items()},
        "trunk": {name: digest.hex() for name, digest in made.trunk.items()},
        "experts": {str(layer): digests.hex() for layer, digests in made.experts.items()},
    }
    return _replace(checkpoint.shards.folder, json.dumps(document, indent=1).encode())


def _require_same(before: Manifest, made: Manifest, checkpoint: Checkpoint) -> None:
    """Raises CheckpointError for the first block whose hash differs from the existing manifest's."""
    for name, ranges in trunk_ranges(checkpoint):
        if made.trunk[name] != before.trunk[name]:
            raise _changed(f"The trunk tensor {name}", ranges[0], checkpoint)
    for layer, digests in made.experts.items():
        for expert, at in enumerate(range(0, len(digests), _DIGEST)):
            if digests[at : at + _DIGEST] != before.experts[layer][at : at + _DIGEST]:
                where = checkpoint.expert_extents(layer, expert).ranges[0]
                raise _changed(f"Expert {expert} of layer {layer}", where, checkpoint)


def _changed(what: str, where: ByteRange, checkpoint: Checkpoint) -> CheckpointError:
    remedy = _remedy(checkpoint.shards.folder)
    return CheckpointError(
        f"{what} in {shown(where.file.name)} does not match the checksum in {MANIFEST_NAME}, which is kept. If the "
        f"file is damaged, download it again. If it was changed on purpose, r{remedy[1:]}"
    )


def _digests(blocks: Sequence[Sequence[ByteRange]], reader: Reader, progress: ReadProgress) -> Iterator[bytes]:
    """The hash of each block, in order, while later blocks are being read."""
    arena = Arena(_CHUNK + 2 * ALIGNMENT, _AHEAD)
    total = sum(span.nbytes for block in blocks for span in block)
    pieces = _pieces(blocks)
    waiting: list[tuple[Ticket, int, ByteRange, bool]] = []
    free = list(range(_AHEAD))
    done = 0
    digest = blake3()
    while True:
        for _ in range(len(free)):
            piece = next(pieces, None)
            if piece is None:
                break
            span, last = piece
            slot = free.pop()
            buffer = arena.view(slot)[: padded(span.offset, span.nbytes)]
            waiting.append((reader.submit(span.file, span.offset, span.nbytes, buffer), slot, span, last))
        if not waiting:
            return
        ticket, slot, span, last = waiting.pop(0)
        ticket.wait()
        begin = span.offset % ALIGNMENT
        digest.update(arena.view(slot)[begin : begin + span.nbytes])
        free.append(slot)
        done += span.nbytes
        progress(done, total)
        if last:
            yield digest.digest()
            digest = blake3()


def _pieces(blocks: Sequence[Sequence[ByteRange]]) -> Iterator[tuple[ByteRange, bool]]:
    """The blocks' ranges in pieces of at most 32 MiB, and whether each is its block's last."""
    for block in blocks:
        for span in block:
            end = span.offset + span.nbytes
            for offset in range(span.offset, max(end, span.offset + 1), _CHUNK):
                piece = ByteRange(span.file, offset, min(_CHUNK, end - offset))
                yield piece, span is block[-1] and offset + piece.nbytes == end


def _replace(folder: Path, raw: bytes) -> Path:
    partial = folder / f".{uuid.uuid4().hex}.partial"
    try:
        try:
            with partial.open("xb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(folder / MANIFEST_NAME)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{shown(folder)} can't be written: {error.strerror}.") from None
    return folder / MANIFEST_NAME
