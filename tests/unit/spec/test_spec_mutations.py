"""A config that differs from what is implemented is refused, and the message names the key that differs."""

import contextlib
import copy
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earthshine.errors import SpecError, Unsupported
from earthshine.spec import ModelSpec, spec_from_config

Config = dict[str, Any]

# Keys of K2.6's text_config about attention, experts, RoPE and quantisation, each with values that must be refused.
# Whatever the values, a string, an object and true are refused too where they are not the published type.
_NOT_SIZES: list[Any] = [0, -1, 1.5, True, "64", None, [], 2**40]
WRONG: dict[str, list[Any]] = {
    "attention_bias": [True, 0, None],
    "first_k_dense_replace": [-1, 61, 62, True, "1", None],
    "hidden_act": ["gelu", None, 1],
    "hidden_size": [*_NOT_SIZES, 7169, 7176],
    "intermediate_size": _NOT_SIZES,
    "kv_lora_rank": _NOT_SIZES,
    "max_position_embeddings": _NOT_SIZES,
    "model_type": ["kimi_linear", None, 3],
    "moe_intermediate_size": [*_NOT_SIZES, 2056],
    "moe_layer_freq": [2, 0, True, None],
    "n_group": [*_NOT_SIZES, 5, 384],
    "n_routed_experts": [*_NOT_SIZES, 7, 65537],
    "n_shared_experts": [-1, 1.0, "1", True, 1025],
    "norm_topk_prob": [1, "true", None],
    "num_attention_heads": [*_NOT_SIZES, 63],
    "num_experts_per_tok": [*_NOT_SIZES, 385],
    "num_hidden_layers": [*_NOT_SIZES, 4097],
    "num_key_value_heads": [*_NOT_SIZES, 8],
    "num_nextn_predict_layers": [-1, "1", True, 1000],
    "q_lora_rank": [0, -1, 1.5, True, "64", []],
    "qk_nope_head_dim": _NOT_SIZES,
    "qk_rope_head_dim": [*_NOT_SIZES, 63],
    "rms_norm_eps": [0, -1e-5, 1.0, "1e-5", True, None, float("nan"), float("inf")],
    "rope_scaling": [5, "yarn", []],
    "rope_theta": [0, -1, True, None, "50000", float("nan"), float("inf"), 10**400],
    "routed_scaling_factor": [0, -1.0, True, None, "1", float("nan")],
    "scoring_func": ["softmax", None, 1],
    "tie_word_embeddings": [True, 0, None],
    "topk_group": [*_NOT_SIZES, 2],
    "topk_method": ["greedy", "group_limited_greedy", None],
    "v_head_dim": _NOT_SIZES,
    "vocab_size": [*_NOT_SIZES, 256],
    "dtype": ["float16", "float32", 16],
    "eos_token_id": [163840, -1, True, "x", [1, "2"], {}],
    "quantization_config": [5, [], "fp8"],
    "rope_scaling.type": ["linear", "longrope", "dynamic", 1],
    "rope_scaling.factor": [0, 0.5, True, None, "64", float("inf")],
    "rope_scaling.beta_fast": [0, -1, None, "32", 0.5],
    "rope_scaling.beta_slow": [0, None, "1", True],
    "rope_scaling.mscale": [-1, "1", True],
    "rope_scaling.mscale_all_dim": [-1, "1", True],
    "rope_scaling.original_max_position_embeddings": _NOT_SIZES,
    "quantization_config.quant_method": ["modelopt", "awq", "gptq", None, 4, {}],
    "quantization_config.format": ["nvfp4-pack-quantized", "float-quantized", None],
    "quantization_config.quantization_status": ["frozen", None],
    "quantization_config.kv_cache_scheme": [{"num_bits": 8}, "fp8"],
    "quantization_config.ignore": [None, [], ["lm_head"], "lm_head", [1], ["re:(a+)+$"]],
    "quantization_config.config_groups": [None, {}, [], 5],
    "quantization_config.config_groups.group_0": [None, 5],
    "quantization_config.config_groups.group_0.targets": [None, [], ["Linear", "Embedding"], "Linear"],
    "quantization_config.config_groups.group_0.input_activations": [{"num_bits": 8}],
    "quantization_config.config_groups.group_0.weights": [None, []],
    "quantization_config.config_groups.group_0.weights.num_bits": [8, 3, "4", 4.0, None],
    "quantization_config.config_groups.group_0.weights.type": ["float", None],
    "quantization_config.config_groups.group_0.weights.strategy": ["channel", "tensor", None],
    "quantization_config.config_groups.group_0.weights.group_size": [128, 16, 32.0, None],
    "quantization_config.config_groups.group_0.weights.symmetric": [False, 1, None],
    "quantization_config.config_groups.group_0.weights.dynamic": [True, 0, None],
    "quantization_config.config_groups.group_0.weights.actorder": ["group", True],
    "quantization_config.config_groups.group_0.weights.block_structure": [[128, 128]],
}
# These may be absent: their one implemented value is what the publishers' code takes.
OPTIONAL = {
    "attention_bias", "moe_layer_freq", "n_shared_experts", "num_nextn_predict_layers", "scoring_func",
    "tie_word_embeddings", "topk_method", "dtype", "eos_token_id", "rope_scaling", "quantization_config",
    "rope_scaling.mscale", "rope_scaling.mscale_all_dim", "quantization_config.quantization_status",
    "quantization_config.kv_cache_scheme", "quantization_config.config_groups.group_0.input_activations",
    "quantization_config.config_groups.group_0.weights.actorder",
    "quantization_config.config_groups.group_0.weights.block_structure",
}  # fmt: skip


