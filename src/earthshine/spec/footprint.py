"""The size of a model, from its spec alone: parameters, bytes, and floating-point operations per token.

Every figure is a sum over the tensors of `spec.layout`; no model is looked up by its name. Bytes are those of the
tensors, without file headers; multi-token-prediction layers and the vision tower are not counted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from earthshine.errors import UsageError
from earthshine.spec.attention import Rows
from earthshine.spec.layout import expert_shapes, moe_layers, trunk_tensors
from earthshine.spec.model import ModelSpec, MoeSpec
from earthshine.spec.tensor import TensorSpec
from earthshine.storage import BF16_BYTES, FP32_BYTES, Storage, stored_bytes

_MAX_CONTEXT = 2**31


@dataclass(frozen=True, slots=True)
class Footprint:
    """Sizes of one model. All bytes are exact sums over tensors.

    total_params: every value of trunk and routed experts.
    active_params: values that one token's forward pass multiplies by: the trunk and `top_k` experts of each layer,
        without the embedding table, which is a lookup.
    n_experts_in_all_layers: routed experts, all sparse layers together.
    expert_bytes: one routed expert as published, with its scales and shape tensors; the largest if layers differ.
    experts_bytes: all routed experts as published.
    trunk_bytes: of the whole trunk, with its linear layers in "bf16" or "fp8", or these and the head in "int8" (then
        without the matrices that attention splits by head). Other trunk tensors are bf16, the router's bias fp32.
    cache_bytes_per_token: of the cache over all layers in "fp32", "bf16" or "int8" (an fp32 scale per token and layer).
    state_bytes: of a sequence's recurrent state at any length, with bf16 activations.
    """

    total_params: int
    active_params: int
    n_experts_in_all_layers: int
    expert_bytes: int
    experts_bytes: int
    trunk_bytes: Mapping[str, int]
    cache_bytes_per_token: Mapping[str, int]
    state_bytes: int


def footprint(spec: ModelSpec) -> Footprint:
    """The sizes of a model."""
    trunk = list(trunk_tensors(spec))
    trunk_params = sum(tensor.size for tensor in trunk)
    embedding = spec.vocab_size * spec.hidden
    moes = [moe for _, moe in moe_layers(spec)]
    per_expert = [expert_params(spec.hidden, moe) for moe in moes]
    bytes_each = [expert_bytes(spec.hidden, moe, spec.expert_storage) for moe in moes]
    return Footprint(
        total_params=trunk_params + sum(moe.n_experts * size for moe, size in zip(moes, per_expert, strict=True)),
        active_params=trunk_params - embedding + _active_expert_params(spec),
        n_experts_in_all_layers=sum(moe.n_experts for moe in moes),
        expert_bytes=max(bytes_each, default=0),
        experts_bytes=sum(moe.n_experts * size for moe, size in zip(moes, bytes_each, strict=True)),
        trunk_bytes={kind: _trunk_bytes(trunk, kind) for kind in ("bf16", "fp8", "int8")},
        cache_bytes_per_token=_cache_bytes(spec),
        state_bytes=spec.state_bytes(BF16_BYTES),
    )


def expert_params(hidden: int, moe: MoeSpec) -> int:
    """Values of one routed expert: three matrices of hidden by intermediate."""
    return sum(out * inner for out, inner in expert_shapes(hidden, moe).values())


def expert_bytes(hidden: int, moe: MoeSpec, storage: Storage) -> int:
    """Published bytes of one routed expert: 24,772,632 for Kimi-K2.6 (int4), 44,050,944 for Kimi-K2-Instruct (fp8)."""
    return sum(stored_bytes(storage, out, inner) for out, inner in expert_shapes(hidden, moe).values())


def prefill_flops_per_token(spec: ModelSpec, context: int) -> float:
    """Mean FLOPs per token of a prompt of `context` tokens, attention in the form with the fewest of them.

    2 * (linear values, `top_k` experts, router)      one multiplication and one addition for each
    + 2 * vocab_size * hidden / context               the head runs for the last token only
    + sum over layers of 2 * (prefill_macs * (context + 1) / 2 + token_macs)
    where (context + 1) / 2 is the mean number of tokens that a token attends to. Raises UsageError below 1 token.
    """
    _check_context(context)
    head = spec.vocab_size * spec.hidden
    attended = (context + 1) / 2
    attention = sum(2 * (layer.attention.prefill_macs * attended + layer.attention.token_macs) for layer in spec.layers)
    return 2 * (_linear_params(spec) - head) + 2 * head / context + attention


def decode_flops_per_token(spec: ModelSpec, context: int) -> float:
    """FLOPs of one decoded token that attends to `context` tokens, whose cached rows are not expanded.

    2 * (linear values with the head, `top_k` experts, router)
    + sum over layers of 2 * (decode_macs * context + token_macs)
    Absorbing latent attention's up-projections costs n_heads * (nope_dim + v_dim) * kv_lora_rank multiplications per
    token, which is kv_b's size: the linear term holds it already. Raises UsageError below 1 token.
    """
    _check_context(context)
    attention = sum(2 * (layer.attention.decode_macs * context + layer.attention.token_macs) for layer in spec.layers)
    return float(2 * _linear_params(spec) + attention)


def _check_context(context: int) -> None:
    if not 1 <= context <= _MAX_CONTEXT:
        raise UsageError(f"context must be between 1 and {_MAX_CONTEXT} tokens, not {context}.")


def _matrices(spec: ModelSpec) -> Iterator[TensorSpec]:
    """Trunk tensors that a token is multiplied by: every matrix but the embedding."""
    return (tensor for tensor in trunk_tensors(spec) if len(tensor.shape) == 2 and tensor.name != "embed")


def _linear_params(spec: ModelSpec) -> int:
    return sum(tensor.size for tensor in _matrices(spec)) + _active_expert_params(spec)


def _active_expert_params(spec: ModelSpec) -> int:
    return sum(moe.top_k * expert_params(spec.hidden, moe) for _, moe in moe_layers(spec))


def _trunk_bytes(trunk: list[TensorSpec], kind: str) -> int:
    return sum(_trunk_tensor_bytes(tensor, kind) for tensor in trunk)


def _trunk_tensor_bytes(tensor: TensorSpec, kind: str) -> int:
    if kind == "int8":
        return tensor.int8_bytes
    if kind == "bf16" or not tensor.linear:
        return tensor.plain_bytes
    return stored_bytes(Storage.FP8_BLOCK128, *tensor.shape)


def _cache_bytes(spec: ModelSpec) -> dict[str, int]:
    values, parts = spec.row_values, sum(isinstance(part, Rows) for layer in spec.kept for part in layer)
    return {"fp32": FP32_BYTES * values, "bf16": BF16_BYTES * values, "int8": values + FP32_BYTES * parts}
