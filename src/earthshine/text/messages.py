"""Checks the messages and tools that callers pass, and copies them to plain JSON values.

Invariant: the result is a tree of str, int, float, bool, None, list and dict with str keys, at most 48 levels deep, so
that later code can walk it without checks. Refused: unknown roles, and content or tool calls of another shape.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from earthshine.errors import TextError
from earthshine.untrusted import parse_object, shown

ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "tool_declare"))
_MEDIA = frozenset(("image", "image_url", "video", "video_url"))
_MAX_DEPTH = 48
_MAX_NODES = 500_000
_MAX_CHARS = 16 << 20
_MAX_TOOL_CHARS = 1 << 20  # their declaration is indented, which multiplies it
_MAX_INT_BITS = 256


class _Copier:
    """Copies one tree and counts its values and characters."""

    def __init__(self, what: str, max_chars: int) -> None:
        self._what, self._n_nodes, self._n_chars, self._max_chars = what, 0, 0, max_chars

    def _text(self, value: str) -> str:
        self._n_chars += len(value)
        if self._n_chars > self._max_chars:
            raise TextError(f"The {self._what} hold more than {self._max_chars} characters.")
        return str.__str__(value)

    def copy(self, value: Any, depth: int = 0) -> Any:
        self._n_nodes += 1
        if depth > _MAX_DEPTH or self._n_nodes > _MAX_NODES:
            raise TextError(f"The {self._what} are over {_MAX_DEPTH} levels deep or hold over {_MAX_NODES} values.")
        if isinstance(value, str):
            return self._text(value)
        if value is None or isinstance(value, (bool, float)):
            return value
        if isinstance(value, int) and value.bit_length() <= _MAX_INT_BITS:
            return int(value)
        if isinstance(value, (list, tuple)):
            return [self.copy(item, depth + 1) for item in value]
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {self._text(key): self.copy(item, depth + 1) for key, item in value.items()}
        raise TextError(f"The {self._what} hold a {type(value).__name__} that JSON has no form for.")


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a checked tree with `change` applied to every string, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [map_texts(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): map_texts(item, change) for key, item in value.items()}
    return value


def texts(value: Any) -> Iterator[str]:
    """Every string of a checked tree, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from texts(item)


def sort_keys(value: Any) -> Any:
    """A copy of a checked tree with the keys of every object sorted, as in Kimi's tool declarations."""
    if isinstance(value, dict):
        return {key: sort_keys(value[key]) for key in sorted(value)}
    return [sort_keys(item) for item in value] if isinstance(value, list) else value


def objects_of_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A copy of checked messages in which the arguments of calls are objects. A text that is none becomes one argument
    with the name `arguments`: a call that a reply broke off must not end the conversation."""
    return [
        message | {"tool_calls": [_with_object(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = parse_object(arguments.encode(errors="replace"), "The arguments of a tool call", TextError)
        except TextError:
            arguments = {"arguments": arguments}
    return call | {"function": function | {"arguments": arguments}}


def _check_content(where: str, content: Any) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise TextError(f"{where}: content must be a text, null or a list of parts.")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise TextError(f"{where}: each part of a content needs a type.")
        if kind not in _MEDIA and not isinstance(part.get("text"), str):
            raise TextError(f"{where}: a part that is not an image or video needs a text; {shown(kind)} has none.")


def _check_call(where: str, call: Any) -> None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(call.get("id"), str):
        raise TextError(f"{where}: each tool call needs an id and a function.")
    if not isinstance(function.get("name"), str) or not isinstance(function.get("arguments"), (str, dict)):
        raise TextError(f"{where}: the function of a tool call needs a name, and arguments as a text or an object.")


def _check_message(where: str, message: Any) -> None:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise TextError(f"{where} must be an object with a role among {', '.join(sorted(ROLES))}.")
    for key in ("name", "tool_call_id", "reasoning_content"):
        if not isinstance(message.get(key), (str, type(None))):
            raise TextError(f"{where}: {key} must be a text.")
    _check_content(where, message.get("content"))
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise TextError(f"{where}: tool_calls must be a list.")
    for call in calls or ():
        _check_call(where, call)


def check_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A checked copy without the messages' null keys, which templates would print as `None`; raises TextError."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise TextError("The messages must be a list of at least one message.")
    copied = _Copier("messages", _MAX_CHARS).copy(messages)
    for number, message in enumerate(copied):
        _check_message(f"Message {number}", message)
    return [{key: value for key, value in message.items() if value is not None} for message in copied]


def check_tools(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A checked copy of a list of tool declarations; raises TextError."""
    if not isinstance(tools, (list, tuple)):
        raise TextError("The tools must be a list of objects.")
    copied: list[dict[str, Any]] = _Copier("tools", _MAX_TOOL_CHARS).copy(tools)
    for number, tool in enumerate(copied):
        if not isinstance(tool, dict):
            raise TextError(f"Tool {number} must be an object.")
        function = tool.get("function")
        if not isinstance(function, (dict, type(None))):
            raise TextError(f"Tool {number}: its function must be an object.")
    return copied
