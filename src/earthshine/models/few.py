"""A layer of a decode step in two native calls, where the library takes the layer's weights.

The mathematics is that of the files beside this one, which serve everything else: prompts, fp32, training, experts on
disk, delta attention. The library walks through the same operations in the same order, to the same bits.
"""

from collections.abc import Mapping
from typing import Protocol, cast

from torch import Tensor

from earthshine import kernels
from earthshine.kernels import Weight
from earthshine.models.ffn import Experts, Ffn, Moe
from earthshine.models.rope import RotaryTables, softmax_scale
from earthshine.models.state import LayerState
from earthshine.spec.attention import AttentionSpec, GqaSpec, MlaSpec


class ResidentExperts(Experts, Protocol):
    """Experts that may all be in memory."""

    def table(self, layer: int) -> kernels.ExpertTable | None:
        """Every expert of the layer, in place until the next call of any method; None where some are on disk."""
        ...


class FewTokens:
    """One layer for at most kernels.LAYER_TOKENS tokens. Each part returns None where its readable form has to serve.

    `attention`: weights by the names of `spec.tensors`.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        norms: tuple[Tensor, Tensor],
        eps: float,
        attention: Mapping[str, Weight],
        ffn: Moe | Ffn,
        tables: RotaryTables,
    ) -> None:
        self._attention: kernels.AttentionLayer | None = None
        if isinstance(spec, MlaSpec):
            latent = (spec.n_heads, spec.kv_lora_rank, spec.nope_dim, spec.rope.dim, spec.v_dim)
            mla = kernels.MlaShape(*latent, eps, spec.latent_norm_eps, softmax_scale(spec))
            self._attention, self._table = kernels.mla_layer(mla, norms[0], attention), tables.of(spec.rope)
        elif isinstance(spec, GqaSpec):
            grouped = (spec.n_heads, spec.n_kv_heads, spec.head_dim, spec.rope.dim)
            gqa = kernels.GqaShape(*grouped, eps, spec.norm_eps, spec.head_dim**-0.5)
            self._attention, self._table = kernels.gqa_layer(gqa, norms[0], attention), tables.of(spec.rope)
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
        if not hasattr(experts, "table"):  # isinstance with a protocol takes 60 us
            return None
        table = cast(ResidentExperts, experts).table(self._moe.layer)
        return None if table is None else self._ffn(x, mixed, table)


def _ffn_layer(norm: Tensor, eps: float, ffn: Moe | Ffn) -> kernels.FfnLayer | None:
    if isinstance(ffn, Ffn):
        return kernels.ffn_layer(norm, eps, router=None, bias=None, rule=None, shared=(ffn.gate, ffn.up, ffn.down))
    router = ffn.spec.router
    rule = kernels.RouteRule(
        ffn.spec.top_k, router.n_groups, router.groups_kept, router.normalize, router.scale, router.scoring.value
    )
    shared = None if ffn.shared is None else (ffn.shared.gate, ffn.shared.up, ffn.shared.down)
    return kernels.ffn_layer(norm, eps, router=ffn.router, bias=ffn.router_bias, rule=rule, shared=shared)
