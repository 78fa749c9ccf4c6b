"""The oracle: every operation in plain torch, written to be read beside its formula, never to be fast.

Sums are fp32 whatever the inputs are, and a result returns to its input's dtype. Faster implementations are
compared with these: elementwise, by cosine, and by the positions of nan and inf. All but the decoders are
differentiable, so the trainer of the shipped model runs through them as well.
Sources: DeepSeek-V3 (arXiv 2412.19437) and its inference code; compressed-tensors for the INT4 form.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from earthshine.kernels.matrix import Matrix, Weight
from earthshine.storage import FP8_BLOCK, INT4_GROUP, INT8_GROUP, Storage

Scoring = Literal["sigmoid", "softmax"]


def linear(x: Tensor, weight: Weight, out_dtype: torch.dtype | None = None) -> Tensor:
    """[..., in] by [out, in] to [..., out], in x's dtype unless `out_dtype` is given."""
    wide = decode(weight) if isinstance(weight, Matrix) else weight
    return functional.linear(x.float(), wide.float()).to(out_dtype or x.dtype)


def ffn(x: Tensor, gate: Weight, up: Weight, down: Weight) -> Tensor:
    """down(silu(gate x) * up x); gate and up [intermediate, hidden], down [hidden, intermediate]."""
    wide = torch.float32
    return linear(swiglu(linear(x, gate, wide), linear(x, up, wide)).to(x.dtype), down)


class Expert(Protocol):
    """gate and up [intermediate, hidden], down [hidden, intermediate]."""

    @property
    def gate(self) -> Matrix: ...
    @property
    def up(self) -> Matrix: ...
    @property
    def down(self) -> Matrix: ...


def moe_ffn(x: Tensor, experts: Sequence[Expert], token: Tensor, begin: Sequence[int], each: Tensor) -> None:
    """Every chosen expert's own output, unweighted: each[p] = down(swiglu(gate x[t], up x[t])) with t = token[p].

    x: bf16 [tokens, hidden]; experts: gate, up and down; token: int32 [pairs], grouped by expert; begin: expert i has
    the pairs from begin[i] to begin[i + 1]; each: fp32 [pairs, hidden], written. What goes into down is bf16.
    """
    for expert, first, last in zip(experts, begin[:-1], begin[1:], strict=True):
        rows = x[token[first:last].long()]
        wide = torch.float32
        inner = swiglu(linear(rows, expert.gate, wide), linear(rows, expert.up, wide)).to(x.dtype)
        each[first:last] = linear(inner, expert.down, wide)


def moe_sum(each: Tensor, token: Tensor, weight: Tensor, total: Tensor) -> None:
    """total[token[p]] += weight[p] * each[p], one pair after another; all fp32 but token, int32 [pairs]."""
    for p, t in enumerate(token.tolist()):
        total[t] += weight[p] * each[p]


def linear_by_head(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """[..., n_heads, in] by [n_heads, out, in] to [..., n_heads, out] in x's dtype: each head has its own matrix."""
    product = torch.einsum("...hi,hoi->...ho", x.float(), weight.float()).to(x.dtype)
    return product if out is None else out.copy_(product)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; the weight multiplies in x's dtype, as published."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * scaled.to(x.dtype)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight * sigmoid(gate) over the last axis, rounded once, to gate's dtype."""
    wide = x if x.dtype == torch.float64 else x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)
    return (scaled * torch.sigmoid(gate.to(wide.dtype))).to(gate.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise."""
    return (functional.silu(gate.float()) * up.float()).to(gate.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True) -> Tensor:
    """Rotary embedding: the pair (x[2i], x[2i+1]), or (x[i], x[i + dim/2]) if not interleaved, is rotated by angle i.

    x: [..., dim]; cos, sin: fp32, broadcastable to [..., dim/2].
    """
    axis = -1 if interleaved else -2
    first, second = x.float().unflatten(-1, (-1, 2) if interleaved else (2, -1)).unbind(axis)
    turned = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=axis)
    return turned.flatten(-2).to(x.dtype)


