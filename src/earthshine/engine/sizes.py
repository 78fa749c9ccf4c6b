"""How many bytes each part of a model takes in memory: what the division of a budget starts from.

Buffers that reads arrive in count with their padding to pages; activations count at the widest point of a layer.
"""

import torch

from earthshine.plan import Sizes
from earthshine.spec import ModelSpec, MoeSpec
from earthshine.spec.layout import moe_layers
from earthshine.spec.model import DenseSpec, LayerSpec
from earthshine.weights import Checkpoint, embedding_bytes, loading_bytes, slot_bytes, units


def sizes_of(checkpoint: Checkpoint, dtype: torch.dtype, trunk: str) -> Sizes:
    """`trunk`: "bf16" as published, or "int8". With fp32 activations all of the trunk is twice as large and stays."""
    spec = checkpoint.spec
    parts = units(checkpoint)
    wide = dtype.itemsize // 2
    resident = {name: unit.bytes_as("fp32" if wide > 1 else trunk) for name, unit in parts.items()}
    embedding = embedding_bytes(spec) * wide
    if wide > 1:  # then neither streams
        resident["embed"], embedding = embedding, 0
    return Sizes(
        units=resident,
        streamed_units={name: unit.nbytes for name, unit in parts.items()} | {"embed": embedding},
        embedding=embedding,
        expert=slot_bytes(checkpoint),
        experts=tuple(moe.n_experts for _, moe in moe_layers(spec)),
        latent=spec.latent_dim * spec.n_layers * dtype.itemsize,
        activation=max(_activation_values(spec, layer) for layer in spec.layers) * dtype.itemsize,
        logits=spec.vocab_size * 4 * 4,  # and what sampling makes of them
        loading=loading_bytes(parts) if trunk == "int8" else 0,
    )


def _activation_values(spec: ModelSpec, layer: LayerSpec) -> int:
    """Numbers that exist at once for one token of a prompt, whether in attention or in the feed-forward layer."""
    attention = layer.attention
    queries = attention.n_heads * (2 * attention.qk_dim + 2 * attention.v_dim)
    low = 2 * (attention.q_lora_rank or 0) + 3 * attention.latent_dim
    return spec.hidden * 4 + max(queries + low, _ffn_values(spec.hidden, layer.ffn))


def _ffn_values(hidden: int, ffn: DenseSpec | MoeSpec) -> int:
    if isinstance(ffn, MoeSpec):
        return 4 * hidden + 3 * ffn.shared_intermediate + 4 * ffn.n_experts + 16 * ffn.top_k
    return hidden + 3 * ffn.intermediate
