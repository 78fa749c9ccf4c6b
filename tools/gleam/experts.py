"""Trainable routed experts behind the decoder's `Experts` protocol, with INT4 quantisation simulated in training.

The simulated values are those that the published storage gives back, so what is exported is what was trained; the
gradient passes the rounding unchanged (straight-through).
"""

import torch
from checkpoints.writer import int4_codes
from torch import Tensor
from torch.nn import functional

from earthshine.spec import ModelSpec
from earthshine.spec.layout import moe_layers
from earthshine.storage import INT4_GROUP

BLOCK = 128  # tokens that one matrix product of an expert takes


def as_int4(weight: Tensor) -> Tensor:
    """fp32 [..., columns] to the values that INT4 group-32 storage keeps of it."""
    codes, scale = int4_codes(weight)
    return codes * scale.float().repeat_interleave(INT4_GROUP, -1)


class TrainedExperts:
    """`gate_up`: [n_experts, 2, intermediate, hidden] and `down`: [n_experts, hidden, intermediate] per sparse
    layer."""

    def __init__(self, spec: ModelSpec, generator: torch.Generator, device: str) -> None:
        self.quantized = False
        self.params: dict[str, Tensor] = {}
        self._load: dict[int, Tensor] = {}  # tokens that chose each expert since the last call of `take_load`
        for layer, moe in moe_layers(spec):
            wide = torch.randn(moe.n_experts, 2, moe.intermediate, spec.hidden, generator=generator)
            back = torch.randn(moe.n_experts, spec.hidden, moe.intermediate, generator=generator)
            self.params[f"layers.{layer}.experts.gate_up"] = (wide * spec.hidden**-0.5).to(device).requires_grad_()
            back *= moe.intermediate**-0.5 / 2
            self.params[f"layers.{layer}.experts.down"] = back.to(device).requires_grad_()
            self._load[layer] = torch.zeros(moe.n_experts, device=device)

    def take_load(self) -> dict[int, Tensor]:
        """Tokens that each expert of each sparse layer has served since the last call."""
        taken, self._load = self._load, {layer: torch.zeros_like(load) for layer, load in self._load.items()}
        return taken

    def weights(self, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        def used(param: Tensor) -> Tensor:
            if not self.quantized:
                return param.to(dtype)
            with torch.no_grad():
                error = as_int4(param) - param
            return (param + error).to(dtype)

        names = (f"layers.{layer}.experts.gate_up", f"layers.{layer}.experts.down")
        gate_up, down = (used(self.params[name]) for name in names)
        return gate_up.flatten(1, 2), down

    def ffn(self, layer: int, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        """One batched product over blocks of tokens that chose the same expert; only last blocks are padded."""
        gate_up, down = self.weights(layer, x.dtype)
        picks = chosen.flatten()
        order = picks.argsort(stable=True)
        counts = torch.bincount(picks, minlength=gate_up.shape[0])
        self._load[layer] += counts
        blocks = (counts + BLOCK - 1) // BLOCK
        owner = torch.arange(len(counts), device=x.device).repeat_interleave(blocks)  # [blocks], each block's expert
        first = (blocks.cumsum(0) - blocks) * BLOCK - (counts.cumsum(0) - counts)
        row = torch.arange(len(order), device=x.device) + first.repeat_interleave(counts)
        token = order // chosen.shape[1]
        inputs = x.new_zeros(len(owner) * BLOCK, x.shape[1]).index_copy(0, row, x.index_select(0, token))
        inputs = inputs.unflatten(0, (-1, BLOCK))
        gate, up = (inputs @ gate_up.index_select(0, owner).mT).chunk(2, -1)
        outputs = ((functional.silu(gate) * up) @ down.index_select(0, owner).mT).flatten(0, 1)
        scaled = outputs.index_select(0, row).float() * weight.flatten()[order, None]
        return torch.zeros_like(x, dtype=torch.float32).index_add(0, token, scaled).to(x.dtype)
