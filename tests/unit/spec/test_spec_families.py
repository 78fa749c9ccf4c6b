"""Published configs read to their published values, and what is not implemented is refused with what is missing."""

import copy
from pathlib import Path
from typing import Any

import pytest

from earthshine.errors import SpecError, Unsupported
from earthshine.spec import (
    DenseSpec,
    LayerSpec,
    MlaSpec,
    MoeSpec,
    RopeSpec,
    RouterSpec,
    YarnSpec,
    load_spec,
    spec_from_config,
)
from earthshine.storage import Storage

Config = dict[str, Any]

K26_YARN = YarnSpec(factor=64.0, original_context=4096, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0)
K26_MLA = MlaSpec(
    n_heads=64,
    q_lora_rank=1536,
    kv_lora_rank=512,
    nope_dim=128,
    v_dim=128,
    rope=RopeSpec(dim=64, theta=50000.0, yarn=K26_YARN),
    latent_norm_eps=1e-6,
)
K26_MOE = MoeSpec(
    n_experts=384,
    top_k=8,
    intermediate=2048,
    shared_intermediate=2048,
    router=RouterSpec(n_groups=1, groups_kept=1, normalize=True, scale=2.827),
)


def test_k26_reads_to_its_published_values(k26: Config) -> None:
    spec = spec_from_config(k26)
    assert (spec.family, spec.hidden, spec.vocab_size, spec.max_context) == ("kimi_k25", 7168, 163840, 262144)
    assert spec.norm_eps == 1e-5
    assert spec.layers == (LayerSpec(K26_MLA, DenseSpec(18432)),) + (LayerSpec(K26_MLA, K26_MOE),) * 60
    assert (spec.trunk_storage, spec.expert_storage) == (Storage.BF16, Storage.INT4_GROUP32)
    assert (spec.bos_token, spec.stop_tokens, spec.n_mtp_layers) == (163584, (163585, 163586), 0)


def test_k2_instruct_reads_to_its_published_values(k2_instruct: Config) -> None:
    spec = spec_from_config(k2_instruct)
    assert (spec.family, spec.norm_eps, spec.max_context) == ("kimi_k2", 1e-6, 131072)
    assert (spec.trunk_storage, spec.expert_storage) == (Storage.FP8_BLOCK128, Storage.FP8_BLOCK128)
    assert spec.layers[0].attention.rope.yarn == YarnSpec(32.0, 4096, 1.0, 1.0, 1.0, 1.0)
    assert spec.stop_tokens == (163585, 163586)


def test_k2_thinking_is_flat_with_int4_experts(k2_instruct: Config, k26: Config) -> None:
    k2_instruct["quantization_config"] = k26["text_config"]["quantization_config"]
    spec = spec_from_config(k2_instruct)
    assert (spec.family, spec.trunk_storage, spec.expert_storage) == ("kimi_k2", Storage.BF16, Storage.INT4_GROUP32)


def test_deepseek_v3_reads_to_its_published_values(deepseek_v3: Config) -> None:
    spec = spec_from_config(deepseek_v3)
    assert [type(layer.ffn) for layer in spec.layers] == [DenseSpec] * 3 + [MoeSpec] * 58
    moe = spec.layers[3].ffn
    assert isinstance(moe, MoeSpec)
    assert moe.router == RouterSpec(n_groups=8, groups_kept=4, normalize=True, scale=2.5)
    assert spec.layers[0].attention.n_heads == 128
    assert spec.layers[0].attention.rope == RopeSpec(64, 10000.0, YarnSpec(40.0, 4096, 32.0, 1.0, 1.0, 1.0))
    assert (spec.bos_token, spec.stop_tokens, spec.n_mtp_layers, spec.n_layers) == (0, (1,), 1, 61)


