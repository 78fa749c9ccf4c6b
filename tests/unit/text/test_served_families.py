"""Families other than gleam's behind `earthshine serve`, from the files of a release to clients' JSON and events."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from earthshine.text import load_tokenizer

from . import families
from .grammars import WEATHER, is_weather

PATIENCE = 300.0  # seconds, so that only a hang lasts as long
SERVE = [sys.executable, "-c", "from earthshine.cli import main; main()", "serve"]
# What these models write is random, so thoughts need a bound or go on to the end.
FORCED = {"tool_choice": "required", "parallel_tool_calls": False, "thinking_token_budget": 4, "max_tokens": 400}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}}]
Body = dict[str, Any]


@dataclass
class Served:
    family: str
    folder: Path
    url: str

    def post(self, path: str, body: Body) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/{path}", json=body, timeout=PATIENCE)

    def chat(self, messages: list[Body], **fields: Any) -> Body:
        """One choice, with its usage and its message."""
        answer = self.post("chat/completions", {"messages": messages, "temperature": 0, **fields})
        assert answer.status_code == 200, answer.text
        found: Body = answer.json()
        return found["choices"][0] | {"usage": found["usage"]}

    def streamed(self, messages: list[Body], **fields: Any) -> Body:
        """The same, put together from its events."""
        body = {"messages": messages, "temperature": 0, "stream": True, **fields}
        answer = self.post("chat/completions", body)
        assert answer.status_code == 200, answer.text
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
        choices = [choice for line in lines for choice in json.loads(line)["choices"]]
        message: Body = {"content": "", "reasoning_content": ""}
        calls: dict[int, Body] = {}
        for choice in choices:
            for name in message:
                message[name] += choice["delta"].get(name) or ""
            for call in choice["delta"].get("tool_calls") or []:
                known = calls.setdefault(call["index"], call | {"function": {"arguments": "", **call["function"]}})
                if known is not call and "name" not in call["function"]:
                    known["function"]["arguments"] += call["function"]["arguments"]
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
        return {"message": message, "finish_reason": choices[-1]["finish_reason"]}


@pytest.fixture(scope="module", params=["qwen3", "qwen3-coder", "kimi-linear"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = families.write(tmp_path_factory.mktemp(request.param), request.param)
    words = [*SERVE, str(folder), "--port", "0", "--threads", "1", "--batch", "4"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        found = None
        while found is None:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            found = re.search(r"OPENAI_BASE_URL=(\S+)/v1", line)
        yield Served(request.param, folder, found[1])
    finally:
        process.kill()
        process.communicate()


def _calls(choice: Body) -> list[tuple[str, str, Any]]:
    return [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in choice["message"]["tool_calls"]
    ]


def test_a_call_is_the_same_streamed_and_not(served: Served) -> None:
    messages = [{"role": "user", "content": "Rome?"}]
    whole, streamed = (ask(messages, tools=TOOLS, **FORCED) for ask in (served.chat, served.streamed))
    assert whole["finish_reason"] == streamed["finish_reason"] == "tool_calls"
    assert _calls(whole) == _calls(streamed)
    ((call_id, name, arguments),) = _calls(whole)
    assert (call_id, name) == ("functions.weather:0", "weather")
    assert is_weather(arguments)
    assert not whole["message"]["content"]


def test_conversation_continues_after_a_tool_result(served: Served) -> None:
    messages: list[Body] = [{"role": "user", "content": "Rome? " * 30}]
    first = served.chat(messages, tools=TOOLS, **FORCED)["message"]
    messages += [first, {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "sun"}]
    again = served.chat(messages, tools=TOOLS, **FORCED)
    ((call_id, _, arguments),) = _calls(again)
    assert call_id == "functions.weather:1"
    assert is_weather(arguments)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    plain = served.chat(messages, max_tokens=5, ignore_eos=True)
    assert plain["finish_reason"] == "length"
    assert plain["usage"]["completion_tokens"] == 5


def test_both_apis_give_a_conversation_the_same_prompt(served: Served) -> None:
    function = {"name": "weather", "arguments": '{"city": "Rome", "days": 3}'}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "a", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "a", "content": "sun"},
    ]
    ours = served.chat(messages, tools=TOOLS, max_tokens=2, ignore_eos=True)
    call = {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Rome", "days": 3}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "sun"}
    theirs = served.post("messages", {
        "model": served.family, "max_tokens": 2, "temperature": 0, "system": "Be brief.",
        "tools": [{"name": "weather", "input_schema": WEATHER, "strict": True}],
        "messages": [{"role": "user", "content": "Rome?"}, {"role": "assistant", "content": [call]},
                     {"role": "user", "content": [result]}],
    })  # fmt: skip
    assert theirs.status_code == 200, theirs.text
    usage = theirs.json()["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == ours["usage"]["prompt_tokens"]


def test_thinking_on_and_off(served: Served) -> None:
    """A forced thought comes out as one; where the template has no word for thinking, both prompts are alike."""
    messages = [{"role": "user", "content": "Rome?"}]
    on, off = (
        served.chat(messages, chat_template_kwargs={"enable_thinking": wanted}, max_tokens=4, ignore_eos=True)
        for wanted in (True, False)
    )
    differ = on["usage"]["prompt_tokens"] != off["usage"]["prompt_tokens"]
    assert differ == (served.family == "qwen3")
    if served.family != "qwen3":
        return
    tokenizer = load_tokenizer(served.folder)
    bias = {str(tokenizer.special_id("<think>")): 100}
    fields = FORCED | {"tools": TOOLS, "logit_bias": bias}
    whole, streamed = served.chat(messages, **fields), served.streamed(messages, **fields)
    assert whole["message"]["reasoning_content"] == streamed["message"]["reasoning_content"] != ""
    assert _calls(whole) == _calls(streamed)
    assert 0 < whole["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 8
    silent = served.chat(messages, **fields, chat_template_kwargs={"enable_thinking": False})
    assert not silent["message"].get("reasoning_content")
