"""Synthesised checkpoints of families other than Kimi's and DeepSeek's: they are cut, open and compute."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from earthshine.engine import SamplingParams, load_model
from earthshine.spec import load_spec

QWEN3 = {
    "architectures": ["Qwen3MoeForCausalLM"], "eos_token_id": 770, "head_dim": 64, "hidden_act": "silu",
    "hidden_size": 256, "max_position_embeddings": 512, "model_type": "qwen3_moe", "moe_intermediate_size": 64,
    "norm_topk_prob": True, "num_attention_heads": 4, "num_experts": 40, "num_experts_per_tok": 4,
    "num_hidden_layers": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "vocab_size": 1024,
}  # fmt: skip


def test_qwen3_is_cut_and_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its router has no bias, so that popularity can't be given."""
    like, folder = tmp_path / "like.json", tmp_path / "made"
    like.write_text(json.dumps(QWEN3))
    words = [str(folder), "--like", str(like), "--layers", "2", "--experts", "24"]
    assert import_module("synthesize").main([*words, "--skew", "1"]) == 2
    assert "qwen3_moe has no router bias" in capsys.readouterr().err
    assert not folder.exists()
    assert import_module("synthesize").main(words) == 0
    spec = load_spec(folder)
    assert (spec.n_layers, spec.layers[0].ffn.n_experts) == (2, 24)
    model = load_model(folder)
    try:
        session = model.session()
        session.sync([1, 2, 3])
        assert len([*session.generate(SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))]) >= 4
    finally:
        model.close()


KIMI_LINEAR = {
    "architectures": ["KimiLinearForCausalLM"], "bos_token_id": 768, "eos_token_id": 770, "first_k_dense_replace": 1,
    "hidden_act": "silu", "hidden_size": 256, "intermediate_size": 256, "kv_lora_rank": 64,
    "linear_attn_config": {"full_attn_layers": [2, 5, 8], "head_dim": 32, "kda_layers": [1, 3, 4, 6, 7],
                           "num_heads": 4, "short_conv_kernel_size": 4},
    "mla_use_nope": True, "model_max_length": 512, "model_type": "kimi_linear", "moe_intermediate_size": 64,
    "moe_renormalize": True, "moe_router_activation_func": "sigmoid", "num_attention_heads": 4, "num_expert_group": 1,
    "num_experts": 40, "num_experts_per_token": 4, "num_hidden_layers": 8, "num_shared_experts": 1, "q_lora_rank": None,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "rms_norm_eps": 1e-5, "routed_scaling_factor": 2.446,
    "topk_group": 1, "v_head_dim": 32, "vocab_size": 1024,
}  # fmt: skip


@pytest.mark.parametrize("sparse", [False, True])
def test_kimi_linear_is_cut_with_its_lists_of_layers_and_remembers(tmp_path: Path, sparse: bool) -> None:
    """Its decays are neither all nor nothing: a token far back still changes the logits."""
    like, folder = tmp_path / "like.json", tmp_path / "made"
    like.write_text(json.dumps(KIMI_LINEAR))
    words = [str(folder), "--like", str(like), "--layers", "5", *(["--sparse"] if sparse else [])]
    assert import_module("synthesize").main(words) == 0
    linear = json.loads((folder / "config.json").read_text())["linear_attn_config"]
    assert (linear["full_attn_layers"], linear["kda_layers"]) == ([2, 5], [1, 3, 4])
    model = load_model(folder)
    try:
        session = model.session()
        session.sync([1, *range(2, 60)])
        one = session._last
        session.sync([99, *range(2, 60)])
        assert one is not None
        assert torch.isfinite(one).all()
        assert torch.equal(one, session._last) == sparse  # where attention and FFN are holes, the last token is all
    finally:
        model.close()


def test_more_layers_than_the_lists_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    like, folder = tmp_path / "like.json", tmp_path / "made"
    like.write_text(json.dumps(KIMI_LINEAR))
    assert import_module("synthesize").main([str(folder), "--like", str(like), "--layers", "9"]) == 2
    assert "must together name each of the layers 1 to 9 once" in capsys.readouterr().err
    assert not folder.exists()
