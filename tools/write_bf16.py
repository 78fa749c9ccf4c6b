"""Copies a published checkpoint in bf16, with the same values, for peers that can't read its INT4 or FP8.

    python tools/write_bf16.py MODEL COPY [--shard-bytes SIZE]

A published INT4 or FP8 value is its code times its scale, rounded to bf16: what Earthshine computes with, and what is
written. What was bf16 or fp32 stays as it is. One shard is in memory at a time. COPY must be new or hold no
checkpoint, and holds a whole one or none; a model whose config can't be stored in bf16 is refused.
"""

import argparse
import copy
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from checkpoints.writer import published_tensors, tensor_shapes, write_checkpoint
from torch import Tensor

from earthshine.errors import EarthshineError, UsageError
from earthshine.spec import read_config, spec_from_config
from earthshine.storage import Storage
from earthshine.units import parse_bytes
from earthshine.weights import Checkpoint
from earthshine.weights.formats import StoredLinear
from earthshine.weights.shards import read_tensor


class Decoded(Mapping[str, Tensor]):
    """A checkpoint's tensors by Earthshine's names, each read and decoded to its published values on access."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._names = tensor_shapes(checkpoint.spec)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> Tensor:
        if ".experts." not in name:
            return self._checkpoint.trunk(name)
        _, layer, _, expert, _ = name.split(".")
        for published, extents in self._checkpoint.expert_extents(int(layer), int(expert)).parts:
            if published.name == name:
                names = tuple(part.name for part in published.parts)
                tensors = tuple(read_tensor(extent) for extent in extents)
                linear = StoredLinear(published.shape, published.storage, names, tensors)
                linear.check()
                return linear.decode()
        raise KeyError(name)


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without its quantisation: of a model whose every weight is bf16."""
    plain = copy.deepcopy(dict(config))
    plain.pop("quantization_config", None)
    if isinstance(plain.get("text_config"), dict):
        plain["text_config"].pop("quantization_config", None)
    return plain


def write_bf16(source: Path, target: Path, shard_bytes: int = 1 << 30) -> None:
    """Copies a checkpoint and its config, decoded. Raises the errors of reading and writing checkpoints."""
    config = read_config(source)
    plain = plain_config(config)
    spec = spec_from_config(plain)
    if spec.expert_storage is not Storage.BF16 or spec.trunk_storage is not Storage.BF16:
        raise UsageError(f"{source} is of a family that has no config for bf16.")
    checkpoint = Checkpoint.open(source, spec_from_config(config))
    write_checkpoint(target, published_tensors(spec, Decoded(checkpoint)), shard_bytes)
    (target / "config.json").write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("copy", type=Path, metavar="COPY")
    parser.add_argument("--shard-bytes", default="1GiB", metavar="SIZE")
    options = parser.parse_args()
    try:
        write_bf16(options.model, options.copy, parse_bytes(options.shard_bytes))
    except EarthshineError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
