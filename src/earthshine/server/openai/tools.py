"""Tools and tool_choice of OpenAI's APIs, in chat's nested and the responses' flat form, as a Turn takes them.

Invariant: a turn's tools have different names, and a named choice is one of them. Refused: most tools that OpenAI
itself would run, names that no function of a call can have, and choices of tools that are not there.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from earthshine.server.api import Refused
from earthshine.server.turn import ToolChoice
from earthshine.untrusted import shown

MOST_TOOLS = 512
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,128}$")]  # what a call's id, functions.NAME:N, can carry
# What clients declare unasked (Codex does): searches that OpenAI runs, and groups of tools of its own. A model that is
# not told of them answers without them.
_LEFT_OUT = ("web_search", "namespace")
_MODES = ("auto", "none", "required")


class Function(BaseModel):
    """A function that the model may call. `parameters` is a JSON schema."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NestedTool(BaseModel):
    """A tool of a chat."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: str
    function: Function | None = None


class FlatTool(BaseModel):
    """A tool of a response."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: str
    name: ToolName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


def declared(tools: Sequence[NestedTool | FlatTool] | None) -> list[dict[str, Any]]:
    """Function tools in OpenAI's nested form, without those that clients declare unasked. Raises Refused for others."""
    found: dict[str, dict[str, Any]] = {}
    for number, tool in enumerate(tools or ()):
        where = f"tools[{number}]"
        if tool.type.startswith(_LEFT_OUT):
            continue
        if tool.type != "function":
            raise Refused(f"Tools must be functions; this server runs no {shown(tool.type)}.", param=f"{where}.type")
        function = tool.function if isinstance(tool, NestedTool) else tool
        if function is None or function.name is None:
            raise Refused("A tool of type function needs a function with a name.", param=where)
        if function.name in found:
            raise Refused(f"Two tools are called {shown(function.name)}; each needs its own name.", param=where)
        kept = function.model_dump(include={"name", "description", "parameters", "strict"}, exclude_none=True)
        found[function.name] = {"type": "function", "function": kept}
    return list(found.values())


def choose(choice: str | dict[str, Any] | None, tools: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], ToolChoice]:
    """The tools that the model is told of, and whether it must call one. Raises Refused.

    Tools that an allowed_tools choice leaves out are not declared at all, so that they can't be called.
    """
    if choice is None:
        return tools, ToolChoice()
    if isinstance(choice, str):
        return tools, _mode(choice, tools, _MODES)
    names = {tool["function"]["name"] for tool in tools}
    if choice.get("type") == "function":
        return tools, ToolChoice("named", _known_name(choice, names))
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        entries = allowed.get("tools") if isinstance(allowed, dict) else None
        if not isinstance(entries, list) or not 0 < len(entries) <= MOST_TOOLS:
            raise Refused(f"allowed_tools must list 1 to {MOST_TOOLS} of the tools.", param="tool_choice")
        kept = {_known_name(entry, names) for entry in entries}
        left = [tool for tool in tools if tool["function"]["name"] in kept]
        return left, _mode(allowed.get("mode"), left, ("auto", "required"))
    raise Refused(
        "tool_choice must be auto, none, required, a function by name, or allowed_tools.", param="tool_choice"
    )


def _mode(mode: Any, tools: list[dict[str, Any]], modes: tuple[str, ...]) -> ToolChoice:
    if mode == "required" and not tools:
        raise Refused("tool_choice is required, but there are no tools to call.", param="tool_choice")
    for kind in ("auto", "none", "required"):
        if mode == kind and kind in modes:
            return ToolChoice(kind)
    raise Refused(f"tool_choice must be among {', '.join(modes)}, not {shown(mode)}.", param="tool_choice")


def _known_name(choice: Any, names: set[str]) -> str:
    function = choice.get("function", choice) if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or name not in names:
        raise Refused(
            f"tool_choice names {shown(name)}, which is not among the tools; it must name one of them.",
            param="tool_choice",
        )
    return name
