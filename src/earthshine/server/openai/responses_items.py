"""The input items of a response to the messages of a conversation.

Items that came from one answer (a thought, a text, calls) become one message of the assistant again. Calls of OpenAI's
own tools that the client answered itself become calls; other items that only OpenAI's servers make or read become
placeholders. Refused: unknown items, and references to stored items.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from earthshine.generation.request import Messages
from earthshine.server.openai.messages import CUSTOM_INPUT, Content, Part, asked_at, text_of
from earthshine.server.openai.tools import joined
from earthshine.server.refusals import Refused
from earthshine.server.unread import placeholder
from earthshine.untrusted import shown

_PLAIN = ("message", "reasoning", "item_reference")
_CALLS = ("function_call", "custom_tool_call")
_OUTPUTS = ("function_call_output", "custom_tool_call_output")
_MARKED = ("compaction", "compaction_summary", "context_compaction", "mcp_list_tools", "mcp_approval_request",
           "mcp_approval_response", "tool_search_output", "additional_tools")  # fmt: skip


class Item(BaseModel):
    """An item that is converted. The fields that it needs depend on its type; without a type it is a message."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content = None
    summary: Annotated[list[Part], Field(max_length=10_000)] | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: Content = None


class OtherItem(BaseModel):
    """An item of another type, whose fields may have any form."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Annotated[str, Field(json_schema_extra={"not": {"enum": [*_PLAIN, *_CALLS, *_OUTPUTS]}})]
    call_id: Any = None
    arguments: Any = None
    action: Any = None
    operation: Any = None
    output: Any = None

    @property
    def payload(self) -> dict[str, Any]:
        """The arguments of a call."""
        given = (self.arguments, self.action, self.operation)
        return next((value for value in given if isinstance(value, dict)), {})


def _kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "other" if isinstance(kind, str) and kind not in (*_PLAIN, *_CALLS, *_OUTPUTS) else "plain"


AnyItem = Annotated[Annotated[Item, Tag("plain")] | Annotated[OtherItem, Tag("other")], Discriminator(_kind)]


class _Conversation:
    """The messages so far. `_open`: the assistant's message that further items may belong to."""

    def __init__(self) -> None:
        self.messages: Messages = []
        self._open: dict[str, Any] | None = None

    def add(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self._open = message if message["role"] == "assistant" else None

    def _assistant(self, new: bool) -> dict[str, Any]:
        if self._open is None or new:
            self.add({"role": "assistant", "content": None})
        return self.messages[-1]

    def _has_answer(self) -> bool:
        return self._open is not None and (self._open["content"] is not None or "tool_calls" in self._open)

    def think(self, text: str) -> None:
        message = self._assistant(new=self._has_answer())
        message["reasoning_content"] = message.get("reasoning_content", "") + text

    def say(self, text: str | None) -> None:
        self._assistant(new=self._has_answer())["content"] = text

    def call(self, call: dict[str, Any]) -> None:
        self._assistant(new=False).setdefault("tool_calls", []).append(call)


def messages_of(given: str | Sequence[Item | OtherItem], instructions: str | None) -> Messages:
    """The conversation, instructions first. Raises Refused."""
    conversation = _Conversation()
    if instructions is not None:
        conversation.add({"role": "system", "content": instructions})
    if isinstance(given, str):
        conversation.add({"role": "user", "content": given})
        return conversation.messages
    asked = asked_at([_role(item) for item in given])
    for number, item in enumerate(given):
        where = f"input[{number}]"
        if isinstance(item, OtherItem):
            _add_other(conversation, item, where)
        else:
            _add(conversation, item, where, number == asked)
    return conversation.messages


def _role(item: Item | OtherItem) -> str:
    kind = item.type or "message"
    if kind == "message" and isinstance(item, Item):
        return item.role or "user"
    return "tool" if kind.endswith("_output") else "assistant"


def _add(conversation: _Conversation, item: Item, where: str, asked: bool) -> None:
    kind = item.type or "message"
    if kind == "message":
        if item.role is None:
            raise Refused("A message needs a role: system, developer, user or assistant.", param=f"{where}.role")
        text = text_of(item.content, f"{where}.content", asked=asked)
        if item.role == "assistant":
            conversation.say(text)
        else:
            conversation.add({"role": item.role, "content": text})
    elif kind == "reasoning":
        thought = text_of(item.content, f"{where}.content") or text_of(item.summary, f"{where}.summary")
        conversation.think(thought or "")
    elif kind in _CALLS:
        if item.call_id is None or item.name is None:
            raise Refused(f"A {kind} needs a call_id and a name.", param=where)
        custom = json.dumps({CUSTOM_INPUT: item.input or ""}, ensure_ascii=False)
        arguments = custom if kind == "custom_tool_call" else item.arguments or ""
        conversation.call(_call(item.call_id, joined(item.name, item.namespace), arguments))
    elif kind in _OUTPUTS:
        if item.call_id is None or item.output is None:
            raise Refused(f"A {kind} needs a call_id and an output.", param=where)
        output = text_of(item.output, f"{where}.output")
        conversation.add({"role": "tool", "tool_call_id": item.call_id, "content": output})
    else:
        raise Refused("Nothing is stored here, so an item can't be a reference; give the item itself.", param=where)


def _add_other(conversation: _Conversation, item: OtherItem, where: str) -> None:
    """Adds an item of OpenAI's own tools and servers."""
    kind, called = item.type, isinstance(item.call_id, str) and item.call_id
    if kind.endswith("_call") and called:
        arguments = json.dumps(item.payload, ensure_ascii=False)
        conversation.call(_call(item.call_id, kind.removesuffix("_call"), arguments))
    elif kind.endswith("_output") and called:
        content = _plain_output(item.output) if item.output is not None else placeholder(kind)
        conversation.add({"role": "tool", "tool_call_id": item.call_id, "content": content})
    elif kind.endswith("_call"):
        conversation.say(placeholder(kind))
    elif kind in _MARKED or kind.endswith("_output"):
        conversation.add({"role": "system", "content": placeholder(kind)})
    else:
        raise Refused(
            f"An item of type {shown(kind)} is not supported; give messages, reasoning, and calls of functions and "
            "custom tools with their outputs.",
            param=f"{where}.type",
        )


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _plain_output(output: Any) -> str:
    """The output of one of OpenAI's own tools, as text."""
    if isinstance(output, str):
        return output
    if isinstance(output, list):
        return "\n".join(map(_plain_output, output))
    if not isinstance(output, dict):
        return json.dumps(output)
    if isinstance(output.get("text"), str):
        return str(output["text"])
    if "image_url" in output or "file_id" in output or "file_data" in output:
        return placeholder(str(output.get("type", "image")))
    return json.dumps(output, ensure_ascii=False)
