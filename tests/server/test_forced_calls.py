"""Calls that are forced on the shipped model, which was not trained to make any: each is completed."""

import json

import httpx
import pytest

TEXT = {"type": "string"}


def _closed(**properties):
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


STEP = _closed(called=TEXT, done=TEXT)
NODE = _closed(
    kind={"enum": ["leaf", "branch"]},
    marks={"type": "array", "items": _closed(key=TEXT, text=TEXT)},
    below={"type": "array", "items": {"$ref": "#/$defs/node"}},
)
LINK = _closed(before={"anyOf": [{"$ref": "#/$defs/link"}, {"type": "null"}]}, weight={"type": "number"})
EITHER = {"anyOf": [_closed(maker=TEXT, price={"type": "number"}), _closed(model=TEXT, weight={"type": "number"})]}
RECORD = {
    "type": "object",
    "properties": {"size": {"type": "integer"}},
    "additionalProperties": {"type": "object", "properties": {"size": TEXT}, "additionalProperties": True},
}
LISTS = {"type": "array", "items": {"type": "array", "items": {"anyOf": [{"type": "object"}, TEXT]}}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        {"type": "array", "items": STEP},
        {"$ref": "#/$defs/node"},
        {"$ref": "#/$defs/link"},
        {"type": "array", "items": EITHER},
        RECORD,
        LISTS,
    ],
    ids=["steps", "tree", "chain", "either", "record", "lists"],
)
def test_a_call_without_bounds_ends(live_server, value, stream):
    parameters = _closed(value=value) | {"$defs": {"node": NODE, "link": LINK}}
    tool = {"type": "function", "function": {"name": "put", "parameters": parameters, "strict": True}}
    asked = {"role": "user", "content": "Call the put tool once with the smallest value that its schema allows."}
    body = {"messages": [asked], "tools": [tool], "tool_choice": "required", "max_tokens": 700, "stream": stream}
    answer = httpx.post(f"{live_server.url}/v1/chat/completions", json=body, timeout=300)
    if stream:
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
        choices = [choice for line in lines for choice in json.loads(line)["choices"]]
        calls = [call for choice in choices for call in choice["delta"].get("tool_calls") or []]
        reason = choices[-1]["finish_reason"]
    else:
        (choice,) = answer.json()["choices"]
        calls, reason = choice["message"]["tool_calls"], choice["finish_reason"]
    assert reason == "tool_calls"
    assert set(json.loads("".join(call["function"]["arguments"] for call in calls))) == {"value"}
