"""POST /v1/chat/completions: the form of its request, and its translation to a GenerationRequest.

The answer is made in chat_answer.py. Refused by name: fields that contradict each other, and fields that would change
the answer and are not implemented.
"""

from typing import Annotated, Any

from pydantic import Field

from earthshine.generation.request import GenerationRequest
from earthshine.server.api import Api, Served, documented
from earthshine.server.openai.chat_answer import ChatExchange
from earthshine.server.openai.fields import includes_usage, model_of, sampling_params, token_limit
from earthshine.server.openai.formats import format_of
from earthshine.server.openai.messages import Message, plain
from earthshine.server.openai.thinking import Effort, Reasoning, ThinkingFields, thoughts_of
from earthshine.server.openai.tools import MOST_TOOLS, NestedTool, choose, declared
from earthshine.server.refusals import Refused, openai_error


class ChatBody(ThinkingFields):
    """The request's body."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000, fail_fast=True)]
    tools: Annotated[list[NestedTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    reasoning: Reasoning | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, documented("logprobs")] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    modalities: list[str] | None = None
    return_progress: bool | None = None  # llama.cpp's: a stream also has how far the prompt is


def _continues(body: ChatBody) -> bool:
    """Whether the answer is to continue the last message. Raises Refused."""
    last = body.messages[-1]
    asked = bool(body.continue_final_message or last.partial)
    if asked and body.add_generation_prompt:
        raise Refused("An answer either continues the last message or is a new one; give continue_final_message or "
                      "add_generation_prompt, not both.", param="add_generation_prompt")  # fmt: skip
    if not asked and body.add_generation_prompt is False:
        raise Refused("Without add_generation_prompt an answer needs continue_final_message.",
                      param="add_generation_prompt")  # fmt: skip
    if asked and (last.role != "assistant" or last.tool_calls):
        raise Refused("Only a last message of the assistant without tool calls can be continued.", param="messages")
    return asked


def _logprobs(body: ChatBody) -> int | None:
    if body.top_logprobs and not body.logprobs:
        raise Refused("top_logprobs needs logprobs to be true.", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _check(body: ChatBody) -> None:
    if body.prompt_logprobs is not None:
        raise Refused("prompt_logprobs is for /v1/completions; leave it out.", param="prompt_logprobs")
    if body.modalities not in (None, [], ["text"]):
        raise Refused('This model answers with text only; modalities must be ["text"].', param="modalities")
    if body.stream_options is not None and not body.stream:
        raise Refused("stream_options needs stream to be true.", param="stream_options")


def begin(body: ChatBody, served: Served) -> ChatExchange:
    """The exchange that answers the request. Raises Refused."""
    _check(body)
    given = declared(body.tools)
    tools, tool_choice = choose(body.tool_choice, given)
    thoughts = thoughts_of(body, body.reasoning, served, body.reasoning_effort)
    request = GenerationRequest(
        prompt=plain(body.messages),
        params=sampling_params(
            body, served, {"logprobs": "top_logprobs"}, max_tokens=token_limit(body), logprobs=_logprobs(body)
        ),
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        thinking=thoughts.thinking,
        preserve_thinking=thoughts.preserved,
        thinking_tokens=thoughts.most_tokens,
        continue_final_message=_continues(body),
        format=format_of(body),
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
        left_out=given.left_out,
        unenforced=given.unenforced,
    )
    return ChatExchange(
        request,
        model_of(body, served),
        frozenset(name for name, tool in given.known.items() if tool.custom),
        stream=bool(body.stream),
        with_usage=includes_usage(body),
        with_thoughts=thoughts.shown,
        with_progress=bool(body.return_progress),
    )


CHAT = Api("/v1/chat/completions", "Answers a conversation.", ChatBody, begin, openai_error)
