"""Fields of other servers' dialects, on every path of OpenAI's: obeyed, refused by name, or harmless."""

import dataclasses
import json
import re

import httpx
import pytest

from earthshine.engine import SamplingParams
from earthshine.generation.request import Format
from earthshine.hub import GLEAM
from earthshine.server.api import Served
from earthshine.server.dialects import OBEYED_AS, REFUSED
from earthshine.server.http.body import as_sent, parse_body, unknown_fields
from earthshine.server.openai import chat, completions, responses
from earthshine.server.refusals import Refused
from earthshine.text import load_tokenizer

from .serving import HANG_SECONDS

SERVED = Served(("moon",), 1_700_000_000, 4096, True, True, lambda ids: "")
PATHS = {
    "chat": (chat.CHAT, {"messages": [{"role": "user", "content": "Hello"}]}),
    "completions": (completions.COMPLETIONS, {"prompt": "Hello"}),
    "responses": (responses.RESPONSES, {"input": "Hello"}),
}
ARRAY = {"type": "array"}


@pytest.fixture(params=PATHS)
def path(request):
    return request.param


def request(path, **fields):
    api, needed = PATHS[path]
    return api.begin(parse_body(json.dumps(needed | fields).encode(), api.body)[0], SERVED).requests[0]


def sampling(path, **fields):
    """The fields of SamplingParams that differ from what a request without any gets."""
    plain = dataclasses.asdict(SamplingParams(max_tokens=16 if path == "completions" else None))
    found = dataclasses.asdict(request(path, **fields).params)
    return {name: value for name, value in found.items() if value != plain[name]}


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Format("json_object")),
        ({"response_format": {"type": "json_object", "schema": ARRAY}}, Format("json_schema", ARRAY)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": ARRAY, "strict": True}}},
            Format("json_schema", ARRAY, strict=True),
        ),
        ({"response_format": {"type": "json_schema", "schema": ARRAY}}, Format("json_schema", ARRAY)),
        ({"guided_json": '{"type": "array"}'}, Format("json_schema", ARRAY)),
        ({"guided_regex": "a+"}, Format("regex", "a+")),
        ({"guided_choice": ["a", "b"]}, Format("choice", ["a", "b"])),
        ({"guided_grammar": 'start: "a"'}, Format("grammar", 'start: "a"')),
        ({"guided_json_object": True}, Format("json_object")),
        ({"structured_outputs": {"json": ARRAY}}, Format("json_schema", ARRAY)),
        ({"structured_outputs": {"json_object": True}}, Format("json_object")),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}}, Format("regex", "a")),
        ({"structured_outputs": {"choice": ["a"]}}, Format("choice", ["a"])),
        ({"structured_outputs": {"grammar": "g"}}, Format("grammar", "g")),
        ({"structured_outputs": {}}, None),
        ({"structured_outputs": True}, None),
        ({"regex": "a+"}, Format("regex", "a+")),
        ({"ebnf": 'root ::= "a"'}, Format("grammar", 'root ::= "a"')),
        ({"grammar": 'root ::= "a"'}, Format("grammar", 'root ::= "a"')),
        ({"json_schema": ARRAY}, Format("json_schema", ARRAY)),
        ({"json_schema": '{"type": "array"}'}, Format("json_schema", ARRAY)),
        ({"format": "json"}, Format("json_object")),
        ({"format": ARRAY}, Format("json_schema", ARRAY)),
        ({"format": "", "regex": "", "grammar": "", "ebnf": "", "json_schema": None}, None),
    ],
)
def test_forms_are_obeyed_on_every_path(path, fields, form):
    assert request(path, **fields).format == form


def test_bounds_on_tokens_are_obeyed_on_every_path(path):
    assert sampling(path, min_tokens=3, allowed_token_ids=[7, 5]) == {"min_tokens": 3, "allowed_token_ids": (7, 5)}
    assert sampling(path, min_new_tokens=3) == {"min_tokens": 3}
    assert sampling(path, min_tokens=0, allowed_token_ids=[]) == {}
    assert sampling(path, min_tokens=3, stop=["x"]) == {"min_tokens": 3, "stop": ("x",)}


