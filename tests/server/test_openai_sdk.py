"""OpenAI's own SDK against a server with the shipped model: what it parses, and what its answers have in common."""

import asyncio
import json
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from .serving import HANG_SECONDS

ASK = [{"role": "user", "content": "How do I list files?"}]
LOOK = {
    "name": "look",
    "description": "Looks around.",
    "parameters": {
        "type": "object",
        "properties": {"way": {"enum": ["left", "right"]}},
        "required": ["way"],
        "additionalProperties": False,
    },
}
GREEDY: dict[str, Any] = {"model": "gleam", "temperature": 0}


class Verdict(BaseModel):
    answer: Literal["yes", "no"]


@pytest.fixture(scope="module")
def client(live_server):
    with openai.OpenAI(base_url=f"{live_server.url}/v1", api_key="none", max_retries=0, timeout=HANG_SECONDS) as opened:
        yield opened


def chat(client, **fields):
    return client.chat.completions.create(**{**GREEDY, "messages": ASK, "max_tokens": 12, **fields})


def test_models(client, live_server):
    (model,) = client.models.list().data
    assert (model.id, model.object) == ("gleam", "model")
    assert client.models.retrieve("gleam") == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("sun")


class TestChat:
    def test_a_stream_is_the_whole_in_pieces(self, client):
        whole = chat(client)
        chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
        (choice,) = whole.choices
        deltas = [entry.delta for chunk in chunks for entry in chunk.choices]
        assert "".join(delta.content or "" for delta in deltas) == choice.message.content
        thoughts = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
        assert "".join(thoughts) == (getattr(choice.message, "reasoning_content", None) or "")
        assert (choice.finish_reason, whole.usage.completion_tokens) == ("length", 12)
        assert chunks[-2].choices[0].finish_reason == "length"
        used = chunks[-1].usage
        assert (used.prompt_tokens, used.completion_tokens) == (whole.usage.prompt_tokens, 12)

    def test_the_sdks_own_stream(self, client):
        text = chat(client).choices[0].message.content
        stop = text[4:7]  # the SDK raises where max_tokens ends an answer
        with client.chat.completions.stream(**GREEDY, messages=ASK, stop=stop) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        assert {"chunk", "content.delta", "content.done"} <= kinds
        assert final.choices[0].message.content == text[: text.index(stop)]

    def test_choices_and_scores(self, client):
        found = chat(client, n=2, logprobs=True, top_logprobs=2, max_tokens=3)
        first, second = found.choices
        assert first.message.content == second.message.content  # greedy
        scores = first.logprobs.content
        assert len(scores) == 3
        for score in scores:
            assert (score.token, score.logprob) == (score.top_logprobs[0].token, score.top_logprobs[0].logprob)
            assert bytes(score.bytes).decode("utf-8", "replace") == score.token
            assert len(score.top_logprobs) == 2
        assert found.usage.completion_tokens == 6

    def test_stop(self, client):
        text = chat(client).choices[0].message.content
        stop = text[4:7]
        stopped = chat(client, stop=[stop]).choices[0]
        assert (stopped.message.content, stopped.finish_reason) == (text[: text.index(stop)], "stop")

    def test_a_format(self, client):
        found = client.chat.completions.parse(**GREEDY, messages=ASK, response_format=Verdict, max_tokens=400)
        assert found.choices[0].message.parsed.answer in ("yes", "no")
        chosen = chat(client, extra_body={"guided_choice": ["red", "green"]}).choices[0]
        assert chosen.message.content in ("red", "green")
        assert chosen.finish_reason == "stop"

    def test_a_call_and_its_result(self, client):
        tools = [{"type": "function", "function": LOOK}]
        choice = {"type": "function", "function": {"name": "look"}}
        whole = chat(client, tools=tools, tool_choice=choice, parallel_tool_calls=False, max_tokens=400)
        message = whole.choices[0].message
        assert whole.choices[0].finish_reason == "tool_calls"
        (call,) = message.tool_calls
        assert (call.id, call.function.name) == ("functions.look:0", "look")
        assert json.loads(call.function.arguments)["way"] in ("left", "right")
        with client.chat.completions.stream(
            **GREEDY, messages=ASK, tools=tools, tool_choice=choice, parallel_tool_calls=False, max_tokens=400
        ) as stream:
            streamed = stream.get_final_completion().choices[0].message.tool_calls
        assert [(one.id, one.function.arguments) for one in streamed] == [(call.id, call.function.arguments)]
        result = {"role": "tool", "tool_call_id": call.id, "content": "A wall."}
        after = chat(client, messages=[*ASK, message, result], tools=tools, tool_choice="none")
        assert after.choices[0].message.tool_calls is None
        assert after.choices[0].message.content

    def test_a_prefix_that_was_computed_is_found(self, client):
        asked = [{"role": "user", "content": "Tell me about the moon. " * 40}]
        used = [chat(client, messages=asked, max_tokens=1).usage.prompt_tokens_details for _ in range(2)]
        assert used[1].cached_tokens > 0

    def test_refusals(self, client):
        with pytest.raises(openai.NotFoundError) as missing:
            chat(client, model="sun")
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError) as long:
            chat(client, messages=[{"role": "user", "content": "a b " * 300_000}])
        assert long.value.code == "context_length_exceeded"
        image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}
        with pytest.raises(openai.BadRequestError) as picture:
            chat(client, messages=[{"role": "user", "content": [image]}])
        assert picture.value.param == "messages[0].content[0].type"


