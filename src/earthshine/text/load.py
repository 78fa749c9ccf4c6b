"""Loads the tokenizer and the chat template of a model's folder, in any of the published formats.

Refused, as TextError: folders without a known format, and files that are malformed or lead out of the folder.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from earthshine.errors import TextError
from earthshine.text.chat import MAX_TEMPLATE_CHARS, ChatTemplate
from earthshine.text.files import present, read_object, read_text
from earthshine.text.tokenizer import Tokenizer

_MAX_CONFIG_BYTES = 16 << 20
_TOKEN_KEYS = ("bos_token", "eos_token", "pad_token", "unk_token")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model's folder: `tiktoken.model` (Kimi) if there is one, else `tokenizer.json`.

    Each format's library is imported only if it is needed, since imports take time.
    """
    if present(folder, "tiktoken.model"):
        from earthshine.text.tiktoken_model import load_tiktoken

        return load_tiktoken(folder)
    if present(folder, "tokenizer.json"):
        from earthshine.text.hugging_face import load_hugging_face

        return load_hugging_face(folder)
    raise TextError(f"{folder} has no tokenizer: neither tiktoken.model nor tokenizer.json is there.")


def _choose(folder: Path, value: Any) -> tuple[str, str | None]:
    """(default template, template for tools or None) of tokenizer_config.json's chat_template."""
    if isinstance(value, str):
        return value, None
    named: dict[str, str] = {}
    for entry in value if isinstance(value, list) else ():
        name, template = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(template, str):
            raise TextError(f"{folder / 'tokenizer_config.json'}: each chat_template needs a name and a template.")
        named[name] = template
    if "default" not in named:
        raise TextError(f"{folder / 'tokenizer_config.json'} has no chat_template, or none that is named default.")
    return named["default"], named.get("tool_use")


def _tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key in _TOKEN_KEYS:
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[key] = text
    return found


def has_template(folder: Path) -> bool:
    """Whether the folder has a chat template, valid or not; base models have none. Raises TextError."""
    if present(folder, "chat_template.jinja"):
        return True
    if not present(folder, "tokenizer_config.json"):
        return False
    return read_object(folder, "tokenizer_config.json", _MAX_CONFIG_BYTES).get("chat_template") is not None


def load_template(folder: Path, *, clock: Callable[[], datetime] = datetime.now) -> ChatTemplate:
    """The chat template of a model's folder: `chat_template.jinja`, else `tokenizer_config.json`; raises TextError."""
    config: dict[str, Any] = {}
    if present(folder, "tokenizer_config.json"):
        config = read_object(folder, "tokenizer_config.json", _MAX_CONFIG_BYTES)
    if present(folder, "chat_template.jinja"):
        source = read_text(folder, "chat_template.jinja", 4 * MAX_TEMPLATE_CHARS)
        return ChatTemplate(source, tokens=_tokens(config), clock=clock)
    if config.get("chat_template") is None:
        raise TextError(f"{folder} has no chat template: neither chat_template.jinja nor one in tokenizer_config.json.")
    source, tools_source = _choose(folder, config["chat_template"])
    return ChatTemplate(source, tools_source=tools_source, tokens=_tokens(config), clock=clock)
