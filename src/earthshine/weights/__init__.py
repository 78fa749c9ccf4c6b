"""Bytes on disk to tensors: published checkpoints read in place, and routed experts fetched as tokens need them.

Owns the safetensors reader and writer, the published names of tensors, and the expert store. Every value that leaves
this package is the published one, FP8 and INT4 decoded to bf16 as their publishers do. No pickle, no memory map, no
unchecked length: a file that is damaged, unsafe or does not fit its config is refused with a CheckpointError.
"""

from earthshine.weights.checkpoint import Checkpoint
from earthshine.weights.experts import StoredExperts
from earthshine.weights.formats import exactly
from earthshine.weights.shards import open_shards
from earthshine.weights.writer import write_checkpoint

__all__ = ["Checkpoint", "StoredExperts", "exactly", "open_shards", "write_checkpoint"]
