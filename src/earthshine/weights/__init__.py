"""Bytes on disk to tensors: published checkpoints read in place, and routed experts fetched as tokens need them.

Owns the safetensors reader and writer, the published names of tensors, the reads past the page cache, the checksums
and the expert store. Every value that leaves this package is the published one: quantised trunk tensors decoded to
bf16 as their publishers do, experts as the published bytes that kernels take. No pickle, no memory map of a file, no
unchecked length: a file that is damaged, unsafe or does not fit its config is refused with a CheckpointError.
"""

from earthshine.weights.checkpoint import Checkpoint
from earthshine.weights.experts import ExpertStats, ExpertStore
from earthshine.weights.formats import exactly
from earthshine.weights.manifest import Manifest, load_manifest, write_manifest
from earthshine.weights.placement import slot_bytes
from earthshine.weights.reading import Priority, Reader, Segment, Ticket, padded
from earthshine.weights.shards import open_shards
from earthshine.weights.slots import Arena
from earthshine.weights.trunk import StoredTrunk, embedding_bytes, units
from earthshine.weights.writer import write_checkpoint

__all__ = [
    "Arena",
    "Checkpoint",
    "ExpertStats",
    "ExpertStore",
    "Manifest",
    "Priority",
    "Reader",
    "Segment",
    "StoredTrunk",
    "Ticket",
    "embedding_bytes",
    "exactly",
    "load_manifest",
    "open_shards",
    "padded",
    "slot_bytes",
    "units",
    "write_checkpoint",
    "write_manifest",
]
