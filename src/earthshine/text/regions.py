"""Streaming parser of a reply in Kimi's form: reasoning, content and tool calls.

The parser looks for the ids of Kimi's markers (tool_call_guidance.md of Kimi-K2), never for text that looks like
them. Invariant: no text is lost and nothing raises; a tool call that does not parse becomes content, markers
included. If the tokenizer does not have the markers, all is content.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from earthshine.text.chat import ChatTemplate
from earthshine.text.forms import SECTION
from earthshine.text.stream import Detokenizer
from earthshine.text.tokenizer import Tokenizer

_CALL_ID = re.compile(r"(?:functions\.)?(?P<name>[\w.\-]+):(?P<index>[0-9]{1,18})")
_MAX_CALL_ID = 512

THINK, UNTHINK = "<think>", "</think>"
_SECTION, _SECTION_END = SECTION, "<|tool_calls_section_end|>"
_CALL, _ARGUMENTS, _CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
SECTION_MARKERS = (_SECTION, _SECTION_END, _CALL, _ARGUMENTS, _CALL_END)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call of function `name` begins. `index` counts the calls of this reply from 0; `id` is `functions.NAME:N`."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """A piece of the arguments' JSON, which is not checked here."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """The call is complete. A call that is cut off by the end of the reply has no such event."""

    index: int


Event = Reasoning | Content | ToolCallStart | ToolCallArguments | ToolCallEnd


