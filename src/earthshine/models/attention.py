"""From an attention spec to the mathematics of its kind."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from earthshine.kernels import Weight
from earthshine.models.fused import FusedAttention
from earthshine.models.gqa import Gqa, GqaWeights
from earthshine.models.kda import Kda, KdaWeights
from earthshine.models.mla import Mla, MlaWeights
from earthshine.models.rope import RotaryTables
from earthshine.models.state import LayerState
from earthshine.spec.attention import AttentionSpec, GqaSpec, KdaSpec, MlaSpec


class Attention(Protocol):
    """One layer's attention."""

    def __call__(self, x: Tensor, positions: Tensor, state: LayerState | None) -> Tensor:
        """x: [tokens, hidden]; positions: int64 [tokens]; returns [tokens, hidden]. `state`: see `models.state`."""
        ...

    def fused(self, norm: Tensor, eps: float) -> FusedAttention | None:
        """With the norm before it, bf16 [hidden], in one call. None for a kind that the library has no call for, and
        for weights that it does not take. Every field of the spec takes part, or is a reason for None."""
        ...


def attention_of(spec: AttentionSpec, weights: Mapping[str, Weight], tables: RotaryTables) -> Attention:
    """`weights`: by the names of `spec.tensors`."""
    if isinstance(spec, MlaSpec):
        return Mla(spec, MlaWeights(**weights), tables.of(spec.rope))  # type: ignore[arg-type]
    if isinstance(spec, GqaSpec):
        table = tables.of(spec.rope)
        assert table is not None, "grouped-query attention rotates"
        return Gqa(spec, GqaWeights(**weights), table)  # type: ignore[arg-type]
    if isinstance(spec, KdaSpec):
        return Kda(spec, KdaWeights(**weights))  # type: ignore[arg-type]
    raise TypeError(f"no mathematics for {type(spec).__name__}")
