"""A published checkpoint's tensors in plain numpy, and INT4 experts as llama.cpp's Q4_0 with the same values.

Runs in any side's Python: standard library and numpy alone. A block of Q4_0 is a float16 scale and 16 bytes, byte j
holding values j (low nibble) and j + 16, a value being (nibble - 8) * scale. Published nibbles are stored plus 8 too,
so they are moved, not rounded; a bf16 scale that float16 can't hold exactly is refused.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

GROUP, BLOCK_BYTES = 32, 18
_DTYPES = {"BF16": np.uint16, "F32": np.float32, "I32": np.int32}


class Refused(Exception):
    """Raised where the checkpoint can't be written as GGUF with its values kept; the message gives the reason."""


class Published:
    """Tensors of a folder of safetensors by name, mapped rather than read."""

    def __init__(self, folder: Path) -> None:
        self._where: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= path.stat().st_size - 8:
                    raise Refused(f"{path} is not a safetensors file.")
                header = json.loads(file.read(length))
            self._where |= {k: (path, 8 + length, v) for k, v in header.items() if k != "__metadata__"}
        found = next((name for name in self._where if name.endswith("model.embed_tokens.weight")), None)
        if found is None:
            raise Refused(f"{folder} has no embedding, so it is not the checkpoint of a model.")
        self.prefix = found.removesuffix("model.embed_tokens.weight")

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self._where

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entry(name)[2]["shape"])

    def array(self, name: str) -> np.ndarray:
        """The tensor as stored; bf16 as uint16."""
        path, start, entry = self._entry(name)
        if entry["dtype"] not in _DTYPES:
            raise Refused(f"{name} is stored as {entry['dtype']}; only INT4 experts and a bf16 trunk are written.")
        begin, _ = entry["data_offsets"]
        shape = tuple(entry["shape"])
        return np.memmap(path, _DTYPES[entry["dtype"]], "r", start + begin, shape)

    def _entry(self, name: str) -> tuple[Path, int, dict[str, Any]]:
        if name not in self:
            raise Refused(f"The checkpoint has no tensor {name}.")
        return self._where[self.prefix + name]


def widened(stored: np.ndarray) -> np.ndarray:
    """float32 of bf16 bits, or of float32 itself."""
    return (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else np.asarray(stored)


def q4_0(packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Blocks of Q4_0, uint8 [rows, groups, 18], of int32 [rows, columns/8] and bf16 bits [rows, columns/32].

    Raises Refused where float16 does not hold a scale exactly.
    """
    rows, groups = scales.shape
    pairs = np.ascontiguousarray(packed).view(np.uint8).reshape(rows, groups, GROUP // 2)
    # byte i of a group holds values 2i and 2i+1; halves: values 0..15 and 16..31
    first, second = pairs[..., :8], pairs[..., 8:]
    out = np.empty((rows, groups, BLOCK_BYTES), np.uint8)
    out[..., 2::2] = (first & 15) | (second << 4)
    out[..., 3::2] = (first >> 4) | (second & 0xF0)
    exact = widened(scales)
    with np.errstate(over="ignore"):
        halves = exact.astype(np.float16)
    if not np.array_equal(halves.astype(np.float32), exact):
        wrong = exact[halves.astype(np.float32) != exact].flat[0]
        raise Refused(f"A scale of {wrong!r} is not exact in float16, so Q4_0 can't hold the published values.")
    out[..., :2] = halves[..., None].view(np.uint8)
    return out