def test_moonlight_has_no_query_rank_no_yarn_and_fused_shared_experts(moonlight: Config) -> None:
    spec = spec_from_config(moonlight)
    attention = spec.layers[0].attention
    assert (attention.q_lora_rank, attention.rope) == (None, RopeSpec(64, 50000.0, None))
    moe = spec.layers[1].ffn
    assert isinstance(moe, MoeSpec)
    assert (moe.n_experts, moe.top_k, moe.shared_intermediate) == (64, 6, 2816)
    assert (spec.trunk_storage, spec.expert_storage) == (Storage.BF16, Storage.BF16)
    assert spec.stop_tokens == (163585, 163586)


def test_latent_norms_take_the_publishers_default_epsilon_whatever_the_config_says(k26: Config) -> None:
    assert k26["text_config"]["rms_norm_eps"] == 1e-5
    assert spec_from_config(k26).layers[0].attention.latent_norm_eps == 1e-6


def test_rope_parameters_of_newer_exports_mean_the_same_as_rope_scaling(k26: Config) -> None:
    renamed = copy.deepcopy(k26)
    text = renamed["text_config"]
    block = text.pop("rope_scaling")
    text["rope_parameters"] = block | {"rope_type": "yarn", "rope_theta": 50000.0}
    assert spec_from_config(renamed) == spec_from_config(k26)
    del text["rope_theta"], text["rope_parameters"]["type"]
    assert spec_from_config(renamed) == spec_from_config(k26)


def test_the_two_places_of_quantization_config_mean_the_same(k26: Config) -> None:
    moved = copy.deepcopy(k26)
    moved["quantization_config"] = moved["text_config"].pop("quantization_config")
    assert spec_from_config(moved) == spec_from_config(k26)
    moved["text_config"]["quantization_config"] = copy.deepcopy(moved["quantization_config"])
    assert spec_from_config(moved) == spec_from_config(k26)
    moved["text_config"]["quantization_config"]["ignore"] = []
    with pytest.raises(SpecError, match=r"quantization_config and text_config\.quantization_config differ"):
        spec_from_config(moved)


def test_a_second_group_of_quantised_layers_is_refused(k26: Config) -> None:
    groups = k26["text_config"]["quantization_config"]["config_groups"]
    groups["group_1"] = copy.deepcopy(groups["group_0"])
    with pytest.raises(SpecError, match="exactly one group"):
        spec_from_config(k26)


@pytest.mark.parametrize("value", [163585, [163585], None, [163586, 163585]])
def test_kimi_stops_at_both_ends_of_text_whichever_the_config_names(k26: Config, value: object) -> None:
    k26["eos_token_id"] = k26["text_config"]["eos_token_id"] = value
    assert spec_from_config(k26).stop_tokens == (163585, 163586)


def test_stop_tokens_unite_both_levels_and_follow_a_smaller_vocabulary(k26: Config) -> None:
    text = k26["text_config"]
    text["vocab_size"] = 4352
    k26["bos_token_id"] = text["bos_token_id"] = None
    k26["eos_token_id"], text["eos_token_id"] = [7], 9
    spec = spec_from_config(k26)
    assert (spec.bos_token, spec.stop_tokens) == (4096, (7, 9, 4097, 4098))


def test_another_vocabulary_than_kimis_must_name_its_stop_token(deepseek_v3: Config) -> None:
    deepseek_v3["eos_token_id"] = None
    with pytest.raises(SpecError, match="eos_token_id"):
        spec_from_config(deepseek_v3)


def test_yarn_without_mscale_keys_does_not_scale_the_softmax(k2_instruct: Config) -> None:
    del k2_instruct["rope_scaling"]["mscale"], k2_instruct["rope_scaling"]["mscale_all_dim"]
    yarn = spec_from_config(k2_instruct).layers[0].attention.rope.yarn
    assert yarn is not None
    assert (yarn.mscale, yarn.mscale_all_dim) == (1.0, 0.0)