def test_special_tokens_are_shown_on_request(path):
    assert sampling(path, skip_special_tokens=False) == {"skip_special_tokens": False}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"temperature": -1}, "temperature", "temperature must be a number 0 or more, not -1"),
        ({"options": {"temperature": -1}}, "options.temperature", r"options\.temperature must be a number 0 or more"),
        ({"repeat_penalty": -1}, "repeat_penalty", "repeat_penalty must be a number 0 or more, not -1"),
        ({"options": {"repeat_penalty": 0}}, "options.repeat_penalty", r"options\.repeat_penalty must be above 0"),
        ({"random_seed": 1 << 63}, "random_seed", "random_seed must be a whole number between"),
        ({"stop": None, "stop_sequences": [""]}, "stop_sequences", "stop_sequences must be up to 64 texts"),
        ({"max_tokens": -5}, "max_tokens", "max_tokens must be a whole number 1 or more, not -5"),
        ({"max_completion_tokens": -5, "max_tokens": 3}, "max_completion_tokens", "max_completion_tokens must be"),
        ({"n_predict": -5}, "n_predict", "n_predict must be a whole number 1 or more"),
        ({"min_new_tokens": 5, "max_tokens": 3}, "min_new_tokens", "min_new_tokens is 5, and at most 3"),
        ({"logit_bias": {"3": 101}}, "logit_bias", "logit_bias must be a number between -100 and 100"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "stop_token_ids must be a whole number 0 or more"),
        ({"top_p": 0}, "top_p", "top_p must be above 0"),
    ],
)
def test_values_out_of_range_are_refused_by_the_clients_name(path, fields, param, message):
    api, needed = PATHS[path]
    checked, body = parse_body(json.dumps(needed | fields).encode(), api.body)
    with pytest.raises(Refused) as caught:
        api.begin(checked, SERVED)
    problem = as_sent(caught.value, body, api.body)
    assert problem.param == param
    assert re.match(message, str(problem))


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("chat", {"max_tokens": 0}, "max_tokens"),
        ("chat", {"max_completion_tokens": 0}, "max_completion_tokens"),
        ("responses", {"max_output_tokens": 0}, "max_output_tokens"),
        ("responses", {"top_logprobs": -1}, "top_logprobs"),
        ("completions", {"logprobs": 21}, "logprobs"),
        ("completions", {"max_completion_tokens": 0}, "max_completion_tokens"),
    ],
)
def test_limits_are_refused_by_the_paths_own_name(path, fields, param):
    with pytest.raises(Refused, match=f"^{param} ") as caught:
        request(path, **fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "response_format"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex"),
        ({"json_schema": ARRAY, "format": "json"}, "json_schema"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.regex"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"whitespace_pattern": "x"}}, "structured_outputs.whitespace_pattern"),
        ({"response_format": {"type": "structural_tag", "format": {}}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"json_schema": "{"}, "json_schema"),
        ({"format": "yaml"}, "format"),
    ],
)
def test_invalid_forms_are_refused_by_name(path, fields, param):
    with pytest.raises(Refused) as caught:
        request(path, **fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_two_forms_of_a_response():
    with pytest.raises(Refused, match=r"response_format and text\.format"):
        request("responses", text={"format": {"type": "json_object"}}, response_format={"type": "json_object"})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"n_predict": 5}, {"max_tokens": 5}),
        ({"max_new_tokens": 5, "max_tokens": 5}, {"max_tokens": 5}),
        ({"max_new_tokens": 5, "max_tokens": None}, {"max_tokens": 5}),
        ({"n_predict": -1}, {}),
        ({"max_tokens": -1}, {}),
        ({"repeat_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"sampling_seed": 3}, {"seed": 3}),
        ({"options": {"temperature": 0.5, "num_predict": 5, "num_ctx": 8192, "stop": None}},
         {"temperature": 0.5, "max_tokens": 5}),
        ({"options": {"messages": [], "prompt": "x", "input": "y", "tools": [3]}}, {}),
        ({"options": None}, {}),
    ],
)  # fmt: skip
def test_other_names_are_obeyed(path, fields, expected):
    assert sampling(path, **fields) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n_predict": 5, "max_tokens": 6}, "max_tokens"),
        ({"temperature": 1, "options": {"temperature": 0}}, "temperature"),
        ({"options": {"mirostat": 2}}, "mirostat"),
        ({"repeat_penalty": 1.1, "repeat_last_n": 64}, "repeat_last_n"),
        ({"n_predict": "many"}, "n_predict"),
        ({"options": {"num_predict": "many"}}, "options.num_predict"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
    ],
)
def test_what_contradicts_is_refused_by_name(path, fields, param):
    with pytest.raises(Refused) as caught:
        request(path, **fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_both_names_of_a_field_are_in_the_refusal(path):
    for fields, message in (
        ({"n_predict": 5, "max_tokens": 6}, "max_tokens and n_predict give different values; give one of them."),
        ({"temperature": 1, "options": {"temperature": 0}}, "temperature and temperature give different values"),
    ):
        with pytest.raises(Refused) as caught:
            request(path, **fields)
        assert message in str(caught.value)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_obeyed_is_refused_unless_it_says_nothing(path, name):
    if name in PATHS[path][0].body.model_fields:
        return
    harmless, _ = REFUSED[name]
    for value in (None, *harmless):
        assert request(path, **{name: value})
    with pytest.raises(Refused) as caught:
        request(path, **{name: {"a": [1, "x"]}})
    assert (caught.value.status, caught.value.param) == (400, name)
    assert name in str(caught.value)
    assert str(caught.value).endswith(".")


def test_what_a_front_end_always_sends_is_harmless(path):
    """Sampler settings of llama.cpp's and text-generation-webui's front ends, all off."""
    found = sampling(
        path,
        typical_p=1, tfs=1, tfs_z=1.0, top_a=0, min_p=0, mirostat=0, mirostat_tau=5, mirostat_eta=0.1, dynatemp_range=0,
        dynatemp_exponent=1, dry_multiplier=0, dry_base=1.75, dry_allowed_length=2, dry_sequence_breakers=["\n"],
        xtc_probability=0, xtc_threshold=0.1, smoothing_factor=0, epsilon_cutoff=0, eta_cutoff=0, min_tokens=0,
        repeat_last_n=64, repeat_penalty=1, banned_strings=[], custom_token_bans="", negative_prompt="",
        guidance_scale=1, skip_special_tokens=True, spaces_between_special_tokens=True, ban_eos_token=False,
        samplers=[], num_beams=1, do_sample=True, cache_prompt=True, id_slot=-1, n_keep=0, keep_alive="5m",
        provider={"order": ["moon"]}, transforms=["middle-out"], models=["moon"], route="fallback", usage={},
        service_tier="auto", verbosity="low", something_new={"a": 1}, length_penalty=1.0, top_n_sigma=-1,
        adaptive_target=-0.5, separate_reasoning=True, stream_reasoning=False, reasoning_format="auto",
    )  # fmt: skip
    assert found == {}


def test_usage_may_be_asked_for_in_openrouters_words():
    api, needed = PATHS["chat"]
    body, _ = parse_body(json.dumps(needed | {"stream": True, "usage": {"include": True}}).encode(), api.body)
    assert "usage" in api.begin(body, SERVED).end()[0].data


def test_fields_that_are_obeyed_are_not_called_unknown(path):
    given = {"n_predict": 5, "options": {"top_k": 1, "repeat_last_n": 64}, "regex": "a", "novel": 1}
    assert unknown_fields(given, PATHS[path][0].body) == ["novel"]
    given = {"num_ctx": 8192, "options": {"num_ctx": 8192, "top_k": 1, "num_gpu": 1}}
    assert unknown_fields(given, PATHS[path][0].body) == ["num_ctx", "options.num_ctx", "options.num_gpu"]
    assert not set(OBEYED_AS) & set(REFUSED)


CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
        "additionalProperties": False}  # fmt: skip
