"""Muon for matrices, as Moonshot trains (Moonlight, arXiv 2502.16982): momentum, orthogonalised, scaled to AdamW's RMS.

A parameter of more than two axes is a stack of matrices over its last two, such as all experts of a layer.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Newton-Schulz of order five; five rounds bring singular values near 1


def orthogonalize(gradient: Tensor, rounds: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices to [..., rows, columns], roughly; bf16 suffices."""
    a, b, c = _COEFFICIENTS
    x = gradient.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(gradient.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum with Nesterov's look-ahead, decoupled weight decay, update RMS 0.2 (Moonlight, section 2.2)."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["momentum"] = torch.zeros_like(param)
                buffer = state["momentum"].mul_(group["momentum"]).add_(param.grad)
                update = orthogonalize(param.grad + group["momentum"] * buffer)
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(update, alpha=-group["lr"] * 0.2 * max(param.shape[-2:]) ** 0.5)
