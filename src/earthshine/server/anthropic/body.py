"""The fields of /v1/messages and /v1/messages/count_tokens that this server reads.

Types are strict and lists are bounded; values of sampling fields are checked by SamplingParams. Other fields are
ignored, except those of other APIs that would change an answer: the conversion refuses them (server/dialects.py). A
content block of an unknown type becomes `Other`, and the conversion puts a placeholder in its place.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from earthshine.server.api import documented

MOST_MESSAGES = 100_000  # Anthropic's own limit


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Text(_Part):
    type: Literal["text"]
    text: str


class Thinking(_Part):
    type: Literal["thinking"]
    thinking: str


class RedactedThinking(_Part):
    type: Literal["redacted_thinking"]


class Source(_Part):
    """Where a document's content is: `data` of type "text", or `content` of type "content"."""

    type: str = ""
    data: str | None = None
    content: Any = None


class Document(_Part):
    type: Literal["document"]
    source: Source
    title: str | None = None
    context: str | None = None


class SearchResult(_Part):
    type: Literal["search_result"]
    title: str = ""
    source: str = ""
    content: Annotated[list[Text], Field(max_length=10_000)] = []


class ToolReference(_Part):
    """A deferred tool that a search found."""

    type: Literal["tool_reference"]
    tool_name: str


class ToolUse(_Part):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


_READABLE = ("text", "document", "search_result", "tool_reference")
_NAMED = (*_READABLE, "thinking", "redacted_thinking", "tool_use", "tool_result")


class Other(_Part):
    type: Annotated[str, Field(json_schema_extra={"not": {"enum": list(_NAMED)}})]


def _form(value: Any) -> str:
    return "text" if isinstance(value, str) else "blocks"


def _type(value: Any) -> str:
    named = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return named if named in _NAMED else "other"


_ResultBlock = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Document, Tag("document")]
    | Annotated[SearchResult, Tag("search_result")]
    | Annotated[ToolReference, Tag("tool_reference")]
    | Annotated[Other, Tag("other")],
    Discriminator(lambda value: found if (found := _type(value)) in _READABLE else "other"),
]


class ToolResult(_Part):
    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        Annotated[Annotated[str, Tag("text")] | Annotated[list[_ResultBlock], Tag("blocks")], Discriminator(_form)]
        | None
    ) = None
    is_error: bool | None = None


Block = Text | Document | SearchResult | ToolReference | Thinking | RedactedThinking | ToolUse | ToolResult | Other
_Block = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Document, Tag("document")]
    | Annotated[SearchResult, Tag("search_result")]
    | Annotated[ToolReference, Tag("tool_reference")]
    | Annotated[Thinking, Tag("thinking")]
    | Annotated[RedactedThinking, Tag("redacted_thinking")]
    | Annotated[ToolUse, Tag("tool_use")]
    | Annotated[ToolResult, Tag("tool_result")]
    | Annotated[Other, Tag("other")],
    Discriminator(_type),
]
_Content = Annotated[Annotated[str, Tag("text")] | Annotated[list[_Block], Tag("blocks")], Discriminator(_form)]


class Message(_Part):
    role: Literal["user", "assistant", "system"]
    content: _Content


class Tool(_Part):
    """A `type` other than "custom" names one of Anthropic's own tools, which have no schema and are left out. A tool
    with `defer_loading` is declared once a search has found it. `function` and `parameters` are OpenAI's and are read
    only to refuse them."""

    type: str | None = None
    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[a-zA-Z0-9_-]+$")] | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    defer_loading: bool | None = None
    strict: bool | None = None
    function: Any = None
    parameters: Any = None


class ToolChoice(_Part):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class ThinkingConfig(_Part):
    """`budget_tokens` is not read: Anthropic's servers treat it as a target and not as a limit."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]


class OutputFormat(_Part):
    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(_Part):
    format: OutputFormat | None = None


class CountBody(_Part):
    """A conversation whose tokens are counted."""

    model: Annotated[str, Field(max_length=1024)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    system: _Content | None = None
    tools: Annotated[list[Tool], Field(max_length=1024)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # where a beta of the API had it


class MessagesBody(CountBody):
    """A conversation to continue. `cache_salt` is an extension: only requests with the same salt share pages."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)  # the others: for require_absent

    max_tokens: Annotated[int, documented("max_tokens")]
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, documented("temperature")] | None = None
    top_p: Annotated[float, documented("top_p")] | None = None
    top_k: Annotated[int, documented("top_k")] | None = None
    stream: bool | None = None
    cache_salt: Annotated[str | None, Field(min_length=1, max_length=1024)] = None
