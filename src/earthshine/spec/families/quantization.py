"""How a checkpoint stores its linear layers, from the quantization_config block of its config.json.

Three answers exist: bf16 throughout (no block), FP8 e4m3 in 128x128 blocks throughout (DeepSeek, Kimi-K2-Instruct),
and INT4 in groups of 32 for the routed experts alone (Kimi-K2-Thinking and later). Every other method, width, group or
list of exceptions is refused by name.
"""

from earthshine.spec.families.reader import KeyReader
from earthshine.spec.model import FP8_BLOCK, INT4_GROUP, Storage
from earthshine.untrusted import shown

# What the published ignore lists of Moonshot keep in bf16, by what each entry matches. Entries are compared as text
# and never run as patterns: a config is untrusted, and a pattern can take exponential time.
_KEPT_BF16 = {
    "lm_head": "lm_head",
    "re:.*self_attn.*": "attention",
    "re:.*shared_experts.*": "shared experts",
    r"re:.*mlp\.(gate|up|gate_up|down)_proj.*": "the dense layers",
    "re:.*vision_tower.*": "vision",
    "re:.*mm_projector.*": "vision",
}
_MUST_STAY_BF16 = ("lm_head", "attention", "shared experts", "the dense layers")
_READABLE = "fp8 (e4m3 in 128x128 blocks), compressed-tensors (int4 in groups of 32) and no quantization_config (bf16)"


def read_quantization(keys: KeyReader) -> tuple[Storage, Storage]:
    """(trunk storage, expert storage) from `quantization_config` of `keys`; absent or null means bf16."""
    if not keys.has("quantization_config"):
        return Storage.BF16, Storage.BF16
    block = keys.block("quantization_config")
    method = block.raw("quant_method")
    if method == "fp8":
        _check_fp8(block)
        return Storage.FP8_BLOCK128, Storage.FP8_BLOCK128
    if method == "compressed-tensors":
        _check_int4(block)
        return Storage.BF16, Storage.INT4_GROUP32
    block.waive()
    block.problems.unsupported(_refused_method(block, method))
    return Storage.BF16, Storage.BF16


def published_quantization(storage: Storage) -> dict[str, object] | None:
    """The block as publishers write it for experts in `storage`; None for bf16. What `read_quantization` reads back."""
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
        "ignore": [entry for entry, part in _KEPT_BF16.items() if part in _MUST_STAY_BF16],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def _refused_method(block: KeyReader, method: object) -> str:
    name = block.name("quant_method")
    if method == "modelopt":
        algorithm = block.raw("quant_algo")
        what = "NVFP4" if algorithm == "NVFP4" else "a modelopt format"
        return f"{name} is 'modelopt', and {what} weights are not implemented; those that are: {_READABLE}"
    return f"{name} names no implemented quantisation; those that are: {_READABLE}"


def _check_fp8(block: KeyReader) -> None:
    block.equal("quant_method", "fp8")
    block.equal("fmt", "e4m3")
    block.equal("activation_scheme", "dynamic")
    block.equal("weight_block_size", [FP8_BLOCK, FP8_BLOCK])
    # ue8m0 (DeepSeek-V3.1) says that the scales were rounded to powers of two; they are stored as f32 all the same.
    block.equal("scale_fmt", "ue8m0", None, optional=True)


def _check_int4(block: KeyReader) -> None:
    block.equal("quant_method", "compressed-tensors")
    block.equal("format", "pack-quantized")
    block.equal("quantization_status", "compressed", optional=True)
    block.equal("kv_cache_scheme", None, optional=True)
    block.equal("sparsity_config", None, {}, optional=True)
    block.equal("transform_config", None, {}, optional=True)
    block.ignore(("version", "global_compression_ratio"))
    groups = block.block("config_groups").blocks()
    block.require(len(groups) == 1, f"{block.name('config_groups')} must hold exactly one group")
    for group in groups[1:]:
        group.waive()
    for group in groups[:1]:
        _check_group(group)
    _check_ignore_list(block)


def _check_group(group: KeyReader) -> None:
    group.equal("targets", ["Linear"])
    group.equal("input_activations", None, optional=True)
    group.equal("output_activations", None, optional=True)
    group.equal("format", "pack-quantized", None, optional=True)
    weights = group.block("weights")
    weights.equal("num_bits", 4)
    weights.equal("type", "int")
    weights.equal("strategy", "group")
    weights.equal("group_size", INT4_GROUP)
    weights.equal("symmetric", True)
    weights.equal("dynamic", False)
    for key in ("actorder", "block_structure", "scale_dtype", "zp_dtype"):
        weights.equal(key, None, optional=True)
    weights.ignore(("observer", "observer_kwargs"))


def _check_ignore_list(block: KeyReader) -> None:
    """The exceptions must leave the routed experts, and nothing else, in int4."""
    name = block.name("ignore")
    kept = set()
    for entry in block.strings("ignore"):
        if entry in _KEPT_BF16:
            kept.add(_KEPT_BF16[entry])
        else:
            block.problems.unsupported(f"{name} holds an entry that no published config has, {shown(entry)}")
    missing = [part for part in _MUST_STAY_BF16 if part not in kept]
    if missing:
        block.problems.unsupported(
            f"{name} does not keep {', '.join(missing)} in bf16; only int4 of the routed experts is implemented"
        )
