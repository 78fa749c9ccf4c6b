"""POST /v1/completions as OpenAI's clients and evaluations read it, from the body to the answer."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

import earthshine
from earthshine.engine import SamplingParams
from earthshine.generation.prompts import Prompts
from earthshine.generation.request import Delta, Ended, GenerationRequest, Scored, Started
from earthshine.server.api import Served
from earthshine.server.generator import TextGenerator
from earthshine.server.http.body import parse_body
from earthshine.server.openai.completions import COMPLETIONS, CompletionBody
from earthshine.server.refusals import Refused, openai_error
from earthshine.text import Content, Tokenizer, load_tokenizer

from .fake_engine import FakeEngine, logprob_of
from .serving import HANG_SECONDS

GLEAM = Path(earthshine.__file__).parent / "gleam"
END = 5890
SERVED = Served(("gleam", "small"), 0, 4096, True, True, lambda ids: "")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(GLEAM)


def exchange_of(**body: Any) -> Any:
    return COMPLETIONS.begin(CompletionBody.model_validate({"prompt": "Hello"} | body), SERVED)


class Server:
    """Answers bodies with an engine that follows a script."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.engine = FakeEngine(stop_tokens=(END,))

    def says(self, *answers: list[int] | str) -> None:
        self.engine.close()
        scripts = [self.tokenizer.encode(a, True) if isinstance(a, str) else a for a in answers]
        self.engine = FakeEngine(scripts, reused=1, stop_tokens=(END,))

    def __call__(self, **body: Any) -> Any:
        """The whole answer, or the events of a stream, each through JSON."""
        exchange = exchange_of(**body)

        async def work() -> Any:
            replies = TextGenerator(self.engine, Prompts(self.tokenizer, None, 6144, (END,), 4096))
            try:
                events = [
                    event async for piece in replies.answer(exchange.requests, "") for event in exchange.push(piece)
                ]
                events += exchange.end()
            finally:
                replies.close()
            if not exchange.stream:
                return exchange.whole()
            assert [event.name for event in events] == [None] * len(events)
            return [event.data for event in events]

        return json.loads(json.dumps(asyncio.run(work()), allow_nan=False))


@pytest.fixture
def server(tokenizer: Tokenizer) -> Iterator[Server]:
    server = Server(tokenizer)
    yield server
    server.engine.close()


