"""Small models and hand-made safetensors files that the tests of this folder share."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from checkpoints.writer import published_tensors, tensor_shapes, write_checkpoint

from earthshine.spec.attention import MlaSpec, RopeSpec
from earthshine.spec.model import DenseSpec, LayerSpec, ModelSpec, MoeSpec, RouterSpec
from earthshine.storage import Storage
from earthshine.weights.checkpoint import Checkpoint
from earthshine.weights.formats import dense
from earthshine.weights.placement import check_values, place, slot_bytes, stored_expert
from earthshine.weights.reading import Reader, Segment
from earthshine.weights.slots import Arena

N_EXPERTS = 6
HIDDEN = 160  # a multiple of int4's group of 32, and more than one fp8 block of 128


def tiny_spec(
    experts: Storage = Storage.BF16, trunk: Storage = Storage.BF16, *, family: str = "deepseek_v3", n_mtp: int = 0
) -> ModelSpec:
    """Three layers, the first dense, six experts; all shapes differ from one another where they can."""
    mla = MlaSpec(2, 24, 32, 16, 8, RopeSpec(8, 10000.0, None), 1e-6)
    plain = MlaSpec(2, None, 32, 16, 8, RopeSpec(8, 10000.0, None), 1e-6)
    moe = MoeSpec(N_EXPERTS, 2, 96, 64, RouterSpec(1, 1, True, 2.5))
    layers = (LayerSpec(mla, DenseSpec(192)), LayerSpec(mla, moe), LayerSpec(plain, moe))
    return ModelSpec(family, HIDDEN, 50, 1024, 1e-6, layers, trunk, experts, 0, (1,), n_mtp_layers=n_mtp)


def random_tensors(spec: ModelSpec, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Seeded values for every tensor by Earthshine's name; router biases are fp32, as published."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).mul(0.2).to(torch.float32 if "bias" in name else dtype)
        for name, shape in tensor_shapes(spec).items()
    }


def write_tiny(
    folder: Path, spec: ModelSpec, *, shard_bytes: int = 2**40, widen: bool = False, **values: Any
) -> dict[str, torch.Tensor]:
    """Writes a random checkpoint, its values as fp32 to `widen`, and returns what went in by Earthshine's names."""
    tensors = random_tensors(spec, **values)
    if widen:
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
    write_checkpoint(folder, published_tensors(spec, tensors), shard_bytes)
    return tensors


def open_tiny(folder: Path, spec: ModelSpec, **values: Any) -> Checkpoint:
    write_tiny(folder, spec, **values)
    return Checkpoint.open(folder, spec)


def expert_values(checkpoint: Checkpoint, layer: int, expert: int) -> list[torch.Tensor]:
    """Gate, up and down of one expert in bf16, read and checked as the store does."""
    arena = Arena(slot_bytes(checkpoint), 1)
    placed = place(checkpoint.expert_extents(layer, expert), arena.slot_bytes)
    view = arena.view(0)
    segments = [Segment(span.file, span.offset, span.nbytes, view[at:]) for span, at in placed.ranges]
    with Reader() as reader:
        ticket = reader.ticket(segments, lambda: check_values(placed, view))
        reader.queue(ticket)
        ticket.wait()
    found = stored_expert(placed, arena.tensor(0))
    return [dense(weight, torch.bfloat16).clone() for weight in (found.gate, found.up, found.down)]


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw_file(path: Path, header: Mapping[str, object] | bytes, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file of exactly these parts, however wrong; `length` overrides the header's length field."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path
