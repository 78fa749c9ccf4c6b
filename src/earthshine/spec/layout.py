"""The tensors that a model consists of, by Earthshine's own names, from the spec alone.

One table serves the footprint, the checkpoint reader (which adds the published spellings and the stored
formats) and the decoder (which asks for tensors by these names), so that none can drift from another.
Names: "embed", "head", "norm", and for layer i "layers.i." + "attention_norm", "attention.q_a", ...
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from earthshine.spec.model import DenseSpec, LayerSpec, MlaSpec, ModelSpec, MoeSpec

EXPERT_PARTS = ("gate", "up", "down")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One trunk tensor. `linear` marks those that a quantised checkpoint stores in `trunk_storage`."""

    name: str
    shape: tuple[int, ...]
    linear: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def in_fp32(self) -> bool:
        """Used in fp32 whatever the activations are: router logits in bf16 change choices."""
        return self.name.endswith((".router", ".router_bias"))


def expert_shapes(hidden: int, moe: MoeSpec) -> dict[str, tuple[int, int]]:
    """[out, in] of a routed expert's three matrices."""
    return {"gate": (moe.intermediate, hidden), "up": (moe.intermediate, hidden), "down": (hidden, moe.intermediate)}


def _ffn(prefix: str, hidden: int, intermediate: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{prefix}.gate", (intermediate, hidden), linear=True)
    yield TensorSpec(f"{prefix}.up", (intermediate, hidden), linear=True)
    yield TensorSpec(f"{prefix}.down", (hidden, intermediate), linear=True)


def _attention(prefix: str, hidden: int, mla: MlaSpec) -> Iterator[TensorSpec]:
    q_out = mla.n_heads * mla.qk_dim
    if mla.q_lora_rank is None:
        yield TensorSpec(f"{prefix}.q", (q_out, hidden), linear=True)
    else:
        yield TensorSpec(f"{prefix}.q_a", (mla.q_lora_rank, hidden), linear=True)
        yield TensorSpec(f"{prefix}.q_a_norm", (mla.q_lora_rank,), linear=False)
        yield TensorSpec(f"{prefix}.q_b", (q_out, mla.q_lora_rank), linear=True)
    yield TensorSpec(f"{prefix}.kv_a", (mla.latent_dim, hidden), linear=True)
    yield TensorSpec(f"{prefix}.kv_a_norm", (mla.kv_lora_rank,), linear=False)
    yield TensorSpec(f"{prefix}.kv_b", (mla.n_heads * (mla.nope_dim + mla.v_dim), mla.kv_lora_rank), linear=True)
    yield TensorSpec(f"{prefix}.o", (hidden, mla.n_heads * mla.v_dim), linear=True)


def layer_tensors(index: int, layer: LayerSpec, hidden: int) -> Iterator[TensorSpec]:
    """The trunk tensors of one layer; routed experts are not among them."""
    prefix = f"layers.{index}"
    yield TensorSpec(f"{prefix}.attention_norm", (hidden,), linear=False)
    yield from _attention(f"{prefix}.attention", hidden, layer.attention)
    yield TensorSpec(f"{prefix}.ffn_norm", (hidden,), linear=False)
    if isinstance(layer.ffn, DenseSpec):
        yield from _ffn(f"{prefix}.ffn", hidden, layer.ffn.intermediate)
        return
    yield TensorSpec(f"{prefix}.router", (layer.ffn.n_experts, hidden), linear=False)
    yield TensorSpec(f"{prefix}.router_bias", (layer.ffn.n_experts,), linear=False)
    if layer.ffn.shared_intermediate:
        yield from _ffn(f"{prefix}.shared", hidden, layer.ffn.shared_intermediate)


def trunk_tensors(model: ModelSpec) -> Iterator[TensorSpec]:
    """All that is not a routed expert, in the order a forward pass meets it."""
    yield TensorSpec("embed", (model.vocab_size, model.hidden), linear=False)
    for index, layer in enumerate(model.layers):
        yield from layer_tensors(index, layer, model.hidden)
    yield TensorSpec("norm", (model.hidden,), linear=False)
    yield TensorSpec("head", (model.vocab_size, model.hidden), linear=False)


def moe_layers(model: ModelSpec) -> Iterator[tuple[int, MoeSpec]]:
    for index, layer in enumerate(model.layers):
        if isinstance(layer.ffn, MoeSpec):
            yield index, layer.ffn
