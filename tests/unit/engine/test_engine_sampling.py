"""Sampling against distributions computed by definition, in plain Python."""

import copy
import math
import random
import struct
from dataclasses import replace
from hashlib import blake2b

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earthshine.engine import Sampler, SamplingParams
from earthshine.errors import EarthshineError, UsageError

INF = math.inf


def penalized(logits: list[float], params: SamplingParams, prompt: list[int], output: list[int]) -> list[float]:
    adjusted = []
    for token, logit in enumerate(logits):
        if token in prompt or token in output:
            logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
        logit -= params.frequency_penalty * output.count(token)
        adjusted.append(logit - params.presence_penalty * (token in output))
    return adjusted


def distribution(logits: list[float], params: SamplingParams) -> list[float]:
    """Probabilities after temperature, min_p, top_k and top_p, each renormalised before the next."""
    top = max(logits)
    weights = [math.exp((logit - top) / params.temperature) for logit in logits]
    p = [weight / sum(weights) for weight in weights]
    p = [x if x >= params.min_p * max(p) else 0.0 for x in p]
    if 0 < params.top_k < len(p):
        least = sorted(p, reverse=True)[params.top_k - 1]
        p = [x if x >= least else 0.0 for x in p]
    p = [x / sum(p) for x in p]
    if params.top_p < 1:
        kept, mass = set(), 0.0
        for token in sorted(range(len(p)), key=lambda t: (-p[t], t)):
            if mass >= params.top_p:
                break
            kept.add(token)
            mass += p[token]
        p = [x if token in kept else 0.0 for token, x in enumerate(p)]
    return [x / sum(p) for x in p]


def uniform(seed: int, drawn: int) -> float:
    digest = blake2b(struct.pack("<qQ", seed, drawn), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def invert(p: list[float], point: float) -> int:
    """The token in whose share of [0, 1) the point lies, shares in order of ids."""
    total = 0.0
    for token, share in enumerate(p):
        total += share
        if point < total:
            return token
    raise AssertionError("the point lies beyond every share")


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    temperature=st.floats(0.2, 3),
    top_p=st.sampled_from([1.0, 0.95, 0.71, 0.3, 0.01]),
    top_k=st.sampled_from([0, 1, 2, 5, 11, 500]),
    min_p=st.sampled_from([0.0, 0.013, 0.21, 0.9]),
    presence=st.sampled_from([0.0, 0.7, -1.3]),
    frequency=st.sampled_from([0.0, 0.4, -0.3]),
    repetition=st.sampled_from([1.0, 1.7, 0.6]),
)
def test_each_token_is_the_inverse_of_the_distribution_by_definition(
    seed, temperature, top_p, top_k, min_p, presence, frequency, repetition
):
    params = SamplingParams(1, temperature, top_p, top_k, min_p, presence, frequency, repetition, seed)
    source = random.Random(seed)
    prompt = [source.randrange(12) for _ in range(3)]
    sampler, output = Sampler(params, prompt), []
    for drawn in range(6):
        logits = torch.tensor([source.gauss(0, 2) for _ in range(12)])
        adjusted = penalized(logits.tolist(), params, prompt, output)
        output.append(sampler.sample(logits).token)
        assert output[-1] == invert(distribution(adjusted, params), uniform(seed, drawn))


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.01, 6.0])
def test_a_nucleus_may_be_narrower_or_wider_than_the_first_tokens_sorted(top_p, spread):
    """3000 tokens: nearly equal ones need the whole vocabulary sorted, peaked ones a handful."""
    source = random.Random(3)
    logits = torch.tensor([source.gauss(0, spread) for _ in range(3000)])
    params = SamplingParams(top_p=top_p, seed=11)
    sampler, p = Sampler(params, []), distribution(logits.tolist(), params)
    for drawn in range(40):
        assert sampler.sample(logits).token == invert(p, uniform(11, drawn))


