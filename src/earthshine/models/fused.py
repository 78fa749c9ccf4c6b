"""A layer of a decode step in two native calls: attention, and the feed-forward network, each with the norm before it.

Each kind of attention or network says in its own file how it is fused, if at all. The unfused forward pass serves
everything else: prompts, fp32, training, experts on disk. The bits are the same.
"""

from typing import cast

from torch import Tensor

from earthshine import kernels
from earthshine.models.experts import Experts, ResidentExperts
from earthshine.models.rope import RotaryTable
from earthshine.models.state import LayerState


class FusedAttention:
    """attention(norm(x)) for up to kernels.LAYER_TOKENS tokens. `table`: None where nothing rotates."""

    def __init__(self, layer: kernels.AttentionLayer, table: RotaryTable | None) -> None:
        self.layer, self._table = layer, table

    def __call__(self, x: Tensor, positions: Tensor, state: LayerState) -> Tensor | None:
        """x: [tokens, hidden]; positions: int64 [tokens]. None where `state` has the tokens in several pieces."""
        if len(state.pieces) != 1:
            return None
        angles = None if self._table is None else self._table.at(positions)
        return self.layer(x, state.pool(), state.pieces[0].sequences, angles)


class FusedFfn:
    """x + mixed, then network(norm of that) added, for up to kernels.LAYER_TOKENS tokens.

    `routed`: the index of the layer whose routed experts take part; None for a dense network.
    """

    def __init__(self, layer: kernels.FfnLayer, routed: int | None = None) -> None:
        self.layer, self._routed = layer, routed

    def __call__(self, x: Tensor, mixed: Tensor, experts: Experts) -> Tensor | None:
        """x, mixed: [tokens, hidden]. Overwrites x; returns None, and then has not, where experts are not all in
        memory."""
        if self._routed is None:
            return self.layer(x, mixed, None)
        if not hasattr(experts, "table"):  # isinstance with a protocol takes 9 us
            return None
        table = cast(ResidentExperts, experts).table(self._routed)
        return None if table is None else self.layer(x, mixed, table)