def test_a_config_as_transformers_saves_it_is_read(deepseek_v3: Config) -> None:
    for key in ("moe_layer_freq", "topk_method", "scoring_func", "quantization_config", "torch_dtype"):
        del deepseek_v3[key]
    deepseek_v3["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    del deepseek_v3["rope_scaling"], deepseek_v3["rope_theta"]
    deepseek_v3 |= {"dtype": "bfloat16", "head_dim": 64, "qk_head_dim": 192, "rope_interleave": True}
    deepseek_v3 |= {"num_local_experts": 256, "output_router_logits": False, "chunk_size_feed_forward": 0}
    spec = spec_from_config(deepseek_v3)
    assert spec.layers[0].attention.rope == RopeSpec(64, 10000.0, None)


def test_fp8_scales_that_are_powers_of_two_are_read_as_any_other(deepseek_v3: Config) -> None:
    plain = spec_from_config(deepseek_v3)
    deepseek_v3["quantization_config"]["scale_fmt"] = "ue8m0"
    assert spec_from_config(deepseek_v3) == plain


IMPLEMENTED = {
    "Qwen--Qwen3-235B-A22B": "qwen3_235b",
    "Qwen--Qwen3-30B-A3B": "qwen3_30b",
    "deepseek-ai--DeepSeek-R1": "deepseek_v3",
    "deepseek-ai--DeepSeek-V3": "deepseek_v3",
    "moonshotai--Kimi-K2-Instruct": "k2_instruct",
    "moonshotai--Kimi-K2.5": "k26",
    "moonshotai--Kimi-K2.6": "k26",
    "moonshotai--Kimi-Linear-48B-A3B-Instruct": "kimi_linear",
}
REFUSED = {
    "Qwen--Qwen3.5-35B-A3B": "gated delta attention",
    "Qwen--Qwen3.5-397B-A17B": "gated delta attention",
    "deepseek-ai--DeepSeek-V3.2": "DSA",
    "deepseek-ai--DeepSeek-V4-Flash": "compressed-key attention",
    "deepseek-ai--DeepSeek-V4-Pro": "compressed-key attention",
    "moonshotai--Kimi-K3": "it needs attention residuals, output gates in latent attention, latent experts, SiTU",
    "nvidia--Kimi-K2.6-NVFP4": "NVFP4",
    "nvidia--Kimi-K2.7-Code-NVFP4": "NVFP4",
    "zai-org--GLM-5": "DSA",
    "zai-org--GLM-5.1": "DSA",
    "zai-org--GLM-5.2": "DSA",
}


@pytest.mark.parametrize(("name", "inline"), IMPLEMENTED.items())
def test_a_published_config_reads_as_the_inline_copy(
    shared_data: Path, request: pytest.FixtureRequest, name: str, inline: str
) -> None:
    published = load_spec(shared_data / "configs" / f"{name}_config.json")
    assert published == spec_from_config(request.getfixturevalue(inline))


@pytest.mark.parametrize(("name", "missing"), REFUSED.items())
def test_a_published_config_that_is_not_implemented_is_refused_with_what_is_missing(
    shared_data: Path, name: str, missing: str
) -> None:
    with pytest.raises(Unsupported, match=missing):
        load_spec(shared_data / "configs" / f"{name}_config.json")


def test_every_published_config_is_either_implemented_or_refused_here(shared_data: Path) -> None:
    names = {path.name.removesuffix("_config.json") for path in (shared_data / "configs").glob("*.json")}
    assert names == IMPLEMENTED.keys() | REFUSED.keys()


def test_an_unknown_family_is_named_beside_those_that_can_be_read() -> None:
    with pytest.raises(Unsupported, match=r"'mamba9'.*deepseek_v3, kimi_k2, kimi_k25"):
        spec_from_config({"model_type": "mamba9"})


@pytest.mark.parametrize("config", [{}, {"model_type": 5}, {"model_type": None}])
def test_a_config_without_a_family_is_malformed(config: Config) -> None:
    with pytest.raises(SpecError, match="model_type") as caught:
        spec_from_config(config)
    assert not isinstance(caught.value, Unsupported)
