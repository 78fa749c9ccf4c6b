"""Anthropic's conversations in OpenAI's form, which chat templates take, and the rest of a body as a GenerationRequest.

Blocks of system and user messages and of tool results are separated by an empty line; an assistant's are joined as
they are, as it wrote them. Results of tools come before the texts of the same message, right after their calls. What
is not text becomes a placeholder, and nothing is ever fetched. It is never refused: Claude Code sends a message that
was refused again, as one with the next, so such a conversation would end for good.
Claude Code opens its system prompt with a line "x-anthropic-billing-header: ..." that differs between requests; it is
taken out, for it would keep every prefix from being found. Tools that Anthropic's servers run are left out. Refused:
blocks in the wrong role, a last message that waits for tools, tools without a name or schema or in another API's form.
"""

import json
from dataclasses import replace
from typing import Any

from earthshine.engine import SamplingParams
from earthshine.generation.request import Format, GenerationRequest, Messages, ToolChoice
from earthshine.server.anthropic.body import (
    Block,
    CountBody,
    Document,
    Message,
    MessagesBody,
    Other,
    RedactedThinking,
    SearchResult,
    Text,
    Thinking,
    Tool,
    ToolReference,
    ToolResult,
    ToolUse,
)
from earthshine.server.api import Refused, Served
from earthshine.server.dialects import require_absent
from earthshine.server.unread import placeholder
from earthshine.untrusted import shown

_BILLING = "x-anthropic-billing-header:"
_SHAPE = 'The Messages API takes {"name": ..., "description": ..., "input_schema": {"type": "object", ...}}.'
_CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": "named"}


def generation_request(body: CountBody, served: Served) -> GenerationRequest:
    """What the body asks for; raises Refused. A thought is asked for only where the model's template can open one."""
    if body.model not in served.names:
        names = ", ".join(map(shown, served.names))
        raise Refused(f"There is no model {shown(body.model)} here; ask for {names}.", "not_found", "model")
    thinking = None if body.thinking is None or not served.thinks else _thinks(body.thinking.type)
    form = (body.output_config and body.output_config.format) or body.output_format
    tools, left_out = _tools(body)
    choice, parallel = _tool_choice(body, [tool["function"]["name"] for tool in tools])
    prompt = messages(body)
    waits = "tool_calls" in prompt[-1]
    params, salt = SamplingParams(), ""
    if isinstance(body, MessagesBody):
        require_absent(body.model_extra or {})
        if waits:
            raise Refused("The last message calls tools; add a user message with their tool_results.", param="messages")
        params, salt = _sampling_params(body, served.defaults), body.cache_salt or ""
    return GenerationRequest(
        prompt=prompt,
        params=params,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        thinking=thinking,
        continue_final_message=body.messages[-1].role == "assistant" and not waits,
        format=Format("json_schema", form.json_schema) if form else None,
        cache_salt=salt,
        left_out=left_out,
    )


def _sampling_params(body: MessagesBody, defaults: SamplingParams) -> SamplingParams:
    return replace(
        defaults,
        max_tokens=body.max_tokens,
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        top_k=defaults.top_k if body.top_k is None else body.top_k,
        stop=body.stop_sequences or (),
    )


def _thinks(kind: str) -> bool | None:
    return {"enabled": True, "adaptive": True, "disabled": False}.get(kind)


def _tools(body: CountBody) -> tuple[list[dict[str, Any]], list[str]]:
    """The tools that are declared to the model, and the types of those that only Anthropic's servers know."""
    searches = any((tool.type or "").startswith("tool_search") for tool in body.tools or ())
    found, left_out = [], []
    names = _referred(body)
    for number, tool in enumerate(body.tools or ()):
        if _is_anthropics(tool):
            left_out.append(str(tool.type))
        elif (
            searches or not tool.defer_loading or tool.name in names
        ):  # a search that only Anthropic runs finds nothing here
            found.append(_tool(f"tools[{number}]", tool))
    return found, left_out


def _referred(body: CountBody) -> set[str]:
    """The tools that searches of this conversation have found."""
    blocks = [block for message in body.messages for block in _blocks(message.content)]
    results = [inner for block in blocks if isinstance(block, ToolResult) for inner in _blocks(block.content or "")]
    return {block.tool_name for block in (*blocks, *results) if isinstance(block, ToolReference)}


def _is_anthropics(tool: Tool) -> bool:
    """Whether it is one of Anthropic's own, which have a type of their own and no schema."""
    others = tool.type == "function" or tool.function is not None or tool.parameters is not None
    return tool.type not in (None, "", "custom") and tool.input_schema is None and not others


def _tool(where: str, tool: Tool) -> dict[str, Any]:
    if tool.type == "function" and tool.input_schema is None:
        raise Refused(f"This is a tool of another API. {_SHAPE}", param=f"{where}.type")
    if tool.name is None:
        raise Refused(f"The tool has no name. {_SHAPE}", param=f"{where}.name")
    if tool.input_schema is None:
        raise Refused(f"The tool has no input_schema. {_SHAPE}", param=f"{where}.input_schema")
    kind = tool.input_schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise Refused(
            f'A tool\'s input is an object; input_schema must have the type "object", not {shown(kind)}.',
            param=f"{where}.input_schema.type",
        )
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(body: CountBody, names: list[str]) -> tuple[ToolChoice, bool]:
    """What must be called, and whether several calls may stand in one answer."""
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
    text = "\n\n".join(_texts(_blocks(block.content or ""), where))
    return f"Error: {text}" if block.is_error else text  # chat templates have no other place for it


def _assistant(message: Message, where: str) -> Messages:
    texts, thoughts, calls = [], [], []
    for block in _blocks(message.content):
        if isinstance(block, Thinking):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUse):
            function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif not isinstance(block, RedactedThinking):  # nobody but its maker can read that one
            texts.append(_text(block, where))
    found: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        found["reasoning_content"] = "".join(thoughts)
    if calls:
        found["tool_calls"] = calls
    return [found]


def _texts(blocks: list[Block], where: str) -> list[str]:
    """The texts that are not empty."""
    return [text for block in blocks if (text := _text(block, where))]


def _text(block: Block, where: str) -> str:
    """What the model reads of a block. Raises Refused for one that has no meaning here."""
    if isinstance(block, Text):
        return block.text
    if isinstance(block, SearchResult):
        return "\n".join(filter(None, (block.title, block.source, *(part.text for part in block.content))))
    if isinstance(block, ToolReference):
        return f"The tool {block.tool_name} is available now."
    if isinstance(block, Document):
        text = _document(block)
        return text if text is not None else placeholder("document", block.title)
    if not isinstance(block, Other):
        raise Refused(f"A block of type {block.type} has no meaning in this place.", param=where)
    return placeholder(block.type)


def _document(block: Document) -> str | None:
    """The document's text, below its title; None where its source is not text."""
    source = block.source
    given = source.data if source.type == "text" else source.content if source.type == "content" else None
    if isinstance(given, list):
        parts = [part if isinstance(part, dict) else {} for part in given]
        given = "\n\n".join(
            part["text"] if isinstance(part.get("text"), str) else placeholder(str(part.get("type"))) for part in parts
        )
    if not isinstance(given, str):
        return None
    return "\n".join(filter(None, (block.title, block.context, given)))
