"""The `quantization_config` of a config.json, as the publishers of each format write it."""

from earthshine.storage import FP8_BLOCK, INT4_GROUP, Storage

_PUBLISHED_IGNORE = [
    "lm_head",
    "re:.*self_attn.*",
    "re:.*shared_experts.*",
    r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
]


def published_quantization(storage: Storage) -> dict[str, object] | None:
    """The block as publishers write it for experts in `storage`; None for bf16."""
    if storage is Storage.BF16:
        return None
    if storage is Storage.FP8_BLOCK128:
        blocks = [FP8_BLOCK, FP8_BLOCK]
        return {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": blocks}
    weights: dict[str, object] = {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": INT4_GROUP,
        "num_bits": 4,
        "observer": "minmax",
        "observer_kwargs": {},
        "strategy": "group",
        "symmetric": True,
        "type": "int",
    }
    group = {"input_activations": None, "output_activations": None, "targets": ["Linear"], "weights": weights}
    return {
        "config_groups": {"group_0": group},
        "format": "pack-quantized",
        "ignore": list(_PUBLISHED_IGNORE),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }
