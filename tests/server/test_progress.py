"""How far a prompt is, as clients of every API get it: from the shipped model over a socket, and from given pieces."""

import json

import httpx
import openai
import pytest

from earthshine.engine import PromptProgress, progress
from earthshine.generation.request import Reading, Started
from earthshine.server.api import Served
from earthshine.server.http.body import parse_body
from earthshine.server.openai.chat import CHAT
from earthshine.server.openai.completions import COMPLETIONS
from earthshine.server.openai.responses import RESPONSES

from .serving import HANG_SECONDS

SERVED = Served(("gleam",), 0, 4096, True, True, lambda ids: "")
STEPS = (
    PromptProgress(900, 100, 100, 0.0, None),
    PromptProgress(900, 100, 500, 2.25, 2.2496),
    PromptProgress(900, 100, 900, 4.5, 0.0),
)
OBJECTS = [
    {"total": 900, "cache": 100, "processed": 100, "time_ms": 0},
    {"total": 900, "cache": 100, "processed": 500, "time_ms": 2250, "left_ms": 2250},
    {"total": 900, "cache": 100, "processed": 900, "time_ms": 4500, "left_ms": 0},
]


def chunks_of(api, body, pieces):
    exchange = api.begin(parse_body(json.dumps(body).encode(), api.body)[0], SERVED)
    return [event.data for piece in pieces for event in exchange.push(piece)]


@pytest.fixture
def every_layer(monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0)


class TestForm:
    """llama.cpp's: a chunk with an empty delta, and `prompt_progress` beside its choices."""

    PIECES = (Started(900, 100), *(Reading(0, step) for step in STEPS))

    def test_chat(self):
        asked = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        _, *chunks = chunks_of(CHAT, asked | {"return_progress": True}, self.PIECES)
        assert [chunk["prompt_progress"] for chunk in chunks] == OBJECTS
        empty = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}
        assert [chunk["choices"] for chunk in chunks] == [[empty]] * 3
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        for unwanted in ({}, {"return_progress": False}, {"return_progress": None}):
            assert len(chunks_of(CHAT, asked | unwanted, self.PIECES)) == 1, "the role alone"

    def test_completions_of_several_prompts(self):
        asked = {"prompt": ["a", "b"], "n": 2, "stream": True}
        pieces = (*self.PIECES, Started(3, 0), Reading(2, PromptProgress(3, 0, 3, 0.5, 0.0)))
        chunks = chunks_of(COMPLETIONS, asked | {"return_progress": True}, pieces)
        assert [chunk["choices"][0]["index"] for chunk in chunks] == [0, 0, 0, 2]
        assert {chunk["choices"][0]["text"] for chunk in chunks} == {""}
        assert [chunk["prompt_progress"]["total"] for chunk in chunks] == [900, 900, 900, 3]
        assert chunks_of(COMPLETIONS, asked, pieces) == []

    def test_responses(self):
        asked = {"input": "hi", "stream": True}
        begun = chunks_of(RESPONSES, asked, self.PIECES)
        assert [event["type"] for event in begun] == ["response.created", "response.in_progress"]
        events = chunks_of(RESPONSES, asked | {"return_progress": True}, self.PIECES)
        assert [event["sequence_number"] for event in events] == list(range(5))
        assert "prompt_progress" not in json.dumps(events[:2])
        for event, found in zip(events[2:], OBJECTS, strict=True):
            assert (event["type"], event["response"]["status"]) == ("response.in_progress", "in_progress")
            assert event["prompt_progress"] == found


def asked_of(server, path, **body):
    """Every `data:` of a stream's events, but the last [DONE]."""
    found = httpx.post(f"{server.url}{path}", json=body | {"stream": True}, timeout=HANG_SECONDS)
    assert found.status_code == 200, found.text
    lines = [line[6:] for line in found.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_the_numbers_are_the_engines(live_server, every_layer):
    text = "Where the light of the moon comes from, page 1. " * 40
    body = {"prompt": text, "max_tokens": 2, "temperature": 0, "stream_options": {"include_usage": True}}
    for cached in (False, True):
        events = asked_of(live_server, "/v1/completions", **body, return_progress=True)
        found = [event["prompt_progress"] for event in events if "prompt_progress" in event]
        used = events[-1]["usage"]
        assert {step["total"] for step in found} == {used["prompt_tokens"]}
        assert {step["cache"] for step in found} == {used["prompt_tokens_details"]["cached_tokens"]}
        assert bool(found[0]["cache"]) == cached
        assert found[0]["processed"] == found[0]["cache"], "the first is before anything is computed"
        assert found[-1]["processed"] == used["prompt_tokens"]
        processed = [step["processed"] for step in found]
        assert processed == sorted(set(processed))
        assert len(processed) > 2 or cached, "gleam has several layers"
        texts = "".join(event["choices"][0]["text"] for event in events[:-1])
        assert texts == "".join(
            event["choices"][0]["text"] for event in asked_of(live_server, "/v1/completions", **body)[:-1]
        )


def test_openais_sdk_reads_a_chat_with_progress(live_server, every_layer):
    with openai.OpenAI(base_url=f"{live_server.url}/v1", api_key="none", timeout=HANG_SECONDS) as client:
        asked = {"model": "gleam", "temperature": 0, "max_tokens": 8}
        asked["messages"] = [{"role": "user", "content": "How do I list files? " * 30}]
        chunks = list(client.chat.completions.create(**asked, stream=True, extra_body={"return_progress": True}))
        found = [chunk.model_extra["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk.model_extra]
        assert found[-1]["processed"] == found[-1]["total"] > 100
        deltas = [entry.delta for chunk in chunks for entry in chunk.choices]
        whole = client.chat.completions.create(**asked, extra_body={"return_progress": True})
        assert "".join(delta.content or "" for delta in deltas) == (whole.choices[0].message.content or "")


def test_choices_share_one_prompt_and_its_progress(live_server):
    ask = {"messages": [{"role": "user", "content": "Three at once, please."}], "max_tokens": 1, "n": 3}
    events = asked_of(live_server, "/v1/chat/completions", **ask, return_progress=True)
    chunks = [event for event in events if "prompt_progress" in event]
    assert {event["choices"][0]["index"] for event in chunks} == {0}
    assert chunks[-1]["prompt_progress"]["processed"] == chunks[-1]["prompt_progress"]["total"]


def test_progress_of_each_prompt_comes_under_the_number_of_its_first_choice(live_server):
    ask = {"prompt": ["One of two prompts.", "The other one, which is longer."], "max_tokens": 1, "n": 2}
    events = asked_of(live_server, "/v1/completions", **ask, return_progress=True)
    totals = {
        event["choices"][0]["index"]: event["prompt_progress"]["total"]
        for event in events
        if "prompt_progress" in event
    }
    assert set(totals) == {0, 2}
    assert totals[0] < totals[2]


def test_messages_have_no_progress(live_server, every_layer):
    body = {"max_tokens": 2, "messages": [{"role": "user", "content": "hi"}], "model": "gleam"}
    assert "prompt_progress" not in json.dumps(asked_of(live_server, "/v1/messages", **body, return_progress=True))


def test_openais_sdk_reads_a_response_with_progress(live_server, every_layer):
    with openai.OpenAI(base_url=f"{live_server.url}/v1", api_key="none", timeout=HANG_SECONDS) as client:
        asked = {"model": "gleam", "max_output_tokens": 2, "input": "How do I find a word in many files? " * 30}
        events = list(client.responses.create(**asked, stream=True, extra_body={"return_progress": True}))
    found = [event.model_extra["prompt_progress"] for event in events if "prompt_progress" in event.model_extra]
    assert found[-1]["processed"] == found[-1]["total"] > 100
    assert events[-1].response.usage.input_tokens == found[-1]["total"]
