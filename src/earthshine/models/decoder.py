"""The decoder: one forward pass for every family, driven by the spec and by tensors under Earthshine's own names.

It holds no state of a sequence. What a token may attend to is the caller's `States`, and where routed experts lie is
the caller's `Experts`, so prefill, decode, training and tests run the same lines.

A forward pass is a generator that yields where it may be interrupted: after a layer, and between groups of routed
experts. Between two yields of one pass another may run; a pass that is closed lets go of the weights that it leases.
"""

from collections.abc import Generator, Mapping
from functools import cached_property

import torch
from torch import Tensor

from earthshine import kernels
from earthshine.kernels import Weight
from earthshine.models.attention import attention_of
from earthshine.models.experts import Experts, GroupedExperts
from earthshine.models.ffn import Ffn, Moe
from earthshine.models.fused import FusedAttention, FusedFfn
from earthshine.models.rope import RotaryTables
from earthshine.models.state import States
from earthshine.models.trunk import LayerWeights, ResidentTrunk, Trunk
from earthshine.spec.model import LayerSpec, ModelSpec, MoeSpec


class _Layer:
    """x + attention(norm x), then x + ffn(norm x)."""

    def __init__(self, index: int, spec: LayerSpec, weights: LayerWeights, tables: RotaryTables, eps: float) -> None:
        self.index, self.weights, self._eps = index, weights, eps
        self._attention_norm, self._ffn_norm = _plain(weights, "attention_norm"), _plain(weights, "ffn_norm")
        self.attention = attention_of(spec.attention, _under(weights, "attention."), tables)
        self._moe: Moe | None = None
        self._dense: Ffn | None = None
        if isinstance(spec.ffn, MoeSpec):
            shared = Ffn(**_under(weights, "shared.")) if spec.ffn.shared_intermediate else None
            bias = _plain(weights, "router_bias") if spec.ffn.router.has_bias else None
            self._moe = Moe(spec.ffn, index, _plain(weights, "router"), bias, shared)
        else:
            self._dense = Ffn(**_under(weights, "ffn."))

    def __call__(
        self, x: Tensor, positions: Tensor, states: States | None, experts: Experts, in_groups: bool
    ) -> Generator[None, None, Tensor]:
        state = None if states is None else states.layer(self.index)
        attention, ffn = self._fused if state is not None and x.shape[0] <= kernels.LAYER_TOKENS else (None, None)
        mixed = attention(x, positions, state) if attention and state else None
        if mixed is None:
            mixed = self.attention(kernels.rms_norm(x, self._attention_norm, self._eps), positions, state)
        done = ffn(x, mixed, experts) if ffn else None
        if done is not None:
            return done
        x, normed = kernels.add_rms_norm(x, mixed, self._ffn_norm, self._eps)
        if self._moe is not None:
            if in_groups and isinstance(experts, GroupedExperts):
                return x + (yield from self._moe.in_groups(normed, experts))
            return x + self._moe(normed, experts)
        assert self._dense is not None
        return x + self._dense(normed)

    @cached_property
    def _fused(self) -> tuple[FusedAttention | None, FusedFfn | None]:
        """Made when it is first asked for: a layer whose weights stream in a prompt has no use for it."""
        ffn = self._moe or self._dense
        assert ffn is not None
        return self.attention.fused(self._attention_norm, self._eps), ffn.fused(self._ffn_norm, self._eps)


class Decoder:
    """`weights` is a Trunk, or every tensor of `spec.layout.trunk_tensors` by name."""

    def __init__(self, spec: ModelSpec, weights: Trunk | Mapping[str, Weight], experts: Experts) -> None:
        self.spec = spec
        self.trunk: Trunk = ResidentTrunk(weights) if isinstance(weights, Mapping) else weights
        self._experts = experts
        self._tables = RotaryTables()
        self._layers: list[_Layer | None] = [None] * spec.n_layers

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and latents."""
        return self.trunk.dtype

    def forward(
        self, tokens: Tensor, positions: Tensor, states: States | None = None, *, in_groups: bool = False
    ) -> Generator[None, None, Tensor]:
        """tokens: int64 [..., tokens]; positions: int64 [tokens]. Returns [..., tokens, hidden] after the last norm.

        Without `states` the tokens are whole sequences, and nothing of them is kept. Yields after each layer; with
        `in_groups` also between groups of routed experts, which costs a little time where they come from disk. All
        tokens pass a layer before the next layer's weights are asked for.
        """
        x = self.trunk.embed(tokens)
        for index in range(self.spec.n_layers):
            with self.trunk.layer(index) as weights:
                x = yield from self._layer(index, weights)(x, positions, states, self._experts, in_groups)
            yield
        return kernels.rms_norm(x, self.trunk.norm, self.spec.norm_eps)

    def hidden(self, tokens: Tensor, positions: Tensor, states: States | None = None) -> Tensor:
        """A forward pass without interruption."""
        return result_of(self.forward(tokens, positions, states))

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] to fp32 [..., vocab_size]."""
        with self.trunk.head() as head:
            return kernels.linear(hidden, head, torch.float32)

    def _layer(self, index: int, weights: LayerWeights) -> _Layer:
        """Built again only after the trunk's weights for it have moved."""
        layer = self._layers[index]
        if layer is None or layer.weights is not weights:
            spec = self.spec.layers[index]
            layer = _Layer(index, spec, weights, self._tables, self.spec.norm_eps)
            self._layers[index] = layer
        return layer


def result_of(forward: Generator[None, None, Tensor]) -> Tensor:
    """What a generator returns once it has run to its end."""
    while True:
        try:
            next(forward)
        except StopIteration as end:
            found: Tensor = end.value
            return found


def _plain(weights: LayerWeights, name: str) -> Tensor:
    weight = weights[name]
    assert isinstance(weight, Tensor), f"{name} is published in full"
    return weight


def _under(weights: LayerWeights, prefix: str) -> dict[str, Weight]:
    return {name[len(prefix) :]: weight for name, weight in weights.items() if name.startswith(prefix)}
