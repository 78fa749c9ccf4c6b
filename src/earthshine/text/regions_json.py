"""Streaming parser of replies in which each tool call is a JSON object: Qwen3, and models with the same form."""

import json
import re

from earthshine.errors import TextError
from earthshine.text.forms import CALL, CALL_END
from earthshine.text.regions import ToolCallEnd
from earthshine.text.regions_marked import MarkedCallParser
from earthshine.text.tokenizer import Tokenizer
from earthshine.untrusted import parse_object

# If the arguments follow the name, as in templates, they are streamed.
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)+")\s*,\s*"arguments"\s*:\s*(?=\{)')
_MAX_HEAD = 1024


class JsonCallParser(MarkedCallParser):
    """Parses the ids of one reply to events."""

    def __init__(self, tokenizer: Tokenizer, *, thinking: bool, calls: bool = True, skip_special: bool = True) -> None:
        super().__init__(tokenizer, thinking=thinking, calls=calls, skip_special=skip_special)
        self._call = _Call()

    def _open_call(self, before: str) -> None:
        self._call = _Call(before)

    def _pass_on(self, text: str) -> None:
        call = self._call
        begun = call.name is not None
        arguments = call.push(text)
        if call.name is not None and not begun:
            self._begin(call.name)
        self._write(arguments)

    def _close_call(self, closed: bool) -> None:
        call, self._call = self._call, _Call()
        if call.name is None:
            whole = call.whole()
            if whole is None:
                self._emit(f"{call.before}{CALL}{call.text}{CALL_END if closed else ''}")
                self._trimmed = False
                return
            self._begin(whole[0])
            self._write(whole[1])
        if closed or call.name is None or call.is_complete:
            self._events.append(ToolCallEnd(self._n_calls - 1))
        if call.name is not None and call.rest.strip() not in ("", "}"):
            self._emit(call.rest)


class _Call:
    """The text of one call so far. `before`: the newlines before it. `name` is None until the text has the name and the
    beginning of the arguments' object after it."""

    def __init__(self, before: str = "") -> None:
        self.before, self.text, self.rest = before, "", ""
        self.name: str | None = None
        self._depth = 0
        self._in_text = self._escaped = False

    @property
    def is_complete(self) -> bool:
        return self.rest.strip() == "}"

    def push(self, text: str) -> str:
        """The new part of the arguments' text."""
        if self.name is not None:
            return self._arguments(text)
        self.text += text
        head = _HEAD.match(self.text) if len(self.text) <= _MAX_HEAD else None
        if head is None:
            return ""
        try:
            self.name = str(json.loads(head[1], strict=False))
        except ValueError:
            return ""
        return self._arguments(self.text[head.end() :])

    def _arguments(self, text: str) -> str:
        if self.rest:
            self.rest += text
            return ""
        for at, letter in enumerate(text):
            if self._in_text:
                self._in_text = self._escaped or letter != '"'
                self._escaped = letter == "\\" and not self._escaped
            elif letter == '"':
                self._in_text = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.rest = text[at + 1 :] or " "
                    return text[: at + 1]
        return text

    def whole(self) -> tuple[str, str] | None:
        """(name, arguments) of a call in another layout, or without arguments; None if it is not a call."""
        try:
            call = parse_object(self.text.encode(errors="replace"), "A tool call", TextError)
        except TextError:
            return None
        name, arguments = call.get("name"), call.get("arguments", {})
        if not isinstance(name, str) or not name or not isinstance(arguments, (dict, str)):
            return None
        return name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
