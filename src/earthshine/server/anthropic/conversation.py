"""Anthropic's conversations in OpenAI's form, which chat templates take, and the rest of a body as a Turn.

Blocks of system and user messages and of tool results are separated by an empty line; an assistant's are joined as
they are, as it wrote them. Results of tools come before the texts of the same message, right after their calls.
Claude Code opens its system prompt with a line "x-anthropic-billing-header: ..." that differs between requests; it is
taken out, for it would keep every prefix from being found. Refused: what is not text (nothing is ever fetched), tools
that Anthropic's servers run, blocks in the wrong role, a last message that waits for tools.
"""

import json
from typing import Any

from earthshine.server.anthropic.body import (
    Block,
    CountBody,
    Message,
    MessagesBody,
    Other,
    RedactedThinking,
    Text,
    Thinking,
    Tool,
    ToolResult,
    ToolUse,
)
from earthshine.server.api import Refused, Served
from earthshine.server.turn import Format, Messages, ToolChoice, Turn
from earthshine.untrusted import shown

_BILLING = "x-anthropic-billing-header:"
_CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": "named"}


def turn(body: CountBody, served: Served) -> Turn:
    """The body as a Turn; raises Refused. A thought is asked for only where the model's template can open one."""
    if body.model not in served.names:
        names = ", ".join(map(shown, served.names))
        raise Refused(f"There is no model {shown(body.model)} here; ask for {names}.", "not_found", "model")
    thinking = None if body.thinking is None or not served.thinks else _thinks(body.thinking.type)
    form = (body.output_config and body.output_config.format) or body.output_format
    choice, parallel = _tool_choice(body)
    prompt = messages(body)
    waits = "tool_calls" in prompt[-1]
    asked: dict[str, Any] = {}
    if isinstance(body, MessagesBody):
        if waits:
            raise Refused("The last message calls tools; add a user message with their tool_results.", param="messages")
        given = {name: getattr(body, name) for name in ("max_tokens", "temperature", "top_p", "top_k")}
        asked["sampling"] = {name: value for name, value in given.items() if value is not None}
        asked["stop"], asked["salt"] = tuple(body.stop_sequences or ()), body.cache_salt or ""
    return Turn(
        prompt=prompt,
        tools=[_tool(number, tool) for number, tool in enumerate(body.tools or ())],
        tool_choice=choice,
        parallel_calls=parallel,
        thinking=thinking,
        prefill=body.messages[-1].role == "assistant" and not waits,
        format=Format("json_schema", form.json_schema) if form else None,
        **asked,
    )


def _thinks(kind: str) -> bool | None:
    return {"enabled": True, "adaptive": True, "disabled": False}.get(kind)


def _tool(number: int, tool: Tool) -> dict[str, Any]:
    where = f"tools[{number}]"
    if tool.type not in (None, "custom"):
        raise Refused(
            f"{shown(tool.type)} is a tool of Anthropic's own, which this server doesn't have; declare a tool of type "
            '"custom" with an input_schema, and run it yourself.',
            param=f"{where}.type",
        )
    if tool.input_schema is None:
        raise Refused("A tool needs an input_schema, the JSON schema of its input.", param=f"{where}.input_schema")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(body: CountBody) -> tuple[ToolChoice, bool]:
    """What must be called, and whether several calls may stand in one answer."""
    names = [tool.name for tool in body.tools or ()]
    if len(set(names)) < len(names):
        raise Refused("Two tools have one name; names must differ.", param="tools")
    given = body.tool_choice
    if given is None:
        return ToolChoice(), True
    if given.type in ("any", "tool") and not names:
        raise Refused(f'tool_choice "{given.type}" needs tools to choose from.', param="tool_choice")
    if given.type == "tool" and given.name not in names:
        raise Refused(f"tool_choice names {shown(given.name)}, which is none of the tools.", param="tool_choice.name")
    name = given.name or "" if given.type == "tool" else ""
    return ToolChoice(_CHOICES[given.type], name), not given.disable_parallel_tool_use  # type: ignore[arg-type]


def messages(body: CountBody) -> Messages:
    """The conversation in OpenAI's form, the system prompt first; raises Refused."""
    found: Messages = []
    system = [] if body.system is None else _texts(_blocks(body.system), "system")
    if system and system[0].startswith(_BILLING):
        system[0] = system[0].partition("\n")[2].lstrip("\n")
    if any(system):
        found.append({"role": "system", "content": "\n\n".join(filter(None, system))})
    for number, message in enumerate(body.messages):
        convert = _assistant if message.role == "assistant" else _others
        found += convert(message, f"messages[{number}].content")
    return found


def _blocks(content: str | list[Any]) -> list[Block]:
    return [Text(type="text", text=content)] if isinstance(content, str) else content


def _others(message: Message, where: str) -> Messages:
    blocks = _blocks(message.content)
    results = [] if message.role == "system" else [block for block in blocks if isinstance(block, ToolResult)]
    found: Messages = [
        {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block, where)} for block in results
    ]
    texts = _texts([block for block in blocks if not (results and isinstance(block, ToolResult))], where)
    if texts or not results:
        found.append({"role": message.role, "content": "\n\n".join(texts)})
    return found


def _result(block: ToolResult, where: str) -> str:
    text = "\n\n".join(_texts(_blocks(block.content), where))
    return f"Error: {text}" if block.is_error else text  # chat templates have no other place for it


def _assistant(message: Message, where: str) -> Messages:
    texts, thoughts, calls = [], [], []
    for block in _blocks(message.content):
        if isinstance(block, Text):
            texts.append(block.text)
        elif isinstance(block, Thinking):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUse):
            function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif not isinstance(block, RedactedThinking):  # nobody but its maker can read that one
            raise _misplaced(block, where)
    found: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        found["reasoning_content"] = "".join(thoughts)
    if calls:
        found["tool_calls"] = calls
    return [found]


def _texts(blocks: list[Block], where: str) -> list[str]:
    """The texts that are not empty, where nothing else may stand."""
    for block in blocks:
        if not isinstance(block, Text):
            raise _misplaced(block, where)
    return [block.text for block in blocks if isinstance(block, Text) and block.text]


def _misplaced(block: Block, where: str) -> Refused:
    if not isinstance(block, Other):
        return Refused(f"A block of type {block.type} has no meaning in this place.", param=where)
    return Refused(
        f"A block of type {shown(block.type)} can't be read: the model takes text alone, and nothing is fetched from "
        "an address. Send its content as text.",
        param=where,
    )
