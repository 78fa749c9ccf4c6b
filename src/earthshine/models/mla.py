"""Multi-Head Latent Attention, naive and absorbed side by side (DeepSeek-V2, arXiv 2405.04434, section 2.1).

A token leaves one latent behind: `kv_lora_rank` values after their norm, then `rope.dim` values of a key that all
heads share, after rotation. Naive attention expands latents to keys and values a head; absorbed attention moves the
expansion to the query's and the output's side, so the latents are read as they are. Both give the same result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from earthshine import kernels
from earthshine.kernels import Weight
from earthshine.models.fused import FusedAttention
from earthshine.models.rope import RotaryTable, softmax_scale
from earthshine.models.state import LayerState
from earthshine.spec.attention import MlaSpec


class Query(NamedTuple):
    nope: Tensor  # [..., tokens, n_heads, nope_dim]
    rope: Tensor  # [..., tokens, n_heads, rope.dim], rotated unless the spec has no theta

    def part(self, first: int, last: int) -> "Query":
        """Of tokens `first` to `last` - 1."""
        return Query(self.nope[first:last], self.rope[first:last])


@dataclass(frozen=True, slots=True)
class MlaWeights:
    """Matrices are [out, in]; either `q`, or `q_a`, `q_a_norm` and `q_b`."""

    kv_a: Weight  # [kv_lora_rank + rope.dim, hidden]
    kv_a_norm: Tensor  # [kv_lora_rank]
    kv_b: Tensor  # [n_heads * (nope_dim + v_dim), kv_lora_rank]; plain, since absorbing takes it apart
    o: Weight  # [hidden, n_heads * v_dim]
    q: Weight | None = None  # [n_heads * qk_dim, hidden]
    q_a: Weight | None = None  # [q_lora_rank, hidden]
    q_a_norm: Tensor | None = None  # [q_lora_rank]
    q_b: Weight | None = None  # [n_heads * qk_dim, q_lora_rank]

    def __post_init__(self) -> None:
        low = [part is not None for part in (self.q_a, self.q_a_norm, self.q_b)]
        if low != [self.q is None] * 3:
            raise ValueError("the query's weights are either q, or q_a with q_a_norm and q_b")


class Mla:
    """One layer's attention."""

    def __init__(self, spec: MlaSpec, weights: MlaWeights, table: RotaryTable | None) -> None:
        self.spec, self.weights = spec, weights
        self.table = table
        self.scale = softmax_scale(spec)
        heads = weights.kv_b.unflatten(0, (spec.n_heads, -1))
        self._w_uk, self._w_uv = heads.split((spec.nope_dim, spec.v_dim), dim=1)  # [n_heads, nope or v, kv_lora_rank]

    def __call__(self, x: Tensor, positions: Tensor, state: LayerState | None) -> Tensor:
        """x: [tokens, hidden] of a step's sequences; positions: int64 [tokens]. Returns [tokens, hidden].

        Without a state x may have leading axes, which are separate sequences from position 0.
        """
        query, latent = self.query(x, positions), self.latent(x, positions)
        if state is None:
            return self.output(self.naive(query, latent, 0))
        pool = state.extend(latent)
        heads = [self.paged(query.part(piece.first, piece.last), pool, piece.sequences) for piece in state.pieces]
        return self.output(heads[0] if len(heads) == 1 else torch.cat(heads))

    def fused(self, norm: Tensor, eps: float) -> FusedAttention | None:
        """As Attention.fused."""
        spec, w = self.spec, self.weights
        q = w.q if w.q_b is None else w.q_b
        assert q is not None
        sizes = (spec.n_heads, spec.kv_lora_rank, spec.nope_dim, spec.rope.dim, spec.v_dim)
        shape = kernels.MlaShape(*sizes, eps, spec.latent_norm_eps, self.scale)
        tensors = kernels.MlaTensors(norm, w.q_a, w.q_a_norm, q, w.kv_a, w.kv_a_norm, w.kv_b, w.o)
        layer = kernels.mla_layer(shape, tensors)
        return None if layer is None else FusedAttention(layer, self.table)

    def query(self, x: Tensor, positions: Tensor) -> Query:
        """x: [..., tokens, hidden]; positions: int64 [tokens]."""
        spec, w = self.spec, self.weights
        if w.q is not None:
            q = kernels.linear(x, w.q)
        else:
            assert w.q_a is not None
            assert w.q_a_norm is not None
            assert w.q_b is not None
            q = kernels.linear(kernels.rms_norm(kernels.linear(x, w.q_a), w.q_a_norm, spec.latent_norm_eps), w.q_b)
        nope, rope = q.unflatten(-1, (spec.n_heads, spec.qk_dim)).split((spec.nope_dim, spec.rope.dim), dim=-1)
        if self.table is None:
            return Query(nope, rope)
        cos, sin = self.table.at(positions)
        return Query(nope, kernels.rotate(rope, cos[:, None], sin[:, None]))

    def latent(self, x: Tensor, positions: Tensor) -> Tensor:
        """What the cache keeps of each token: [..., tokens, latent_dim]."""
        spec, w = self.spec, self.weights
        low, key = kernels.linear(x, w.kv_a).split((spec.kv_lora_rank, spec.rope.dim), dim=-1)
        if self.table is not None:
            key = kernels.rotate(key, *self.table.at(positions))
        return torch.cat((kernels.rms_norm(low, w.kv_a_norm, spec.latent_norm_eps), key), -1)

    def naive(self, query: Query, latents: Tensor, start: int) -> Tensor:
        """New tokens from position `start` over latents [..., start + new, latent_dim], to [..., new, n_heads, v_dim].

        k = [W_uk c | k_rope], v = W_uv c for each head. Cheaper where many queries meet few latents.
        """
        spec = self.spec
        low, rope = latents.split((spec.kv_lora_rank, spec.rope.dim), dim=-1)
        heads = kernels.linear(low, self.weights.kv_b).unflatten(-1, (spec.n_heads, -1)).transpose(-2, -3)
        nope, value = heads.split((spec.nope_dim, spec.v_dim), dim=-1)
        key = torch.cat((nope, rope.unsqueeze(-3).expand(*nope.shape[:-1], -1)), -1)
        q = torch.cat(query, -1).transpose(-2, -3)
        return kernels.attend(q, key, value, self.scale, start).transpose(-2, -3)

    def paged(self, query: Query, pool: Tensor, sequences: Sequence[kernels.PagedTokens]) -> Tensor:
        """The same for the tokens of several sequences, one after the other, reading latents where they lie as keys and
        values that all heads share: q' = W_uk^T q, out = W_uv (p c).

        query: [tokens, n_heads, ...]; pool: [n_pages, page_tokens, latent_dim], with the latents of these tokens
        written. Returns [tokens, n_heads, v_dim].
        """
        rank = self.spec.kv_lora_rank
        mixed = kernels.paged_attention(self.absorb(query), pool, sequences, self.scale, value_dim=rank)
        return self.expand(mixed)

    def absorb(self, query: Query) -> Tensor:
        """q' of every head, [..., tokens, n_heads, latent_dim]: what meets latents as they are."""
        if query.nope.ndim > 3 or torch.is_grad_enabled():
            return torch.cat((kernels.linear_by_head(query.nope, self._w_uk.mT), query.rope), -1)
        q = query.nope.new_empty(*query.nope.shape[:-1], self.spec.latent_dim)
        kernels.linear_by_head(query.nope, self._w_uk.mT, q[..., : self.spec.kv_lora_rank])
        q[..., self.spec.kv_lora_rank :] = query.rope
        return q

    def expand(self, mixed: Tensor) -> Tensor:
        """Mixed latents [..., tokens, n_heads, kv_lora_rank] to [..., tokens, n_heads, v_dim]."""
        return kernels.linear_by_head(mixed, self._w_uv)

    def output(self, heads: Tensor) -> Tensor:
        """[..., tokens, n_heads, v_dim] to [..., tokens, hidden]."""
        return kernels.linear(heads.flatten(-2), self.weights.o)
