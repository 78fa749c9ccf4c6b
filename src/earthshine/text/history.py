"""Brings conversations from clients into the form that Kimi was trained on: templates print tool call ids as they are.

Invariant: the ids of tool calls are `functions.NAME:INDEX`, counted over the whole conversation from 0, and every
tool message has the id and the name of its call. Refused, as TextError: tool messages without a call, a second result
of a call, and parts that are not text. A call without a result is kept: users interrupt tools.
"""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from earthshine.errors import TextError
from earthshine.untrusted import shown

_MEDIA = re.compile(r"(?:input_|output_)?(?:image|video|audio|file|document)(?:_url)?")
_REWRITTEN = re.compile(r"[^A-Za-z0-9_-]")  # clients replace these by _, since other vendors refuse them in ids
_REASONING = ("reasoning_content", "reasoning", "reasoning_details")


@dataclass(slots=True)
class _Call:
    """A call in the history: the client's id, the canonical one, and whether its result was given."""

    given: str
    id: str
    name: str
    answered: bool = False


def repair_history(messages: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """The messages in canonical form, as a copy, and the number of calls in them.

    The `developer` role becomes `system`, which templates know. Reasoning under any of its three names becomes
    `reasoning_content`. Raises TextError. Other roles and fields are checked by ChatTemplate.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise TextError("The messages must be a list of at least one message.")
    known = _Known()
    repaired, n_calls = [], 0
    for number, given in enumerate(messages):
        where = f"Message {number}"
        if not isinstance(given, dict):
            raise TextError(f"{where} must be an object with a role.")
        message = dict(given)
        if "content" in message:
            message["content"] = _content(where, message["content"])
        role = message.get("role")
        if role == "developer":
            message["role"] = "system"
        elif role == "function":
            raise TextError(
                f"{where} has the role function; give results of tools with the role tool and a tool_call_id."
            )
        elif role == "tool":
            _answer(where, message, known)
        elif role == "assistant":
            _assistant(where, message)
            calls = _calls(where, message, n_calls)
            n_calls += len(calls)
            known.add(calls)
        repaired.append(message)
    return repaired, n_calls


def _content(where: str, content: Any) -> Any:
    if not isinstance(content, list):
        return content
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and _MEDIA.fullmatch(kind):
            raise TextError(
                f"{where} holds a part of type {shown(kind)}; this model reads text only, and nothing is ever fetched."
            )
        if kind == "refusal":
            part = {"type": "text", "text": part.get("refusal")}
        parts.append(part)
    return parts


def _assistant(where: str, message: dict[str, Any]) -> None:
    """Moves reasoning to `reasoning_content` and a refusal to `content`, in place."""
    found = [_thoughts(where, name, message.pop(name, None)) for name in _REASONING]
    thoughts = next(filter(None, found), None)
    if thoughts is not None:
        message["reasoning_content"] = thoughts
    refusal = message.pop("refusal", None)
    if isinstance(refusal, str) and not message.get("content"):
        message["content"] = refusal
    if message.pop("function_call", None) is not None:
        raise TextError(f"{where} has a function_call; give it as one of tool_calls.")


def _thoughts(where: str, name: str, value: Any) -> str | None:
    if isinstance(value, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in value]
        value = "".join(text for text in texts if isinstance(text, str))  # encrypted and summary parts have none
    if not isinstance(value, (str, type(None))):
        raise TextError(f"{where}: {name} must be a text.")
    return value


def _calls(where: str, message: dict[str, Any], first_index: int) -> list[_Call]:
    """The calls of an assistant message; replaces their ids and arguments in place by the canonical ones."""
    given = message.pop("tool_calls", None)
    if not isinstance(given, (list, type(None))):
        raise TextError(f"{where}: tool_calls must be a list.")
    calls, repaired = [], []
    for index, call in enumerate(given or (), first_index):
        function = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if (
            not isinstance(function, dict)
            or not isinstance(name, str)
            or not name
            or not isinstance(call.get("id"), str)
        ):
            raise TextError(f"{where}: each tool call needs an id and a function with a name.")
        kept = _Call(call["id"], f"functions.{name}:{index}", name)
        repaired.append(call | {"id": kept.id, "function": function | {"arguments": _arguments(where, function)}})
        calls.append(kept)
    if repaired:
        message["tool_calls"] = repaired
    return calls


def _arguments(where: str, function: dict[str, Any]) -> Any:
    arguments = function.get("arguments")
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return "{}"
    if not isinstance(arguments, (str, dict)):
        raise TextError(f"{where}: the arguments of a tool call must be a text or an object.")
    return arguments


class _Known:
    """The calls that a tool message may answer: for each id, those of the latest message that has it."""

    def __init__(self) -> None:
        self._exact: dict[str, deque[_Call]] = {}
        self._plain: dict[str, deque[_Call]] = {}

    def add(self, calls: Sequence[_Call]) -> None:
        exact: dict[str, deque[_Call]] = {}
        plain: dict[str, deque[_Call]] = {}
        for call in calls:
            exact.setdefault(call.given, deque()).append(call)
            plain.setdefault(_plain(call.given), deque()).append(call)
        self._exact |= exact
        self._plain |= plain

    def answer(self, where: str, given: str) -> _Call:
        """The first call with this id that has no result yet; marks it as answered."""
        found = [calls.get(key) for calls, key in ((self._exact, given), (self._plain, _plain(given)))]
        for calls in found:
            while calls:
                call = calls.popleft()
                if not call.answered:
                    call.answered = True
                    return call
        if any(calls is not None for calls in found):
            raise TextError(f"{where} is a second result of the tool call {shown(given)}; give one for each call.")
        raise TextError(
            f"{where}: tool_call_id not found: no assistant message before it has a tool call with id {shown(given)}."
        )


def _answer(where: str, message: dict[str, Any], known: _Known) -> None:
    given = message.get("tool_call_id")
    if not isinstance(given, str):
        raise TextError(f"{where} has the role tool and needs a tool_call_id.")
    call = known.answer(where, given)
    message["tool_call_id"], message["name"] = call.id, call.name


def _plain(call_id: str) -> str:
    return _REWRITTEN.sub("_", call_id)
