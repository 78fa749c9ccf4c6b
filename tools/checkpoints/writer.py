"""Tensors to a published checkpoint: the encoders, the inverse of the reader's names, and safetensors shards.

Invariant: a folder holds either a whole checkpoint or none; files are written under temporary names, synced and
renamed, the index last, and removed on any failure. A tensor may be declared first and made piece by piece as it is
written. Refuses to overwrite a checkpoint, values that are not finite, and tensors that do not fit the spec.
"""

import contextlib
import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from earthshine.errors import CheckpointError, UsageError
from earthshine.spec.model import ModelSpec
from earthshine.storage import FP8_BLOCK, INT4_GROUP, Storage
from earthshine.storage.index import INDEX_NAME, SINGLE_NAME
from earthshine.untrusted import shown
from earthshine.weights.checkpoint.names import Published, published_experts, published_trunk
from earthshine.weights.shards import TORCH_DTYPES

_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_FP8_MAX = 448.0  # of e4m3fn
_HEADER_ALIGNMENT = 8


def _finite(weight: Tensor) -> Tensor:
    wide = weight.detach().float()
    if not bool(torch.isfinite(wide).all()):
        raise UsageError("A weight that is NaN or infinite can't be quantised.")
    return wide


def encode_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """fp32 or bf16 [out, in] to int32 [out, in/8], bf16 scale [out, in/32] and int32 (out, in).

    The scale is what compressed-tensors' minmax observer gives for symmetric int4: max|w| of a group of 32 over half
    the range of [-8, 7], 7.5, rounded to bf16; an all-zero group gets bf16's epsilon. Codes are rounded half to even
    and clamped, so a positive maximum is cut to 7 scales.
    """
    rows, columns = weight.shape
    if columns % INT4_GROUP:
        raise UsageError(f"int4 in groups of 32 needs a multiple of 32 columns, and there are {columns}.")
    codes, scale = int4_codes(_finite(weight))
    nibbles = (codes + 8).to(torch.uint8)
    packed = (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).view(torch.int32)
    return packed, scale, torch.tensor([rows, columns], dtype=torch.int32)


