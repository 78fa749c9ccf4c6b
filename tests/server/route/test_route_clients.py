"""The clients that people use, through the router, against real servers of the shipped model."""

import subprocess

import anthropic
import httpx
import openai
import pytest

from earthshine.prfaas.router.setup import RouterSetup, place_from

from ..process import serve_process
from ..serving import HANG_SECONDS, until
from .routing import routing

QUESTION = [{"role": "user", "content": "Name a colour."}]


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    with serve_process(subprocess.Popen, tmp_path_factory.mktemp("second") / "log", "--batch", "4") as server:
        yield server


@pytest.fixture(scope="module")
def routed(live_server, second):
    with routing(setup=RouterSetup((place_from(f"a={live_server.url}"), place_from(f"b={second.url}")))) as found:
        until(lambda: all(place.models == {"gleam"} for place in found.router.fleet.places.values()))
        yield found


@pytest.fixture(scope="module")
def oai(routed):
    with openai.OpenAI(base_url=routed.url + "/v1", api_key="none", timeout=HANG_SECONDS, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(routed):
    with anthropic.Anthropic(base_url=routed.url, api_key="none", timeout=HANG_SECONDS, max_retries=0) as client:
        yield client


def test_openais_client_gets_the_same_reply_in_every_form(oai, live_server):
    given = {"model": "gleam", "messages": QUESTION, "max_tokens": 24, "temperature": 0}
    whole = oai.chat.completions.create(**given)
    streamed = "".join(
        part.choices[0].delta.content or ""
        for part in oai.chat.completions.create(**given, stream=True)
        if part.choices
    )
    direct = httpx.post(live_server.url + "/v1/chat/completions", json=given).json()
    assert whole.choices[0].message.content == streamed == direct["choices"][0]["message"]["content"] != ""
    text = oai.completions.create(model="gleam", prompt="The Moon is", max_tokens=8, extra_body={"ignore_eos": True})
    assert text.usage.completion_tokens == 8
    with oai.responses.stream(model="gleam", input="Name a colour.", max_output_tokens=16) as stream:
        last = [event.type for event in stream][-1]
    assert last in ("response.completed", "response.incomplete")
    assert [model.id for model in oai.models.list()] == ["gleam"]


def test_anthropics_client_gets_its_reply_and_its_counts(claude):
    given = {"model": "gleam", "messages": QUESTION, "max_tokens": 16}
    whole = claude.messages.create(**given)
    with claude.messages.stream(**given) as stream:
        final = stream.get_final_message()
    assert whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0) > 0
    assert final.stop_reason in ("max_tokens", "end_turn")
    assert claude.messages.count_tokens(model="gleam", messages=QUESTION).input_tokens > 0


def test_errors_are_those_that_the_clients_know(oai, claude):
    peer = {"kv_transfer_params": {"remote_host": "10.0.0.1"}}
    with pytest.raises(openai.BadRequestError, match="kv_transfer_params"):
        oai.chat.completions.create(model="gleam", messages=QUESTION, extra_body=peer)
    with pytest.raises(anthropic.BadRequestError, match="kv_transfer_params"):
        claude.messages.create(model="gleam", messages=QUESTION, max_tokens=5, extra_body=peer)
    with pytest.raises(openai.NotFoundError, match="not served here"):
        oai.chat.completions.create(model="unknown", messages=QUESTION)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(model="gleam", messages=QUESTION, max_tokens=-1)


def test_what_a_server_counted_and_how_long_it_took_is_learned(oai, routed):
    fleet = routed.router.fleet
    stream = oai.chat.completions.create(
        model="gleam", messages=[{"role": "user", "content": "Say more about the Moon. " * 20}], max_tokens=8,
        stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    usage = [part.usage for part in stream][-1]
    until(lambda: sum(place.learned.observations for place in fleet.places.values()))
    assert usage.prompt_tokens > 0
    assert fleet.tokens_per_byte != 0.25


def test_a_stream_of_a_server_that_is_killed_ends_with_an_error_and_the_next_request_is_served(routed, second):
    place, opened = routed.router.fleet.places["b"], []
    with openai.OpenAI(base_url=routed.url + "/v1", api_key="none", timeout=HANG_SECONDS, max_retries=0) as client:
        while not place.sequences:  # until one is at the second server
            told = [{"role": "user", "content": f"Tell me {len(opened)}."}]
            stream = client.chat.completions.create(
                model="gleam", messages=told, stream=True, max_tokens=2000, extra_body={"ignore_eos": True}
            )
            next(stream)
            opened.append(stream)
        second.process.kill()
        with pytest.raises(openai.APIError, match="failed in the middle of the answer"):
            for _ in opened[-1]:
                pass
        for stream in opened:
            stream.close()
        until(lambda: place.sequences == 0)
        assert client.chat.completions.create(model="gleam", messages=QUESTION, max_tokens=4).choices
