"""Tools and tool_choice of OpenAI's APIs, in the nested form of chat and the flat form of responses.

A custom tool is declared as a function of one text: a regex for that text is enforced; a Lark grammar (Codex sends one)
becomes part of the description and is logged. The functions of a namespace (Codex sends one for each MCP server) are
declared as NAMESPACE__NAME, and their calls are returned with both names. Tools that only OpenAI's servers run are left
out and logged. Refused: names that a call can't have, two tools of one name, other tools that have parameters, and
choices of tools that were not given.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from earthshine.generation.request import ToolChoice
from earthshine.server.openai.messages import CUSTOM_INPUT
from earthshine.server.refusals import Refused
from earthshine.untrusted import parse_object, shown

MOST_TOOLS = 512
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}")  # what a call's id, functions.NAME:N, can hold
_MODES = ("auto", "none", "required")


class Function(BaseModel):
    """A function that the model may call. `parameters`: a JSON schema."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class CustomTool(BaseModel):
    """A tool that takes one text. `format`: a regex is enforced, a Lark grammar is only described."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str | None = None
    description: str | None = None
    format: dict[str, Any] | None = None


class NestedTool(BaseModel):
    """A tool of a chat."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: str
    function: Function | None = None
    custom: CustomTool | None = None


class FlatTool(BaseModel):
    """A tool of a response, or a namespace of tools."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: Any = None
    tools: Annotated[list["FlatTool"], Field(max_length=MOST_TOOLS)] | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """A tool by the client's own names."""

    name: str
    namespace: str | None = None
    custom: bool = False


@dataclass(frozen=True, slots=True)
class Tools:
    """`declared`: functions in OpenAI's nested form; `known`: the client's names of each, by its declared name;
    `left_out`: types of the tools that are not declared; `unenforced`: custom tools whose grammar is not enforced."""

    declared: list[dict[str, Any]] = field(default_factory=list)
    known: dict[str, Known] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    unenforced: list[str] = field(default_factory=list)

    def add(self, tool: NestedTool | FlatTool, where: str, namespace: str | None = None) -> None:
        """Declare a tool, or all tools of a namespace. Raises Refused."""
        if isinstance(tool, FlatTool) and tool.type == "namespace" and namespace is None:
            for number, inner in enumerate(tool.tools or ()):
                self.add(inner, f"{where}.tools[{number}]", tool.name or "")
        elif tool.type == "function":
            function = tool.function if isinstance(tool, NestedTool) else tool
            kept = {} if function is None else function.model_dump(include=_FUNCTION, exclude_none=True)
            self._declare(kept, Known(kept.get("name", ""), namespace), where, _inner(tool))
        elif tool.type == "custom":
            custom = tool.custom if isinstance(tool, NestedTool) else CustomTool.model_validate(tool.model_dump())
            kept = {} if custom is None else self._custom(custom, f"{where}{_inner(tool)}.format")
            self._declare(kept, Known(kept.get("name") or "", namespace, True), where, _inner(tool))
        elif getattr(tool, "parameters", None) is not None:
            raise Refused(f"Tools with parameters are of type function, not {shown(tool.type)}.", param=f"{where}.type")
        else:
            self.left_out.append(tool.type)

    def _declare(self, function: dict[str, Any], known: Known, where: str, inner: str) -> None:
        if not known.name:
            raise Refused("A tool of type function or custom needs a name.", param=where)
        name = joined(known.name, known.namespace)
        if not _NAME.fullmatch(name):
            raise Refused(f"{shown(name)} can't be a tool's name; it has 1 to 128 letters, digits and _ . -, including "
                          "its namespace and __.", param=f"{where}{inner}.name")  # fmt: skip
        if name in self.known:
            raise Refused(f"Two tools are called {shown(name)}; each needs its own name.", param=where)
        if len(self.known) == MOST_TOOLS:
            raise Refused(f"There are more than {MOST_TOOLS} tools; declare fewer.", param="tools")
        self.known[name] = known
        self.declared.append({"type": "function", "function": function | {"name": name}})

    def _custom(self, tool: CustomTool, where: str) -> dict[str, Any]:
        """A custom tool as a function of one text. Raises Refused."""
        function: dict[str, Any] = {"name": tool.name, "description": tool.description or ""}
        grammar = _grammar(tool, where)
        if grammar is None:
            return function | {"parameters": _parameters({"type": "string"})}
        syntax, definition = grammar
        rule = f"{CUSTOM_INPUT} follows this grammar ({syntax}):\n{definition}"
        function["description"] = "\n\n".join(filter(None, (tool.description, rule)))
        if syntax == "regex":
            pattern = {"type": "string", "pattern": f"^(?:{definition})$"}
            return function | {"parameters": _parameters(pattern), "strict": True}
        self.unenforced.append(tool.name or "")
        return function | {"parameters": _parameters({"type": "string"})}


