"""The input of a response, items as OpenAI's API lists them, to the messages of a conversation.

Invariant: what one answer gave as several items (a thought, a text, calls) becomes one message of the assistant
again. Refused: items that only OpenAI's own tools make, and references to what a server would have stored.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from earthshine.server.api import Refused
from earthshine.server.openai.messages import Content, Part, text_of
from earthshine.server.turn import Messages
from earthshine.untrusted import shown


class Item(BaseModel):
    """An item of any kind; which fields it needs depends on its type. Without a type it is a message."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content = None
    summary: Annotated[list[Part], Field(max_length=10_000)] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Content = None


class _Conversation:
    """Messages as items add to them. `_open`: the assistant's message that further items may still belong to."""

    def __init__(self) -> None:
        self.messages: Messages = []
        self._open: dict[str, Any] | None = None

    def add(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self._open = message if message["role"] == "assistant" else None

    def _assistant(self, anew: bool) -> dict[str, Any]:
        if self._open is None or anew:
            self.add({"role": "assistant", "content": None})
        return self.messages[-1]

    def _said(self) -> bool:
        return self._open is not None and (self._open["content"] is not None or "tool_calls" in self._open)

    def think(self, text: str) -> None:
        message = self._assistant(anew=self._said())
        message["reasoning_content"] = message.get("reasoning_content", "") + text

    def say(self, text: str | None) -> None:
        self._assistant(anew=self._said())["content"] = text

    def call(self, call: dict[str, Any]) -> None:
        self._assistant(anew=False).setdefault("tool_calls", []).append(call)


def messages_of(given: str | Sequence[Item], instructions: str | None) -> Messages:
    """The conversation, instructions first. Raises Refused."""
    conversation = _Conversation()
    if instructions is not None:
        conversation.add({"role": "system", "content": instructions})
    if isinstance(given, str):
        conversation.add({"role": "user", "content": given})
    else:
        for number, item in enumerate(given):
            _add(conversation, item, f"input[{number}]")
    return conversation.messages


def _add(conversation: _Conversation, item: Item, where: str) -> None:
    kind = item.type or "message"
    if kind == "message":
        if item.role is None:
            raise Refused("A message needs a role: system, developer, user or assistant.", param=f"{where}.role")
        text = text_of(item.content, f"{where}.content")
        if item.role == "assistant":
            conversation.say(text)
        else:
            conversation.add({"role": item.role, "content": text})
    elif kind == "reasoning":
        thought = text_of(item.content, f"{where}.content") or text_of(item.summary, f"{where}.summary")
        conversation.think(thought or "")
    elif kind == "function_call":
        if item.call_id is None or item.name is None:
            raise Refused("A function_call needs a call_id and a name.", param=where)
        function = {"name": item.name, "arguments": item.arguments or ""}
        conversation.call({"id": item.call_id, "type": "function", "function": function})
    elif kind == "function_call_output":
        if item.call_id is None or item.output is None:
            raise Refused("A function_call_output needs a call_id and an output.", param=where)
        output = text_of(item.output, f"{where}.output")
        conversation.add({"role": "tool", "tool_call_id": item.call_id, "content": output})
    elif kind == "item_reference":
        raise Refused("Nothing is stored here, so items can't be referred to; give the item itself.", param=where)
    else:
        raise Refused(f"The input has messages, reasoning, function_call and function_call_output, not {shown(kind)}.",
                      param=f"{where}.type")  # fmt: skip