def _parent(config: Config, path: str) -> tuple[Config, str]:
    *parents, key = path.split(".")
    for name in parents:
        config = config[name]
    return config, key


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_by_name(k26: Config, path: str, value: object) -> None:
    parent, key = _parent(k26["text_config"], path)
    parent[key] = value
    with pytest.raises(SpecError, match=rf"\b{re.escape(key)}\b"):
        spec_from_config(k26)


@pytest.mark.parametrize("path", [path for path in WRONG if path not in OPTIONAL])
def test_a_missing_key_is_refused_by_name(k26: Config, path: str) -> None:
    parent, key = _parent(k26["text_config"], path)
    del parent[key]
    with pytest.raises(SpecError, match=rf"\b({re.escape(key)}|config_groups)\b"):
        spec_from_config(k26)


@pytest.mark.parametrize(
    ("key", "value"),
    [("tie_word_embeddings", True), ("dtype", "float16"), ("eos_token_id", 163840), ("bos_token_id", 1),
     ("text_config", None), ("architectures", ["LlamaForCausalLM"]), ("quantization_config", {"quant_method": "awq"})],
)  # fmt: skip
def test_a_wrong_value_beside_text_config_is_refused_by_name(k26: Config, key: str, value: object) -> None:
    k26[key] = value
    with pytest.raises(SpecError, match=key):
        spec_from_config(k26)


def _objects(value: object, path: str = "") -> list[str]:
    """Paths of all objects but those that are ignored as blocks."""
    if not isinstance(value, dict) or path.endswith(("vision_config.", "observer_kwargs.")):
        return []
    here = [] if path.endswith("config_groups.") else [path]  # its keys are free names
    return [*here, *(found for key, inner in value.items() for found in _objects(inner, f"{path}{key}."))]


def test_an_unknown_key_is_refused_by_name_in_every_object(k26: Config) -> None:
    places = _objects(k26)
    assert len(places) == 6
    for place in places:
        config = copy.deepcopy(k26)
        parent, key = _parent(config, place + "sliding_window")
        parent[key] = 4096
        with pytest.raises(Unsupported, match=re.escape(place + "sliding_window")):
            spec_from_config(config)


@pytest.mark.parametrize("value", [None, False, {}, [], "", {"config_groups": {}, "scheme": None}])
def test_unknown_key_without_effect_is_accepted(k26: Config, value: object) -> None:
    plain = spec_from_config(k26)
    for place in _objects(k26):
        parent, key = _parent(k26, place + "sliding_window")
        parent[key] = value
    assert spec_from_config(k26) == plain


def test_notes_of_the_writing_library_and_keys_of_vision_are_no_reason_to_refuse(k26: Config) -> None:
    plain = spec_from_config(k26)
    k26 |= {"image_token_id": 7, "projection_layer_norm_eps": 1e-5, "unsloth_version": "2026.11"}
    k26["text_config"] |= {"_attn_implementation_autoset": True, "unsloth_fixed": True}
    assert spec_from_config(k26) == plain
    k26["text_config"]["image_token_id"] = 7
    with pytest.raises(Unsupported, match=r"text_config\.image_token_id"):
        spec_from_config(k26)


