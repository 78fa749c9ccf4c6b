"""What the comparisons with whole models make and ask for: the bf16 copy's values, the words, the drawn experts."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints.quantization import published_quantization
from checkpoints.writer import published_tensors, tensor_shapes, write_checkpoint
from safetensors.torch import load_file
from versus import model_options
from write_bf16 import plain_config, write_bf16

from earthshine.errors import UsageError
from earthshine.spec import spec_from_config
from earthshine.storage import Storage

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "bos_token_id": 60, "eos_token_id": 61,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 96, "kv_lora_rank": 32,
    "max_position_embeddings": 4096, "model_type": "deepseek_v3", "moe_intermediate_size": 32, "moe_layer_freq": 1,
    "n_group": 1, "n_routed_experts": 4, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 2,
    "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 2, "num_nextn_predict_layers": 0,
    "q_lora_rank": None, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "rms_norm_eps": 1e-5, "rope_scaling": None,
    "rope_theta": 50000.0, "routed_scaling_factor": 2.0, "scoring_func": "sigmoid", "tie_word_embeddings": False,
    "topk_group": 1, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "v_head_dim": 16, "vocab_size": 64,
}  # fmt: skip
INT4 = published_quantization(Storage.INT4_GROUP32)


@pytest.fixture
def published(tmp_path):
    """A tiny INT4 checkpoint in which every nibble of every expert is drawn."""
    config = {**CONFIG, "quantization_config": INT4}
    spec, draw = spec_from_config(config), torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=draw).bfloat16() for name, shape in tensor_shapes(spec).items()}
    folder = tmp_path / "published"
    write_checkpoint(folder, published_tensors(spec, tensors), 1 << 14)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def tensors_of(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def published_value(packed, scale):
    """(nibble - 8) * scale in exact arithmetic, rounded to bf16 once: the lower nibble of a word first."""
    words = packed.numpy().view(np.uint32)
    nibbles = (words[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15
    codes = nibbles.reshape(len(words), -1).astype(np.float64) - 8
    exact = codes * np.repeat(scale.double().numpy(), 32, axis=1)
    return torch.from_numpy(exact).float().bfloat16()  # 4 by 8 bits of product are exact in fp32


def test_the_copy_holds_exactly_the_published_values(tmp_path, published):
    write_bf16(published, tmp_path / "copy", 1 << 14)
    before, after = tensors_of(published), tensors_of(tmp_path / "copy")
    expected = {name: tensor for name, tensor in before.items() if ".experts." not in name}
    for name in before:
        if name.endswith(".weight_packed"):
            base = name.removesuffix("_packed")
            expected[base] = published_value(before[name], before[f"{base}_scale"])
    assert after.keys() == expected.keys()
    assert sum(".experts." in name for name in after) == 4 * 3
    for name, tensor in expected.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name].view(torch.int16), tensor.view(torch.int16)), name


def test_the_copy_is_in_shards_and_its_config_names_no_quantisation(tmp_path, published):
    write_bf16(published, tmp_path / "copy", 1 << 14)
    assert len(list((tmp_path / "copy").glob("model-*.safetensors"))) > 1
    assert json.loads((tmp_path / "copy" / "config.json").read_text()) == CONFIG


def test_a_second_copy_into_the_same_folder_is_refused(tmp_path, published):
    write_bf16(published, tmp_path / "copy")
    with pytest.raises(UsageError, match="already holds a checkpoint"):
        write_bf16(published, tmp_path / "copy")


def test_a_nested_config_loses_its_quantisation_and_nothing_else():
    nested = {"model_type": "kimi_k25", "text_config": {"a": 1, "quantization_config": INT4}, "b": 2}
    assert plain_config(nested) == {"model_type": "kimi_k25", "text_config": {"a": 1}, "b": 2}
    assert "quantization_config" in nested["text_config"]


def options(*what, limit=None, short=False):
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--limit", default=limit)
    model_options.add_arguments(parser, ("decode",), ("prompt:7",))
    return model_options.parsed(
        parser, ["model", *(["--what", *what] if what else []), *(["--short"] if short else [])]
    )


def test_words_become_measurements_in_their_order_each_once(published):
    found = model_options.measurements(
        options("prompt:512", "decode:16", "batch:4", "same", "decode", "prompt:512"), published
    )
    assert [one.name for one in found] == [
        "prompt of 512 tokens", "decode after 16 tokens", "decode, batch of 4", "decode at no context",
    ]  # fmt: skip
    assert [one.tokens_each for one in found] == [512, 1, 4, 1]
    assert found[1].request["context"] == 16
    assert found[2].request["batch"] == 4


def test_a_limit_makes_every_run_cold(published):
    for one in model_options.measurements(options("prompt:8", "decode", limit="1GiB"), published):
        assert (one.cold, one.limit_bytes, one.request["cold"]) == (True, 1 << 30, True)


@pytest.mark.parametrize("word", ["decode:", "prompt", "prompt:0", "prompt:4096", "batch:0", "x:1", "9" * 5000])
def test_a_word_that_names_nothing_possible_is_refused(published, word):
    with pytest.raises(UsageError, match="--what"):
        model_options.measurements(options(word), published)


def test_short_takes_its_own_words(published):
    assert [one.name for one in model_options.measurements(options(short=True), published)] == ["prompt of 7 tokens"]


def test_a_copy_that_is_there_is_used_again(tmp_path, published):
    work = SimpleNamespace(work=tmp_path)
    copy = model_options.bf16_copy(work, published)
    stamp = (copy / "config.json").stat().st_mtime_ns
    assert copy == tmp_path / "published.bf16"
    assert model_options.bf16_copy(work, published) == copy
    assert (copy / "config.json").stat().st_mtime_ns == stamp


def test_a_model_that_is_not_there_is_asked_for():
    with pytest.raises(UsageError, match="Name the folder"):
        model_options.chosen_model(SimpleNamespace(short=False, model=None))
