"""Messages of a chat, from a client's JSON to the plain form that text.ChatTemplate takes.

Invariant: every content is a text or null. A content of several text parts is their concatenation, which is how
Kimi's template joins them. Refused: parts that are no text (nothing is fetched from any address), and the function_call
of old clients. Ids of calls and fields of thoughts pass as they are.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from earthshine.server.api import Refused
from earthshine.untrusted import shown

_TEXTS = ("text", "input_text", "output_text", "reasoning_text", "summary_text")


class Part(BaseModel):
    """A part of a content."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(BaseModel):
    """`arguments`: a JSON text, the object itself, or null for none."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str
    arguments: str | dict[str, Any] | None = None


class Call(BaseModel):
    """A call that the assistant made."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction


Content = str | Annotated[list[Part], Field(max_length=10_000)] | None


class Message(BaseModel):
    """One message. `partial`, Kimi's word: the answer continues it."""

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


def text_of(content: Content, where: str) -> str | None:
    """The text of a content; `where` names it. Raises Refused for a part that is no text."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for number, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in (*_TEXTS, "refusal"):
            message = f"This model reads text only, and {shown(part.type)} is none; leave such parts out."
            raise Refused(message, param=f"{where}[{number}].type")
        if text is None:
            raise Refused(f"A part of type {shown(part.type)} needs a text.", param=f"{where}[{number}]")
        texts.append(text)
    return "".join(texts)


def _plain_call(call: Call) -> dict[str, Any]:
    arguments = "" if call.function.arguments is None else call.function.arguments
    return {"id": call.id, "type": call.type, "function": {"name": call.function.name, "arguments": arguments}}


def plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as objects without null keys, but for the content. Raises Refused."""
    found: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if message.function_call is not None:
            raise Refused("function_call is the old form; give the call in tool_calls.", param=f"{where}.function_call")
        entry: dict[str, Any] = {"role": message.role, "content": text_of(message.content, f"{where}.content")}
        entry |= {key: value for key in _KEPT if (value := getattr(message, key)) is not None}
        if message.tool_calls:
            entry["tool_calls"] = [_plain_call(call) for call in message.tool_calls]
        found.append(entry)
    return found
