"""Grouped-query attention with norms over each head of queries and keys (arXiv 2305.13245; Qwen3, arXiv 2505.09388).

A token leaves behind, for each key head, its key after norm and rotation, then its value.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from earthshine import kernels
from earthshine.kernels import Weight
from earthshine.models.fused import FusedAttention
from earthshine.models.rope import RotaryTable
from earthshine.models.state import LayerState
from earthshine.spec.attention import GqaSpec


@dataclass(frozen=True, slots=True)
class GqaWeights:
    """Matrices are [out, in]."""

    q: Weight  # [n_heads * head_dim, hidden]
    q_norm: Tensor  # [head_dim]
    k: Weight  # [n_kv_heads * head_dim, hidden]
    k_norm: Tensor  # [head_dim]
    v: Weight  # [n_kv_heads * head_dim, hidden]
    o: Weight  # [hidden, n_heads * head_dim]


class Gqa:
    """One layer's attention."""

    def __init__(self, spec: GqaSpec, weights: GqaWeights, table: RotaryTable) -> None:
        self.spec, self.weights, self.table = spec, weights, table
        self.scale: float = spec.head_dim**-0.5

    def __call__(self, x: Tensor, positions: Tensor, state: LayerState | None) -> Tensor:
        """x: [tokens, hidden] of a step's sequences; positions: int64 [tokens]. Returns [tokens, hidden].

        Without a state x may have leading axes, which are separate sequences from position 0.
        """
        spec, w = self.spec, self.weights
        query = self._rotated(kernels.linear(x, w.q), w.q_norm, positions)
        key = self._rotated(kernels.linear(x, w.k), w.k_norm, positions)
        value = kernels.linear(x, w.v).unflatten(-1, (spec.n_kv_heads, spec.head_dim))
        if state is None:
            heads = self._whole(query, key, value)
        else:
            pool = state.extend(torch.cat((key, value), -1).flatten(-2))
            heads = torch.cat([
                kernels.paged_attention(
                    query[piece.first : piece.last],
                    pool,
                    piece.sequences,
                    self.scale,
                    n_kv_heads=spec.n_kv_heads,
                    value_offset=spec.head_dim,
                    value_dim=spec.head_dim,
                )
                for piece in state.pieces
            ])  # fmt: skip
        return kernels.linear(heads.flatten(-2), w.o)

    def fused(self, norm: Tensor, eps: float) -> FusedAttention | None:
        """As Attention.fused."""
        spec, w = self.spec, self.weights
        sizes = (spec.n_heads, spec.n_kv_heads, spec.head_dim, spec.rope.dim)
        shape = kernels.GqaShape(*sizes, eps, spec.norm_eps, self.scale)
        layer = kernels.gqa_layer(shape, kernels.GqaTensors(norm, w.q, w.q_norm, w.k, w.k_norm, w.v, w.o))
        return None if layer is None else FusedAttention(layer, self.table)

    def _rotated(self, values: Tensor, norm: Tensor, positions: Tensor) -> Tensor:
        """[..., tokens, heads * head_dim] to [..., tokens, heads, head_dim], normed, the first rope.dim rotated."""
        spec = self.spec
        heads = kernels.rms_norm(values.unflatten(-1, (-1, spec.head_dim)), norm, spec.norm_eps)
        cos, sin = (part[:, None] for part in self.table.at(positions))
        if spec.rope.dim == spec.head_dim:
            return kernels.rotate(heads, cos, sin, interleaved=False)
        rotated = kernels.rotate(heads[..., : spec.rope.dim], cos, sin, interleaved=False)
        return torch.cat((rotated, heads[..., spec.rope.dim :]), -1)

    def _whole(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All tokens of each sequence at once: [..., tokens, n_heads, head_dim]."""
        shared = self.spec.n_heads // self.spec.n_kv_heads
        key, value = (part.repeat_interleave(shared, -2).transpose(-2, -3) for part in (key, value))
        return kernels.attend(query.transpose(-2, -3), key, value, self.scale, 0).transpose(-2, -3)