class TestWholeAnswers:
    def test_one(self, server):
        server.says("world<|im_end|>")
        answer = server(prompt="Hello", max_tokens=20)
        assert answer.pop("id").startswith("cmpl-")
        assert answer.pop("created") > 1_700_000_000
        n_prompt, n_reply = (
            len(server.tokenizer.encode("Hello", False)),
            len(server.tokenizer.encode("world", False)) + 1,
        )
        cached = min(1, n_prompt - 1)
        assert answer == {
            "object": "text_completion",
            "model": "gleam",
            "choices": [{"index": 0, "text": "world", "logprobs": None, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": n_prompt,
                "completion_tokens": n_reply,
                "total_tokens": n_prompt + n_reply,
                "prompt_tokens_details": {"cached_tokens": cached},
                "completion_tokens_details": {"reasoning_tokens": 0},
                "cached_tokens": cached,
            },
        }

    def test_default_is_sixteen_tokens(self, server):
        server.says([100] * 50)
        answer = server()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 16

    def test_prompts_and_choices(self, server):
        server.says(*"abcd")
        answer = server(prompt=["one two", "three"], n=2, seed=5)
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert sorted(choice["text"] for choice in answer["choices"]) == list("abcd")
        n_prompt = sum(len(server.tokenizer.encode(text, False)) for text in ("one two", "three"))
        assert answer["usage"]["prompt_tokens"] == n_prompt  # each prompt once, whatever n is
        assert [request.params.seed for request in server.engine.requests] == [5, 6, 5, 6]

    def test_token_ids(self, server):
        server.says("x")
        server(prompt=[65, 66, 67])
        server(prompt=[[65], [66, 67]])
        assert [list(request.tokens) for request in server.engine.requests] == [[65, 66, 67], [65], [66, 67]]

    def test_stop_strings(self, server):
        server.says("one two three")
        answer = server(stop=["two", "never"])
        assert answer["choices"][0]["text"] == "one "
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert server(stop="two", include_stop_str_in_output=True)["choices"][0]["text"] == "one two"


class TestLogprobs:
    def test_of_the_reply(self, server):
        ids = server.tokenizer.encode("Grüße 👋!", True)
        server.says([*ids, END])
        logprobs = server(prompt="x", logprobs=2, max_tokens=40)["choices"][0]["logprobs"]
        assert logprobs["token_logprobs"] == [logprob_of(token) for token in ids]
        raw = [server.tokenizer.token_bytes(token) for token in ids]
        whole = "Grüße 👋!"
        for at, (name, offset, each) in enumerate(zip(logprobs["tokens"], logprobs["text_offset"], raw, strict=True)):
            try:
                assert name == each.decode()
                assert whole[offset:].startswith(name)
            except UnicodeDecodeError:
                assert name.startswith("bytes:\\x")
            assert offset == len(b"".join(raw[:at]).decode(errors="ignore"))
        assert len(logprobs["top_logprobs"][0]) == 2

    def test_the_chosen_token_is_always_there(self, server):
        server.says([70])
        assert server(prompt="x", logprobs=0)["choices"][0]["logprobs"]["top_logprobs"] == [
            {server.tokenizer.decode([70]): logprob_of(70)}
        ]

    @pytest.mark.parametrize("body", [{"max_tokens": 0}, {"max_tokens": 1}])
    @pytest.mark.parametrize("ids", [True, False])
    def test_what_evaluations_read(self, server, body, ids):
        text = "The capital of France is Paris"
        tokens = server.tokenizer.encode(text, False)
        server.says([70])
        answer = server(prompt=tokens if ids else text, echo=True, logprobs=1, temperature=0, **body)
        (choice,) = answer["choices"]
        logprobs, extra = choice["logprobs"], body["max_tokens"]
        assert choice["text"] == text + server.tokenizer.decode([70]) * extra
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        assert len(logprobs["tokens"]) == len(logprobs["text_offset"]) == len(tokens) + extra
        assert logprobs["token_logprobs"][1 : len(tokens)] == [logprob_of(token) for token in tokens[1:]]
        assert [max(top.values()) for top in logprobs["top_logprobs"][1:]] == logprobs["token_logprobs"][1:]
        assert logprobs["text_offset"][1] == len(server.tokenizer.decode([tokens[0]]))
        assert answer["usage"]["completion_tokens"] == extra

    def test_a_stop_token_is_scored_too(self, server):
        server.says([END])
        (choice,) = server(prompt=[65, 66, 67], echo=True, logprobs=1, max_tokens=1)["choices"]
        assert len(choice["logprobs"]["token_logprobs"]) == 4
        assert choice["finish_reason"] == "stop"
        assert choice["text"] == server.tokenizer.decode([65, 66, 67])

    def test_of_the_prompt_beside_the_reply(self, server):
        server.says([70])
        (choice,) = server(prompt=[65, 66], prompt_logprobs=1, logprobs=0, max_tokens=1)["choices"]
        first, second = choice["prompt_logprobs"]
        assert first is None
        assert second == {"66": {"logprob": logprob_of(66), "rank": 1, "decoded_token": server.tokenizer.decode([66])}}
        assert choice["text"] == server.tokenizer.decode([70])
        assert choice["logprobs"]["tokens"] == [choice["text"]]

    def test_the_chosen_one_beyond_the_alternatives_has_no_rank(self):
        exchange = exchange_of(prompt_logprobs=1)
        top = ((7, b"seven", -0.1),)
        exchange.push(Started(2, 0))
        exchange.push(Delta(0, [], [Scored(1, b"a", None), Scored(2, b"b", float("-inf"), top)]))
        exchange.push(Ended(0, "length", 1, 0))
        assert exchange.whole()["choices"][0]["prompt_logprobs"][1] == {
            "7": {"logprob": -0.1, "rank": 1, "decoded_token": "seven"},
            "2": {"logprob": -9999.0, "rank": None, "decoded_token": "b"},
        }


class TestStreams:
    def test_chunks(self, server):
        server.says("one two three<|im_end|>")
        *chunks, usage_chunk, done = server(stream=True, stream_options={"include_usage": True})
        assert done == "[DONE]"
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "one two three"
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
        assert {chunk["id"] for chunk in chunks} == {usage_chunk["id"]}
        assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
        assert usage_chunk["choices"] == []
        assert usage_chunk["usage"]["completion_tokens"] == len(server.tokenizer.encode("one two three", True)) + 1

    def test_without_usage(self, server):
        server.says("x")
        chunks = server(stream=True)
        assert all("usage" not in chunk for chunk in chunks[:-1])

    def test_a_prompt_comes_first_and_scores_come_along(self, server):
        server.says("after")
        *chunks, _ = server(prompt="before ", stream=True, echo=True, logprobs=0)
        assert chunks[0]["choices"][0]["text"] == "before "
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "before after"
        offsets = [at for chunk in chunks for at in (chunk["choices"][0]["logprobs"] or {}).get("text_offset", [])]
        names = [name for chunk in chunks for name in (chunk["choices"][0]["logprobs"] or {}).get("tokens", [])]
        assert "".join(names) == "before after"
        assert offsets == [len("".join(names[:at])) for at in range(len(names))]

    def test_an_error_in_the_middle(self):
        events = exchange_of(stream=True).failed(Refused("It broke.", "internal"))
        assert events[0].data == {
            "error": {"message": "It broke.", "type": "server_error", "param": None, "code": None}
        }
        assert events[1].data == "[DONE]"


class TestBodies:
    @pytest.mark.parametrize(
        "body",
        [
            {"prompt": None},
            {"prompt": []},
            {"prompt": [[]]},
            {"prompt": [1, "a"]},
            {"prompt": [True]},
            {"prompt": [-1]},
            {"prompt": ["a"] * 129},
            {"temperature": "1"},
            {"temperature": float("nan")},
            {"stop": 5},
            {"stop": [5]},
            {"cache_salt": ""},
            {"cache_salt": "x" * 1025},
            {"priority": 1 << 40},
            {"guided_choice": []},
            {"stream_options": 5},
        ],
    )
    def test_refused_by_form(self, body):
        with pytest.raises(ValidationError):
            CompletionBody.model_validate({"prompt": "x"} | body)

    @pytest.mark.parametrize(
        ("prompt", "refusal"),
        [
            (["a"] * 129, "prompt should have at most 128 items, and is a list of 129 entries."),
            ([], "prompt should have at least 1 item, and is []."),
            ([5, -1], "prompt[1] should be greater than or equal to 0, and is -1."),
            ([[5], []], "prompt[1] should have at least 1 item, and is []."),
            (5, "prompt should be a valid string or a valid list, and is 5."),
        ],
    )
    def test_a_bound_is_named_of_the_form_that_was_meant(self, prompt, refusal):
        with pytest.raises(Refused) as caught:
            parse_body(json.dumps({"prompt": prompt}).encode(), CompletionBody)
        assert str(caught.value) == refusal

    def test_a_long_list_of_the_wrong_kind_costs_one_error(self):
        with pytest.raises(ValidationError) as caught:
            CompletionBody.model_validate({"prompt": [None] * 100_000})
        assert caught.value.error_count() < 10

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({"suffix": "x"}, "suffix"),
            ({"n": 0}, "n must be a whole number between 1 and 128"),
            ({"n": 129}, "n must be"),
            ({"temperature": -0.1}, "temperature must be a number 0 or more"),
            ({"top_p": 1.5}, "top_p must be a number between 0 and 1"),
            ({"logprobs": 21}, "logprobs must be a whole number between 0 and 20"),
            ({"prompt_logprobs": 21}, "prompt_logprobs must be"),
            ({"seed": 1 << 63}, "seed must be"),
            ({"logit_bias": {"1": 101}}, "logit_bias must be"),
            ({"max_tokens": -3}, "max_tokens must be"),
            ({"min_p": 2}, "min_p must be"),
            ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
            ({"stop": ""}, "stop must be up to 64 texts of 1 to 1024"),
            ({"stop": ["x", ""]}, "stop must be up to"),
            ({"stop": ["x"] * 65}, "stop must be up to"),
            ({"stop": ["x" * 1025]}, "stop must be up to"),
            ({"best_of": 2}, "best_of"),
            ({"max_tokens": 0}, "max_tokens 0 needs echo"),
            ({"prompt": ["a"] * 100, "n": 2}, "more than 128 choices"),
            ({"logit_bias": {"x": 1}}, "is not a token id"),
            ({"use_beam_search": True}, "use_beam_search"),
            ({"guided_regex": "a", "guided_choice": ["b"]}, "only one format"),
            ({"structured_outputs": {"structural_tag": {}}}, "structural_tag"),
            ({"guided_json": "{"}, "is not JSON"),
        ],
    )
    def test_refused_by_meaning(self, body, message):
        with pytest.raises(Refused, match=message) as caught:
            exchange_of(**body)
        assert caught.value.kind == "invalid"

    def test_a_model_that_is_not_here(self):
        assert exchange_of(model="small").whole()["model"] == "small"
        with pytest.raises(Refused) as caught:
            exchange_of(model="gpt")
        assert (caught.value.status, openai_error(caught.value)["error"]["code"]) == (404, "model_not_found")

    def test_what_is_harmless(self):
        exchange = exchange_of(best_of=1, suffix="", min_tokens=0, unheard_of=[1], user="me", seed=None, stop=None)
        assert exchange.requests == [GenerationRequest("Hello", SamplingParams(max_tokens=16))]


