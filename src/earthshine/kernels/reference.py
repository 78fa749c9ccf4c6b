"""The oracle: every operation in plain torch, written to be read beside its formula, never to be fast.

Sums are fp32 whatever the inputs are, and a result returns to its input's dtype. Faster implementations are
held against these, elementwise, in cosine, and in where nan and inf stand. All but the decoders are
differentiable, so the trainer of the shipped model runs through them as well.
Sources: DeepSeek-V3 (arXiv 2412.19437) and its inference code; compressed-tensors for the INT4 form.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional

FP8_BLOCK = 128
INT4_GROUP = 32


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """[..., in] by [out, in] to [..., out] in x's dtype."""
    return functional.linear(x.float(), weight.float()).to(x.dtype)


def linear_by_head(x: Tensor, weight: Tensor) -> Tensor:
    """[..., n_heads, in] by [n_heads, out, in] to [..., n_heads, out] in x's dtype: each head has its own matrix."""
    return torch.einsum("...hi,hoi->...ho", x.float(), weight.float()).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; the weight multiplies in x's dtype, as published."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * scaled.to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise."""
    return (functional.silu(gate.float()) * up.float()).to(gate.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding over interleaved pairs: (x[2i], x[2i+1]) turns by angle i.

    x: [..., dim]; cos, sin: fp32, broadcastable to [..., dim/2].
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def route(
    logits: Tensor,
    bias: Tensor,
    *,
    top_k: int,
    n_groups: int = 1,
    groups_kept: int = 1,
    normalize: bool = True,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Sigmoid routing of `noaux_tc` in fp32 (DeepSeek-V3, equations 12 to 16).

    logits: fp32 [tokens, n_experts]; bias: [n_experts], which selects but never weighs.
    Returns chosen: int64 [tokens, top_k] and their fp32 weights. Equal scores: the lower expert wins.
    """
    return choose(torch.sigmoid(logits), bias, top_k, n_groups, groups_kept, normalize, scale)


def choose(
    scores: Tensor, bias: Tensor, top_k: int, n_groups: int, groups_kept: int, normalize: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The part of `route` after the sigmoid: scores fp32 [tokens, n_experts]."""
    choice = scores.detach() + bias.float()
    if n_groups > 1:
        grouped = choice.unflatten(-1, (n_groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).sort(dim=-1, descending=True, stable=True).indices
        kept = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, best[..., :groups_kept], True)
        choice = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(-2)
    chosen = choice.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    weights = scores.gather(-1, chosen)
    if normalize:
        total = functools.reduce(torch.add, weights.unbind(-1))  # one by one: the order is then everywhere the same
        weights = weights / (total[..., None] + 1e-20)
    return chosen, weights * scale


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, start: int) -> Tensor:
    """Causal attention of new tokens at positions start, start + 1, ... over everything up to each of them.

    query: [..., n_heads, new, d]; key: [..., n_heads or 1, start + new, d]; value likewise with its own width.
    Returns [..., n_heads, new, value width] in the query's dtype.
    """
    scores = query.float() @ key.float().transpose(-1, -2) * scale
    new, context = scores.shape[-2:]
    position = torch.arange(start, start + new, device=query.device)[:, None]
    future = torch.arange(context, device=query.device) > position
    return (scores.masked_fill(future, float("-inf")).softmax(-1) @ value.float()).to(query.dtype)


def decode_int4(packed: Tensor, scale: Tensor) -> Tensor:
    """compressed-tensors `pack-quantized`: int32 [out, in/8] and bf16 [out, in/32] to bf16 [out, in].

    Element i of a row is nibble i % 8, lowest first, of word i // 8; its value is (nibble - 8) times the scale of
    its group of 32, rounded to bf16 as the publisher's decompression does.
    """
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
    nibbles = (packed[..., None] >> shifts) & 15
    groups = (nibbles.flatten(-2) - 8).unflatten(-1, (-1, INT4_GROUP)).to(torch.bfloat16)
    values: Tensor = groups * scale[..., None]
    return values.flatten(-2)


def decode_fp8(weight: Tensor, scale_inv: Tensor) -> Tensor:
    """e4m3 [out, in] and fp32 [ceil(out/128), ceil(in/128)] to bf16 [out, in]: multiplied, then rounded to bf16."""
    rows, columns = weight.shape
    wide = scale_inv.repeat_interleave(FP8_BLOCK, 0)[:rows].repeat_interleave(FP8_BLOCK, 1)[:, :columns]
    values: Tensor = weight.float() * wide
    return values.to(torch.bfloat16)
