"""Sizes follow from the spec alone and equal the published figures."""

import dataclasses
import os
import subprocess
import sys
from typing import Any

import pytest

import earthshine.spec
from earthshine.errors import UsageError
from earthshine.spec import (
    ModelSpec,
    decode_flops_per_token,
    footprint,
    prefill_flops_per_token,
    spec_from_config,
    trunk_tensors,
)

Config = dict[str, Any]


def test_k26_weighs_what_is_published(k26: Config) -> None:
    sizes = footprint(spec_from_config(k26))
    assert sizes.total_params == 1_026_408_232_448
    assert sizes.active_params == 31_687_095_808
    assert sizes.n_experts_in_all_layers == 384 * 60
    assert sizes.expert_bytes == 24_772_632
    assert sizes.experts_bytes == 60 * 384 * 24_772_632
    assert sizes.trunk_bytes["bf16"] == 23_444_463_616
    assert sizes.cache_bytes_per_token["bf16"] == 70_272


def test_k26_with_its_vision_tower_fills_the_published_checkpoint(k26: Config) -> None:
    """595.148 GB of tensors, of which 471,143,920 bf16 parameters are vision and projector."""
    sizes = footprint(spec_from_config(k26))
    total = sizes.experts_bytes + sizes.trunk_bytes["bf16"] + 2 * 471_143_920
    assert round(total / 1e9, 3) == 595.148


def test_k2_instruct_fills_its_published_checkpoint(k2_instruct: Config) -> None:
    """958.49 GiB of tensors, among them a 64-byte inv_freq per layer that is not a weight."""
    sizes = footprint(spec_from_config(k2_instruct))
    assert sizes.expert_bytes == 44_050_944
    assert round((sizes.experts_bytes + sizes.trunk_bytes["fp8"]) / 2**30, 2) == 958.49


def test_moonlight_experts_are_three_bf16_matrices(moonlight: Config) -> None:
    sizes = footprint(spec_from_config(moonlight))
    assert sizes.expert_bytes == 2 * 3 * 1408 * 2048 == 17_301_504
    assert sizes.n_experts_in_all_layers == 26 * 64


def test_deepseek_v3_has_its_published_parameters_without_the_prediction_layer(deepseek_v3: Config) -> None:
    sizes = footprint(spec_from_config(deepseek_v3))
    assert round(sizes.total_params / 1e9) == 671
    assert sizes.trunk_bytes["fp8"] < sizes.trunk_bytes["int8"] < sizes.trunk_bytes["bf16"]


def _tiny(k26: Config) -> ModelSpec:
    """Two layers with extents small enough to count by hand."""
    text = k26["text_config"]
    del text["quantization_config"]
    text |= {"hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 10, "moe_intermediate_size": 4}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": None, "kv_lora_rank": 6}
    text |= {"qk_nope_head_dim": 3, "qk_rope_head_dim": 2, "v_head_dim": 5, "vocab_size": 300}
    text |= {"n_routed_experts": 7, "num_experts_per_tok": 2, "n_shared_experts": 1}
    k26["bos_token_id"] = k26["eos_token_id"] = text["bos_token_id"] = text["eos_token_id"] = None
    return spec_from_config(k26)


# Attention of one layer: q 10x8, kv_a 8x8, kv_b 16x6, o 8x10. FFNs: dense 3x80, shared and routed 3x32. Router 7x8.
ATTENTION = 80 + 64 + 96 + 80
LINEAR = 2 * ATTENTION + 240 + 96 + 2 * 96 + 56
HEAD = 300 * 8


def test_flops_of_a_small_model_equal_a_count_by_hand(k26: Config) -> None:
    spec = _tiny(k26)
    assert decode_flops_per_token(spec, 10) == 2 * (LINEAR + HEAD) + 2 * 2 * 2 * (8 + 6) * 10
    assert prefill_flops_per_token(spec, 9) == 2 * LINEAR + 2 * HEAD / 9 + 2 * 2 * 2 * (5 + 5) * 5


def test_sizes_of_a_small_model_equal_a_count_by_hand(k26: Config) -> None:
    sizes = footprint(_tiny(k26))
    norms = 2 * (8 + 8 + 6) + 8
    assert sizes.active_params == LINEAR + HEAD + norms + 7
    assert sizes.total_params == LINEAR + 2 * HEAD + norms + 7 + 5 * 96
    in_linear = LINEAR - 56 - 2 * 96
    assert sizes.trunk_bytes["bf16"] == 2 * (in_linear + 2 * HEAD + norms + 56) + 4 * 7
    rows = 2 * (10 + 8 + 16 + 8) + (10 + 10 + 8) + (4 + 4 + 8)
    kv_b, vocab = 16 * 6, HEAD // 8
    rounded, groups = in_linear - 2 * kv_b + HEAD, rows - 2 * 16 + vocab
    assert sizes.trunk_bytes["int8"] == sizes.trunk_bytes["bf16"] - rounded + 4 * groups
    assert sizes.trunk_bytes["fp8"] == sizes.trunk_bytes["bf16"] - in_linear + 4 * 14
    assert sizes.cache_bytes_per_token == {"fp32": 64, "bf16": 32, "int8": 16 + 8}


def test_a_context_below_one_token_has_no_cost(k26: Config) -> None:
    spec = spec_from_config(k26)
    for cost in (prefill_flops_per_token, decode_flops_per_token):
        with pytest.raises(UsageError, match="context must be between 1 and"):
            cost(spec, 0)


def test_a_footprint_can_be_saved_as_plain_values(k26: Config) -> None:
    assert dataclasses.asdict(footprint(spec_from_config(k26)))["trunk_bytes"]["bf16"] == 23_444_463_616


def test_prediction_layers_are_counted_but_have_no_tensors(deepseek_v3: Config) -> None:
    spec = spec_from_config(deepseek_v3)
    without = dataclasses.replace(spec, n_mtp_layers=0)
    assert spec.n_mtp_layers == 1
    assert list(trunk_tensors(spec)) == list(trunk_tensors(without))
    assert footprint(spec) == footprint(without)


def test_the_public_names_are_sorted_and_real() -> None:
    names = earthshine.spec.__all__
    assert names == sorted(set(names))
    assert all(hasattr(earthshine.spec, name) for name in names)


def test_importing_the_package_loads_no_heavy_module() -> None:
    code = "import sys, earthshine.spec; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    path = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path})
    assert done.stdout.strip() == "[]", done.stderr


def test_routers_and_their_biases_alone_are_used_in_fp32(k26: Config) -> None:
    spec = spec_from_config(k26)
    wide = {tensor.name for tensor in trunk_tensors(spec) if tensor.in_fp32}
    assert wide == {f"layers.{index}.{part}" for index in range(1, 61) for part in ("router", "router_bias")}