class TestResponses:
    def ask(self, client, **fields):
        return client.responses.create(**{**GREEDY, "input": ASK[0]["content"], "max_output_tokens": 12, **fields})

    def test_the_reply_is_that_of_chat(self, client):
        found = self.ask(client)
        expected = chat(client)
        assert found.output_text == expected.choices[0].message.content
        assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert found.usage.output_tokens == expected.usage.completion_tokens
        assert found.usage.input_tokens == expected.usage.prompt_tokens

    def test_a_stream_is_the_whole_in_events(self, client):
        whole = self.ask(client)
        events = list(self.ask(client, stream=True))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert events[-1].type == "response.incomplete"
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == whole.output_text == events[-1].response.output_text

    def test_a_format(self, client):
        found = client.responses.parse(**GREEDY, input="Is it so?", text_format=Verdict, max_output_tokens=400)
        assert found.output_parsed.answer in ("yes", "no")

    def test_a_call_and_its_result(self, client):
        tools = [{"type": "function", "strict": True, **LOOK}]
        asked = [{"role": "user", "content": "Where is the wall?"}]
        choice = {"type": "function", "name": "look"}
        found = self.ask(client, input=asked, tools=tools, tool_choice=choice, max_output_tokens=400)
        assert found.status == "completed"
        call = next(item for item in found.output if item.type == "function_call")
        assert json.loads(call.arguments)["way"] in ("left", "right")
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "A wall."}
        after = self.ask(client, input=[*asked, *found.output, result], tools=tools, tool_choice="none")
        assert after.output_text

    def test_nothing_is_stored(self, client):
        with pytest.raises(openai.BadRequestError) as refused:
            self.ask(client, previous_response_id="resp_1")
        assert refused.value.param == "previous_response_id"


class TestCompletions:
    def test_a_stream_is_the_whole_in_pieces(self, client):
        asked = {**GREEDY, "prompt": "To list files, ", "max_tokens": 8, "extra_body": {"ignore_eos": True}}
        whole = client.completions.create(**asked)
        chunks = list(client.completions.create(**asked, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
        assert whole.usage.completion_tokens == 8

    def test_token_bounds_hold_and_excluding_all_tokens_is_an_error(self, client):
        asked = {**GREEDY, "messages": ASK, "max_tokens": 64}
        free = client.chat.completions.create(**asked)
        assert free.choices[0].finish_reason == "stop"
        longer = free.usage.completion_tokens + 5
        found = client.chat.completions.create(**asked, extra_body={"min_tokens": longer})
        assert found.usage.completion_tokens >= longer
        only = {"allowed_token_ids": [40, 41]}
        plain = {**GREEDY, "prompt": "To list files, ", "max_tokens": 8}
        whole = client.completions.create(**plain, extra_body=only)
        assert (whole.usage.completion_tokens, whole.choices[0].finish_reason) == (8, "length")
        alone = [client.completions.create(**plain, extra_body={"allowed_token_ids": [one]}) for one in (40, 41)]
        letters = {text for each in alone for text in each.choices[0].text}
        assert set(whole.choices[0].text) <= letters
        with pytest.raises(openai.APIStatusError, match="the form that was asked for and allowed_token_ids leave none"):
            client.completions.create(**plain, extra_body=only | {"guided_choice": ["yes"]})
        with pytest.raises(openai.BadRequestError, match="Token ids must be between"):
            client.completions.create(**plain, extra_body={"allowed_token_ids": [10**6]})


def test_conversations_at_once_say_what_each_says_alone(client, live_server):
    questions = [f"How do I {what}?" for what in ("list files", "copy a file", "find text", "count lines")]
    alone = [chat(client, messages=[{"role": "user", "content": text}]).choices[0].message for text in questions]

    async def together():
        async with openai.AsyncOpenAI(base_url=f"{live_server.url}/v1", api_key="none", max_retries=0) as async_client:
            asked = [chat(async_client, messages=[{"role": "user", "content": text}]) for text in questions]
            whole = await asyncio.gather(*asked)
            stream = await chat(async_client, messages=[{"role": "user", "content": questions[0]}], stream=True)
            deltas = [entry.delta.content or "" async for chunk in stream for entry in chunk.choices]
            return [found.choices[0].message for found in whole], "".join(deltas)

    at_once, streamed = asyncio.run(together())
    assert at_once == alone
    assert streamed == alone[0].content
