"""The fields that OpenAI's APIs share, what becomes of them, and the bodies of errors."""

from dataclasses import replace

import pytest

from earthshine.engine import SamplingParams
from earthshine.generation.request import Format
from earthshine.server.api import Served
from earthshine.server.openai.completions import COMPLETIONS, CompletionBody
from earthshine.server.openai.fields import SamplingFields, sampling_params, token_limit, usage
from earthshine.server.refusals import Refused, openai_error

SERVED = Served(("gleam", "small"), 0, 4096, True, True, lambda ids: "")


def test_sampling_params_hold_every_field():
    fields = SamplingFields.model_validate(
        {
            "temperature": 1,
            "top_k": -1,
            "max_tokens": 5,
            "max_completion_tokens": 6,
            "stop_token_ids": [3],
            "ignore_eos": True,
            "include_stop_str_in_output": True,
            "logit_bias": {"7": -100},
            "stop": "x",
            "n": 2,
        }
    )
    assert token_limit(fields) == 6
    assert sampling_params(fields, SERVED, max_tokens=6, logprobs=2, prompt_logprobs=3) == SamplingParams(
        n=2,
        temperature=1.0,
        max_tokens=6,
        stop=("x",),
        stop_token_ids=(3,),
        ignore_eos=True,
        include_stop_str_in_output=True,
        logit_bias={7: -100.0},
        logprobs=2,
        prompt_logprobs=3,
    )


def test_model_defaults_fill_fields_that_are_left_out():
    served = replace(SERVED, defaults=SamplingParams(temperature=0.6, top_p=0.95))
    assert sampling_params(SamplingFields(), served) == served.defaults
    given = SamplingFields(temperature=0, top_p=1)
    assert sampling_params(given, served) == SamplingParams(temperature=0, top_p=1)


def test_request_holds_the_fields_around_sampling():
    body = {"prompt": "Hello", "cache_salt": "s", "priority": -1, "guided_json": '{"type": "object"}'}
    (request,) = COMPLETIONS.begin(CompletionBody.model_validate(body), SERVED).requests
    assert (request.cache_salt, request.priority) == ("s", -1)
    assert request.format == Format("json_schema", {"type": "object"})


def test_usage():
    assert usage(10, 4, 3, 2) == {
        "prompt_tokens": 10,
        "completion_tokens": 3,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
        "cached_tokens": 4,
    }


@pytest.mark.parametrize(
    ("kind", "type_", "code"),
    [
        ("invalid", "invalid_request_error", None),
        ("context", "invalid_request_error", "context_length_exceeded"),
        ("unauthorized", "authentication_error", "invalid_api_key"),
        ("rate", "rate_limit_error", "rate_limit_exceeded"),
        ("internal", "server_error", None),
    ],
)
def test_errors(kind, type_, code):
    body = openai_error(Refused("Why.", kind, "field"))
    assert body == {"error": {"message": "Why.", "type": type_, "param": "field", "code": code}}
