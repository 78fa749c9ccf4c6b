"""Reads published checkpoints in place as tensors, and fetches routed experts as tokens need them.

Owns the safetensors reader, the published names of tensors, reads past the page cache, checksums, the expert store, and
the trunk, resident or streamed. Values are those published, quantised ones as the bytes that kernels take; only an int8
trunk is rounded. No pickle, no memory map of a file, no unchecked length: a file that is damaged, unsafe or does not
fit its config is refused with a CheckpointError.
"""

from earthshine.weights.arrivals import Held
from earthshine.weights.checkpoint import Checkpoint
from earthshine.weights.experts import ExpertStats, ExpertStore, Loan
from earthshine.weights.formats import dense, exactly
from earthshine.weights.manifest import Manifest, load_manifest, write_manifest
from earthshine.weights.placement import slot_bytes
from earthshine.weights.reading import Reader
from earthshine.weights.trunk import StoredTrunk, embedding_bytes, units

__all__ = [
    "Checkpoint",
    "ExpertStats",
    "ExpertStore",
    "Held",
    "Loan",
    "Manifest",
    "Reader",
    "StoredTrunk",
    "dense",
    "embedding_bytes",
    "exactly",
    "load_manifest",
    "slot_bytes",
    "units",
    "write_manifest",
]