def test_frequencies_follow_the_softmax():
    """4000 draws over four tokens; each count within four standard deviations."""
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    sampler = Sampler(SamplingParams(seed=5), [])
    counts = [0] * 4
    for _ in range(4000):
        counts[sampler.sample(logits).token] += 1
    for count, p in zip(counts, logits.softmax(-1).tolist(), strict=True):
        assert abs(count - 4000 * p) < 4 * math.sqrt(4000 * p * (1 - p))


def test_temperature_zero_takes_the_best_and_the_lower_id_among_equals():
    logits = torch.full((5000,), -1.0)
    logits[[700, 701, 4999]] = 3.0
    assert Sampler(SamplingParams(temperature=0), []).sample(logits).token == 700


def test_greedy_is_penalized_too():
    sampler = Sampler(SamplingParams(temperature=0, frequency_penalty=0.6), [])
    logits = torch.tensor([1.0, 2.0, 1.5])
    assert [sampler.sample(logits).token for _ in range(4)] == [1, 2, 1, 0]


def test_repetition_counts_the_prompt_and_presence_does_not():
    logits = torch.tensor([2.0, 1.5])
    assert Sampler(SamplingParams(temperature=0, repetition_penalty=2.0), [0]).sample(logits).token == 1
    assert Sampler(SamplingParams(temperature=0, presence_penalty=2.0), [0]).sample(logits).token == 0


def test_top_k_keeps_those_that_tie_with_the_last():
    logits = torch.tensor([1.0, 3.0, 1.0, 0.0, 1.0])
    sampler = Sampler(SamplingParams(temperature=5.0, top_k=2, seed=0), [])
    assert {sampler.sample(logits).token for _ in range(200)} == {0, 1, 2, 4}


def test_the_same_seed_gives_the_same_tokens_and_another_gives_others():
    logits = torch.zeros(1000)

    def draw(seed):
        sampler = Sampler(SamplingParams(seed=seed), [])
        return [sampler.sample(logits).token for _ in range(20)]

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in (1, 2, -1, 2**63 - 1, -(2**63), None, None)}) == 7


def test_requests_side_by_side_draw_what_each_draws_alone():
    logits = torch.linspace(0, 1, 50)
    one, other, alone = (Sampler(SamplingParams(seed=seed), []) for seed in (1, 2, 1))
    mixed = [(one.sample(logits).token, other.sample(logits).token)[0] for _ in range(10)]
    assert mixed == [alone.sample(logits).token for _ in range(10)]


def test_logprobs_are_the_models_own_whatever_is_done_to_the_logits():
    logits = torch.tensor([0.5, 2.0, -1.0, 2.0, 1.0])
    params = SamplingParams(temperature=0.3, top_k=2, repetition_penalty=3.0, presence_penalty=1.0, seed=1, logprobs=3)
    sampled = Sampler(params, [1, 3]).sample(logits)
    own = [x - math.log(sum(map(math.exp, logits.tolist()))) for x in logits.tolist()]
    assert sampled.logprob == pytest.approx(own[sampled.token], abs=1e-6)
    assert [token for token, _ in sampled.top] == [1, 3, 4]
    assert [value for _, value in sampled.top] == pytest.approx([own[1], own[3], own[4]], abs=1e-6)


def test_alternatives_tie_to_the_lower_id_and_never_exceed_the_vocabulary():
    logits = torch.zeros(3000)
    top = Sampler(SamplingParams(temperature=0, logprobs=5), []).sample(logits).top
    assert [token for token, _ in top] == [0, 1, 2, 3, 4]
    assert len(Sampler(SamplingParams(temperature=0, logprobs=20), []).sample(torch.zeros(7)).top) == 7
    assert Sampler(SamplingParams(temperature=0, logprobs=0), []).sample(torch.zeros(7)).top == ()


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("logits", [[1.0, math.nan], [math.nan] * 2, [1.0, INF], [-INF, -INF]])
def test_logits_that_are_not_numbers_are_an_error_that_says_so(temperature, logits):
    with pytest.raises(EarthshineError, match="not a number"):
        Sampler(SamplingParams(temperature=temperature), []).sample(torch.tensor(logits))


