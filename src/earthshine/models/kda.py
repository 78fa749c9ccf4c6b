"""Kimi Delta Attention (arXiv 2510.26692; formulas in the reference of Kimi-Linear).

Queries, keys and values pass a short causal convolution; a state per head decays by channel and is corrected by the
delta rule; what a query reads from it is normed by head and gated. The state is extended token by token in prefill and
decode alike, so that its bits do not depend on how a prompt is cut.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from earthshine import kernels
from earthshine.kernels import RecurrentTokens, Weight
from earthshine.models.state import LayerState
from earthshine.spec.attention import KdaSpec


@dataclass(frozen=True, slots=True)
class KdaWeights:
    """Matrices are [out, in]; `dim` is n_heads * head_dim."""

    q: Weight  # [dim, hidden]
    k: Weight
    v: Weight
    q_conv: Tensor  # [dim, conv_kernel]
    k_conv: Tensor
    v_conv: Tensor
    f_a: Weight  # [head_dim, hidden]: the decay's logits, through a low rank
    f_b: Weight  # [dim, head_dim]
    b: Weight  # [n_heads, hidden]: how much of a new value is written
    a_log: Tensor  # fp32 [n_heads]
    dt_bias: Tensor  # fp32 [dim]
    g_a: Weight  # [head_dim, hidden]: the output's gate
    g_b: Weight  # [dim, head_dim]
    o_norm: Tensor  # [head_dim]
    o: Weight  # [hidden, dim]


class Kda:
    """One layer's attention."""

    def __init__(self, spec: KdaSpec, weights: KdaWeights) -> None:
        self.spec, self.weights = spec, weights
        self._conv = torch.cat((weights.q_conv, weights.k_conv, weights.v_conv)).float()
        self._o_norm = weights.o_norm.float()

    def __call__(self, x: Tensor, positions: Tensor, state: LayerState | None) -> Tensor:
        """x: [tokens, hidden] of a step's sequences. Returns [tokens, hidden]. `positions` play no part.

        Without a state x may have leading axes, which are separate sequences from position 0.
        """
        w = self.weights
        qkv = torch.cat([kernels.linear(x, part) for part in (w.q, w.k, w.v)], -1)
        decay = kernels.linear(kernels.linear(x, w.f_a), w.f_b, torch.float32)  # exponents of exponents
        beta = kernels.linear(x, w.b, torch.float32)
        mixed = self._whole(qkv, decay, beta) if state is None else self._stepped(qkv, decay, beta, state)
        gate = kernels.linear(kernels.linear(x, w.g_a), w.g_b)
        normed = kernels.gated_rms_norm(mixed, gate.view_as(mixed), self._o_norm, self.spec.norm_eps)
        return kernels.linear(normed.flatten(-2), w.o)

    def fused(self, norm: Tensor, eps: float) -> None:
        """As Attention.fused: the library has no call for it."""

    def _stepped(self, qkv: Tensor, decay: Tensor, beta: Tensor, state: LayerState) -> Tensor:
        """[tokens, n_heads, head_dim]."""
        outputs = []
        for run in state.recurrences():
            own = slice(run.first, run.last)
            sequences = [RecurrentTokens(each.count, each.parts[0], each.parts[1]) for each in run.sequences]
            outputs.append(self._kda(qkv[own], decay[own], beta[own], sequences))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _whole(self, qkv: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
        """Sequences from an empty state: [..., tokens, n_heads, head_dim]."""
        flat, decays, betas = (part.reshape(-1, part.shape[-1]) for part in (qkv, decay, beta))
        spec, tokens = self.spec, qkv.shape[-2]
        sequences = [
            RecurrentTokens(
                tokens,
                torch.zeros(spec.n_heads, spec.head_dim, spec.head_dim),
                qkv.new_zeros(spec.conv_kernel - 1, 3 * spec.dim),
            )
            for _ in range(len(flat) // tokens)
        ]
        mixed: Tensor = self._kda(flat, decays, betas, sequences).unflatten(0, qkv.shape[:-1])
        return mixed

    def _kda(self, qkv: Tensor, decay: Tensor, beta: Tensor, sequences: list[RecurrentTokens]) -> Tensor:
        w, bound = self.weights, self.spec.gate_lower_bound
        return kernels.kda(
            qkv, decay, beta, sequences, conv=self._conv, a_log=w.a_log, dt_bias=w.dt_bias, lower_bound=bound
        )
