"""A Qwen3-MoE folder as it is published, with random weights: every part from its files to a tool call that fits."""

import json
from typing import Any

import pytest
import torch
from checkpoints.writer import published_tensors, tensor_shapes, write_checkpoint

from earthshine import LLM, SamplingParams
from earthshine.spec import spec_from_config

from . import qwen
from .grammars import WEATHER, is_weather

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}}]


def _config(vocab_size: int, end: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "decoder_sparse_step": 1,
        "eos_token_id": end, "head_dim": 16, "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 96,
        "max_position_embeddings": 2048, "mlp_only_layers": [], "model_type": "qwen3_moe",
        "moe_intermediate_size": 32, "norm_topk_prob": True, "num_attention_heads": 4, "num_experts": 8,
        "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_scaling": None, "rope_theta": 1e6, "sliding_window": None, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "use_sliding_window": False, "vocab_size": vocab_size,
    }  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = qwen.write(tmp_path_factory.mktemp("qwen"))
    added = {entry["content"]: entry["id"] for entry in qwen.tokenizer()["added_tokens"]}
    config = _config(max(added.values()) + 20, added["<|im_end|>"])  # more ids than texts, as published
    spec, generator = spec_from_config(config), torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randn(shape, generator=generator).mul(shape[-1] ** -0.5 if len(shape) > 1 else 1).bfloat16()
        for name, shape in tensor_shapes(spec).items()
    }
    write_checkpoint(folder, published_tensors(spec, tensors), shard_bytes=1 << 20)
    (folder / "config.json").write_text(json.dumps(config))
    with LLM(folder, context=1024, batch=4) as llm:
        yield llm


@pytest.mark.parametrize("thinking", [None, False])
def test_a_required_call_fits_its_schema(model, thinking) -> None:
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=300, n=4)
    messages = [{"role": "user", "content": "Rome?"}]
    (answer,) = model.chat(messages, params, tools=TOOLS, tool_choice="required", thinking=thinking)
    ended = [output for output in answer.outputs if output.finish_reason == "tool_calls"]
    assert ended
    for output in ended:
        assert output.text == ""
        for call in output.tool_calls:
            assert call.name == "weather"
            assert is_weather(json.loads(call.arguments))


def test_conversation_continues_after_a_call(model) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome", "days": 3}'}}
    messages = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "sun"},
    ]
    (answer,) = model.chat(messages, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), tools=TOOLS)
    assert len(answer.outputs[0].token_ids) == 8