_FUNCTION = {"name", "description", "parameters", "strict"}


def _inner(tool: NestedTool | FlatTool) -> str:
    """The path from a tool to its fields, which are one level deeper in chat."""
    return f".{tool.type}" if isinstance(tool, NestedTool) else ""


def _grammar(tool: CustomTool, where: str) -> tuple[str, str] | None:
    """The syntax and the definition of a custom tool's grammar, None for any text. In chat both are a level deeper."""
    form = tool.format or {}
    if form.get("type", "text") == "text" and "grammar" not in form and "definition" not in form:
        return None
    inner = form.get("grammar", form)
    syntax, definition = (inner.get("syntax"), inner.get("definition")) if isinstance(inner, dict) else (None, None)
    if syntax not in ("lark", "regex") or not isinstance(definition, str) or not definition:
        raise Refused(
            "A custom tool's format must be text, or a grammar with a syntax (lark or regex) and a definition.",
            param=where,
        )
    return syntax, definition


def _parameters(text: dict[str, Any]) -> dict[str, Any]:
    """The schema of a function whose one argument is a custom tool's input."""
    return {
        "type": "object",
        "properties": {CUSTOM_INPUT: text},
        "required": [CUSTOM_INPUT],
        "additionalProperties": False,
    }


def joined(name: str, namespace: str | None) -> str:
    """The declared name of a function of a namespace."""
    return f"{namespace.rstrip('_')}__{name}" if namespace else name


def custom_input(arguments: str) -> str:
    """The text in a call to a custom tool; `arguments` itself where that is not an object with the text."""
    try:
        found = parse_object(arguments.encode("utf-8", "replace"), "The call", Refused).get(CUSTOM_INPUT)
    except Refused:
        return arguments
    return found if isinstance(found, str) else arguments


def declared(tools: Sequence[NestedTool | FlatTool] | None) -> Tools:
    """The tools that are declared to the model, in their order. Raises Refused."""
    found = Tools()
    for number, tool in enumerate(tools or ()):
        found.add(tool, f"tools[{number}]")
    return found


def choose(choice: str | dict[str, Any] | None, given: Tools) -> tuple[list[dict[str, Any]], ToolChoice]:
    """The tools that are declared to the model, and the tool choice. Raises Refused.

    Tools that an allowed_tools choice leaves out are not declared, so they can't be called.
    """
    tools = given.declared
    if choice is None:
        return tools, ToolChoice()
    if isinstance(choice, str):
        return tools, _mode(choice, tools, _MODES)
    if choice.get("type") in ("function", "custom"):
        return tools, ToolChoice("named", _known_name(choice, given.known))
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        entries = allowed.get("tools") if isinstance(allowed, dict) else None
        if not isinstance(entries, list) or not 0 < len(entries) <= MOST_TOOLS:
            raise Refused(f"allowed_tools must list 1 to {MOST_TOOLS} of the tools.", param="tool_choice")
        named = [entry for entry in entries if not (isinstance(entry, dict) and entry.get("type") in given.left_out)]
        kept = {_known_name(entry, given.known) for entry in named}
        left = [tool for tool in tools if tool["function"]["name"] in kept]
        return left, _mode(allowed.get("mode"), left, ("auto", "required"))
    raise Refused(
        "tool_choice must be auto, none, required, a function by name, or allowed_tools.", param="tool_choice"
    )


def _mode(mode: Any, tools: list[dict[str, Any]], modes: tuple[str, ...]) -> ToolChoice:
    if mode == "required" and not tools:
        raise Refused("tool_choice required needs tools to choose from.", param="tool_choice")
    for kind in ("auto", "none", "required"):
        if mode == kind and kind in modes:
            return ToolChoice(kind)
    raise Refused(f"tool_choice must be one of {', '.join(modes)}, not {shown(mode)}.", param="tool_choice")


def _known_name(choice: Any, known: Mapping[str, Known]) -> str:
    """The declared name of the tool that a choice names."""
    inner = choice.get("function", choice.get("custom", choice)) if isinstance(choice, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    namespace = choice.get("namespace") if isinstance(choice, dict) else None
    full_name = joined(name, namespace if isinstance(namespace, str) else None) if isinstance(name, str) else None
    if full_name is None or full_name not in known:
        raise Refused(
            f"tool_choice names {shown(name)}, which is not among the tools; it must name one of them.",
            param="tool_choice",
        )
    return full_name
