"""Messages of a chat, from a client's JSON to the form that text.ChatTemplate takes.

Every content becomes a text or null; text parts are concatenated, as Kimi's template does. A part that is not text
becomes a placeholder, since clients send past messages and tool results again with each request; only in the user's
newest message it is refused. Refused too: the function_call of old clients. Ids of calls and fields of thoughts are
passed on unchanged.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from earthshine.server.refusals import Refused
from earthshine.server.unread import placeholder, refusal
from earthshine.untrusted import shown

CUSTOM_INPUT = "input"  # the one argument of a function that stands for a custom tool
_TEXTS = ("text", "input_text", "output_text", "reasoning_text", "summary_text")


class Part(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: str
    text: str | None = None
    refusal: str | None = None
    filename: str | None = None


class CalledFunction(BaseModel):
    """`arguments`: a JSON text, the object itself, or null for none."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str
    arguments: str | dict[str, Any] | None = None


class CalledTool(BaseModel):
    """A call's custom tool and its input."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str
    input: str = ""


class Call(BaseModel):
    """A call that the assistant made, of a function or of a custom tool. Some clients leave its type empty."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: str = ""
    type: Literal["function", "custom", ""] | None = None
    function: CalledFunction | None = None
    custom: CalledTool | None = None


Content = str | Annotated[list[Part], Field(max_length=10_000)] | None


class Message(BaseModel):
    """One message. `partial`, Kimi's field: the answer continues it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: str | None = None
    tool_calls: Annotated[list[Call], Field(max_length=512)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: str | list[Any] | None = None
    partial: bool | None = None
    function_call: Any = None


_KEPT = ("name", "tool_call_id", "reasoning_content", "reasoning", "reasoning_details")


def text_of(content: Content, where: str, *, asked: bool = False) -> str | None:
    """The text of a content; `where` is its place in errors. A part that is not text becomes a placeholder, or raises
    Refused in the user's newest message (`asked`)."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for number, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in (*_TEXTS, "refusal"):
            if asked:
                raise Refused(refusal(part.type), param=f"{where}[{number}].type")
            text = placeholder(part.type, part.filename) if text is None else text
        if text is None:
            raise Refused(f"A part of type {shown(part.type)} needs a text.", param=f"{where}[{number}]")
        texts.append(text)
    return "".join(texts)


def asked_at(roles: Sequence[str]) -> int:
    """The index of the user's newest message, or -1. A user message right after a tool's result does not count: some
    clients send the pictures of a result that way."""
    for at in range(len(roles) - 1, -1, -1):
        if roles[at] == "user":
            before = next((role for role in reversed(roles[:at]) if role != "user"), "")
            return -1 if before == "tool" else at
        if roles[at] in ("assistant", "tool"):
            break
    return -1


def _plain_call(call: Call, where: str) -> dict[str, Any]:
    if call.custom is not None and call.function is None:
        function: dict[str, Any] = {
            "name": call.custom.name,
            "arguments": json.dumps({CUSTOM_INPUT: call.custom.input}),
        }
    elif call.function is not None:
        arguments = "" if call.function.arguments is None else call.function.arguments
        function = {"name": call.function.name, "arguments": arguments}
    else:
        raise Refused("A tool call needs a function with a name.", param=f"{where}.function")
    return {"id": call.id, "type": "function", "function": function}


def plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as objects without null keys, except for content. Raises Refused."""
    found: list[dict[str, Any]] = []
    asked = asked_at([message.role for message in messages])
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if message.function_call is not None:
            raise Refused("function_call is the old form; give the call in tool_calls.", param=f"{where}.function_call")
        content = text_of(message.content, f"{where}.content", asked=number == asked)
        entry: dict[str, Any] = {"role": message.role, "content": content}
        entry |= {key: value for key in _KEPT if (value := getattr(message, key)) is not None}
        if message.tool_calls:
            entry["tool_calls"] = [
                _plain_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(message.tool_calls)
            ]
        found.append(entry)
    return found
