"""A small vocabulary with Kimi's layout, and a chat template in Kimi's manner, so that tests need no data folder."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from earthshine.text import ChatTemplate, Tokenizer, grammar_compile, load_tokenizer

from .grammars import GLEAM, House

MERGES = [b"he", b"ll", b"hell", b"hello", b" w", b"\xe4\xb8", b"\xe4\xb8\xad", b"im", b"_end", b"|>", b"<|", b"think"]
TINY_TOKENS = [bytes([byte]) for byte in range(256)] + [*MERGES, b"_e", b"nd", b"th", b"in", b"thin"]

TEMPLATE = """
{%- set last = namespace(at=-1) -%}
{%- for number in range(messages|length) -%}
  {%- if messages[number].role == 'assistant' and not messages[number].get('tool_calls') -%}
    {%- set last.at = number -%}
  {%- endif -%}
{%- endfor -%}
{%- set hist_msgs = messages[:last.at + 1] -%}
{%- set suffix_msgs = messages[last.at + 1:] -%}
{%- macro body(message) -%}
  {%- if message.content is string -%}
    {{ message.content }}
  {%- else -%}
    {%- for part in message.content or [] -%}
      {%- if part.type == 'image' -%}<|media_begin|><|media_pad|><|media_end|>{%- else -%}{{ part.text }}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- for call in message.tool_calls or [] -%}
    <|tool_call_begin|>{{ call.id }}<|tool_call_argument_begin|>{{ call.function.arguments }}<|tool_call_end|>
  {%- endfor -%}
{%- endmacro -%}
{%- if tools -%}
  <|im_system|>tool_declare<|im_middle|>{{ tools_ts_str or (tools|tojson(separators=(',', ':'))) }}<|im_end|>
{%- endif -%}
{%- for message in hist_msgs -%}
  <|im_user|>{{ message.name or message.role }}<|im_middle|>
  {%- if message.role == 'assistant' -%}<think></think>{%- endif -%}
  {{ body(message) }}<|im_end|>
{%- endfor -%}
{%- for message in suffix_msgs -%}
  <|im_user|>{{ message.name or message.role }}<|im_middle|>
  {%- if message.role == 'assistant' -%}
    {%- if thinking is defined and thinking is false -%}<think></think>
    {%- else -%}<think>{{ message.reasoning_content }}</think>{%- endif -%}
  {%- endif -%}
  {{ body(message) }}<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}
  <|im_assistant|>assistant<|im_middle|>{%- if thinking is false -%}<think></think>{%- else -%}<think>{%- endif -%}
{%- endif -%}
"""


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else runs on the machine decides nothing; tests of the limit set their own."""
    monkeypatch.setattr(grammar_compile, "_SECONDS", 120.0)


def write_ranks(folder: Path, tokens: list[bytes]) -> Path:
    """`tiktoken.model` with these tokens, as ranks 0..n-1."""
    lines = [base64.b64encode(token).decode() + f" {rank}" for rank, token in enumerate(tokens)]
    (folder / "tiktoken.model").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny_tokens() -> list[bytes]:
    return TINY_TOKENS


@pytest.fixture(scope="session")
def ranks() -> Callable[[Path, list[bytes]], Path]:
    return write_ranks


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_ranks(tmp_path_factory.mktemp("tiny"), TINY_TOKENS))


@pytest.fixture(scope="session")
def tiny_template() -> ChatTemplate:
    return ChatTemplate(TEMPLATE)


@pytest.fixture(scope="session")
def kimi_folder(shared_data: Path) -> Path:
    return shared_data / "kimi-tokenizer"


@pytest.fixture(scope="session")
def kimi(kimi_folder: Path) -> Tokenizer:
    return load_tokenizer(kimi_folder)


@pytest.fixture(scope="session")
def golden(kimi_folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((kimi_folder / "golden.json").read_text())
    return values


@pytest.fixture(scope="session")
def house() -> House:
    """gleam's tokenizer."""
    return House(load_tokenizer(GLEAM))


@pytest.fixture(scope="session", params=["gleam", "kimi"])
def each(request: pytest.FixtureRequest) -> House:
    return House(load_tokenizer(GLEAM) if request.param == "gleam" else request.getfixturevalue("kimi"))
