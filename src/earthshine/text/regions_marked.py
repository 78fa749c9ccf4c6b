"""Streaming parser of replies in which each tool call is between `<tool_call>` and `</tool_call>`.

There is a subclass for each form of the text between the two. The newlines that these forms have around thoughts and
calls are dropped. Invariant: no other text is lost and nothing raises; a call that does not parse becomes content,
markers included.
"""

from abc import ABC, abstractmethod
from typing import Any

from earthshine.text.forms import CALL, CALL_END
from earthshine.text.regions import THINK, UNTHINK, Content, Reasoning, RegionParser, ToolCallStart
from earthshine.text.tokenizer import Tokenizer


class MarkedCallParser(RegionParser, ABC):
    """Parses the ids of one reply to events. States: reasoning, content, and call (between a call's two markers)."""

    _CALL_MARKERS = (CALL, CALL_END)

    def __init__(self, tokenizer: Tokenizer, *, thinking: bool, calls: bool = True, skip_special: bool = True) -> None:
        super().__init__(tokenizer, thinking=thinking, calls=calls, skip_special=skip_special)
        self._trimmed = self._state == "reasoning"  # newlines that come next are dropped
        self._newlines = ""  # held back: dropped if a marker follows

    @abstractmethod
    def _open_call(self, before: str) -> None:
        """Called at a call's first marker; `before`: the newlines before it."""

    @abstractmethod
    def _pass_on(self, text: str) -> None:
        """Called with the text between the markers, piece by piece."""

    @abstractmethod
    def _close_call(self, closed: bool) -> None:
        """Called at the second marker (`closed`), or if the reply ends without it. Emits text that is not part of the
        form as content; newlines that follow are dropped unless this sets `_trimmed` to False."""

    def flush(self) -> list[Any]:
        """The remaining events, once the reply has ended. A call that lacks only its last marker is complete."""
        self._text(self._detokenizer.flush())
        if self._state == "call":
            self._finish_call(closed=False)
        self._emit(self._newlines)
        self._newlines = ""
        return self._take()

    def _text(self, text: str) -> None:
        if self._state == "call":
            self._pass_on(text)
            return
        if self._trimmed:
            text = text.lstrip("\n")
            self._trimmed = not text
        text = self._newlines + text
        body = text.rstrip("\n")
        self._newlines = text[len(body) :]
        self._emit(body)

    def _emit(self, text: str) -> None:
        if text:
            self._events.append(Reasoning(text) if self._state == "reasoning" else Content(text))
            self._untouched = self._untouched and text.isspace()

    def _step(self, marker: str) -> bool:
        if self._state == "call":
            if marker not in (CALL, CALL_END):
                return False
            self._finish_call(closed=marker == CALL_END)
            if marker == CALL_END:
                return True
        known = (
            marker == CALL
            or (marker == THINK and self._untouched)
            or (marker == UNTHINK and self._state == "reasoning")
        )
        if not known:
            return False
        if marker == CALL:
            self._open_call(self._newlines)
        self._newlines, self._trimmed = "", True
        return self._enter({CALL: "call", THINK: "reasoning", UNTHINK: "content"}[marker])

    def _finish_call(self, closed: bool) -> None:
        self._enter("content")
        self._trimmed = True
        self._close_call(closed)

    def _begin(self, name: str) -> None:
        self._events.append(ToolCallStart(self._n_calls, f"functions.{name}:{self._n_calls}", name))
        self._n_calls += 1