def test_a_format_binds_a_plain_completion(server):
    server.says("yes<|im_end|>")
    assert server(guided_choice=["yes", "no"])["choices"][0]["text"] == "yes"
    assert server.engine.requests[0].constraint is not None


def test_pieces_without_news_make_no_chunk():
    exchange = exchange_of(stream=True)
    assert exchange.push(Started(3, 0)) == []
    (event,) = exchange.push(Delta(0, [Content("a")]))
    assert event.data["choices"] == [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}]


def test_the_engine_scores_a_prompt_as_it_scored_the_reply(live_server, tokenizer):
    prompt = tokenizer.encode("List all files in a directory, including", False)
    asked = {"temperature": 0, "logprobs": 1, "logit_bias": {str(END): -100}}
    with httpx.Client(base_url=live_server.url, timeout=HANG_SECONDS) as client:

        def complete(**body: Any) -> Any:
            answer = client.post("/v1/completions", json=asked | body)
            assert answer.status_code == 200, answer.text
            return answer.json()["choices"][0]

        reply = complete(prompt=prompt, max_tokens=8)
        ids = tokenizer.encode(reply["text"], False)
        assert [tokenizer.decode([token]) for token in ids] == reply["logprobs"]["tokens"]
        echoed = complete(prompt=[*prompt, *ids], max_tokens=1, echo=True)
    assert echoed["logprobs"]["token_logprobs"][len(prompt) : -1] == reply["logprobs"]["token_logprobs"]