def test_excluded_tokens_are_never_drawn():
    logits = torch.tensor([-INF, 0.0, -INF, 0.0, -INF])
    for options in ({}, {"top_p": 0.9}, {"min_p": 0.5}, {"presence_penalty": -2.0}, {"repetition_penalty": 1e-300}):
        sampler = Sampler(SamplingParams(seed=3, **options), [0, 2])
        assert {sampler.sample(logits).token for _ in range(40)} <= {1, 3}


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 5e-324},
        {"temperature": 1e300},
        {"top_p": 1e-300},
        {"min_p": 1.0},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e300},
    ],
)
def test_extreme_values_still_choose_a_token(options):
    sampler = Sampler(SamplingParams(seed=3, **options), [0, 1, 2, 3])
    for logits in ([3.0, -2.0, 1.0, 0.5], [-3.0, -2.0, -1.0, -5.0]):
        assert sampler.sample(torch.tensor(logits)).token in range(4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be a number 0 or more"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": INF}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"top_p": 1.01}, "top_p must be a number between 0 and 1"),
        ({"top_k": -2}, "top_k must be a whole number between -1 and"),
        ({"top_k": 2.0}, "top_k"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty must be a number between -2 and 2"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"repetition_penalty": -1}, "repetition_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"logprobs": 21}, "logprobs must be a whole number between 0 and 20"),
        ({"logprobs": -1}, "logprobs"),
        ({"stop_token_ids": (1, -1)}, "stop_token_ids"),
        ({"stop_token_ids": ("x",)}, "stop_token_ids"),
        ({"n": 0}, "n must be a whole number between 1 and 128"),
        ({"stop": 3}, "stop must be a list"),
        ({"logit_bias": [(1, 2)]}, "logit_bias must map token ids to numbers"),
        ({"logit_bias": {-1: 2}}, "A token of logit_bias"),
        ({"logit_bias": {1: 101}}, "logit_bias must be a number between -100 and 100"),
        ({"stop": ""}, "stop must be up to 64 texts of 1 to 1024 characters"),
        ({"stop": [5]}, "stop must be up to"),
        ({"stop": ["x" * 1025]}, "stop must be up to"),
        ({"stop": ["x"] * 65}, "stop must be up to"),
        ({"max_tokens": 0}, "max_tokens must be a whole number 1 or more"),
        ({"ignore_eos": "yes"}, "ignore_eos must be True or False"),
        ({"include_stop_str_in_output": 1}, "include_stop_str_in_output must be True or False"),
        ({"skip_special_tokens": None}, "skip_special_tokens must be True or False"),
    ],
)
def test_values_without_meaning_are_refused_by_name(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        SamplingParams(**options)
    assert caught.value.param == next(iter(options))


VLLM_ONLY = {
    "bad_words": ["x"], "best_of": 2, "use_beam_search": True, "length_penalty": 1.0, "early_stopping": False,
    "logits_processors": [], "detokenize": False, "output_kind": 1, "structured_outputs": {}, "guided_decoding": {},
    "truncate_prompt_tokens": 5, "spaces_between_special_tokens": True, "extra_args": {}, "thinking_token_budget": 3,
    "repetition_detection": None, "logprob_token_ids": [1], "prompt_logprob_token_ids": [1], "flat_logprobs": True,
    "stream_interval": 2, "skip_reading_prefix_cache": True,
}  # fmt: skip


@pytest.mark.parametrize("name", VLLM_ONLY)
def test_parameters_of_vllm_that_are_not_implemented_are_refused_by_name(name):
    with pytest.raises(UsageError, match=f"^SamplingParams has no parameter {name}: .*[^.]\\.$") as caught:
        SamplingParams(temperature=0, **{name: VLLM_ONLY[name]})
    assert caught.value.param == name


def test_parameters_of_vllm_that_are_implemented():
    given = {
        "n": 2, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.5, "temperature": 0.5,
        "top_p": 0.5, "top_k": 5, "min_p": 0.5, "seed": 5, "stop": ("x",), "stop_token_ids": (5,), "ignore_eos": True,
        "max_tokens": 5, "min_tokens": 3, "logprobs": 5, "prompt_logprobs": 5, "skip_special_tokens": False,
        "include_stop_str_in_output": True, "logit_bias": {5: 5.0}, "allowed_token_ids": (5,),
    }  # fmt: skip
    params = SamplingParams(**given)
    assert {name: getattr(params, name) for name in given} == given
    assert replace(params, n=3) == SamplingParams(**given | {"n": 3})
    assert copy.copy(params) == params


def test_none_is_an_empty_sequence_or_mapping():
    params = SamplingParams(stop=None, stop_token_ids=None, allowed_token_ids=None, logit_bias=None)
    assert params == SamplingParams()


def test_values_are_normalised():
    params = SamplingParams(stop="end", stop_token_ids=[3], top_k=-1, logit_bias={5: 1})
    assert (params.stop, params.stop_token_ids, params.top_k, params.logit_bias) == (("end",), (3,), 0, {5: 1})
    assert params == SamplingParams(stop=["end"], stop_token_ids=(3,), logit_bias={5: 1})


def test_a_prompt_of_another_vocabulary_is_refused():
    with pytest.raises(UsageError, match="vocabulary of 4"):
        Sampler(SamplingParams(repetition_penalty=1.1), [4]).sample(torch.zeros(4))


class TestWhatMayCome:
    LOGITS = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])

    def test_stop_tokens_wait_for_the_least_number_of_tokens(self) -> None:
        sampler = Sampler(SamplingParams(temperature=0, min_tokens=2), [])
        assert [sampler.sample(self.LOGITS, None, {0, 1}).token for _ in range(4)] == [2, 2, 0, 0]

    @pytest.mark.parametrize("temperature", [0, 1.5])
    def test_only_allowed_token_ids_come_and_their_scores_are_the_model_s(self, temperature: float) -> None:
        sampler = Sampler(SamplingParams(temperature=temperature, seed=1, allowed_token_ids=(3, 4)), [])
        found = [sampler.sample(self.LOGITS) for _ in range(50)]
        assert {each.token for each in found} == ({3} if temperature == 0 else {3, 4})
        scores = self.LOGITS.log_softmax(-1)
        assert all(each.logprob == float(scores[each.token]) for each in found)

    def test_a_form_holds_too(self) -> None:
        form = torch.tensor([False, False, True, True, False])
        sampler = Sampler(SamplingParams(temperature=0, allowed_token_ids=(0, 3, 4)), [])
        assert sampler.sample(self.LOGITS, form).token == 3
        assert form.tolist() == [False, False, True, True, False]

    @pytest.mark.parametrize(
        ("fields", "form", "stops", "names"),
        [
            ({"allowed_token_ids": (0, 1)}, [2, 3], (), "the form that was asked for and allowed_token_ids leave none"),
            ({"min_tokens": 1}, [2], (2,), "the form that was asked for and min_tokens leave none"),
            ({"min_tokens": 1, "allowed_token_ids": (2,)}, None, (2,), "allowed_token_ids and min_tokens leave none"),
        ],
    )
    def test_where_nothing_is_left_the_reasons_are_named(self, fields, form, stops, names: str) -> None:
        allowed = None if form is None else torch.zeros(5, dtype=torch.bool).index_fill(0, torch.tensor(form), True)
        with pytest.raises(EarthshineError, match=names):
            Sampler(SamplingParams(**fields), []).sample(self.LOGITS, allowed, stops)

    def test_impossible_sampling_parameters_are_refused(self) -> None:
        with pytest.raises(UsageError, match="min_tokens is 5, and at most 4"):
            SamplingParams(min_tokens=5, max_tokens=4)
        with pytest.raises(UsageError, match="vocabulary ends at 4"):
            Sampler(SamplingParams(allowed_token_ids=(5,)), []).sample(self.LOGITS)
