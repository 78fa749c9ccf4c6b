"""Tokens to words: tokenizers, chat templates, tool declarations, and the parsing of what a model writes.

All input is untrusted: model folders, templates, messages. Malformed input raises TextError.
No torch, no network, no code from a model's folder.
"""

from earthshine.text.chat import ChatTemplate
from earthshine.text.forms import CallForm, call_form
from earthshine.text.grammar import Grammar, Grammars, OutputRule, ReplyConstraint
from earthshine.text.grammar_calls import ToolRule
from earthshine.text.history import repair_history
from earthshine.text.load import has_template, load_template, load_tokenizer
from earthshine.text.region_parser import region_parser
from earthshine.text.regions import (
    Content,
    Event,
    Reasoning,
    RegionParser,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    can_think,
    leaves_thinking_open,
)
from earthshine.text.stream import Detokenizer, StopStrings
from earthshine.text.tokenizer import Tokenizer
from earthshine.text.tools import declare_tools

__all__ = [
    "CallForm",
    "ChatTemplate",
    "Content",
    "Detokenizer",
    "Event",
    "Grammar",
    "Grammars",
    "OutputRule",
    "Reasoning",
    "RegionParser",
    "ReplyConstraint",
    "StopStrings",
    "Tokenizer",
    "ToolCallArguments",
    "ToolCallEnd",
    "ToolCallStart",
    "ToolRule",
    "call_form",
    "can_think",
    "declare_tools",
    "has_template",
    "leaves_thinking_open",
    "load_template",
    "load_tokenizer",
    "region_parser",
    "repair_history",
]
