"""From a body of the Messages API to a GenerationRequest, with the conversation in OpenAI's form for the chat template.

Blocks of system and user messages and of tool results are joined with an empty line between them, blocks of the
assistant without. Results of tools come before the texts of the same message, right after their calls. Blocks that are
not text become placeholders; nothing is fetched. They are not refused, since Claude Code sends a refused message again
with every later one, so the conversation could not continue.
Claude Code begins its system prompt with a line "x-anthropic-billing-header: ..." that differs between requests. It is
removed, since no prefix would be found in the cache otherwise. Tools that Anthropic's servers run are left out.
Refused: blocks in the wrong role, a last message that waits for tool results, and tools without a name or schema or in
the form of another API.
"""

import json
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
from earthshine.server.api import Served, make_params
from earthshine.server.dialects import require_absent
from earthshine.server.refusals import Refused
from earthshine.server.unread import placeholder
from earthshine.untrusted import shown

_BILLING = "x-anthropic-billing-header:"
_SHAPE = 'The Messages API takes {"name": ..., "description": ..., "input_schema": {"type": "object", ...}}.'
_CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": "named"}


def generation_request(body: CountBody, served: Served) -> GenerationRequest:
    """The body as a GenerationRequest; `thinking` is ignored for a model without thoughts. Raises Refused."""
    if body.model not in served.names:
        names = ", ".join(map(shown, served.names))
        raise Refused(f"The model {shown(body.model)} is not served here; ask for {names}.", "not_found", "model")
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
    given = {name: value for name in ("temperature", "top_p", "top_k") if (value := getattr(body, name)) is not None}
    stop = body.stop_sequences
    return make_params(defaults, {"stop": "stop_sequences"}, max_tokens=body.max_tokens, stop=stop, **given)


def _thinks(kind: str) -> bool | None:
    return {"enabled": True, "adaptive": True, "disabled": False}.get(kind)


def _tools(body: CountBody) -> tuple[list[dict[str, Any]], list[str]]:
    """The tools that are declared to the model, and the types of those that only Anthropic's servers can run."""
    searches = any((tool.type or "").startswith("tool_search") for tool in body.tools or ())
    found, left_out = [], []
    names = _referred(body)
    for number, tool in enumerate(body.tools or ()):
        if _is_anthropics(tool):
            left_out.append(str(tool.type))
        elif (
            searches or not tool.defer_loading or tool.name in names
        ):  # Anthropic's search is not run, so finds nothing
            found.append(_tool(f"tools[{number}]", tool))
    return found, left_out


def _referred(body: CountBody) -> set[str]:
    """The names of the tools that searches in this conversation have found."""
    blocks = [block for message in body.messages for block in _blocks(message.content)]
    results = [inner for block in blocks if isinstance(block, ToolResult) for inner in _blocks(block.content or "")]
    return {block.tool_name for block in (*blocks, *results) if isinstance(block, ToolReference)}


def _is_anthropics(tool: Tool) -> bool:
    """Whether it is one of Anthropic's own tools, which have a type of their own and no schema."""
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
    """The tool choice, and whether one answer may have several calls."""
    if len(set(names)) < len(names):
        raise Refused("Two tools have the same name; names must differ.", param="tools")
    given = body.tool_choice
    if given is None:
        return ToolChoice(), True
    if given.type in ("any", "tool") and not names:
        raise Refused(f'tool_choice "{given.type}" needs tools to choose from.', param="tool_choice")
    if given.type == "tool" and given.name not in names:
        raise Refused(f"tool_choice names {shown(given.name)}, which is not among the tools.", param="tool_choice.name")
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
    return f"Error: {text}" if block.is_error else text  # chat templates have no field for errors


def _assistant(message: Message, where: str) -> Messages:
    texts, thoughts, calls = [], [], []
    for block in _blocks(message.content):
        if isinstance(block, Thinking):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUse):
            function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif not isinstance(block, RedactedThinking):  # encrypted
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
    """The text of a block for the model. Raises Refused for a block that can't be in this role."""
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
        raise Refused(f"A block of type {block.type} is not possible here.", param=where)
    return placeholder(block.type)


def _document(block: Document) -> str | None:
    """The document's title and text; None where its source is not text."""
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