PLACE = {"type": "object", "properties": {"at": {"const": 1}}, "required": ["at"], "additionalProperties": False}
ASKED = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "responses": "/v1/responses"}


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}},
        {"response_format": {"type": "json_object", "schema": CITY}},
        {"json_schema": CITY},
        {"format": CITY},
        {"regex": r'\{"city": "(Rome|Oslo)"\}'},
    ],
)
def test_the_model_keeps_to_the_form(live_server, path, form):
    body = PATHS[path][1] | form | {"think": False, "temperature": 2, "seed": 1}
    answer = httpx.post(live_server.url + ASKED[path], json=body | {"max_tokens": 400}, timeout=HANG_SECONDS).json()
    if path == "responses":
        (reply,) = (part["text"] for item in answer["output"] if item["type"] == "message" for part in item["content"])
    else:
        choice = answer["choices"][0]
        reply = choice["text"] if path == "completions" else choice["message"]["content"]
    assert json.loads(reply)["city"] in ("Rome", "Oslo")
    assert reply == reply.strip()


@pytest.mark.parametrize(
    ("fields", "alone"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "look"}}}, True),
        ({"tool_choice": "required", "parallel_tool_calls": False}, True),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, True),
        ({"tool_choice": "required"}, False),
    ],
)
def test_no_bias_and_no_temperature_makes_a_second_call(live_server, fields, alone):
    """The markers of calls are as likely as they get, so that where a second call may come, it comes."""
    tokenizer = load_tokenizer(GLEAM)
    markers = [tokenizer.special_id(text) for text in ("<|tool_calls_section_begin|>", "<|tool_call_begin|>")]
    tools = [{"type": "function", "function": {"name": "look", "parameters": PLACE, "strict": True}}]
    asked = PATHS["chat"][1] | {"tools": tools, "temperature": 2, "max_tokens": 200, "think": False} | fields
    for seed in range(3):
        body = asked | {"seed": seed, "logit_bias": {str(marker): 100 for marker in markers}}
        choice = httpx.post(live_server.url + ASKED["chat"], json=body, timeout=HANG_SECONDS).json()["choices"][0]
        calls = choice["message"]["tool_calls"]
        assert len(calls) == 1 if alone else len(calls) > 1
        assert choice["finish_reason"] == ("tool_calls" if alone else "length")
        assert all(call["function"]["arguments"] in ('{"at":1}', '{"at": 1}') for call in calls[:-1])


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": "x", "stop_sequences": ["x"]},
        {"stop": ["x"], "stop_sequences": []},
        {"stop": [], "stop_sequences": ["x"]},
        {"stop": ["x"], "options": {"stop": "x"}},
    ],
)
def test_two_names_that_say_the_same_agree(path, fields):
    assert request(path, **fields).params.stop == ("x",)


def test_two_limits_of_a_response_that_differ_are_refused():
    for name, fields in (
        ("max_tokens", {"max_tokens": 3}),
        ("max_completion_tokens", {"max_completion_tokens": 3}),
        ("n_predict", {"n_predict": 3}),
        ("options.num_predict", {"options": {"num_predict": 2}}),
    ):
        body, sent = parse_body(
            json.dumps({"input": "Hello", "max_output_tokens": 16} | fields).encode(), responses.ResponsesBody
        )
        with pytest.raises(Refused) as caught:
            responses.begin(body, SERVED)
        refused = as_sent(caught.value, sent, responses.ResponsesBody)
        assert str(refused) == f"{name} and max_output_tokens give different values; give one of them."
        assert refused.param == name
    assert request("responses", max_output_tokens=16, n_predict=16).params.max_tokens == 16
