"""The tensors of a model, by Earthshine's own names, from the spec alone.

One table serves the footprint, the checkpoint reader (which adds published names and stored formats) and the decoder
(which asks for tensors by these names), so that they always agree. Names: "embed", "head", "norm", and for layer i
"layers.i." + "attention_norm", "attention.q_a", ...
"""

from collections.abc import Iterator
from dataclasses import replace

from earthshine.spec.model import DenseSpec, LayerSpec, ModelSpec, MoeSpec
from earthshine.spec.tensor import TensorSpec, Use

EXPERT_PARTS = ("gate", "up", "down")


def expert_shapes(hidden: int, moe: MoeSpec) -> dict[str, tuple[int, int]]:
    """[out, in] of a routed expert's three matrices."""
    return {"gate": (moe.intermediate, hidden), "up": (moe.intermediate, hidden), "down": (hidden, moe.intermediate)}


def _ffn(prefix: str, hidden: int, intermediate: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{prefix}.gate", (intermediate, hidden), linear=True)
    yield TensorSpec(f"{prefix}.up", (intermediate, hidden), linear=True)
    yield TensorSpec(f"{prefix}.down", (hidden, intermediate), linear=True)


def layer_tensors(index: int, layer: LayerSpec, hidden: int) -> Iterator[TensorSpec]:
    """The trunk tensors of one layer, without routed experts."""
    prefix = f"layers.{index}"
    yield TensorSpec(f"{prefix}.attention_norm", (hidden,))
    for tensor in layer.attention.tensors(hidden):
        yield replace(tensor, name=f"{prefix}.attention.{tensor.name}")
    yield TensorSpec(f"{prefix}.ffn_norm", (hidden,))
    if isinstance(layer.ffn, DenseSpec):
        yield from _ffn(f"{prefix}.ffn", hidden, layer.ffn.intermediate)
        return
    yield TensorSpec(f"{prefix}.router", (layer.ffn.n_experts, hidden), use=Use.FP32)
    if layer.ffn.router.has_bias:
        yield TensorSpec(f"{prefix}.router_bias", (layer.ffn.n_experts,), use=Use.FP32, published_fp32=True)
    if layer.ffn.shared_intermediate:
        yield from _ffn(f"{prefix}.shared", hidden, layer.ffn.shared_intermediate)


def trunk_tensors(model: ModelSpec) -> Iterator[TensorSpec]:
    """All tensors except routed experts, in the order of a forward pass."""
    yield TensorSpec("embed", (model.vocab_size, model.hidden))
    for index, layer in enumerate(model.layers):
        yield from layer_tensors(index, layer, model.hidden)
    yield TensorSpec("norm", (model.hidden,))
    yield TensorSpec("head", (model.vocab_size, model.hidden))


def trunk_units(model: ModelSpec) -> dict[str, list[TensorSpec]]:
    """The parts of the trunk that are read and kept together, in the order of a forward pass: "layers.0" and so on, and
    "head"."""
    units: dict[str, list[TensorSpec]] = {}
    for tensor in trunk_tensors(model):
        if tensor.name not in ("embed", "norm"):
            name = ".".join(tensor.name.split(".")[:2])
            units.setdefault(name, []).append(tensor)
    return units


def moe_layers(model: ModelSpec) -> Iterator[tuple[int, MoeSpec]]:
    for index, layer in enumerate(model.layers):
        if isinstance(layer.ffn, MoeSpec):
            yield index, layer.ffn
