"""Run by litellm's own Python: one line of JSON per check. Arguments: the server's URL, the model, its context."""

import json
import sys
from collections.abc import Callable

import litellm

URL, MODEL, CONTEXT = sys.argv[1], sys.argv[2], int(sys.argv[3])
OPENAI = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": "none", "timeout": 120, "num_retries": 0}
ANTHROPIC = {"model": f"anthropic/{MODEL}", "api_base": URL, "api_key": "none", "timeout": 120, "num_retries": 0}
ASKED = [{"role": "user", "content": "List the files, newest first."}]
ROOM = 600  # tokens: enough for any model under a schema
TOOL = {
    "type": "function",
    "function": {
        "name": "run",
        "description": "Run a command.",
        "parameters": {
            "type": "object",
            "properties": {"command": {"enum": ["ls -lt", "ls -t"]}},
            "required": ["command"],
            "additionalProperties": False,  # or a small model adds properties for ever
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer"}, "kind": {"enum": ["file", "folder"]}},
    "required": ["count", "kind"],
    "additionalProperties": False,
}


def _chat() -> str:
    answer = litellm.completion(**OPENAI, messages=ASKED, max_tokens=16, temperature=0)
    usage = answer.usage
    assert usage.prompt_tokens > 0, usage
    assert 0 < usage.completion_tokens <= 16, usage
    assert answer.choices[0].finish_reason in ("stop", "length"), answer.choices[0].finish_reason
    return f"{usage.prompt_tokens} + {usage.completion_tokens} tokens"


def _chat_stream() -> str:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    pieces = list(litellm.completion(**OPENAI, messages=ASKED, max_tokens=16, temperature=0, **options))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    whole = litellm.completion(**OPENAI, messages=ASKED, max_tokens=16, temperature=0)
    assert text == (whole.choices[0].message.content or ""), (text, whole.choices[0].message.content)
    assert any(getattr(piece, "usage", None) for piece in pieces), "no usage"
    return f"{len(pieces)} pieces, the same text as without a stream"


def _text() -> str:
    answer = litellm.text_completion(
        **OPENAI | {"model": f"text-completion-openai/{MODEL}"}, prompt="List", max_tokens=8, logprobs=1, temperature=0
    )
    assert answer.choices[0].logprobs is not None
    return f"{answer.usage.completion_tokens} tokens with log-probabilities"


def _tools() -> str:
    answer = litellm.completion(**OPENAI, messages=ASKED, tools=[TOOL], tool_choice="required", max_tokens=ROOM)
    return _called(answer.choices[0].message.tool_calls or [])


def _tools_stream() -> str:
    pieces = list(
        litellm.completion(**OPENAI, messages=ASKED, tools=[TOOL], tool_choice="required", max_tokens=ROOM, stream=True)
    )
    return _called(litellm.stream_chunk_builder(pieces, messages=ASKED).choices[0].message.tool_calls or [])


def _called(calls: list) -> str:
    assert calls, "no call"
    assert calls[0].function.name == "run", calls[0].function.name
    arguments = json.loads(calls[0].function.arguments)
    assert arguments["command"] in ("ls -lt", "ls -t"), arguments
    return f"{len(calls)} calls, {calls[0].id}"


def _schema() -> str:
    form = {"type": "json_schema", "json_schema": {"name": "found", "schema": SCHEMA, "strict": True}}
    answer = litellm.completion(**OPENAI, messages=ASKED, response_format=form, max_tokens=ROOM)
    found = json.loads(answer.choices[0].message.content)
    assert set(found) == {"count", "kind"}, found
    assert isinstance(found["count"], int), found
    assert found["kind"] in ("file", "folder"), found
    return json.dumps(found)


def _responses() -> str:
    answer = litellm.responses(**OPENAI, input="List the files.", max_output_tokens=16)
    assert answer.status in ("completed", "incomplete"), answer.status
    return f"{answer.status}, {answer.usage.output_tokens} tokens"


def _responses_stream() -> str:
    kinds = [
        event.type for event in litellm.responses(**OPENAI, input="List the files.", max_output_tokens=16, stream=True)
    ]
    assert kinds[-1] in ("response.completed", "response.incomplete"), kinds[-3:]
    return f"{len(kinds)} events"


def _messages() -> str:
    answer = litellm.completion(**ANTHROPIC, messages=ASKED, max_tokens=16)
    assert answer.usage.completion_tokens > 0
    return f"{answer.usage.prompt_tokens} + {answer.usage.completion_tokens} tokens"


def _messages_stream() -> str:
    pieces = list(litellm.completion(**ANTHROPIC, messages=ASKED, max_tokens=16, stream=True))
    assert pieces[-1].choices[0].finish_reason in ("stop", "length"), pieces[-1].choices[0].finish_reason
    return f"{len(pieces)} pieces"


def _messages_tools() -> str:
    answer = litellm.completion(**ANTHROPIC, messages=ASKED, tools=[TOOL], tool_choice="required", max_tokens=ROOM)
    return _called(answer.choices[0].message.tool_calls or [])


def _too_long() -> str:
    try:
        litellm.completion(**OPENAI, messages=[{"role": "user", "content": "word " * (2 * CONTEXT)}], max_tokens=1)
    except litellm.ContextWindowExceededError as error:
        return str(error)[:100]
    raise AssertionError("it was answered")


def _no_model() -> str:
    try:
        litellm.completion(**OPENAI | {"model": "openai/absent"}, messages=ASKED, max_tokens=1)
    except litellm.NotFoundError as error:
        return str(error)[:100]
    raise AssertionError("it was answered")


CHECKS: dict[str, Callable[[], str]] = {
    "chat": _chat,
    "chat, streamed": _chat_stream,
    "text completion": _text,
    "a tool that must be called": _tools,
    "the same, streamed": _tools_stream,
    "an answer of a JSON schema": _schema,
    "responses": _responses,
    "responses, streamed": _responses_stream,
    "Anthropic's messages": _messages,
    "Anthropic's messages, streamed": _messages_stream,
    "Anthropic's messages, a tool": _messages_tools,
    "a prompt that is too long": _too_long,
    "a model that is not there": _no_model,
}

if __name__ == "__main__":
    litellm.suppress_debug_info = True
    for what, check in CHECKS.items():
        try:
            passed, detail = True, check()
        except Exception as error:
            passed, detail = False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(json.dumps({"what": what, "passed": passed, "detail": detail}), flush=True)
