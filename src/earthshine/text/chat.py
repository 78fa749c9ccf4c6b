"""Conversations to prompts: renders a model's chat template and encodes the result.

A template is untrusted code and runs in `sandbox`. Messages are untrusted too: in `ChatTemplate.encode`, only control
tokens that the template itself writes become control ids. Refused, as TextError: templates that don't compile, fail,
exceed a limit or call raise_exception, and messages of another shape.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Any

from earthshine.errors import TextError
from earthshine.text.messages import (
    check_messages,
    check_tools,
    map_texts,
    objects_of_arguments,
    sort_keys,
    texts,
)
from earthshine.text.sandbox import TEMPLATE_PROCESS
from earthshine.text.tokenizer import Tokenizer
from earthshine.text.tools import declare_tools

MAX_TEMPLATE_CHARS = 64 << 10

# Signs of the Phaistos disc and of Linear A: printable, without case, not whitespace, and not in anyone's messages.
# Private-use characters can't be used: Python escapes them where a template prints a list.
_SENTINELS = tuple(map(chr, (*range(0x101D0, 0x101FD), *range(0x10600, 0x10737))))
# Templates that write each argument of a call by itself, as Qwen3-Coder's does, need an object where clients give text.
_ARGUMENTS_BY_NAME = re.compile(r"\barguments\s*(?:\|\s*items\b|\.items\()")
_THINK, _UNTHINK = "<think>", "</think>"
_QUESTION: dict[str, Any] = {"role": "user", "content": "?"}
_CALL = {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_ANSWER: dict[str, Any] = {"role": "assistant", "content": "!"}
# Templates write the thoughts of all answers, or only of those with calls after the last question.
_PAST: tuple[list[dict[str, Any]], ...] = (
    [_ANSWER, _QUESTION],
    [_ANSWER | {"tool_calls": [_CALL]}, {"role": "tool", "tool_call_id": "functions.f:0", "content": "1"}],
)


def _is_split(source: str) -> bool:
    return "hist_msgs" in source and "suffix_msgs" in source


def _lacks_flag(source: str) -> bool:
    """Whether this is K2.5's template, which has all for `preserve_thinking` but the flag."""
    return _is_split(source) and "preserve_thinking" not in source


def _compile(source: str) -> None:
    if len(source) > MAX_TEMPLATE_CHARS:
        raise TextError(f"The chat template has over {MAX_TEMPLATE_CHARS} characters.")
    TEMPLATE_PROCESS.compile(source, _lacks_flag(source))


class ChatTemplate:
    """A chat template; safe to share between threads.

    `source`: the Jinja source; `tools_source`: another one, used if there are tools; `tokens`: the values of bos_token
    and other variables; `clock`: the time for strftime_now. Raises TextError for a source that can't be compiled.
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
        for each in dict.fromkeys(sources.values()):
            _compile(each)
        self._tokens = dict(tokens or {})
        self._clock = clock
        self._leaves: dict[str, bool] = {}  # by source, see _leaves_thinking

    @property
    def can_preserve_thinking(self) -> bool:
        """Whether `preserve_thinking` has an effect: the template has the flag, or is K2.5's, to which it is added."""
        return all("preserve_thinking" in source or _is_split(source) for source in self._sources.values())

    def mentions(self, text: str) -> bool:
        """Whether the source that is used with tools contains this text."""
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
        """The prompt's text. Raises TextError for malformed messages and for templates that fail or exceed a limit.

        Null keys of messages are dropped. For Kimi's templates (they contain `tool_declare`) the keys of tools are
        sorted, and `tools_ts_str` is their TypeScript declaration, or "" if they have none.

        With `thinking` False the prompt ends in a closed thought also where the template can't write one:
        DeepSeek-R1's always opens a thought, Kimi-K2-Thinking's leaves that to the model. The prompt of a model that
        does not think stays as it is.
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
        """The prompt's ids: those of the rendered text, except that control tokens in messages and tools are encoded as
        ordinary text. `limit` as in `Tokenizer.encode`.

        How: a sentinel character is put into the caller's texts wherever they contain a control token or part of one,
        which shows in the rendering which control tokens are the template's own. The text is then encoded as a whole,
        without the sentinels, so that pairs merge across the border between content and template. One case is not
        covered: a template that writes the first and last characters of a control token around a caller's text.
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
        """A character that occurs in no text, and its escape in ASCII JSON."""
        present_in = "\n".join((*self._sources.values(), *texts(list(given))))
        for sentinel in _SENTINELS:
            escaped = json.dumps(sentinel)[1:-1]
            if sentinel not in present_in and escaped not in present_in:
                return sentinel, escaped
        raise TextError("The messages use every character that could separate them from the template's control tokens.")

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
        text = self._run(source, variables)
        return text + self._closing(source, text) if thinking is False and add_generation_prompt else text

    def _closing(self, source: str, prompt: str) -> str:
        """What a prompt without thinking lacks at its end, as templates write it that have a switch for thinking."""
        body = prompt.rstrip()
        if body.endswith(_THINK):
            newlines = prompt[len(body) :]
            return newlines + _UNTHINK + 2 * newlines
        return _THINK + _UNTHINK if _THINK in source and self._leaves_thinking(source) else ""

    def _leaves_thinking(self, source: str) -> bool:
        """Whether this template leaves it to the model to open a thought: it ignores `thinking`, and writes a thought,
        if only an empty one, into past answers that have none. A template that writes only the thoughts it is given is
        that of a model that does not think."""
        if source not in self._leaves:
            prompts = {self._probe(source, [_QUESTION], thinking) for thinking in (True, False)}
            ignores = len(prompts) == 1 and None not in prompts
            self._leaves[source] = ignores and any(
                _THINK in (self._probe(source, [_QUESTION, *past], True) or "") for past in _PAST
            )
        return self._leaves[source]

    def _probe(self, source: str, messages: list[dict[str, Any]], thinking: bool) -> str | None:
        """The prompt, without tools; None if the template refuses these messages or fails on them. Raises TextError if
        the process was ended at a limit of time, which a busy machine can cause."""
        if _ARGUMENTS_BY_NAME.search(source):
            messages = objects_of_arguments(messages)
        given: dict[str, Any] = {"messages": messages, "tools": None, "add_generation_prompt": True}
        try:
            return self._run(source, self._tokens | given | {"thinking": thinking, "enable_thinking": thinking})
        except TextError as error:
            if error.__cause__ is not None:
                raise
            return None

    def _run(self, source: str, variables: dict[str, Any]) -> str:
        return TEMPLATE_PROCESS.render(source, _lacks_flag(source), variables, self._clock())
