"""Protocols for the routed experts: any store; one that can be interrupted; one that may be resident."""

from collections.abc import Generator
from typing import Protocol, runtime_checkable

from torch import Tensor

from earthshine import kernels


class Experts(Protocol):
    """The routed experts of all layers."""

    def ffn(self, layer: int, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        """sum_k weight[t, k] * expert[chosen[t, k]](x[t]).

        x: [tokens, hidden]; chosen: int64 [tokens, top_k]; weight: fp32 [tokens, top_k]. Returns [tokens, hidden] in
        x's dtype, summed in fp32.
        """
        ...


@runtime_checkable
class GroupedExperts(Experts, Protocol):
    """Experts whose execution may be interrupted."""

    def ffn_in_groups(self, layer: int, x: Tensor, chosen: Tensor, weight: Tensor) -> Generator[None, None, Tensor]:
        """As `ffn`, yielding between groups of experts; other calls may run meanwhile."""
        ...


class ResidentExperts(Experts, Protocol):
    """Experts that may all be in memory."""

    def table(self, layer: int) -> kernels.ExpertTable | None:
        """Every expert of the layer, in place until the next call of any method; None where some are on disk."""
        ...
