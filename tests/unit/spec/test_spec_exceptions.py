"""Lists of modules that stay in bf16 are judged by what they say of the model's modules, whatever their spelling."""

from typing import Any

import pytest

from earthshine.errors import Unsupported
from earthshine.spec import spec_from_config, trunk_tensors
from earthshine.spec.families.modules import trunk_module

Config = dict[str, Any]

PUBLISHED = [
    "re:.*self_attn.*",
    "re:.*shared_experts.*",
    r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    "re:.*lm_head.*",
    "re:vision_tower.*",
    "re:mm_projector.*",
]
SPELLED_OTHERWISE = ["lm_head", "re:.*self_attn", "re:.*shared_experts", r"re:language_model\.model\.layers\.0\.mlp\."]


def _with_ignore(config: Config, ignore: list[str]) -> Config:
    config["text_config"]["quantization_config"]["ignore"] = ignore
    return config


@pytest.mark.parametrize("ignore", [PUBLISHED, SPELLED_OTHERWISE, ["lm_head", *PUBLISHED]])
def test_lists_that_say_the_same_read_the_same(k26: Config, ignore: list[str]) -> None:
    plain = spec_from_config(k26)
    assert spec_from_config(_with_ignore(k26, ignore)) == plain


def test_a_list_of_every_module_by_its_name_reads_the_same(k26: Config) -> None:
    """As tools write it that expand their recipe."""
    plain = spec_from_config(k26)
    names = [
        trunk_module(plain.family, tensor.name)
        for tensor in trunk_tensors(plain)
        if tensor.linear or tensor.name == "head"
    ]
    assert len(names) == 489
    assert spec_from_config(_with_ignore(k26, [f"language_model.{name}" for name in names])) == plain
    assert spec_from_config(_with_ignore(k26, names)) == plain
    with pytest.raises(Unsupported, match=r"does not keep language_model\.model\.layers\.60\.self_attn\.o_proj"):
        spec_from_config(_with_ignore(k26, [name for name in names if name != "model.layers.60.self_attn.o_proj"]))


def test_a_list_of_an_expression_for_each_layer_reads_the_same(k26: Config) -> None:
    plain = spec_from_config(k26)
    layers = [rf"re:.*layers\.{i}\.{part}.*" for i in range(61) for part in ("self_attn", r"mlp\.shared_experts")]
    assert spec_from_config(_with_ignore(k26, [*layers, *PUBLISHED[2:]])) == plain


@pytest.mark.parametrize(
    ("ignore", "module"),
    [
        ([], "does not keep language_model.model.layers.0.self_attn.q_a_proj in bf16"),
        (PUBLISHED[1:], "does not keep language_model.model.layers.0.self_attn.q_a_proj in bf16"),
        (PUBLISHED[:1] + PUBLISHED[2:], "does not keep language_model.model.layers.1.mlp.shared_experts.gate_proj"),
        (PUBLISHED[:2] + PUBLISHED[3:], "does not keep language_model.model.layers.0.mlp.gate_proj"),
        (PUBLISHED[:3], "does not keep language_model.lm_head in bf16"),
        ([*PUBLISHED, r"re:.*layers\.7\.mlp\.experts\.383\."], "keeps .*layers.7.mlp.experts.383.gate_proj in bf16"),
        ([*PUBLISHED, "model.layers.60.mlp.experts.3.up_proj"], "keeps .*layers.60.mlp.experts.3.up_proj in bf16"),
        (["re:.*"], "keeps .*layers.1.mlp.experts.0.gate_proj in bf16"),
    ],
)
def test_a_list_that_says_otherwise_is_refused_by_the_modules_name(k26: Config, ignore: list[str], module: str) -> None:
    with pytest.raises(Unsupported, match=rf"quantization_config\.ignore {module}"):
        spec_from_config(_with_ignore(k26, ignore))


@pytest.mark.parametrize("entry", ["re:(a+)+$", "re:(.*)*(.*)*(.*)*x$", "re:(.*a|.*b|.*c){1,9}x$"])
def test_an_expression_that_takes_exponential_time_elsewhere_is_judged_like_any_other(k26: Config, entry: str) -> None:
    plain = spec_from_config(k26)
    assert spec_from_config(_with_ignore(k26, [*PUBLISHED, entry])) == plain


@pytest.mark.parametrize(
    "entry",
    ["re:(", "re:a)", "re:[a", r"re:\1", "re:(?=a)", "re:a{2000}", "re:((a{99}){99}){99}", "re:" + "(" * 99, "re:*",
     "re:" + "a" * 600, "re:[z-a]", "re:a**", "re:" + r".*x.{900}" * 20],
)  # fmt: skip
def test_an_expression_that_can_not_be_evaluated_is_refused(k26: Config, entry: str) -> None:
    with pytest.raises(Unsupported, match=r"ignore .*can't be read"):
        spec_from_config(_with_ignore(k26, [*PUBLISHED, entry]))


def test_a_model_of_absurd_size_with_a_name_for_each_layer_ends(k26: Config) -> None:
    """The work is bounded, not only the expressions."""
    text = k26["text_config"]
    text |= {"num_hidden_layers": 4096, "n_routed_experts": 65536}
    entries = [rf"re:.*layers\.{i}\.mlp\.experts\.999999" for i in range(400)]
    with pytest.raises(Unsupported, match="too much work"):
        spec_from_config(_with_ignore(k26, [*PUBLISHED, *entries]))


@pytest.mark.parametrize("kept", [None, [], ["lm_head"], ["lm_head", "mlp.gate", "model.embed_tokens", "norm"]])
def test_fp8_exceptions_that_keep_no_fp8_module_are_read(deepseek_v3: Config, kept: object) -> None:
    plain = spec_from_config(deepseek_v3)
    block = deepseek_v3["quantization_config"] | {"modules_to_not_convert": kept, "dequantize": False}
    del block["fmt"]
    deepseek_v3["quantization_config"] = block
    assert spec_from_config(deepseek_v3) == plain


@pytest.mark.parametrize(
    ("kept", "module"),
    [
        ("o_proj", "model.layers.0.self_attn.o_proj"),
        ("model.layers.3.mlp.shared_experts", "model.layers.3.mlp.shared_experts.gate_proj"),
        (r"model.layers.\d+.mlp.experts.255", "model.layers.3.mlp.experts.255.gate_proj"),
    ],
)
def test_an_fp8_module_that_is_kept_in_bf16_is_refused_by_name(deepseek_v3: Config, kept: str, module: str) -> None:
    deepseek_v3["quantization_config"]["modules_to_not_convert"] = ["lm_head", kept]
    with pytest.raises(Unsupported, match=f"modules_to_not_convert keeps {module} in bf16"):
        spec_from_config(deepseek_v3)


def test_a_layer_class_in_the_list_is_refused_by_name(k26: Config) -> None:
    with pytest.raises(Unsupported, match=r"ignore holds the layer class Linear"):
        spec_from_config(_with_ignore(k26, [*PUBLISHED, "Linear"]))
