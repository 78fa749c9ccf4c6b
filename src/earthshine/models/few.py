"""A layer of a decode step in two native calls, where the library takes the layer's weights.

The mathematics is that of the files beside this one, which serve everything else: prompts, fp32, training, experts on
disk, delta attention. The library walks through the same operations in the same order, to the same bits.
"""

from dataclasses import fields
from typing import Protocol, cast

from torch import Tensor

from earthshine import kernels
from earthshine.kernels import Weight
from earthshine.models.attention import Attention
from earthshine.models.ffn import Experts, Ffn, Moe
from earthshine.models.gqa import Gqa, GqaWeights
from earthshine.models.mla import Mla, MlaWeights
from earthshine.models.rope import RotaryTable
from earthshine.models.state import LayerState


class ResidentExperts(Experts, Protocol):
    """Experts that may all be in memory."""

    def table(self, layer: int) -> kernels.ExpertTable | None:
        """Every expert of the layer, in place until the next call of any method; None where some are on disk."""
        ...


class FewTokens:
    """One layer for up to kernels.LAYER_TOKENS tokens. Each part returns None where its readable form has to serve."""

    def __init__(self, attention: Attention, norms: tuple[Tensor, Tensor], eps: float, ffn: Moe | Ffn) -> None:
        """`norms`: before attention and before the feed-forward network, with their `eps`."""
        self._attention, self._table = _attention_layer(attention, norms[0], eps)
        self._moe = ffn if isinstance(ffn, Moe) else None
        self._ffn = _ffn_layer(norms[1], eps, ffn)

    def attend(self, x: Tensor, positions: Tensor, state: LayerState) -> Tensor | None:
        """attention(norm(x)). x: [tokens, hidden]; positions: int64 [tokens]."""
        if self._attention is None or len(state.pieces) != 1:
            return None
        angles = None if self._table is None else self._table.at(positions)
        return self._attention(x, state.pool(), state.pieces[0].sequences, angles)

    def feed(self, x: Tensor, mixed: Tensor, experts: Experts) -> Tensor | None:
        """x + mixed, then ffn(norm of that) added. x, mixed: [tokens, hidden]; x is overwritten, unless with None."""
        if self._ffn is None:
            return None
        if self._moe is None:
            return self._ffn(x, mixed, None)
        if not hasattr(experts, "table"):  # isinstance with a protocol takes 9 us
            return None
        table = cast(ResidentExperts, experts).table(self._moe.layer)
        return None if table is None else self._ffn(x, mixed, table)


def _attention_layer(
    attention: Attention, norm: Tensor, eps: float
) -> tuple[kernels.AttentionLayer | None, RotaryTable | None]:
    """None for a kind that the library has no layer for. Every field of a spec takes part, or is refused."""
    if isinstance(attention, Mla):
        mla, weights = attention.spec, _by_name(attention.weights)
        latent = (mla.n_heads, mla.kv_lora_rank, mla.nope_dim, mla.rope.dim, mla.v_dim)
        shape = kernels.MlaShape(*latent, eps, mla.latent_norm_eps, attention.scale)
        return kernels.mla_layer(shape, norm, weights), attention.table
    if isinstance(attention, Gqa):
        gqa, weights = attention.spec, _by_name(attention.weights)
        grouped = (gqa.n_heads, gqa.n_kv_heads, gqa.head_dim, gqa.rope.dim)
        sizes = kernels.GqaShape(*grouped, eps, gqa.norm_eps, attention.scale)
        return kernels.gqa_layer(sizes, norm, weights), attention.table
    return None, None


def _by_name(weights: MlaWeights | GqaWeights) -> dict[str, Weight]:
    """Those that are there."""
    found = {field.name: getattr(weights, field.name) for field in fields(weights)}
    return {name: weight for name, weight in found.items() if weight is not None}


def _ffn_layer(norm: Tensor, eps: float, ffn: Moe | Ffn) -> kernels.FfnLayer | None:
    if isinstance(ffn, Ffn):
        return kernels.ffn_layer(norm, eps, router=None, bias=None, rule=None, shared=(ffn.gate, ffn.up, ffn.down))
    router = ffn.spec.router
    rule = kernels.RouteRule(
        ffn.spec.top_k, router.n_groups, router.groups_kept, router.normalize, router.scale, router.scoring.value
    )
    shared = None if ffn.shared is None else (ffn.shared.gate, ffn.shared.up, ffn.shared.down)
    return kernels.ffn_layer(norm, eps, router=ffn.router, bias=ffn.router_bias, rule=rule, shared=shared)
