"""Qwen3-MoE: published and saved configs read to their published values, and other forms are refused by name."""

import re
from typing import Any

import pytest

from earthshine.errors import SpecError, Unsupported
from earthshine.spec import (
    GqaSpec,
    LayerSpec,
    MoeSpec,
    RopeSpec,
    RouterSpec,
    Rows,
    Scoring,
    YarnSpec,
    footprint,
    spec_from_config,
    trunk_tensors,
)
from earthshine.storage import Storage

Config = dict[str, Any]


def test_30b_reads_to_its_published_values(qwen3_30b: Config) -> None:
    spec = spec_from_config(qwen3_30b)
    attention = GqaSpec(n_heads=32, n_kv_heads=4, head_dim=128, rope=RopeSpec(128, 1e6, None), norm_eps=1e-6)
    router = RouterSpec(n_groups=1, groups_kept=1, normalize=True, scale=1.0, scoring=Scoring.SOFTMAX)
    assert spec.layers == (LayerSpec(attention, MoeSpec(128, 8, 768, 0, router)),) * 48
    assert (spec.family, spec.hidden, spec.vocab_size, spec.max_context) == ("qwen3_moe", 2048, 151936, 40960)
    assert (spec.norm_eps, spec.bos_token, spec.stop_tokens) == (1e-6, 151643, (151645,))
    assert (spec.trunk_storage, spec.expert_storage) == (Storage.BF16, Storage.BF16)


@pytest.mark.parametrize(
    ("name", "total", "active", "cache"),
    [("qwen3_30b", 30_532_122_624, 3.35, 98_304), ("qwen3_235b", 235_093_634_560, 22.19, 192_512)],
)
def test_sizes_are_the_published_ones(
    request: pytest.FixtureRequest, name: str, total: int, active: float, cache: int
) -> None:
    """30.5 B with 3.3 B active and 235 B with 22 B active, as published with the embedding's row table counted."""
    spec = spec_from_config(request.getfixturevalue(name))
    sizes = footprint(spec)
    assert sizes.total_params == total
    assert round((sizes.active_params + spec.vocab_size * spec.hidden) / 1e9, 2) == active
    assert sizes.cache_bytes_per_token["bf16"] == cache
    assert spec.kept[0] == (Rows("key_value", 4 * 2 * 128),)


def test_a_layer_has_no_bias_and_no_shared_expert(qwen3_30b: Config) -> None:
    names = {
        tensor.name for tensor in trunk_tensors(spec_from_config(qwen3_30b)) if tensor.name.startswith("layers.0.")
    }
    attention = {f"attention.{name}" for name in ("q", "q_norm", "k", "k_norm", "v", "o")}
    assert names == {f"layers.0.{name}" for name in attention | {"attention_norm", "ffn_norm", "router"}}


def test_a_config_as_transformers_saves_it_reads_the_same(qwen3_30b: Config) -> None:
    published = spec_from_config(qwen3_30b)
    rope = {"rope_theta": qwen3_30b.pop("rope_theta"), "rope_type": "default"}
    del qwen3_30b["rope_scaling"], qwen3_30b["torch_dtype"]
    saved = qwen3_30b | {
        "dtype": "bfloat16",
        "num_local_experts": qwen3_30b.pop("num_experts"),
        "rope_parameters": rope,
    }
    assert spec_from_config(saved | {"pad_token_id": None}) == published


def test_without_head_dim_the_hidden_size_is_divided(qwen3_30b: Config) -> None:
    del qwen3_30b["head_dim"]
    attention = spec_from_config(qwen3_30b).layers[0].attention
    assert isinstance(attention, GqaSpec)
    assert attention.head_dim == attention.rope.dim == 64
    qwen3_30b["num_attention_heads"] = 12
    with pytest.raises(SpecError, match="head_dim is missing"):
        spec_from_config(qwen3_30b)


def test_a_window_that_is_not_used_changes_nothing(qwen3_30b: Config) -> None:
    plain = spec_from_config(qwen3_30b)
    assert spec_from_config(qwen3_30b | {"sliding_window": 4096, "layer_types": ["full_attention"] * 48}) == plain


def test_fp8_is_read_with_the_modules_that_stay_in_bf16(qwen3_30b: Config) -> None:
    kept = ["lm_head", *(f"model.layers.{i}.{name}" for i in range(48) for name in ("mlp.gate", "input_layernorm"))]
    block = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
    spec = spec_from_config(qwen3_30b | {"quantization_config": block | {"modules_to_not_convert": kept}})
    assert (spec.trunk_storage, spec.expert_storage) == (Storage.FP8_BLOCK128, Storage.FP8_BLOCK128)
    kept.append("model.layers.7.self_attn.k_proj")
    with pytest.raises(Unsupported, match=r"keeps model\.layers\.7\.self_attn\.k_proj in bf16"):
        spec_from_config(qwen3_30b | {"quantization_config": block | {"modules_to_not_convert": kept}})


