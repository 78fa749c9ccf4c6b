"""Kimi-Linear: the published config reads to its published values, and other forms are refused by name."""

from typing import Any

import pytest

from earthshine.errors import SpecError, Unsupported
from earthshine.spec import KdaSpec, MlaSpec, RopeSpec, Rows, State, footprint, spec_from_config
from earthshine.spec.families.modules import trunk_module
from earthshine.storage import Storage
from earthshine.weights.checkpoint.names import published_expert, published_trunk

Config = dict[str, Any]
FULL = [4, 8, 12, 16, 20, 24, 27]  # counted from 1


@pytest.fixture
def config(kimi_linear: Config) -> Config:
    return kimi_linear


def test_48b_reads_to_its_published_values(config: Config) -> None:
    spec = spec_from_config(config)
    delta = KdaSpec(n_heads=32, head_dim=128, conv_kernel=4, norm_eps=1e-5)
    latent = MlaSpec(32, None, 512, 128, 128, RopeSpec(64, None, None), 1e-6)
    assert [layer.attention for layer in spec.layers] == [latent if i + 1 in FULL else delta for i in range(27)]
    assert (spec.family, spec.hidden, spec.vocab_size, spec.max_context) == ("kimi_linear", 2304, 163840, 1048576)
    assert (spec.bos_token, spec.stop_tokens, spec.trunk_storage) == (163584, (163585, 163586), Storage.BF16)


def test_sizes_are_the_published_ones(config: Config) -> None:
    """49.12 B parameters, 8,064 B of cache per token; 40 MiB of states, and the convolutions' last inputs."""
    spec = spec_from_config(config)
    sizes = footprint(spec)
    assert sizes.total_params == 49_122_681_728
    assert sizes.cache_bytes_per_token["bf16"] == 8064
    assert sizes.state_bytes == 20 * (32 * 128 * 128 * 4 + 3 * 12288 * 2)
    assert sizes.expert_bytes == 14_155_776
    assert spec.kept[0] == (State("delta", (32, 128, 128), True), State("convolution", (3, 12288), False))
    assert spec.kept[3] == (Rows("latent", 576),)


def test_names_and_shapes_are_the_published_ones(config: Config) -> None:
    """20,493 tensors, 91.50 GiB with bf16 biases of the routers, as published."""
    spec = spec_from_config(config)
    parts = {part.name: part.shape for tensor in published_trunk(spec) for part in tensor.parts}
    experts = [published_expert(spec, layer, spec.layers[layer].ffn, 255) for layer in (1, 26)]  # type: ignore[arg-type]
    assert len(parts) + 26 * 256 * 3 == 20493
    assert parts["model.layers.0.self_attn.A_log"] == (1, 1, 32, 1)
    assert parts["model.layers.0.self_attn.dt_bias"] == (4096,)
    assert parts["model.layers.0.self_attn.k_conv1d.weight"] == (4096, 1, 4)
    assert parts["model.layers.1.block_sparse_moe.gate.e_score_correction_bias"] == (256,)
    assert [matrix.parts[0].name.rpartition(".experts.")[2] for matrix in experts[1]] == [
        "255.w1.weight",
        "255.w3.weight",
        "255.w2.weight",
    ]
    assert trunk_module("kimi_linear", "layers.0.ffn.up") == "model.layers.0.mlp.up_proj"


def test_bound_of_the_decay_is_read(config: Config) -> None:
    bounded = config | {"linear_attn_config": config["linear_attn_config"] | {"gate_lower_bound": -5.0}}
    assert spec_from_config(bounded).layers[0].attention == KdaSpec(32, 128, 4, 1e-5, gate_lower_bound=-5.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"full_attn_layers": FULL[:-1]}, "must together name each of the layers 1 to 27 once"),
        ({"full_attn_layers": [*FULL, 1]}, "must together name each of the layers 1 to 27 once"),
        ({"full_attn_layers": [0, *FULL[1:]]}, "full_attn_layers is .* must be a list of integers from 1 to 27"),
        ({"kda_layers": "all"}, "linear_attn_config.kda_layers is 'all'; it must be a list of integers"),
        ({"num_heads": None}, "linear_attn_config.num_heads is null; it must be an integer"),
        ({"gate_lower_bound": 5.0}, "linear_attn_config.gate_lower_bound is 5.0; it must be a number from -1000"),
        ({"gate_lower_bound": False}, "linear_attn_config.gate_lower_bound is false; it must be a number from -1000"),
        ({"use_full_rank_gate": True}, "linear_attn_config.use_full_rank_gate is true; only false is implemented"),
        ({"kernel_dilation": 2}, "unknown key linear_attn_config.kernel_dilation"),
    ],
)
def test_delta_attention_in_another_form_is_refused_by_name(config: Config, change: Config, message: str) -> None:
    with pytest.raises((SpecError, Unsupported), match=message):
        spec_from_config(config | {"linear_attn_config": config["linear_attn_config"] | change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mla_use_nope": False}, "mla_use_nope is false; only true is implemented"),
        ({"q_lora_rank": 1536}, "q_lora_rank is 1536; only null is implemented"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_scaling is .* only null is implemented"),
        ({"scoring_func": "softmax", "moe_router_activation_func": None}, "scoring_func is 'softmax'"),
        ({"linear_attn_config": None}, "linear_attn_config is null; it must be an object"),
        ({"attn_res_block_size": 12}, "unknown key attn_res_block_size"),
    ],
)
def test_another_decoder_is_refused_by_name(config: Config, change: Config, message: str) -> None:
    with pytest.raises((SpecError, Unsupported), match=message):
        spec_from_config(config | change)