def int4_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 [..., in] to whole numbers from -8 to 7, fp32 [..., in], and bf16 scales [..., in/32]; see `encode_int4`."""
    groups = weight.unflatten(-1, (-1, INT4_GROUP))
    scale = (groups.abs().amax(-1) / 7.5).to(torch.bfloat16)
    scale = torch.where(scale == 0, torch.finfo(torch.bfloat16).eps, scale)
    return torch.round(groups / scale.float()[..., None]).clamp_(-8, 7).flatten(-2), scale


def encode_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 or bf16 [out, in] to e4m3 [out, in] and fp32 scale_inv [ceil(out/128), ceil(in/128)], amax over 448.

    A block's largest value becomes 448 and an all-zero block has the scale 1 (DeepSeek-V3, section 3.3).
    """
    rows, columns = weight.shape
    padded = functional.pad(_finite(weight), (0, -columns % FP8_BLOCK, 0, -rows % FP8_BLOCK))
    high, wide = (extent // FP8_BLOCK for extent in padded.shape)
    blocks = padded.reshape(high, FP8_BLOCK, wide, FP8_BLOCK)
    scale = blocks.abs().amax((1, 3)) / _FP8_MAX
    scale = torch.where(scale == 0, 1.0, scale)
    codes = (blocks / scale[:, None, :, None]).clamp(-_FP8_MAX, _FP8_MAX).reshape(padded.shape)
    return codes[:rows, :columns].to(torch.float8_e4m3fn).contiguous(), scale


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model by Earthshine's name, routed experts as `layers.L.experts.E.gate`, with its shape."""
    return {published.name: published.shape for published in chain(published_trunk(spec), published_experts(spec))}


def _encode(published: Published, tensor: Tensor) -> tuple[Tensor, ...]:
    if published.storage is Storage.FP8_BLOCK128:
        return encode_fp8(tensor)
    if published.storage is Storage.INT4_GROUP32:
        return encode_int4(tensor)
    if _DTYPE_NAMES.get(tensor.dtype) not in published.parts[0].dtypes:
        allowed = " or ".join(published.parts[0].dtypes)
        raise UsageError(f"{published.name} is {tensor.dtype}, and is published as {allowed}.")
    return (tensor.view(published.parts[0].shape),)


def published_tensors(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Published names and tensors from Earthshine's, encoded in the spec's storages: the inverse of the reader.

    `tensors` is asked for one at a time, trunk first, an expert's parts together, so it may compute them when asked.
    What no storage quantises keeps its dtype, bf16 or fp32. UsageError for a name or shape that does not fit.
    """
    every = list(chain(published_trunk(spec), published_experts(spec)))
    stray = set(tensors) ^ {published.name for published in every}
    if stray:
        raise UsageError(f"{len(stray)} tensors are missing or not of this model, among them {shown(min(stray))}.")
    for published in every:
        tensor = tensors[published.name]
        if tuple(tensor.shape) != published.shape:
            raise UsageError(
                f"{published.name} has shape {list(tensor.shape)}, and should have {list(published.shape)}."
            )
        encoded = _encode(published, tensor)
        yield from ((part.name, value) for part, value in zip(published.parts, encoded, strict=True))


@dataclass(frozen=True, slots=True)
class Streamed:
    """A tensor declared before its data exist, so that a shard's header is written first and memory stays flat.

    `pieces` is called once and yields (byte offset in the tensor, bytes) of what is to be written. What no piece
    covers is left out of the file as a hole, which reads as zeros and takes no space on disk.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[tuple[int, bytes | memoryview]]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _pieces(tensor: Tensor | Streamed) -> Iterable[tuple[int, bytes | memoryview]]:
    if isinstance(tensor, Streamed):
        return tensor.pieces()
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return [(0, flat.view(torch.uint8).numpy().data)]


def _write_at(descriptor: int, data: bytes | memoryview, position: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(descriptor, left, position)
        left, position = left[count:], position + count


def _write_shard(path: Path, tensors: Sequence[tuple[str, Tensor | Streamed]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in tensors:
        end = position + tensor.nbytes
        dtype = _DTYPE_NAMES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    with path.open("xb") as file:
        descriptor = file.fileno()
        _write_at(descriptor, len(text).to_bytes(8, "little") + text, 0)
        start = 8 + len(text)
        os.ftruncate(descriptor, start + position)
        for name, tensor in tensors:
            for offset, piece in _pieces(tensor):
                if not 0 <= offset <= tensor.nbytes - len(piece):
                    raise UsageError(f"{shown(name)} was given data outside its {tensor.nbytes} bytes.")
                _write_at(descriptor, piece, start + offset)
            start += tensor.nbytes
        os.fsync(descriptor)


def shards_by_size(
    tensors: Iterable[tuple[str, Tensor | Streamed]], shard_bytes: int
) -> Iterator[list[tuple[str, Tensor | Streamed]]]:
    """Tensors in order, cut before a shard would exceed `shard_bytes`; a larger tensor is a shard of its own."""
    shard: list[tuple[str, Tensor | Streamed]] = []
    held = 0
    for name, tensor in tensors:
        if shard and held + tensor.nbytes > shard_bytes:
            yield shard
            shard, held = [], 0
        shard.append((name, tensor))
        held += tensor.nbytes
    if shard:
        yield shard


def _write_index(path: Path, names: list[list[str]], shard_names: list[str], total_bytes: int) -> None:
    weight_map = {name: shard for shard, held in zip(shard_names, names, strict=True) for name in held}
    with path.open("x", encoding="utf-8") as file:
        json.dump({"metadata": {"total_size": total_bytes}, "weight_map": weight_map}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_occupied(folder: Path) -> None:
    if any(entry.name == INDEX_NAME or entry.suffix == ".safetensors" for entry in folder.iterdir()):
        raise UsageError(f"{shown(folder)} already holds a checkpoint; write to an empty folder.")


def write_checkpoint(
    folder: Path, tensors: Iterable[tuple[str, Tensor | Streamed]], shard_bytes: int
) -> tuple[Path, ...]:
    """`write_shards` of tensors cut into shards of about `shard_bytes`; holds one shard's tensors in memory."""
    return write_shards(folder, shards_by_size(tensors, shard_bytes))


def write_shards(folder: Path, shards: Iterable[Sequence[tuple[str, Tensor | Streamed]]]) -> tuple[Path, ...]:
    """Writes each of `shards` as a safetensors file, then their index; returns the files, the index last.

    Names follow the published form, `model-00001-of-000064.safetensors`, or `model.safetensors` for a single shard.
    Raises UsageError for tensors that can't be stored or a folder that holds a checkpoint already, CheckpointError
    where the disk refuses; in every such case nothing stays behind.
    """
    created: list[Path] = []
    try:
        if not folder.exists():
            created.append(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_occupied(folder)
        return _write_all(folder, shards, created)
    except BaseException as error:
        for path in reversed(created):
            with contextlib.suppress(OSError):
                path.rmdir() if path == folder else path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CheckpointError(f"{shown(folder)} can't be written: {error.strerror}.") from None
        raise


def _write_all(
    folder: Path, shards: Iterable[Sequence[tuple[str, Tensor | Streamed]]], created: list[Path]
) -> tuple[Path, ...]:
    token = uuid.uuid4().hex
    partial: list[Path] = []
    names: list[list[str]] = []
    seen: set[str] = set()
    total_bytes = 0
    for shard in shards:
        _refuse_unstorable(shard, seen)
        partial.append(folder / f".{token}-{len(partial)}.partial")
        created.append(partial[-1])
        _write_shard(partial[-1], shard)
        names.append([name for name, _ in shard])
        total_bytes += sum(tensor.nbytes for _, tensor in shard)
    if not partial:
        raise UsageError("There are no tensors to write.")
    shard_names = [SINGLE_NAME]
    if len(partial) > 1:
        shard_names = [f"model-{i:05d}-of-{len(partial):06d}.safetensors" for i in range(1, len(partial) + 1)]
        partial.append(folder / f".{token}-index.partial")
        created.append(partial[-1])
        _write_index(partial[-1], names, shard_names, total_bytes)
        shard_names = [*shard_names, INDEX_NAME]
    final = tuple(folder / name for name in shard_names)
    created.extend(final)
    for source, target in zip(partial, final, strict=True):
        source.rename(target)
    _sync_folder(folder)
    return final


def _refuse_unstorable(shard: Sequence[tuple[str, Tensor | Streamed]], seen: set[str]) -> None:
    for name, tensor in shard:
        if name in seen or name == "__metadata__" or tensor.dtype not in _DTYPE_NAMES:
            raise UsageError(f"{shown(name)} is given twice or can't be stored as safetensors.")
        seen.add(name)
