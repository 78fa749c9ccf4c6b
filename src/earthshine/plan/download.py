"""What a model takes on disk, how much of it is there, and whether the rest fits: one calculation for every caller.

`plan` and `inspect` show it, and whatever downloads asks it first. Sizes come from the config unless the caller knows
those of the files.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from earthshine.machine.drive import free_bytes
from earthshine.spec import ModelSpec, footprint
from earthshine.storage.index import is_shard
from earthshine.units import format_bytes, format_decimal
from earthshine.untrusted import shown

ON_LABEL = " on a drive's label"  # which has decimal units
_WHOLE = 0.98  # of the weights: files hold a little less or more than a config tells


@dataclass(frozen=True, slots=True)
class Download:
    """`total_bytes`: of the whole model; `present_bytes`: of them, those that are here; `folder`: where the rest would
    go; `free_bytes`: what can still be written there, None where that is unknown."""

    total_bytes: int
    present_bytes: int
    folder: Path
    free_bytes: int | None

    @property
    def missing_bytes(self) -> int:
        return max(0, self.total_bytes - self.present_bytes)

    @property
    def lacking_bytes(self) -> int:
        """Bytes of free space that the disk lacks; 0 where the rest fits, or where the free space is unknown."""
        return 0 if self.free_bytes is None else max(0, self.missing_bytes - self.free_bytes)

    def sentence(self) -> str:
        """What is downloaded and whether the disk holds it, without a full stop."""
        if not self.missing_bytes:
            return f"none: the weights are here, {format_bytes(self.total_bytes)}"
        size, label = format_bytes(self.missing_bytes), label_size(self.missing_bytes, ON_LABEL)
        if self.present_bytes > (1 - _WHOLE) * self.total_bytes:  # more than the config and the tokenizer
            size += f" more{label}, of {format_bytes(self.total_bytes)}"
        else:
            size += label
        if self.free_bytes is None:
            return size
        free = f"{shown(self.folder)} has {format_bytes(self.free_bytes)} free{label_size(self.free_bytes)}"
        if self.lacking_bytes:
            return f"{size}, which the disk can't hold: {free}"
        return f"{size}, which the disk holds: {free}"


def label_size(nbytes: int, words: str = "") -> str:
    """What follows a size in binary units: " (594 GB)", or nothing below 1 GiB, where the difference hardly matters."""
    return f" ({format_decimal(nbytes)}{words})" if nbytes >= 1 << 30 else ""


def weights_bytes(spec: ModelSpec) -> int:
    """Bytes of the published weights that a config tells of. File headers, vision towers and layers for multi-token
    prediction are not counted: files hold up to 3% more."""
    size = footprint(spec)
    form = "fp8" if spec.trunk_storage.value_type == "fp8" else "bf16"
    return size.experts_bytes + size.trunk_bytes[form]


def download_of(
    spec: ModelSpec, model: Path, downloads: Path, total_bytes: int | None = None, arrived_bytes: int = 0
) -> Download:
    """Of the model in the folder `model`, or of a config.json alone, whose weights would go to `downloads`.

    `total_bytes`: of the files, where they are known; by default what the config tells. `arrived_bytes`: of files that
    are here in part.
    """
    total, present = total_bytes or weights_bytes(spec), present_bytes(model) + arrived_bytes
    if total_bytes is None and present >= _WHOLE * total:
        total = present
    return Download(total, min(present, total), downloads, free_bytes(downloads))


def present_bytes(model: Path) -> int:
    """Bytes of the whole weight files in a folder."""
    if not model.is_dir():
        return 0
    return sum(_size(model / name) for name in os.listdir(model) if is_shard(name))


def _size(file: Path) -> int:
    """Bytes of a file; 0 for one that is not there."""
    try:
        return os.stat(file).st_size
    except OSError:
        return 0
