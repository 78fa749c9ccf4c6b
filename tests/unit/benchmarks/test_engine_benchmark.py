"""engine.py's measurements on tiny models of each family: they run, and their figures are of the right things."""

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints.writer import published_tensors, tensor_shapes, write_checkpoint

from earthshine.spec import spec_from_config

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SMALL = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 16, "vocab_size": 2048}
QWEN3 = SMALL | {
    "eos_token_id": 1, "head_dim": 16, "hidden_act": "silu", "max_position_embeddings": 1024, "model_type": "qwen3_moe",
    "norm_topk_prob": True, "num_attention_heads": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
}  # fmt: skip
KIMI_LINEAR = SMALL | {
    "bos_token_id": 0, "eos_token_id": 1, "first_k_dense_replace": 1, "hidden_act": "silu", "kv_lora_rank": 32,
    "linear_attn_config": {"full_attn_layers": [3], "head_dim": 16, "kda_layers": [1, 2], "num_heads": 2,
                           "short_conv_kernel_size": 4},
    "mla_use_nope": True, "model_max_length": 1024, "model_type": "kimi_linear", "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid", "num_attention_heads": 4, "num_expert_group": 1,
    "num_experts_per_token": 2, "num_hidden_layers": 3, "num_shared_experts": 1, "q_lora_rank": None,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "rms_norm_eps": 1e-5, "routed_scaling_factor": 2.4,
    "topk_group": 1, "v_head_dim": 16,
}  # fmt: skip


@pytest.fixture(scope="module", params=[QWEN3, KIMI_LINEAR], ids=["qwen3", "kimi-linear"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    spec, generator = spec_from_config(request.param), torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator).mul(0.2).to(torch.float32 if "bias" in name else torch.bfloat16)
        for name, shape in tensor_shapes(spec).items()
    }
    write_checkpoint(made, published_tensors(spec, tensors), 1 << 20)
    (made / "config.json").write_text(json.dumps(request.param))
    return made


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, which reads the disk as the machine has it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("engine")
    yield module
    sys.modules.pop("engine")


def _arguments(folder: Path, tokens: int) -> argparse.Namespace:
    return argparse.Namespace(model=folder, memory=None, tokens=tokens, context=512, threads=1, trunk="bf16")


def test_decode_continues_a_filled_conversation(engine: Any, folder: Path) -> None:
    found = engine.decode(_arguments(folder, 100))
    assert found["bytes"] == engine.touched(engine.checkpoint_of(_arguments(folder, 0)))
    assert len({"seconds, bare", "seconds, long"} & found.keys()) == 2


def test_a_filled_conversation_holds_rows_and_states(engine: Any, folder: Path) -> None:
    model = engine.open_model(_arguments(folder, 0))
    try:
        session = model.session(256)
        engine.fill(session, 100)
        assert len(session.tokens) == 100
        assert all(part.float().std() > 0.5 for part in session._page_table.copies())
        assert len(engine.steps(session, 4)) == 4
    finally:
        model.close()


def test_a_prompt_reads_no_expert_twice(engine: Any, folder: Path) -> None:
    found = engine.whole_prompt(_arguments(folder, 64))
    assert found["bytes_read"] >= found["bytes_needed"] > 0


def test_streaming_is_measured_beside_the_disk(engine: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O_DIRECT may be missing in a folder of tests, so the disk is a stand-in; all else is real."""
    monkeypatch.setattr(engine, "experts_on_disk", lambda checkpoint: SimpleNamespace(rate=lambda *how: 1e9))
    found = engine.streamed(_arguments(folder, 64))
    assert found["bytes per token"]["median"] == 0
    assert found["found in memory"]["median"] == 1  # the whole model fits
    assert found["tokens per second"]["least"] > 0
