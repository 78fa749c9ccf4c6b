"""Tiny models of families with the files of a release: synthesised weights, a tokenizer and a chat template each."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import qwen
from .conftest import TINY_TOKENS, write_ranks

TOOL = Path(__file__).parents[3] / "tools" / "synthesize.py"
# As Kimi-K2-Instruct's and Kimi-Linear's releases write it: no thoughts, calls as a section of control tokens.
KIMI_TEMPLATE = """
{%- if tools -%}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson(separators=(',', ':')) }}<|im_end|>{%- endif -%}
{%- for message in messages -%}
  {%- if loop.first and messages[0]['role'] != 'system' -%}
    <|im_system|>system<|im_middle|>You are Kimi.<|im_end|>
  {%- endif -%}
  {%- if message['role'] == 'system' -%}<|im_system|>system<|im_middle|>
  {%- elif message['role'] == 'user' -%}<|im_user|>user<|im_middle|>
  {%- elif message['role'] == 'assistant' -%}<|im_assistant|>assistant<|im_middle|>
  {%- elif message['role'] == 'tool' -%}<|im_system|>tool<|im_middle|>
  {%- endif -%}
  {%- if message['role'] == 'tool' -%}{{ '## Return of ' + message['tool_call_id'] + '\\n' }}{%- endif -%}
  {%- if message['content'] is string -%}{{ message['content'] }}{%- endif -%}
  {%- if message.get('tool_calls') -%}
    <|tool_calls_section_begin|>
    {%- for call in message['tool_calls'] -%}
      <|tool_call_begin|>{{ call['id'] }}<|tool_call_argument_begin|>
      {%- if call['function']['arguments'] is string -%}{{ call['function']['arguments'] }}
      {%- else -%}{{ call['function']['arguments'] | tojson }}{%- endif -%}
      <|tool_call_end|>
    {%- endfor -%}
    <|tool_calls_section_end|>
  {%- endif -%}
  <|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}
"""
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "rms_norm_eps": 1e-5,
}


def _qwen3(vocab_size: int, end: int) -> dict[str, Any]:
    return SMALL | {
        "architectures": ["Qwen3MoeForCausalLM"], "eos_token_id": end, "head_dim": 16, "hidden_act": "silu",
        "max_position_embeddings": 1024, "model_type": "qwen3_moe", "norm_topk_prob": True, "num_attention_heads": 4,
        "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 2, "rope_theta": 1e6,
        "rope_scaling": {"factor": 2.0, "original_max_position_embeddings": 1024, "rope_type": "yarn"},
        "torch_dtype": "bfloat16", "vocab_size": vocab_size,
    }  # fmt: skip


def _kimi_linear(vocab_size: int, end: int) -> dict[str, Any]:
    linear = {"full_attn_layers": [3], "head_dim": 16, "kda_layers": [1, 2, 4], "num_heads": 2,
              "short_conv_kernel_size": 4}  # fmt: skip
    return SMALL | {
        "architectures": ["KimiLinearForCausalLM"], "bos_token_id": vocab_size - 256, "dtype": "bfloat16",
        "eos_token_id": end, "first_k_dense_replace": 1, "hidden_act": "silu", "kv_lora_rank": 32,
        "linear_attn_config": linear, "mla_use_nope": True, "model_max_length": 2048, "model_type": "kimi_linear",
        "moe_renormalize": True, "moe_router_activation_func": "sigmoid", "num_attention_heads": 4,
        "num_expert_group": 1, "num_experts_per_token": 2, "num_hidden_layers": 4, "num_shared_experts": 1,
        "q_lora_rank": None, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "routed_scaling_factor": 2.446,
        "topk_group": 1, "v_head_dim": 16, "vocab_size": vocab_size,
    }  # fmt: skip


def write(folder: Path, family: str) -> Path:
    """Of `family` "qwen3", "qwen3-coder" or "kimi-linear" under `folder`; returns the model's folder."""
    words = folder / "words"
    words.mkdir()
    if family == "kimi-linear":
        write_ranks(words, TINY_TOKENS)
        (words / "chat_template.jinja").write_text(KIMI_TEMPLATE)
        config = _kimi_linear(len(TINY_TOKENS) + 256, len(TINY_TOKENS) + 2)
    else:
        qwen.write(words, qwen.CODER_TEMPLATE if family == "qwen3-coder" else qwen.TEMPLATE)
        added = {entry["content"]: entry["id"] for entry in qwen.tokenizer()["added_tokens"]}
        config = _qwen3(max(added.values()) + 20, added["<|im_end|>"])  # more ids than texts, as published
    (folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, str(TOOL), str(folder / family), "--like", str(folder / "config.json")]
    subprocess.run([*command, "--tokenizer", str(words)], check=True, capture_output=True)
    return folder / family
