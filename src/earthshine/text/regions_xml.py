"""Streaming parser of tool calls in Qwen3-Coder's form: `<function=NAME>`, and `<parameter=NAME>` around each value.

A value is text between two newlines; the schema gives its type, and the arguments are emitted as JSON. Strings are
streamed, other values emitted once they are complete. A value ends at `</parameter>` only if a tag of the form follows,
so it may contain this text. A missing end tag is accepted if the end of the value is certain without it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from earthshine.text.argument_types import TEXT, Types, argument_types, json_value
from earthshine.text.forms import CALL, CALL_END
from earthshine.text.regions import ToolCallEnd
from earthshine.text.regions_marked import MarkedCallParser
from earthshine.text.tokenizer import Tokenizer

Schemas = Mapping[str, Mapping[str, Any] | None]  # function -> schema of its arguments

FUNCTION, FUNCTION_END, PARAMETER, PARAMETER_END = "<function=", "</function>", "<parameter=", "</parameter>"
_FUNCTION = re.compile(r"\s*<function=([^<>\n]{1,256})>")
_TAG = re.compile(r"<parameter=([^<>\n]{1,256})>|</function>")
_MISSED = re.compile(r"\n<parameter=([^<>\n]{1,256})>\n")
_CUT = re.compile(r"<parameter=[^<>\n]{0,256}")
_MARK = re.compile(r"</parameter>|</function>|\n<parameter=")
_END_TAGS = re.compile(r"(?:</parameter>\s*)?(?:</function>\s*)?\Z")
_MARKS = ("\n</parameter>", "</parameter>", "\n</function>", "</function>", "\n<parameter=")
_MOST_TAG, _MOST_GAP = 300, 64  # characters of a tag, and of white space between tags, that are held back at most


class XmlCallParser(MarkedCallParser):
    """Parses the ids of one reply to events. `schemas`: those of the functions that were offered."""

    def __init__(
        self, tokenizer: Tokenizer, *, thinking: bool, calls: bool = True, schemas: Schemas, skip_special: bool = True
    ) -> None:
        super().__init__(tokenizer, thinking=thinking, calls=calls, skip_special=skip_special)
        self._schemas = schemas
        self._open_call("")

    def _open_call(self, before: str) -> None:
        self._before = before
        self._call: _Call | None = None  # the function that is being called
        self._left = ""  # text between the markers that is not parsed yet
        self._stray = ""  # text between the markers that is not part of the form
        self._n_called = 0  # calls between these markers

    def _pass_on(self, text: str) -> None:
        self._left += text
        while self._advance():
            pass

    def _advance(self) -> bool:
        """Parses the next part of `_left`; False if more text is needed."""
        if self._call is None:
            found = _FUNCTION.match(self._left) if len(self._left) < _MOST_TAG + _MOST_GAP else None
            if found is None:
                return False
            name = found[1].strip()
            self._call, self._left = _Call(self._schemas.get(name)), self._left[found.end() :]
            self._begin(name)
            self._n_called += 1
            return True
        self._write(self._call.push(self._left))
        self._left = ""
        if not self._call.ended:
            return False
        self._end_call(self._call)
        return bool(self._left)

    def _end_call(self, call: "_Call") -> None:
        self._events.append(ToolCallEnd(self._n_calls - 1))
        self._call, self._left = None, call.rest
        self._stray += call.stray

    def _close_call(self, closed: bool) -> None:
        call = self._call
        if call is not None:
            self._write(call.finish(closed))
            if closed or call.ended:
                self._end_call(call)
            else:
                self._stray += call.stray
        left = self._stray + self._left
        if not self._n_called:
            self._emit(f"{self._before}{CALL}{left}{CALL_END if closed else ''}")
            self._trimmed = False
        elif left.strip():
            self._emit(left)
        self._open_call("")


class _Call:
    """One call, after `<function=NAME>`: from text to the JSON of its arguments."""

    def __init__(self, parameters: Mapping[str, Any] | None) -> None:
        self.ended = False  # `</function>` has come
        self.rest = self.stray = ""  # the text after it; text between tags that is not part of the form
        self._parameters = parameters
        self._buffer = ""
        self._given: set[str] = set()
        self._types: Types | None = None  # those of the present value, None between values
        self._value = ""  # the beginning of the present value; "" for strings, which are streamed
        self._at_start = False  # nothing of the value has come; a newline that comes first is dropped

    def push(self, text: str) -> str:
        """The new part of the arguments' JSON."""
        self._buffer += text
        made = ""
        while not self.ended:
            step = self._tag() if self._types is None else self._piece()
            if step is None:
                break
            made += step
        return made

    def finish(self, closed: bool) -> str:
        """The rest of the arguments' JSON, at the end of the call's text. `closed`: its second marker has come, so a
        value without an end tag is complete."""
        made, whole = "", self._buffer if closed else _without_cut_tag(self._buffer)
        if self._types is not None:
            mark = _MARK.match(self._buffer.removeprefix("\n"))
            if closed or (mark is not None and mark[0] == PARAMETER_END):
                made = self._end_value(_END_TAGS.sub("", whole, count=1), "")
            else:
                made = self._kept(self._buffer) if self._types == TEXT else self._value + self._buffer
        else:
            self.stray += whole.strip()
        self._buffer = ""
        if closed and not self.ended:
            made += self._end("")
        return made

    def _tag(self) -> str | None:
        """Between values: parses the next parameter's tag, or the end of the call; None if neither is complete."""
        found = _TAG.search(self._buffer)
        if found is None:
            return None
        self.stray += self._buffer[: found.start()].strip()
        after = self._buffer[found.end() :]
        return self._end(after) if found[1] is None else self._begin_value(found[1].strip(), after)

    def _begin_value(self, name: str, after: str) -> str:
        self._types = argument_types(self._parameters, name)
        self._value, self._at_start, self._buffer = "", True, after
        comma = ", " if self._given else "{"
        self._given.add(name)
        return f"{comma}{json.dumps(name, ensure_ascii=False)}: " + ('"' if self._types == TEXT else "")

    def _piece(self) -> str | None:
        """Within a value: its next piece, or its end; None if more text is needed."""
        if self._at_start:
            if not self._buffer:
                return None
            self._buffer, self._at_start = self._buffer.removeprefix("\n"), False
        held, at = len(self._buffer), 0
        while found := _MARK.search(self._buffer, at):
            after = self._follows(found)
            if after is None:
                held = found.start()
                break
            if after >= 0:
                return self._end_value(self._buffer[: found.start()], self._buffer[after:])
            at = found.start() + 1
        else:
            held -= _overlap(self._buffer)
        if held and self._buffer[held - 1] == "\n":  # dropped if the value ends here
            held -= 1
        piece, self._buffer = self._buffer[:held], self._buffer[held:]
        return self._kept(piece) or None

    def _follows(self, mark: re.Match[str]) -> int | None:
        """The position after the value if it ends at `mark`; -1 if it does not, None if more text is needed."""
        after = self._buffer[mark.end() :]
        gap = after.lstrip()
        if mark[0] == PARAMETER_END:
            if gap.startswith((PARAMETER, FUNCTION_END)) or (not gap and len(after) > _MOST_GAP):
                return mark.end()
            waits = any(tag.startswith(gap) for tag in (PARAMETER, FUNCTION_END))
            return None if waits else -1
        if mark[0] == FUNCTION_END:  # an end tag before it may be missing: certain once the call ends here
            return None if not gap and len(after) <= _MOST_GAP else -1
        tag = _MISSED.match(self._buffer, mark.start())
        if tag is None:
            return None if len(after) < _MOST_TAG and "\n" not in after else -1
        known = self._parameters.get("properties") if isinstance(self._parameters, Mapping) else None
        missing = isinstance(known, dict) and tag[1] in known and tag[1] not in self._given
        return mark.start() + 1 if missing else -1

    def _kept(self, piece: str) -> str:
        """The JSON of a piece of a string; a piece of another value is kept, and gives ""."""
        if self._types == TEXT:
            return json.dumps(piece, ensure_ascii=False)[1:-1]
        self._value += piece
        return ""

    def _end_value(self, piece: str, after: str) -> str:
        piece = (piece.removeprefix("\n") if self._at_start else piece).removesuffix("\n")
        types, self._types, self._buffer = self._types, None, after
        assert types is not None
        if types == TEXT:
            return json.dumps(piece, ensure_ascii=False)[1:]
        return json_value(self._value + piece, types)

    def _end(self, after: str) -> str:
        self.ended, self.rest = True, after
        return "}" if self._given else "{}"


def _without_cut_tag(text: str) -> str:
    """The text without the beginning of a tag with which it ends."""
    before, mark, cut = text.rpartition("<")
    tag = mark + cut
    is_cut = mark and (PARAMETER.startswith(tag) or FUNCTION_END.startswith(tag) or _CUT.fullmatch(tag))
    return before if is_cut else text


def _overlap(text: str) -> int:
    """The number of last characters that may be the beginning of one of `_MARKS`."""
    sizes = range(min(len(text), max(map(len, _MARKS)) - 1), 0, -1)
    return next((size for size in sizes if any(mark.startswith(text[-size:]) for mark in _MARKS)), 0)