def route(
    logits: Tensor,
    bias: Tensor | None,
    *,
    top_k: int,
    n_groups: int = 1,
    groups_kept: int = 1,
    normalize: bool = True,
    scale: float = 1.0,
    scoring: Scoring = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """Routing in fp32: sigmoid scores of `noaux_tc` (DeepSeek-V3, equations 12 to 16), or a softmax over all experts
    (Qwen3-MoE).

    logits: fp32 [tokens, n_experts]; bias: [n_experts], which selects but never weighs, or none.
    Returns chosen: int64 [tokens, top_k] and their fp32 weights. Equal scores: the lower expert wins.
    """
    scores = torch.sigmoid(logits) if scoring == "sigmoid" else torch.softmax(logits, -1)
    return choose(scores, bias, top_k, n_groups, groups_kept, normalize, scale)


def choose(
    scores: Tensor, bias: Tensor | None, top_k: int, n_groups: int, groups_kept: int, normalize: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The part of `route` after the scores: fp32 [tokens, n_experts]."""
    choice = scores.detach() if bias is None else scores.detach() + bias.float()
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

    query: [..., n_heads, new, d]; key: [..., n_kv_heads, start + new, d], each kv head shared by n_heads / n_kv_heads
    query heads in a row; value likewise with its own width. Returns [..., n_heads, new, value width] in the query's
    dtype.
    """
    group = query.shape[-3] // key.shape[-3]
    key, value = (past.float().repeat_interleave(group, -3) for past in (key, value))
    scores = query.float() @ key.transpose(-1, -2) * scale
    new, context = scores.shape[-2:]
    position = torch.arange(start, start + new, device=query.device)[:, None]
    future = torch.arange(context, device=query.device) > position
    return (scores.masked_fill(future, float("-inf")).softmax(-1) @ value).to(query.dtype)


class PagedTokens(Protocol):
    """Positions `start` to start + `count` of one sequence, and the pages of the pool that hold it."""

    @property
    def count(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def pages(self) -> Tensor: ...


def paged_attention(
    query: Tensor,
    pool: Tensor,
    sequences: Sequence[PagedTokens],
    scale: float,
    *,
    n_kv_heads: int = 1,
    value_offset: int = 0,
    value_dim: int,
    attend: Callable[[Tensor, Tensor, Tensor, float, int], Tensor] = attend,
) -> Tensor:
    """`attend` for the tokens of several sequences, over keys and values that are gathered from pages.

    query: [tokens, n_heads, key_dim]; pool: [n_pages, page_tokens, n_kv_heads * width]. Within each width the key is
    the first key_dim values and the value is value_dim from value_offset on. Returns [tokens, n_heads, value_dim].
    """
    outputs, first = [query.new_empty(0, query.shape[1], value_dim)], 0
    for sequence in sequences:
        end = sequence.start + sequence.count
        pages = sequence.pages[: -(-end // pool.shape[1])]
        past = pool.index_select(0, pages).flatten(0, 1)[:end].unflatten(-1, (n_kv_heads, -1)).transpose(0, 1)
        key, value = past[..., : query.shape[-1]], past[..., value_offset : value_offset + value_dim]
        mine = query[first : first + sequence.count].transpose(0, 1)
        outputs.append(attend(mine, key, value, scale, sequence.start).transpose(0, 1))
        first += sequence.count
    return torch.cat(outputs)


class RecurrentTokens(Protocol):
    """`count` tokens of one sequence, and what it keeps: both tensors are updated in place."""

    @property
    def count(self) -> int: ...
    @property
    def state(self) -> Tensor: ...
    @property
    def tail(self) -> Tensor: ...


def kda(
    qkv: Tensor,
    gate: Tensor,
    beta: Tensor,
    sequences: Sequence[RecurrentTokens],
    *,
    conv: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    lower_bound: float | None = None,
) -> Tensor:
    """Kimi Delta Attention, token by token in fp32, or in fp64 where the state is (arXiv 2510.26692).

    qkv: [tokens, 3 * n_heads * head_dim], q, then k, then v, before the convolution; gate: [tokens, n_heads *
    head_dim], logits of the decay; beta: [tokens, n_heads], logits; conv: [3 * n_heads * head_dim, kernel]; a_log:
    [n_heads]; dt_bias: [n_heads * head_dim]. Each sequence has its state [n_heads, head_dim (key), head_dim (value)]
    and its tail [kernel - 1, 3 * n_heads * head_dim]. Returns [tokens, n_heads, head_dim] in the state's dtype.
    """
    n_heads, dim = a_log.numel(), dt_bias.numel() // a_log.numel()
    outputs, first = [], 0
    for sequence in sequences:
        state, wide = sequence.state, sequence.state.dtype
        inputs = torch.cat((sequence.tail, qkv[first : first + sequence.count]))
        taps, rate = conv.to(wide).mT, a_log.to(wide).exp()[:, None]
        for row in range(sequence.count):
            window = inputs[row : row + len(taps)].to(wide)
            q, k, v = functional.silu((window * taps).sum(0)).view(3, n_heads, dim)
            q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
            logits = (gate[first + row].to(wide) + dt_bias.to(wide)).view(n_heads, dim)
            if lower_bound is None:
                decay = (-rate * functional.softplus(logits)).exp()
            else:
                decay = (lower_bound * torch.sigmoid(rate * logits)).exp()
            state.mul_(decay[:, :, None])
            seen = (state * k[:, :, None]).sum(1)
            delta = torch.sigmoid(beta[first + row].to(wide))[:, None] * (v - seen)
            state.add_(k[:, :, None] * delta[:, None])
            outputs.append((state * q[:, :, None]).sum(1) * dim**-0.5)
        sequence.tail.copy_(inputs[sequence.count :])
        first += sequence.count
    return torch.stack(outputs) if outputs else qkv.new_empty(0, n_heads, dim)


def decode(matrix: Matrix) -> Tensor:
    """A stored matrix to bf16 [rows, cols]."""
    rows, cols = matrix.shape
    if matrix.scales is None:
        return matrix.codes.clone().view(torch.bfloat16).view(rows, cols)
    codes, scales = matrix.codes.clone(), matrix.scales.clone()  # a copy is aligned, the bytes may not be
    if matrix.storage is Storage.INT4_GROUP32:
        return decode_int4(codes.view(torch.int32).view(rows, -1), scales.view(torch.bfloat16).view(rows, -1))
    if matrix.storage is Storage.FP8_BLOCK128:
        wide = scales.view(torch.float32).view(-(-rows // FP8_BLOCK), -1)
        return decode_fp8(codes.view(torch.float8_e4m3fn).view(rows, cols), wide)
    return decode_int8(codes.view(torch.int8).view(rows, cols), scales.view(torch.float32).view(rows, -1))


def decode_int8(codes: Tensor, scale: Tensor) -> Tensor:
    """int8 [out, in] and fp32 [out, ceil(in / 128)] to bf16 [out, in]: multiplied in fp32, then rounded to bf16."""
    wide = scale.repeat_interleave(INT8_GROUP, 1)[:, : codes.shape[1]]
    return (codes.float() * wide).to(torch.bfloat16)


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
