"""POST /v1/responses: the form of its request, and its translation to a GenerationRequest.

The answer is made in responses_events.py. Nothing is stored, so each request holds the whole conversation. Refused:
fields that refer to stored responses, background responses, and truncation. Tools that OpenAI's servers run are left
out.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from earthshine.generation.request import GenerationRequest, ToolChoice
from earthshine.server.api import Api, Served, documented
from earthshine.server.openai.fields import limit_name, model_of, sampling_params, token_limit
from earthshine.server.openai.formats import TextFormat, format_of
from earthshine.server.openai.responses_events import ResponsesExchange
from earthshine.server.openai.responses_items import AnyItem, messages_of
from earthshine.server.openai.thinking import Reasoning, ThinkingFields, thoughts_of
from earthshine.server.openai.tools import MOST_TOOLS, FlatTool, Known, choose, declared
from earthshine.server.refusals import Refused, openai_error

_STATELESS = "Nothing is stored here: give the whole conversation in input, and leave {} out."
_STORED = ("previous_response_id", "conversation", "prompt")
_WITH_LOGPROBS = "message.output_text.logprobs"


class TextConfig(BaseModel):
    """The format of the answer's text."""

    model_config = ConfigDict(extra="ignore", strict=True)

    format: TextFormat | None = None


class ResponsesBody(ThinkingFields):
    """The request's body."""

    input: str | Annotated[list[AnyItem], Field(max_length=10_000)]
    instructions: str | None = None
    tools: Annotated[list[FlatTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: Annotated[int, documented("max_tokens")] | None = None
    top_logprobs: Annotated[int, documented("logprobs")] | None = None
    include: Annotated[list[str], Field(max_length=64)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    return_progress: bool | None = None  # llama.cpp's: a stream also has how far the prompt is
    store: bool | None = None
    background: bool | None = None
    truncation: str | None = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None


def _check(body: ResponsesBody) -> None:
    for name in _STORED:
        if getattr(body, name) is not None:
            raise Refused(_STATELESS.format(name), param=name)
    if body.input == []:
        raise Refused("There is nothing to answer; input must be a text or at least one item.", param="input")
    if body.store:
        raise Refused("Nothing is stored here; store must be false or left out.", param="store")
    if body.background:
        raise Refused("Answers are not kept to be fetched later; background must be false.", param="background")
    if body.truncation not in (None, "disabled"):
        raise Refused("A conversation that is too long is refused, never cut; truncation must be disabled.",
                      param="truncation")  # fmt: skip
    if body.prompt_logprobs is not None:
        raise Refused("prompt_logprobs is for /v1/completions; leave it out.", param="prompt_logprobs")
    if body.n not in (None, 1):
        raise Refused("A response is one answer; n must be 1.", param="n")


def _logprobs(body: ResponsesBody) -> int | None:
    asked = body.top_logprobs is not None or _WITH_LOGPROBS in (body.include or ())
    return (body.top_logprobs or 0) if asked else None


def _limit(body: ResponsesBody) -> int | None:
    older = token_limit(body)
    if None not in (older, body.max_output_tokens) and older != body.max_output_tokens:
        name = limit_name(body)  # which becomes the client's name for it
        raise Refused(f"{name} and max_output_tokens give different values; give one of them.", param=name)
    return older if body.max_output_tokens is None else body.max_output_tokens


def begin(body: ResponsesBody, served: Served) -> ResponsesExchange:
    """The exchange that answers the request. Raises Refused."""
    _check(body)
    given = declared(body.tools)
    tools, tool_choice = choose(body.tool_choice, given)
    thoughts = thoughts_of(body, body.reasoning, served)
    text = body.text.format if body.text else None
    limit = limit_name(body) if body.max_output_tokens is None else "max_output_tokens"
    names = {"max_tokens": limit, "logprobs": "top_logprobs"}
    request = GenerationRequest(
        prompt=messages_of(body.input, body.instructions),
        params=sampling_params(body, served, names, max_tokens=_limit(body), logprobs=_logprobs(body)),
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        thinking=thoughts.thinking,
        preserve_thinking=thoughts.preserved,
        thinking_tokens=thoughts.most_tokens,
        format=format_of(body, text),
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
        left_out=given.left_out,
        unenforced=given.unenforced,
    )
    echo = _echo(body, request, given.known) | {"model": model_of(body, served)}
    return ResponsesExchange(
        request,
        echo,
        given.known,
        stream=bool(body.stream),
        with_thoughts=thoughts.shown,
        with_progress=bool(body.return_progress),
    )


def _choice(choice: ToolChoice, known: Mapping[str, Known]) -> Any:
    if choice.kind != "named":
        return choice.kind
    tool = known[choice.name]
    return {"type": "custom" if tool.custom else "function", "name": tool.name}


def _tools(request: GenerationRequest, known: Mapping[str, Known]) -> list[dict[str, Any]]:
    """The tools as the client gave them, in one list; tools of a namespace have its name."""
    found = []
    for tool in request.tools:
        function = tool["function"]
        its = known[function["name"]]
        if its.custom:
            shape = {"type": "custom", "name": its.name, "description": function["description"]}
        else:
            shape = {"type": "function", "parameters": None, "strict": None, **function, "name": its.name}
        found.append(shape | ({"namespace": its.namespace} if its.namespace else {}))
    return found


def _format(format: TextFormat | None) -> dict[str, Any]:
    if format is None or format.type != "json_schema":
        return {"type": format.type if format else "text"}
    return {"name": "answer"} | format.model_dump(by_alias=True, exclude_none=True)


def _echo(body: ResponsesBody, request: GenerationRequest, known: Mapping[str, Known]) -> dict[str, Any]:
    """The fields of its request that a Response repeats, with defaults for those that were left out."""
    return {
        "instructions": body.instructions,
        "tools": _tools(request, known),
        "tool_choice": _choice(request.tool_choice, known),
        "parallel_tool_calls": request.parallel_tool_calls,
        "text": {"format": _format(body.text.format if body.text else None)},
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "max_output_tokens": request.params.max_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "metadata": body.metadata or {},
        "user": body.user,
        "truncation": "disabled",
        "previous_response_id": None,
        "store": False,
        "background": False,
    }


RESPONSES = Api(
    "/v1/responses", "Answers a conversation with items and semantic events.", ResponsesBody, begin, openai_error
)
