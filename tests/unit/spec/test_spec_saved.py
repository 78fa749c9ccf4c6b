"""Configs as the installed transformers and compressed-tensors save them are read, so that a new release is noticed."""

import json
from pathlib import Path
from typing import Any

import pytest
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from transformers import CONFIG_MAPPING, FineGrainedFP8Config

from earthshine.errors import Unsupported
from earthshine.spec import load_spec, spec_from_config
from earthshine.storage import Storage

Config = dict[str, Any]


def _resaved(config: Config, folder: Path) -> Config:
    """What transformers writes once it has read `config`."""
    CONFIG_MAPPING[config["model_type"]].from_dict(config).save_pretrained(folder)
    return dict(json.loads((folder / "config.json").read_text()))


def _int4(ignore: list[str]) -> Config:
    arguments = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=32, symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format="pack-quantized", quantization_status="compressed", ignore=ignore
    )
    beside = {"version": "0.20.1", "sparsity_config": {}, "transform_config": {}}
    return beside | dict(json.loads(config.model_dump_json()))


needs_kimi = pytest.mark.skipif("kimi_k25" not in CONFIG_MAPPING, reason="this transformers has no kimi_k25")


@needs_kimi
def test_kimi_k25_with_its_vision_config_is_read_as_it_was_before(tmp_path: Path, k26: Config) -> None:
    k26["text_config"]["model_type"] = "deepseek_v3"
    del k26["text_config"]["quantization_config"], k26["vision_config"]
    saved = _resaved(k26, tmp_path)
    assert {"image_token_id", "projection_hidden_size", "vision_config"} <= saved.keys()
    assert load_spec(tmp_path) == spec_from_config(k26)


@needs_kimi
def test_kimi_k25_with_int4_experts_is_read(tmp_path: Path, k26: Config) -> None:
    ignore = k26["text_config"]["quantization_config"]["ignore"]
    k26["text_config"]["model_type"] = "deepseek_v3"
    del k26["text_config"]["quantization_config"], k26["vision_config"]
    saved = _resaved(k26 | {"quantization_config": _int4(ignore)}, tmp_path)
    assert "moe_sparsity_config" in saved["quantization_config"]
    assert load_spec(tmp_path).expert_storage is Storage.INT4_GROUP32


def test_deepseek_v3_is_read_as_it_was_before(tmp_path: Path, deepseek_v3: Config) -> None:
    _resaved(deepseek_v3, tmp_path)
    assert load_spec(tmp_path) == spec_from_config(deepseek_v3)


def test_deepseek_v3_with_transformers_own_fp8_is_read(tmp_path: Path, deepseek_v3: Config) -> None:
    plain = spec_from_config(deepseek_v3)
    deepseek_v3["quantization_config"] = FineGrainedFP8Config(modules_to_not_convert=["lm_head"]).to_dict()
    _resaved(deepseek_v3, tmp_path)
    assert load_spec(tmp_path) == plain


def test_a_sparse_checkpoint_is_refused_by_name(k26: Config) -> None:
    block = k26["text_config"]["quantization_config"]
    block["moe_sparsity_config"] = {"kept_experts": 128}
    with pytest.raises(Unsupported, match=r"quantization_config\.moe_sparsity_config"):
        spec_from_config(k26)