@pytest.mark.parametrize("key", ["index_topk", "use_sliding_window", "n_hash_layers", "a key\x1b[31m"])
def test_an_unknown_key_of_a_flat_config_is_refused(deepseek_v3: Config, key: str) -> None:
    deepseek_v3[key] = 1
    with pytest.raises(Unsupported, match="unknown key") as caught:
        spec_from_config(deepseek_v3)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("key", "value"),
    [("fmt", "e5m2"), ("activation_scheme", "static"), ("weight_block_size", [64, 64]), ("scale_fmt", "x"),
     ("weight_block_size", [128.0, 128]), ("modules_to_not_convert", ["q_a_proj"]),
     ("modules_to_not_convert", ["model.layers.4"]), ("dequantize", True),
     ("expert_dtype", "fp4"), ("quant_method", "fbgemm_fp8")],
)  # fmt: skip
def test_another_fp8_than_the_published_is_refused(deepseek_v3: Config, key: str, value: object) -> None:
    deepseek_v3["quantization_config"][key] = value
    with pytest.raises(Unsupported, match=key):
        spec_from_config(deepseek_v3)


def test_top_k_must_fit_in_the_kept_groups(deepseek_v3: Config) -> None:
    deepseek_v3 |= {"n_group": 128, "topk_group": 4, "num_experts_per_tok": 8}
    spec_from_config(deepseek_v3)
    deepseek_v3["topk_group"] = 3
    with pytest.raises(SpecError, match=r"num_experts_per_tok is 8; .* allow 6"):
        spec_from_config(deepseek_v3)


def test_two_spellings_of_one_key_must_agree(k26: Config) -> None:
    k26["text_config"]["num_experts"] = 384
    spec_from_config(k26)
    k26["text_config"]["num_experts"] = 256
    with pytest.raises(SpecError, match=r"num_experts is 256; it contradicts text_config\.n_routed_experts"):
        spec_from_config(k26)


def test_two_values_of_rope_theta_must_agree(k26: Config) -> None:
    k26["text_config"]["rope_scaling"]["rope_theta"] = 10000.0
    with pytest.raises(SpecError, match=r"rope_theta .*differ"):
        spec_from_config(k26)


def test_several_problems_are_named_in_one_message(k26: Config) -> None:
    text = k26["text_config"]
    del text["kv_lora_rank"]
    text |= {"n_group": "one", "topk_method": "greedy", "index_topk": 2048}
    with pytest.raises(SpecError) as caught:
        spec_from_config(k26)
    for key in ("kv_lora_rank", "n_group", "topk_method", "index_topk"):
        assert key in str(caught.value)
    assert not isinstance(caught.value, Unsupported)


def test_what_is_sound_but_not_implemented_is_unsupported_not_malformed(k26: Config) -> None:
    k26["text_config"]["scoring_func"] = "softmax"
    with pytest.raises(Unsupported, match="scoring_func is 'softmax'; only 'sigmoid' is implemented"):
        spec_from_config(k26)


def test_a_message_stays_short_whatever_the_config_holds(k26: Config) -> None:
    k26["text_config"] |= {"x" * 10**5 + str(index): index for index in range(100)} | {"n_group": 10**5000}
    k26["text_config"]["scoring_func"] = "y" * 10**6
    with pytest.raises(SpecError) as caught:
        spec_from_config(k26)
    assert len(str(caught.value)) < 2000


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _places(value: object) -> list[tuple[Any, Any]]:
    """Every (container, key) of a config, in a fixed order."""
    entries = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [place for key, inner in entries for place in [(value, key), *_places(inner)]]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_arbitrary_changes_are_read_or_refused_and_nothing_else(
    k26: Config, deepseek_v3: Config, data: st.DataObject
) -> None:
    config = copy.deepcopy(data.draw(st.sampled_from([k26, deepseek_v3])))
    for _ in range(data.draw(st.integers(1, 3))):
        places = _places(config)
        container, key = places[data.draw(st.integers(0, len(places) - 1))]
        if data.draw(st.booleans()):
            container[key] = data.draw(_JSON)
        else:
            del container[key]
    with contextlib.suppress(SpecError):
        assert isinstance(spec_from_config(config), ModelSpec)


@settings(max_examples=50, deadline=None)
@given(_JSON)
def test_arbitrary_json_is_refused(value: Any) -> None:
    with pytest.raises(SpecError):
        spec_from_config(value)