def leaves_thinking_open(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether the prompt ends within a thought (after `<think>`, without `</think>`): the reply begins as reasoning."""
    opened, closed = tokenizer.special_id(THINK), tokenizer.special_id(UNTHINK)
    last = next((token_id for token_id in reversed(prompt) if token_id in (opened, closed)), None)
    return last is not None and last == opened


def can_think(tokenizer: Tokenizer, template: ChatTemplate) -> bool:
    """Whether `thinking` changes what this template asks of the model, as `ChatTemplate.render` says."""
    question = [{"role": "user", "content": "?"}]
    with_thoughts, without = (template.encode(tokenizer, question, thinking=each) for each in (True, False))
    return with_thoughts != without


class RegionParser:
    """Parses the ids of one reply to events. `thinking`: the reply begins as reasoning. `calls`: tools were offered;
    without, the markers of calls are text. `skip_special`: as for Detokenizer.

    States: reasoning, content, section (between calls), call (its id is being written), arguments, and broken (a call
    whose id did not parse, which is content up to its end). A marker that is not expected in a state is text.
    """

    _CALL_MARKERS: tuple[str, ...] = SECTION_MARKERS

    def __init__(self, tokenizer: Tokenizer, *, thinking: bool, calls: bool = True, skip_special: bool = True) -> None:
        ids = {tokenizer.special_id(text): text for text in (THINK, UNTHINK, *(self._CALL_MARKERS if calls else ()))}
        self._markers = {token_id: text for token_id, text in ids.items() if token_id is not None}
        self._detokenizer = Detokenizer(tokenizer, skip_special)
        self._state = "reasoning" if thinking and UNTHINK in self._markers.values() else "content"
        self._untouched = True  # only whitespace has come since the state began
        self._marker = ""  # the section's first marker, until a call has started or it was emitted as content
        self._shown = False  # this section's markers are emitted as content
        self._gap = ""  # a section's text outside its calls
        self._held = ""  # the beginning of a call's id, or whitespace that may be the end of its arguments
        self._n_calls = 0
        self._events: list[Event] = []

    @property
    def thinking(self) -> bool:
        """Whether the next id is part of a thought, or ends it."""
        return self._state == "reasoning"

    def push(self, token_id: int) -> list[Event]:
        """The events that are complete with this id; raises TextError only for an id outside the vocabulary."""
        marker = self._markers.get(token_id)
        if marker is None:
            self._text(self._detokenizer.push(token_id))
        else:
            self._text(self._detokenizer.flush())
            if not self._step(marker):
                self._text(marker)
        return self._take()

    def flush(self) -> list[Event]:
        """The remaining events, once the reply has ended. A call cut off there gets no end event, or becomes content if
        its arguments have not begun."""
        self._text(self._detokenizer.flush())
        if self._state == "arguments":
            self._write(self._held)
        elif self._state == "call" and (self._held + self._gap).strip():
            self._show(_CALL + self._held)
        elif self._state == "section" and self._gap.strip():
            self._show("")
        self._held = self._gap = self._marker = ""
        return self._take()

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _enter(self, state: str) -> bool:
        self._state, self._untouched = state, True
        return True

    def _content(self, text: str) -> None:
        if text:
            self._events.append(Content(text))

    def _write(self, text: str) -> None:
        if text:
            self._events.append(ToolCallArguments(self._n_calls - 1, text))

    def _show(self, text: str) -> None:
        """Emits a part of a section that is not a call as content, with its markers."""
        self._content(self._marker + self._gap + text)
        self._marker, self._gap, self._shown = "", "", True

    def _text(self, text: str) -> None:
        if self._state == "section":
            self._gap += text
        elif self._state == "call":
            self._held += text
            if len(self._held) > _MAX_CALL_ID:
                self._break()
        elif self._state == "arguments":
            text = self._held + text
            text = text.lstrip() if self._untouched else text
            body = text.rstrip()
            self._held = text[len(body) :]
            self._untouched = self._untouched and not body
            self._write(body)
        elif text:
            self._events.append(Reasoning(text) if self._state == "reasoning" else Content(text))
            self._untouched = self._untouched and text.isspace()

    def _step(self, marker: str) -> bool:
        """Acts on a marker; False if it means nothing in this state."""
        if self._state in ("reasoning", "content"):
            return self._step_outside(marker)
        if self._state == "section":
            return self._step_section(marker)
        if self._state == "arguments":
            return self._step_arguments(marker)
        if self._state == "call":
            if marker == _ARGUMENTS:
                return self._start()
            self._break()
        if marker in (_CALL_END, _SECTION_END):  # a broken call: its end marker is content too
            self._content(marker)
            return self._enter("section" if marker == _CALL_END else "content")
        return False

    def _step_outside(self, marker: str) -> bool:
        if marker == _SECTION:  # in reasoning, it ends that too
            self._marker, self._gap, self._shown = _SECTION, "", False
            return self._enter("section")
        if marker == THINK:  # in reasoning too: some models repeat the prompt's marker
            return self._untouched and (self._state == "reasoning" or self._enter("reasoning"))
        return marker == UNTHINK and self._state == "reasoning" and self._enter("content")

    def _step_section(self, marker: str) -> bool:
        if marker == _CALL:
            self._held = ""
            return self._enter("call")
        if marker != _SECTION_END:
            return False
        if self._gap.strip() or self._shown:
            self._show(_SECTION_END if self._marker or self._shown else "")
        self._marker = self._gap = ""
        return self._enter("content")

    def _step_arguments(self, marker: str) -> bool:
        if marker not in (_CALL, _CALL_END, _SECTION_END):
            return False
        self._events.append(ToolCallEnd(self._n_calls - 1))
        self._held = ""
        self._enter("section")
        return marker == _CALL_END or self._step_section(marker)

    def _start(self) -> bool:
        match = _CALL_ID.fullmatch(self._held.strip())
        if match is None:
            self._break()
            return False
        if self._gap.strip():
            self._content(self._gap)
        call_id = f"functions.{match['name']}:{match['index']}"
        self._events.append(ToolCallStart(self._n_calls, call_id, match["name"]))
        self._n_calls += 1
        self._marker = self._gap = self._held = ""
        return self._enter("arguments")

    def _break(self) -> None:
        self._show(_CALL + self._held)
        self._held = ""
        self._enter("broken")
