"""A small tokenizer and chat template in Qwen3's form, written as its release writes them."""

import json
from pathlib import Path
from typing import Any

from earthshine.text.hugging_face import _ALPHABET

_LETTERS = {byte: letter for letter, byte in _ALPHABET.items()}
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MERGES = ('{"', '":', ' "', ' {"', '",', '"}', "}}", "}}\n", "he", "ll", "hell", "hello", "\n\n", "na", "me", "name")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

TEMPLATE = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools>\\nFor each call:\\n<tool_call>\\n" }}
    {{- "{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call>" }}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and ns.last == messages|length - 1 %}{%- set ns.last = index %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not (loop.first and tools)) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content if message.content is string else '' %}
        {%- set reasoning = message.reasoning_content if message.reasoning_content is string else '' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content.lstrip('\\n') }}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or not loop.first %}{{- '\\n' }}{%- endif %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

# As Qwen3-Coder's release writes it: no thoughts, and calls as tags, whose values it prints one by one.
CODER_TEMPLATE = """
{%- macro render_item_list(items, tag_name) %}
    {%- if items is not none and items is iterable %}
        {%- for item in items %}{{- '\\n<' ~ tag_name ~ '>' ~ (item | string) ~ '</' ~ tag_name ~ '>' }}{%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- set tools = tools if tools is defined and tools is iterable and tools is not mapping else [] %}
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- if system_message is defined or tools | length > 0 %}
    {{- "<|im_start|>system\\n" + (system_message if system_message is defined else "You are Qwen.") }}
    {%- if tools | length > 0 %}
        {{- "\\n\\n# Tools\\n\\n<tools>" }}
        {%- for tool in tools %}
            {%- set tool = tool.function if tool.function is defined else tool %}
            {{- "\\n<function>\\n<name>" ~ tool.name ~ "</name>\\n<parameters>" }}
            {%- if tool.parameters is mapping and tool.parameters.properties is mapping %}
                {%- for name, fields in tool.parameters.properties | items %}
                    {{- "\\n<parameter>\\n<name>" ~ name ~ "</name>" }}
                    {%- if fields.type is defined %}{{- "\\n<type>" ~ (fields.type | string) ~ "</type>" }}{%- endif %}
                    {{- render_item_list(fields.enum, "enum") if fields.enum is defined else "" }}
                    {{- "\\n</parameter>" }}
                {%- endfor %}
            {%- endif %}
            {{- "\\n</parameters>\\n</function>" }}
        {%- endfor %}
        {{- "\\n</tools>\\nReply in this form:\\n\\n<tool_call>\\n<function=example>\\n<parameter=example_1>\\n" }}
        {{- "value_1\\n</parameter>\\n</function>\\n</tool_call>" }}
    {%- endif %}
    {{- "<|im_end|>\\n" }}
{%- endif %}
{%- for message in loop_messages %}
    {%- if message.role == "assistant" and message.tool_calls is defined and message.tool_calls | length > 0 %}
        {{- "<|im_start|>assistant" }}
        {%- if message.content is defined and message.content is string and message.content | trim | length > 0 %}
            {{- "\\n" + message.content | trim + "\\n" }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- "\\n<tool_call>\\n<function=" + tool_call.name + ">\\n" }}
            {%- if tool_call.arguments is defined %}
                {%- for name, value in tool_call.arguments | items %}
                    {{- "<parameter=" + name + ">\\n" }}
                    {%- set is_json = value is mapping or (value is sequence and value is not string) %}
                    {%- set value = value | tojson | safe if is_json else value | string %}
                    {{- value }}{{- "\\n</parameter>\\n" }}
                {%- endfor %}
            {%- endif %}
            {{- "</function>\\n</tool_call>" }}
        {%- endfor %}
        {{- "<|im_end|>\\n" }}
    {%- elif message.role == "tool" %}
        {%- if loop.previtem and loop.previtem.role != "tool" %}{{- "<|im_start|>user\\n" }}{%- endif %}
        {{- "<tool_response>\\n" + message.content + "\\n</tool_response>\\n" }}
        {%- if loop.last or loop.nextitem.role != "tool" %}{{- "<|im_end|>\\n" }}{%- endif %}
    {%- else %}
        {{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\\n" }}{%- endif %}
"""


def _written(text: str) -> str:
    return "".join(_LETTERS[byte] for byte in text.encode())


def tokenizer() -> dict[str, Any]:
    """tokenizer.json: byte-level BPE behind Qwen's splitting, NFC, markers that are added as not special."""
    vocab = {_LETTERS[byte]: byte for byte in range(256)}
    merges = []
    for text in _MERGES:
        whole = _written(text)
        cut = next(at for at in range(len(whole) - 1, 0, -1) if whole[:at] in vocab and whole[at:] in vocab)
        merges.append([whole[:cut], whole[cut:]])
        vocab[whole] = len(vocab)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": len(vocab) + at, "content": text, "special": text in SPECIAL, **flags}
        for at, text in enumerate((*SPECIAL, *MARKERS))
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": False, "unk_token": None},
    }


def write(folder: Path, template: str = TEMPLATE) -> Path:
    """The files of a release that words need."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    config = {"chat_template": template, "bos_token": None, "eos_token": "<|im_end|>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
