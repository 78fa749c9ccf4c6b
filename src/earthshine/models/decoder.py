"""The decoder: one forward pass for every family, driven by the spec and by tensors under Earthshine's own names.

It holds no state of a conversation. What a token may attend to is the caller's `Context`, and where routed experts
lie is the caller's `Experts`, so prefill, decode, training and tests run the same lines.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from earthshine import kernels
from earthshine.models.ffn import Experts, Ffn, Moe
from earthshine.models.mla import Mla, MlaWeights, Query
from earthshine.models.rope import RotaryTable
from earthshine.spec.model import LayerSpec, ModelSpec, MoeSpec


class Context(Protocol):
    """What the tokens of one step attend to."""

    def attend(self, layer: int, attention: Mla, query: Query, latent: Tensor) -> Tensor:
        """Keep the new tokens' latents [..., tokens, latent_dim] and return [..., tokens, n_heads, v_dim]."""
        ...


class _Layer:
    """x + attention(norm x), then x + ffn(norm x)."""

    def __init__(self, index: int, spec: LayerSpec, weights: Mapping[str, Tensor], table: RotaryTable, eps: float):
        mine = _under(weights, f"layers.{index}.")
        self.index, self._eps = index, eps
        self._attention_norm, self._ffn_norm = mine["attention_norm"], mine["ffn_norm"]
        self.attention = Mla(spec.attention, MlaWeights(**_under(mine, "attention.")), table)
        self._moe: Moe | None = None
        self._dense: Ffn | None = None
        if isinstance(spec.ffn, MoeSpec):
            shared = Ffn(**_under(mine, "shared.")) if spec.ffn.shared_intermediate else None
            self._moe = Moe(spec.ffn, index, mine["router"], mine["router_bias"], shared)
        else:
            self._dense = Ffn(**_under(mine, "ffn."))

    def __call__(self, x: Tensor, positions: Tensor, context: Context, experts: Experts) -> Tensor:
        normed = kernels.rms_norm(x, self._attention_norm, self._eps)
        query, latent = self.attention.query(normed, positions), self.attention.latent(normed, positions)
        x = x + self.attention.output(context.attend(self.index, self.attention, query, latent))
        normed = kernels.rms_norm(x, self._ffn_norm, self._eps)
        if self._moe is not None:
            return x + self._moe(normed, experts)
        assert self._dense is not None
        return x + self._dense(normed)


class Decoder:
    """`weights` holds every tensor of `spec.layout.trunk_tensors`, linear layers in the activations' dtype."""

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Tensor], experts: Experts) -> None:
        self.spec = spec
        self._embed, self._norm, self._head = weights["embed"], weights["norm"], weights["head"]
        self._experts = experts
        tables = {layer.attention.rope: RotaryTable(layer.attention.rope) for layer in spec.layers}
        self._layers = [
            _Layer(index, layer, weights, tables[layer.attention.rope], spec.norm_eps)
            for index, layer in enumerate(spec.layers)
        ]

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and latents."""
        return self._embed.dtype

    def hidden(self, tokens: Tensor, positions: Tensor, context: Context) -> Tensor:
        """tokens: int64 [..., tokens]; positions: int64 [tokens]. Returns [..., tokens, hidden] after the last norm."""
        x = functional.embedding(tokens, self._embed)
        for layer in self._layers:
            x = layer(x, positions, context, self._experts)
        return kernels.rms_norm(x, self._norm, self.spec.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] to fp32 [..., vocab_size]."""
        return kernels.linear(hidden, self._head).float()


def _under(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}
