"""Anthropic's own SDK against the Messages API: first with scripted pieces, then with a model."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

anthropic = pytest.importorskip("anthropic", reason="the anthropic SDK is not installed")
httpx2 = pytest.importorskip("httpx2")  # what the SDK itself uses
from pydantic import TypeAdapter  # noqa: E402

from earthshine.generation.request import Delta, Ended, Piece, Started  # noqa: E402
from earthshine.server.anthropic import COUNT_TOKENS, MESSAGES  # noqa: E402
from earthshine.server.api import Served  # noqa: E402
from earthshine.server.http.body import parse_body  # noqa: E402
from earthshine.server.refusals import Refused  # noqa: E402
from earthshine.text import Content, Reasoning, ToolCallArguments, ToolCallEnd, ToolCallStart  # noqa: E402

from .serving import HANG_SECONDS  # noqa: E402

SERVED = Served(("kimi",), 0, 4096, True, True, lambda ids: "")
ASK: dict[str, Any] = {"model": "kimi", "max_tokens": 64, "messages": [{"role": "user", "content": "Weather?"}]}
TOOL = {"name": "weather", "description": "Tells it.", "input_schema": {"type": "object", "properties": {}}}
PIECES: list[Piece] = [
    Started(100, 64),
    Delta(0, [Reasoning("So"), Reasoning(" then.")]),
    Delta(0, [Content("Let me "), Content("see.")]),
    Delta(0, [ToolCallStart(0, "functions.weather:0", "weather"), ToolCallArguments(0, '{"city": '),
             ToolCallArguments(0, '"Köln"}'), ToolCallEnd(0)]),
    Delta(0, [ToolCallStart(1, "functions.now:1", "now"), ToolCallEnd(1)]),
    Ended(0, "tool_calls", 9, 2),
]  # fmt: skip


def scripted(pieces: list[Piece], problem: Refused | None = None) -> Any:
    """A client whose server answers every message with these pieces, and then perhaps with a problem."""

    def answer(request: Any) -> Any:
        api = COUNT_TOKENS if request.url.path == COUNT_TOKENS.path else MESSAGES
        exchange = api.begin(parse_body(request.read(), api.body)[0], SERVED)
        if api.counts:
            return httpx2.Response(200, json=exchange.counted([7]))
        if problem is not None and not pieces:
            return httpx2.Response(problem.status, json=api.error(problem))
        events = [event for piece in pieces for event in exchange.push(piece)]
        if not exchange.stream:
            return httpx2.Response(200, json=exchange.whole())
        events += exchange.end() if problem is None else exchange.failed(problem)
        for event in events:
            if event.name not in ("ping", "error"):
                TypeAdapter(anthropic.types.RawMessageStreamEvent).validate_python(event.data)
        lines = [f"event: {event.name}\ndata: {json.dumps(event.data)}\n\n" for event in events]
        return httpx2.Response(200, content="".join(lines), headers={"content-type": "text/event-stream"})

    transport = httpx2.MockTransport(answer)
    return anthropic.Anthropic(
        api_key="k", base_url="http://server", max_retries=0, http_client=httpx2.Client(transport=transport)
    )


def check(message: Any) -> None:
    thought, text, weather, now = message.content
    assert (thought.type, thought.thinking, thought.signature) == ("thinking", "So then.", "unsigned")
    assert (text.type, text.text) == ("text", "Let me see.")
    assert (weather.type, weather.name, weather.input) == ("tool_use", "weather", {"city": "Köln"})
    assert (now.name, now.input) == ("now", {})
    assert weather.id != now.id
    assert message.stop_reason == "tool_use"
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (36, 64, 9)
    assert usage.output_tokens_details.thinking_tokens == 2
    anthropic.types.Message.model_validate(message.to_dict())


class TestScripted:
    def test_whole(self):
        check(scripted(PIECES).messages.create(**ASK))

    def test_stream_adds_up(self):
        with scripted(PIECES).messages.stream(**ASK) as stream:
            kinds = [event.type for event in stream]
            check(stream.get_final_message())
        assert kinds.count("content_block_stop") == 4
        assert [kinds.count(kind) for kind in ("text", "thinking", "input_json", "signature")] == [2, 2, 3, 1]

    def test_beta(self):
        with scripted(PIECES).beta.messages.stream(**ASK, betas=["any"]) as stream:
            assert stream.get_final_message().content[1].text == "Let me see."

    def test_an_answer_goes_back_as_history(self):
        client = scripted(PIECES)
        answer = client.messages.create(**ASK)
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "Rain"}
            for block in answer.content
            if block.type == "tool_use"
        ]
        history = [*ASK["messages"], {"role": "assistant", "content": answer.content}]
        body = {**ASK, "messages": [*history, {"role": "user", "content": results}]}
        check(client.messages.create(**body))
        assert client.messages.count_tokens(model="kimi", messages=body["messages"]).input_tokens == 7

    @pytest.mark.parametrize(
        ("problem", "expected"),
        [
            (Refused("No."), anthropic.BadRequestError),
            (Refused("No.", "unauthorized"), anthropic.AuthenticationError),
            (Refused("No.", "not_found"), anthropic.NotFoundError),
            (Refused("No.", "rate"), anthropic.RateLimitError),
            (Refused("No.", "internal"), anthropic.InternalServerError),
        ],
    )
    def test_errors(self, problem, expected):
        with pytest.raises(expected) as caught:
            scripted([], problem).messages.create(**ASK)
        assert caught.value.body["error"]["message"] == "No."

    def test_an_error_within_a_stream(self):
        client = scripted(PIECES[:2], Refused("It broke.", "internal"))
        with client.messages.stream(**ASK) as stream, pytest.raises(anthropic.APIError, match="It broke"):
            stream.get_final_message()


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    try:
        server = request.getfixturevalue("live_server")
    except pytest.FixtureLookupError:
        pytest.skip("no server to run against")
    url = server if isinstance(server, str) else server.url
    with anthropic.Anthropic(
        api_key="k", base_url=url.removesuffix("/v1"), max_retries=0, timeout=HANG_SECONDS
    ) as opened:
        yield opened


class TestLive:
    def ask(self, client: Any) -> dict[str, Any]:
        return {**ASK, "model": client.models.list().data[0].id, "max_tokens": 12, "extra_body": {"temperature": 0}}

    def test_stream_equals_whole(self, client):
        ask = self.ask(client)
        whole = client.messages.create(**ask)
        with client.messages.stream(**ask) as stream:
            streamed = stream.get_final_message()
        assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]
        assert streamed.stop_reason == whole.stop_reason
        assert whole.usage.output_tokens <= 12
        total = [m.usage.input_tokens + m.usage.cache_read_input_tokens for m in (whole, streamed)]
        counted = client.messages.count_tokens(model=ask["model"], messages=ask["messages"]).input_tokens
        assert total == [counted, counted]

    def test_stop_sequence(self, client):
        ask = self.ask(client)
        text = client.messages.create(**ask).content[-1].text
        stop = text[len(text) // 2]
        stopped = client.messages.create(**ask, stop_sequences=[stop])
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)
        assert "".join(block.text for block in stopped.content) == text[: text.index(stop)]

    def test_a_forced_tool(self, client):
        schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
        tool = {**TOOL, "input_schema": {**schema, "additionalProperties": False}}
        choice = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
        ask = {**self.ask(client), "max_tokens": 128}
        message = client.messages.create(**ask, tools=[tool], tool_choice=choice)
        (call,) = [block for block in message.content if block.type == "tool_use"]
        assert (call.name, message.stop_reason) == ("weather", "tool_use")
        assert call.input["n"] in (1, 2)
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain."}
        history = [*ask["messages"], {"role": "assistant", "content": message.content}]
        after = {**ask, "messages": [*history, {"role": "user", "content": [result]}], "max_tokens": 4}
        assert client.messages.create(**after, tools=[tool]).usage.cache_read_input_tokens > 0

    def test_refusals(self, client):
        with pytest.raises(anthropic.NotFoundError, match="is not served here"):
            client.messages.create(**{**ASK, "model": "nobody"})
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
            client.messages.create(**{**self.ask(client), "messages": [{"role": "user", "content": "a b " * 300_000}]})
