"""Torch operations whose bits do not depend on what else is in the batch, on how a prompt was cut, or on threads.

A library chooses its summation order by shape, so the same row comes out differently alone and among others. Here
every product has one fixed shape: rows in blocks of 16, keys in blocks of 256 that begin at multiples of 256, both
padded. Exponentials differ too, between a vector's lanes and the scalar rest, so they run on whole vectors only.
Where gradients are wanted, the plain operation serves: training has no such promise to keep.
Measured on a Zen 5 with torch 2.13: plain fp32 and bf16 products differ between 1 and 75 rows, these never do.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from earthshine.kernels import reference

ROWS = 16
KEYS = 256
VECTOR = 64  # elements; a multiple of what torch computes at once with any instruction set
PIECE = 32768  # elements; torch never divides so few among threads


def _trains(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """[..., in] by [out, in] to [..., out], both of one dtype; summed in fp32 by the library."""
    if _trains(x, weight):
        return functional.linear(x, weight)
    flat = x.reshape(-1, x.shape[-1])
    padded = functional.pad(flat, (0, 0, 0, -len(flat) % ROWS))
    blocks = [functional.linear(block, weight) for block in padded.split(ROWS)]
    out = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    return out[: len(flat)].reshape(*x.shape[:-1], -1)


def linear_by_head(x: Tensor, weight: Tensor) -> Tensor:
    """[..., n_heads, in] by [n_heads, out, in] to [..., n_heads, out]: every head has a matrix of its own."""
    if _trains(x, weight):
        return reference.linear_by_head(x, weight)
    flat = x.reshape(-1, *x.shape[-2:]).transpose(0, 1)  # [n_heads, rows, in]
    rows = flat.shape[1]
    padded = functional.pad(flat, (0, 0, 0, -rows % ROWS))
    out = torch.cat([block @ weight.mT for block in padded.split(ROWS, dim=1)], 1)[:, :rows]
    return out.transpose(0, 1).reshape(*x.shape[:-1], -1)


def _whole_vectors(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An elementwise function of fp32 [...], in pieces that one thread takes and vectors fill."""
    flat = functional.pad(x.reshape(-1), (0, -x.numel() % VECTOR))
    pieces = [function(piece) for piece in flat.split(PIECE)]
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces))[: x.numel()].view(x.shape)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise."""
    if _trains(gate, up):
        return reference.swiglu(gate, up)
    return (_whole_vectors(functional.silu, gate.float()) * up.float()).to(gate.dtype)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `reference.gated_rms_norm`."""
    if _trains(x, gate, weight):
        return reference.gated_rms_norm(x, gate, weight, eps)
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()
    return (scaled * _whole_vectors(torch.sigmoid, gate.float())).to(gate.dtype)


def route(
    logits: Tensor,
    bias: Tensor | None,
    *,
    top_k: int,
    n_groups: int = 1,
    groups_kept: int = 1,
    normalize: bool = True,
    scale: float = 1.0,
    scoring: reference.Scoring = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """As `reference.route`."""
    if scoring == "softmax":
        scores = torch.softmax(logits, -1) if _trains(logits) else _softmax(logits)
    else:
        scores = torch.sigmoid(logits) if _trains(logits) else _whole_vectors(torch.sigmoid, logits)
    return reference.choose(scores, bias, top_k, n_groups, groups_kept, normalize, scale)


def _softmax(x: Tensor) -> Tensor:
    """fp32 [rows, n]. A running sum adds one after the other, where `sum` may divide a row by its shape."""
    share = _whole_vectors(torch.exp, x - x.amax(-1, keepdim=True))
    return share / share.cumsum(-1)[:, -1:]


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, start: int) -> Tensor:
    """As `reference.attend`, over blocks with a running softmax (FlashAttention, arXiv 2205.14135, algorithm 1).

    A block of keys that a row may not see yet changes nothing in it: the maximum stays, the sums gain zero.
    """
    if _trains(query, key, value):
        return reference.attend(query, key, value, scale, start)
    new, context = query.shape[-2], key.shape[-2]
    dtype = query.dtype
    query = functional.pad(query.float() * scale, (0, 0, 0, -new % ROWS))
    key, value = (functional.pad(past.float(), (0, 0, 0, -context % KEYS)) for past in (key, value))
    blocks = []
    for first in range(0, new, ROWS):
        position = torch.arange(start + first, start + first + ROWS, device=query.device)[:, None]
        seen = min(context, start + first + ROWS)
        blocks.append(_attend_block(query[..., first : first + ROWS, :], key, value, position, seen))
    return torch.cat(blocks, -2)[..., :new, :].to(dtype)


paged_attention = partial(reference.paged_attention, attend=attend)


def _attend_block(query: Tensor, key: Tensor, value: Tensor, position: Tensor, seen: int) -> Tensor:
    """query: fp32 [..., n_heads, 16, d] at positions [16, 1]; the first `seen` keys matter to any of them."""
    most = torch.full((*query.shape[:-1], 1), float("-inf"), device=query.device)
    total = torch.zeros_like(most)
    mixed = query.new_zeros(*query.shape[:-1], value.shape[-1])
    for first in range(0, seen, KEYS):
        last = first + KEYS
        scores = _product(query, key[..., first:last, :].mT)
        future = torch.arange(first, last, device=query.device) > position
        scores = scores.masked_fill(future, float("-inf"))
        grown = torch.maximum(most, scores.amax(-1, keepdim=True))
        share, kept = _whole_vectors(torch.exp, scores - grown), _whole_vectors(torch.exp, most - grown)
        total = total * kept + share.sum(-1, keepdim=True)
        mixed = mixed * kept + _product(share, value[..., first:last, :])
        most = grown
    return mixed / total


def _product(rows: Tensor, shared: Tensor) -> Tensor:
    """[..., n_heads, 16, d] by [..., n_kv_heads, d, n]: heads that share one matrix become rows of one product."""
    n_kv_heads = shared.shape[-3]
    if n_kv_heads == rows.shape[-3]:
        return rows @ shared
    if n_kv_heads == 1:
        return (rows.flatten(-3, -2) @ shared.squeeze(-3)).reshape(*rows.shape[:-1], -1)
    product: Tensor = rows.unflatten(-3, (n_kv_heads, -1)).flatten(-3, -2) @ shared
    return product.reshape(*rows.shape[:-1], -1)