YARN = {"factor": 4.0, "original_max_position_embeddings": 32768, "rope_type": "yarn"}
_NOT_SIZES: list[Any] = [0, -1, 1.5, True, "64", None, [], 2**40]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("attention_bias", [True, 0]),
        ("decoder_sparse_step", [2, 0, None]),
        ("mlp_only_layers", [[0], 3]),
        ("use_sliding_window", [True, None]),
        ("layer_types", [["full_attention"] * 47, ["sliding_attention"] * 48, "full_attention"]),
        ("tie_word_embeddings", [True, None]),
        ("hidden_act", ["gelu", None]),
        ("architectures", [["Qwen3ForCausalLM"]]),
        ("torch_dtype", ["float16"]),
        ("rope_scaling", [{"rope_type": "linear", "factor": 2.0}, {"factor": 2.0}, "yarn", 4]),
        ("rope_theta", [None, 0, "1e6", True]),
        ("head_dim", [0, 127, -2, "128", 64.0]),
        ("num_attention_heads", [*_NOT_SIZES, 30]),
        ("num_key_value_heads", [*_NOT_SIZES, 5, 64]),
        ("num_experts", [*_NOT_SIZES, 7]),
        ("num_experts_per_tok", [*_NOT_SIZES, 129]),
        ("moe_intermediate_size", _NOT_SIZES),
        ("hidden_size", _NOT_SIZES),
        ("num_hidden_layers", _NOT_SIZES),
        ("norm_topk_prob", [None, 1, "true"]),
        ("rms_norm_eps", [None, 0, True]),
        ("vocab_size", _NOT_SIZES),
        ("eos_token_id", [None, 151936]),
        ("max_position_embeddings", _NOT_SIZES),
        ("routed_scaling_factor", [2.5]),
        ("scoring_func", ["sigmoid"]),
        ("shared_expert_intermediate_size", [512]),
        ("n_shared_experts", [1]),
        ("n_group", [4]),
        ("partial_rotary_factor", [0.5]),
        ("attn_output_gate", [True]),
        ("use_qk_norm", [True]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_values_are_refused_by_name(qwen3_30b: Config, key: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(SpecError, match=rf"\b{re.escape(key)}\b"):
            spec_from_config(qwen3_30b | {key: value})


def test_yarn_as_the_cards_write_it(qwen3_30b: Config) -> None:
    """max_position_embeddings may stay what it was; YaRN stretches the original context."""
    for key in ("rope_scaling", "rope_parameters"):
        spec = spec_from_config(qwen3_30b | {"rope_scaling": None} | {key: YARN | {"rope_theta": 1e6}})
        assert spec.max_context == 131072
        assert spec.layers[0].attention.rope == RopeSpec(128, 1e6, YarnSpec(4.0, 32768, 32.0, 1.0, 1.0, 0.0))
    stretched = spec_from_config(qwen3_30b | {"rope_scaling": YARN, "max_position_embeddings": 262144})
    assert stretched.max_context == 262144


def test_yarn_with_keys_of_its_own(qwen3_30b: Config) -> None:
    own = YARN | {"attention_factor": 1.25, "beta_fast": 16, "beta_slow": 2, "truncate": True, "mscale": None}
    (yarn,) = {layer.attention.rope.yarn for layer in spec_from_config(qwen3_30b | {"rope_scaling": own}).layers}
    assert yarn == YarnSpec(4.0, 32768, 16.0, 2.0, 1.0, 0.0, 1.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factor": 0.5}, "rope_scaling.factor is 0.5; it must be a number from 1"),
        ({"factor": None}, "rope_scaling.factor is null"),
        ({"original_max_position_embeddings": None}, "rope_scaling.original_max_position_embeddings is null"),
        ({"attention_factor": -1}, "rope_scaling.attention_factor is -1; it must be a number from 0.001"),
        ({"beta_fast": 0.5}, "rope_scaling.beta_fast must be at least beta_slow"),
        ({"truncate": False}, "rope_scaling.truncate is false; only true is implemented"),
        ({"mscale": 0.7}, "unknown key rope_scaling.mscale"),
        ({"rope_type": "longrope"}, "rope_scaling.rope_type is 'longrope'; only 'default' or 'yarn' is implemented"),
    ],
)
def test_another_yarn_is_refused_by_name(qwen3_30b: Config, change: Config, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec_from_config(qwen3_30b | {"rope_scaling": YARN | change})
