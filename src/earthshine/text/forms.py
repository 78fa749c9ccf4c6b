"""The form in which a model writes tool calls, as its tokenizer and chat template show it."""

from enum import StrEnum

from earthshine.text.chat import ChatTemplate
from earthshine.text.tokenizer import Tokenizer

SECTION = "<|tool_calls_section_begin|>"
CALL, CALL_END = "<tool_call>", "</tool_call>"


class CallForm(StrEnum):
    """How tool calls stand in a reply."""

    SECTION = "section"  # Kimi: one section of calls, ids and arguments divided by control tokens
    JSON = "json"  # Qwen3: each call is <tool_call>, a JSON object with name and arguments, and </tool_call>
    XML = "xml"  # Qwen3-Coder: between the same tokens, <function=NAME> and <parameter=NAME> around each value


def call_form(tokenizer: Tokenizer, template: ChatTemplate | None) -> CallForm | None:
    """The form that this model was trained on, None where it has none that can be read.

    `<tool_call>` alone does not say it: what stands between the tokens is what the template shows the model.
    """
    if tokenizer.special_id(SECTION) is not None:
        return CallForm.SECTION
    if template is None or None in (tokenizer.special_id(CALL), tokenizer.special_id(CALL_END)):
        return None
    if not template.mentions(CALL):
        return None
    if template.mentions("<function="):
        return CallForm.XML if template.mentions("<parameter=") else None
    return CallForm.JSON if template.mentions('"arguments"') else None
