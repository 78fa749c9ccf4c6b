"""Which files of a model's folder hold its weights: one `model.safetensors`, or the shards that an index names.

Nothing is trusted: an index of more than 100 MB, with anything but a map from tensors to plain names of safetensors
files, or behind a link that leaves the folder, raises CheckpointError. Whether the shards are there is the caller's.
"""

import os
from pathlib import Path
from typing import Any

from earthshine.errors import CheckpointError
from earthshine.untrusted import parse_object, read_file, resolve_in, shown

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
SHARD_SUFFIX = ".safetensors"
_MOST_BYTES = 100_000_000  # Kimi-K2.6's has 25 MB
_MOST_NAME_BYTES = 255  # of a file on Linux
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def is_shard(name: str) -> bool:
    """Whether a file of this name holds weights."""
    return name.endswith(SHARD_SUFFIX)


def has_weights(folder: Path) -> bool:
    """Whether an index or a single weight file is in `folder`, a dangling link included."""
    return any(os.path.lexists(folder / name) for name in (INDEX_NAME, SINGLE_NAME))


def read_weight_map(folder: Path) -> dict[str, str]:
    """From each tensor's name to its shard's, as the folder's index says. Raises CheckpointError."""
    raw = read_file(resolve_in(folder, INDEX_NAME, CheckpointError), INDEX_NAME, _MOST_BYTES, CheckpointError)
    index = parse_object(raw, INDEX_NAME, CheckpointError)
    weight_map: Any = index.get("weight_map")
    if not index.keys() <= {"weight_map", "metadata"} or not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_NAME} should hold a weight_map that is not empty and metadata, nothing else.")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not is_shard(shard):
            raise CheckpointError(f"{INDEX_NAME} should map each tensor to the name of a {SHARD_SUFFIX} file.")
        if not _PLAIN.issuperset(shard) or shard.startswith(".") or len(shard) > _MOST_NAME_BYTES:
            raise CheckpointError(f"{INDEX_NAME} names the shard {shown(shard)}, which is not a plain file name.")
    return weight_map


def shard_path(folder: Path, shard: str) -> Path:
    """The real path of a weight file, which need not exist and may be elsewhere.

    Raises CheckpointError for a link that leaves the folder to a file of another kind.
    """
    return resolve_in(folder, shard, CheckpointError, elsewhere=SHARD_SUFFIX)


def shard_names(folder: Path) -> list[str]:
    """The weight files that a folder needs: those of its index, or the single one where there is no index.

    Raises CheckpointError for a damaged index.
    """
    if not os.path.lexists(folder / INDEX_NAME):
        return [SINGLE_NAME]
    return sorted(set(read_weight_map(folder).values()))
