"""Conversations to prompts: a model's chat template, rendered under bounds, and its exact token ids.

A template is code from a stranger and runs in `sandbox`. Messages are text from strangers: in `ChatTemplate.encode`
only control tokens that the template itself writes become control ids. Refused, as TextError: templates that do not
compile, overspend or call raise_exception, and messages of another shape.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Any

from jinja2 import TemplateError, nodes

from earthshine.errors import TextError
from earthshine.text.messages import (
    check_messages,
    check_tools,
    map_texts,
    objects_of_arguments,
    sort_keys,
    texts,
)
from earthshine.text.sandbox import Refused, compile_template, run_template
from earthshine.text.tokenizer import Tokenizer
from earthshine.text.tools import declare_tools

MAX_TEMPLATE_CHARS = 64 << 10

# Signs of the Phaistos disc and of Linear A: printable, without case, not whitespace, and in no one's messages. A
# private-use character would not do: Python escapes it where a template prints a list.
_SENTINELS = tuple(map(chr, (*range(0x101D0, 0x101FD), *range(0x10600, 0x10737))))
# Templates that write each argument of a call by itself, as Qwen3-Coder's does, need an object where clients give text.
_ARGUMENTS_BY_NAME = re.compile(r"\barguments\s*(?:\|\s*items\b|\.items\()")


def _name(name: str) -> nodes.Name:
    return nodes.Name(name, "load", lineno=1)


def _rewrite_history(tree: nodes.Template) -> None:
    """Teaches K2.5's template the flag `preserve_thinking`: with it, history is empty and all messages are suffix.

    The template splits messages into `hist_msgs`, whose reasoning it blanks, and `suffix_msgs`, whose reasoning it
    keeps unless `thinking` is false. The flag makes the first [] and the second `messages`, and within the loop over
    the second `thinking is false` no longer holds.
    """
    all_messages = {"hist_msgs": nodes.List([], lineno=1), "suffix_msgs": _name("messages")}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and assign.target.name in all_messages:
            kept = all_messages[assign.target.name]
            assign.node = nodes.CondExpr(_name("preserve_thinking"), kept, assign.node, lineno=1)
    for loop in tree.find_all(nodes.For):
        if isinstance(loop.iter, nodes.Name) and loop.iter.name == "suffix_msgs":
            for test in list(loop.find_all(nodes.Test)):
                if test.name == "false" and isinstance(test.node, nodes.Name) and test.node.name == "thinking":
                    test.node = nodes.CondExpr(_name("preserve_thinking"), nodes.Const(True), test.node, lineno=1)


def _is_split(source: str) -> bool:
    return "hist_msgs" in source and "suffix_msgs" in source


def _compile(source: str, clock: Callable[[], datetime]) -> Any:
    if len(source) > MAX_TEMPLATE_CHARS:
        raise TextError(f"The chat template has over {MAX_TEMPLATE_CHARS} characters.")
    rewrite = _rewrite_history if _is_split(source) and "preserve_thinking" not in source else lambda tree: None
    try:
        return compile_template(source, rewrite, clock)
    except TemplateError as error:
        raise TextError(f"The chat template is not valid: {error}.") from error
    except Exception as error:  # the compiler's own limits: nesting, number of arguments
        raise TextError(f"The chat template can not be compiled: {type(error).__name__} {str(error)[:200]}.") from error


class ChatTemplate:
    """A compiled chat template; safe to share between threads.

    `source` is the Jinja text, `tools_source` another one that serves where tools are given, `tokens` the texts that
    templates call bos_token and so on, `clock` the time that strftime_now tells.
    """

    def __init__(
        self,
        source: str,
        *,
        tools_source: str | None = None,
        tokens: Mapping[str, str] | None = None,
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        sources = {False: source, True: source if tools_source is None else tools_source}
        self._sources = sources
        plain = _compile(source, clock)
        self._codes = {False: plain, True: plain if tools_source is None else _compile(tools_source, clock)}
        self._tokens = dict(tokens or {})
        self._clock = clock

    @property
    def can_preserve_thinking(self) -> bool:
        """Whether `preserve_thinking` has a meaning for this template: it names the flag, or splits off history."""
        return all("preserve_thinking" in source or _is_split(source) for source in self._sources.values())

    def mentions(self, text: str) -> bool:
        """Whether the source that serves tools holds this text."""
        return text in self._sources[True]

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        thinking: bool | None = None,
        preserve_thinking: bool = False,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt's text. Raises TextError for malformed messages and for templates that fail or overspend.

        Null keys of messages are dropped. For Kimi's templates (they name `tool_declare`) the keys of tools are sorted
        and `tools_ts_str` holds their TypeScript declaration, "" where only JSON can serve. K2.5's template does not
        know `preserve_thinking`; its syntax tree is changed as `_rewrite_history` says, the file stays as it is.
        """
        checked = self._checked(messages, tools)
        return self._render(*checked, thinking, preserve_thinking, add_generation_prompt, lambda text: text)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        thinking: bool | None = None,
        preserve_thinking: bool = False,
        add_generation_prompt: bool = True,
        limit: int | None = None,
    ) -> list[int]:
        """The prompt's ids: those of the whole rendering, but control tokens in messages and tools stay plain text.
        `limit` is `Tokenizer.encode`'s.

        How: where a text of the caller's holds, begins or ends a control token, a sentinel character is put in; the
        rendering then shows which control tokens are the template's own. Without the sentinels the text is encoded as
        one, so that pairs merge across the border between content and template. One case is not covered: a template
        that itself writes the first and last characters of a control token around a caller's text.
        """
        checked = self._checked(messages, tools)
        sentinel, escaped = self._sentinel(checked)
        text = self._render(
            *checked,
            thinking,
            preserve_thinking,
            add_generation_prompt,
            lambda text: tokenizer.controls.mark(text, sentinel),
        )
        pieces = text.replace(escaped, sentinel).split(sentinel)
        return tokenizer.encode("".join(pieces), True, list(accumulate(map(len, pieces[:-1]))), limit)

    def _checked(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Copies in the form that the template takes."""
        copied = check_messages(messages)
        if _ARGUMENTS_BY_NAME.search(self._sources[bool(tools)]):
            copied = objects_of_arguments(copied)
        return copied, None if tools is None else check_tools(tools)

    def _sentinel(self, given: Any) -> tuple[str, str]:
        """A character that occurs nowhere, and its form where a template asks for ASCII JSON."""
        present_in = "\n".join((*self._sources.values(), *texts(list(given))))
        for sentinel in _SENTINELS:
            escaped = json.dumps(sentinel)[1:-1]
            if sentinel not in present_in and escaped not in present_in:
                return sentinel, escaped
        raise TextError("The messages use every character that could tell them from the template's control tokens.")

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        thinking: bool | None,
        preserve_thinking: bool,
        add_generation_prompt: bool,
        mark: Callable[[str], str],
    ) -> str:
        if preserve_thinking and not self.can_preserve_thinking:
            raise TextError("This chat template has no way to preserve thinking; leave preserve_thinking out.")
        source = self._sources[bool(tools)]
        variables: dict[str, Any] = dict(self._tokens)
        if tools and "tool_declare" in source:
            tools = sort_keys(tools)
            variables["tools_ts_str"] = mark(declare_tools(tools) or "")
        variables |= {
            "messages": map_texts(messages, mark),
            "tools": map_texts(tools, mark) if tools else None,
            "add_generation_prompt": add_generation_prompt,
            "preserve_thinking": preserve_thinking,
        }
        if thinking is not None:  # Kimi's templates read the first name, Qwen's and others the second
            variables |= {"thinking": thinking, "enable_thinking": thinking}
        return self._run(self._codes[bool(tools)], variables)

    def _run(self, code: Any, variables: Mapping[str, Any]) -> str:
        try:
            return run_template(code, variables, self._clock)
        except Refused as error:
            raise TextError(f"The chat template refuses these messages: {error}.") from error
        except RecursionError as error:
            raise TextError("The chat template can not be rendered: it calls itself without end.") from error
        except Exception as error:  # a template can raise anything that Python's operators raise
            reason = str(error)[:300] or type(error).__name__
            raise TextError(f"The chat template can not be rendered: {reason}.") from error
