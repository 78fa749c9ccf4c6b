"""The decoder: one forward pass for every family, driven by the spec and by tensors under Earthshine's own names.

It holds no state of a conversation. What a token may attend to is the caller's `Context`, and where routed experts
lie is the caller's `Experts`, so prefill, decode, training and tests run the same lines.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from earthshine import kernels
from earthshine.kernels import Weight
from earthshine.models.ffn import Experts, Ffn, Moe
from earthshine.models.mla import Mla, MlaWeights, Query
from earthshine.models.rope import RotaryTable
from earthshine.models.trunk import LayerWeights, ResidentTrunk, Trunk
from earthshine.spec.model import LayerSpec, ModelSpec, MoeSpec


class Context(Protocol):
    """What the tokens of one step attend to."""

    def attend(self, layer: int, attention: Mla, query: Query, latent: Tensor) -> Tensor:
        """Keep the new tokens' latents [..., tokens, latent_dim] and return [..., tokens, n_heads, v_dim]."""
        ...


class _Layer:
    """x + attention(norm x), then x + ffn(norm x)."""

    def __init__(self, index: int, spec: LayerSpec, weights: LayerWeights, table: RotaryTable, eps: float) -> None:
        self.index, self.weights, self._eps = index, weights, eps
        self._attention_norm, self._ffn_norm = _plain(weights, "attention_norm"), _plain(weights, "ffn_norm")
        attention = MlaWeights(**_under(weights, "attention."))  # type: ignore[arg-type]
        self.attention = Mla(spec.attention, attention, table)
        self._moe: Moe | None = None
        self._dense: Ffn | None = None
        if isinstance(spec.ffn, MoeSpec):
            shared = Ffn(**_under(weights, "shared.")) if spec.ffn.shared_intermediate else None
            self._moe = Moe(spec.ffn, index, _plain(weights, "router"), _plain(weights, "router_bias"), shared)
        else:
            self._dense = Ffn(**_under(weights, "ffn."))

    def __call__(self, x: Tensor, positions: Tensor, context: Context, experts: Experts) -> Tensor:
        normed = kernels.rms_norm(x, self._attention_norm, self._eps)
        query, latent = self.attention.query(normed, positions), self.attention.latent(normed, positions)
        mixed = self.attention.output(context.attend(self.index, self.attention, query, latent))
        x, normed = kernels.add_rms_norm(x, mixed, self._ffn_norm, self._eps)
        if self._moe is not None:
            return x + self._moe(normed, experts)
        assert self._dense is not None
        return x + self._dense(normed)


class Decoder:
    """`weights` is a Trunk, or every tensor of `spec.layout.trunk_tensors` by name."""

    def __init__(self, spec: ModelSpec, weights: Trunk | Mapping[str, Weight], experts: Experts) -> None:
        self.spec = spec
        self.trunk: Trunk = ResidentTrunk(weights) if isinstance(weights, Mapping) else weights
        self._experts = experts
        self._tables = {layer.attention.rope: RotaryTable(layer.attention.rope) for layer in spec.layers}
        self._layers: list[_Layer | None] = [None] * spec.n_layers

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and latents."""
        return self.trunk.dtype

    def hidden(
        self, tokens: Tensor, positions: Tensor, context: Context, after_layer: Callable[[int], None] | None = None
    ) -> Tensor:
        """tokens: int64 [..., tokens]; positions: int64 [tokens]. Returns [..., tokens, hidden] after the last norm.

        All tokens pass a layer before the next layer's weights are asked for; `after_layer` is told its number.
        """
        x = self.trunk.embed(tokens)
        for index in range(self.spec.n_layers):
            with self.trunk.layer(index) as weights:
                x = self._layer(index, weights)(x, positions, context, self._experts)
            if after_layer is not None:
                after_layer(index)
        return kernels.rms_norm(x, self.trunk.norm, self.spec.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] to fp32 [..., vocab_size]."""
        with self.trunk.head() as head:
            return kernels.linear(hidden, head, torch.float32)

    def _layer(self, index: int, weights: LayerWeights) -> _Layer:
        """Made anew only where the trunk's weights for it have moved."""
        layer = self._layers[index]
        if layer is None or layer.weights is not weights:
            spec = self.spec.layers[index]
            layer = _Layer(index, spec, weights, self._tables[spec.attention.rope], self.spec.norm_eps)
            self._layers[index] = layer
        return layer


def _plain(weights: LayerWeights, name: str) -> Tensor:
    weight = weights[name]
    assert isinstance(weight, Tensor), f"{name} is published in full"
    return weight


def _under(weights: LayerWeights, prefix: str) -> dict[str, Weight]:
    return {name[len(prefix) :]: weight for name, weight in weights.items() if name.startswith(prefix)}
