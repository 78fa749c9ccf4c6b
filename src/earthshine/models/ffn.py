"""Feed-forward layers: the dense SwiGLU, and the mixture of routed and shared experts (DeepSeek-V3, section 2.1.2).

Routed experts are behind the `Experts` protocol: the mathematics does not know whether they lie in memory or on disk.
"""

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from earthshine import kernels
from earthshine.kernels import Weight
from earthshine.models.experts import Experts, GroupedExperts
from earthshine.models.fused import FusedFfn
from earthshine.spec.model import MoeSpec


@dataclass(frozen=True, slots=True)
class Ffn:
    """down(silu(gate x) * up x); gate and up [intermediate, hidden], down [hidden, intermediate]."""

    gate: Weight
    up: Weight
    down: Weight

    def __call__(self, x: Tensor) -> Tensor:
        return kernels.ffn(x, self.gate, self.up, self.down)

    def fused(self, norm: Tensor, eps: float) -> FusedFfn | None:
        """With the norm before it, in one call; None where the library does not take these weights."""
        layer = kernels.ffn_layer(norm, eps, router=None, shared=(self.gate, self.up, self.down))
        return None if layer is None else FusedFfn(layer)


@dataclass(frozen=True, slots=True)
class Moe:
    """Router and shared experts of one layer; the routed ones are asked for by layer number."""

    spec: MoeSpec
    layer: int
    router: Tensor  # [n_experts, hidden]
    router_bias: Tensor | None  # [n_experts]
    shared: Ffn | None

    def __call__(self, x: Tensor, experts: Experts) -> Tensor:
        """x: [..., hidden]."""
        flat = x.reshape(-1, x.shape[-1])
        return self._with_shared(experts.ffn(self.layer, flat, *self._route(flat)), flat).view_as(x)

    def in_groups(self, x: Tensor, experts: GroupedExperts) -> Generator[None, None, Tensor]:
        """The same, yielding between groups of routed experts."""
        flat = x.reshape(-1, x.shape[-1])
        out = yield from experts.ffn_in_groups(self.layer, flat, *self._route(flat))
        return self._with_shared(out, flat).view_as(x)

    def fused(self, norm: Tensor, eps: float) -> FusedFfn | None:
        """As Ffn.fused."""
        rule = self.spec.router
        router = kernels.Router(
            self.router,
            self.router_bias,
            self.spec.top_k,
            rule.n_groups,
            rule.groups_kept,
            rule.normalize,
            rule.scale,
            rule.scoring.value,
        )
        shared = None if self.shared is None else (self.shared.gate, self.shared.up, self.shared.down)
        layer = kernels.ffn_layer(norm, eps, router=router, shared=shared)
        return None if layer is None else FusedFfn(layer, self.layer)

    def _route(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        rule = self.spec.router
        return kernels.route(
            kernels.linear(flat, self.router, torch.float32),  # logits in bf16 change choices
            self.router_bias,
            top_k=self.spec.top_k,
            n_groups=rule.n_groups,
            groups_kept=rule.groups_kept,
            normalize=rule.normalize,
            scale=rule.scale,
            scoring=rule.scoring.value,
        )

    def _with_shared(self, out: Tensor, flat: Tensor) -> Tensor:
        return out if self.shared is None else out + self.shared(flat)
