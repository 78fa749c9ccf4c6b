"""A published config.json, cut: fewer layers, experts or tokens, another storage or context; the rest as published.

`earthshine.spec` reads the result as the model that was asked for. Refuses to enlarge a
vocabulary and pairs of storages that no published config can express.
"""

import copy
from dataclasses import dataclass
from typing import Any

from checkpoints.quantization import published_quantization

from earthshine.errors import SpecError, UsageError
from earthshine.spec import ModelSpec, spec_from_config
from earthshine.spec.families.reader import ALIASES
from earthshine.storage import Storage

STORAGES = {"bf16": Storage.BF16, "fp8": Storage.FP8_BLOCK128, "int4": Storage.INT4_GROUP32}
_TRUNK_BESIDE = {Storage.BF16: Storage.BF16, Storage.FP8_BLOCK128: Storage.FP8_BLOCK128,
                 Storage.INT4_GROUP32: Storage.BF16}  # fmt: skip
_TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "media_placeholder_token_id")
# Millions of experts would fill the memory with names; Kimi-K3, the largest published model, has 82,432.
_MOST_EXPERTS = 200_000


@dataclass(frozen=True, slots=True)
class Cut:
    """What to change in a config; None keeps what was published."""

    n_layers: int | None = None
    n_dense: int | None = None
    n_experts: int | None = None
    top_k: int | None = None
    vocab_size: int | None = None
    max_context: int | None = None
    expert_storage: str | None = None
    trunk_storage: str | None = None


def cut_config(published: dict[str, Any], cut: Cut) -> tuple[dict[str, Any], ModelSpec]:
    """The config that `cut` asks for and its spec. Raises UsageError, SpecError or Unsupported."""
    config = copy.deepcopy(published)
    text = config.get("text_config", config)
    if not isinstance(text, dict):
        raise SpecError("config.json: text_config must be an object.")
    if cut.expert_storage is not None:
        _store(config, text, STORAGES[cut.expert_storage])
    spec = spec_from_config(config)  # so that all that is touched below has the type that it should have
    if cut.vocab_size is not None:
        _cut_vocabulary((text, config), spec.vocab_size, cut.vocab_size)
    changes = {
        "num_hidden_layers": cut.n_layers,
        "first_k_dense_replace": cut.n_dense,
        "n_routed_experts": cut.n_experts,
        "num_experts_per_tok": cut.top_k,
        "max_position_embeddings": cut.max_context,
        "num_nextn_predict_layers": 0 if spec.n_mtp_layers else None,
    }
    for key, value in changes.items():
        if value is not None:
            _change(text, key, value)
    if cut.n_layers is not None:
        _cut_layer_lists(text.get("linear_attn_config"), cut.n_layers)
    spec = spec_from_config(config)
    _refuse_impossible(spec, cut)
    return config, spec


def _change(text: dict[str, Any], key: str, value: int) -> None:
    for spelling in [name for name in (key, *ALIASES.get(key, ())) if name in text] or [key]:
        text[spelling] = value


def _cut_layer_lists(linear: Any, n_layers: int) -> None:
    """Kimi-Linear's two lists of layers, which count from 1; a longer model repeats none of them and is refused."""
    for key in ("full_attn_layers", "kda_layers"):
        if isinstance(linear, dict) and isinstance(linear.get(key), list):
            linear[key] = [layer for layer in linear[key] if layer <= n_layers]


def _store(config: dict[str, Any], text: dict[str, Any], storage: Storage) -> None:
    """Puts the publishers' own block for `storage` where the family has it, unless it is stored so already."""
    try:
        if spec_from_config(config).expert_storage is storage:
            return
    except SpecError:  # such as a quantisation that can't be read, which is about to be replaced
        pass
    config.pop("quantization_config", None)
    text.pop("quantization_config", None)
    block = published_quantization(storage)
    if block is not None:
        text["quantization_config"] = block


def _cut_vocabulary(levels: tuple[dict[str, Any], ...], before: int, after: int) -> None:
    """A token that no longer fits keeps its distance from the end, where Kimi's control tokens lie."""
    if after > before:
        raise UsageError(f"--vocab is {after}, and the published vocabulary has {before}; it can only be cut.")

    def moved(token: Any) -> Any:
        return token - (before - after) if type(token) is int and token >= after else token

    for level in levels:
        for key in _TOKEN_KEYS:
            if key in level:
                value = level[key]
                level[key] = [moved(token) for token in value] if isinstance(value, list) else moved(value)
        if "vocab_size" in level:
            level["vocab_size"] = after


def _refuse_impossible(spec: ModelSpec, cut: Cut) -> None:
    trunk = _TRUNK_BESIDE[spec.expert_storage]
    if cut.trunk_storage is not None and STORAGES[cut.trunk_storage] is not trunk:
        raise UsageError(
            f"--trunk-storage is {cut.trunk_storage}, and no published config stores it beside experts in "
            f"{spec.expert_storage}; the trunk is then {trunk}."
        )
    n_experts = sum(getattr(layer.ffn, "n_experts", 0) for layer in spec.layers)
    if n_experts > _MOST_EXPERTS:
        raise UsageError(f"That is {n_experts} experts in all layers; a synthesised model has up to {_MOST_EXPERTS}.")
