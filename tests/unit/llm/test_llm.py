"""LLM over gleam: the tokens of a session, outputs in vLLM's form, streams, and refusals."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import earthshine
from earthshine import LLM, CompletionOutput, SamplingParams
from earthshine.engine import Finished, TokenEvent, load_model
from earthshine.errors import ContextError, OverloadError, SourceError, TextError, UsageError
from earthshine.text import load_template, load_tokenizer

GLEAM = Path(earthshine.__file__).parent / "gleam"
GREEDY = SamplingParams(temperature=0, max_tokens=40)
QUESTIONS = ["list all files", "list all git branches", "show disk usage", "extract a gzipped tar archive"]


def conversation(question):
    return [{"role": "user", "content": question}]


@pytest.fixture(scope="module")
def llm():
    with LLM(context=512, batch=4) as made:
        yield made


@pytest.fixture(scope="module")
def alone():
    """The tokens of a greedy answer, computed by a session without anything beside it."""
    model, tokenizer, template = load_model(GLEAM), load_tokenizer(GLEAM), load_template(GLEAM)
    session = model.session(512)

    def answer(question):
        session.sync(template.encode(tokenizer, conversation(question), thinking=False))
        found = []
        for event in session.generate(GREEDY):
            if isinstance(event, TokenEvent | Finished) and event.token is not None:
                found.append(event.token)
        return found

    yield answer
    session.close()
    model.close()


def test_import_loads_no_torch():
    code = "import sys, earthshine; earthshine.__version__; dir(earthshine); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        earthshine.Nothing  # noqa: B018


class TestChat:
    def test_batch_gives_the_tokens_of_each_conversation_alone(self, llm, alone):
        outputs = llm.chat([conversation(question) for question in QUESTIONS], GREEDY, thinking=False)
        assert [output.outputs[0].token_ids for output in outputs] == list(map(alone, QUESTIONS))
        assert all(output.finished and output.outputs[0].finish_reason == "stop" for output in outputs)
        assert outputs[0].outputs[0].text == "ls -la"

    def test_one_conversation_gives_one_output(self, llm):
        (output,) = llm.chat(conversation(QUESTIONS[0]), GREEDY, thinking=False)
        assert output.prompt is None
        assert output.prompt_token_ids == load_template(GLEAM).encode(
            llm.get_tokenizer(), conversation(QUESTIONS[0]), thinking=False
        )
        assert output.outputs[0].cumulative_logprob < 0

    def test_a_lone_thought_is_not_given_as_text(self, llm):
        tokenizer = llm.get_tokenizer()
        (letter,), end = tokenizer.encode("a", False), tokenizer.special_id("<|im_end|>")
        only = SamplingParams(
            temperature=0, min_tokens=3, max_tokens=20, allowed_token_ids=[letter, end], logit_bias={end: 100}
        )
        (output,) = llm.chat(conversation(QUESTIONS[0]), only)
        (answer,) = output.outputs
        assert (answer.reasoning, answer.text, answer.finish_reason) == ("aaa", "", "stop")

    def test_final_message_is_continued(self, llm):
        begun = [*conversation(QUESTIONS[0]), {"role": "assistant", "content": "ls"}]
        (output,) = llm.chat(begun, GREEDY, thinking=False, continue_final_message=True)
        assert llm.get_tokenizer().decode(output.prompt_token_ids).endswith("ls")

    def test_required_tool_call_is_parsed(self, llm):
        tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
        params = SamplingParams(temperature=0, max_tokens=80)
        (output,) = llm.chat(conversation("look"), params, tools=[tool], tool_choice="required", thinking=False)
        (call, *_) = output.outputs[0].tool_calls
        assert (call.name, call.id) == ("look", "functions.look:0")
        assert output.outputs[0].text == ""

    @pytest.mark.parametrize(
        ("messages", "options", "message"),
        [
            ("Hello", {}, "A conversation is a list of messages"),
            ({"role": "user"}, {}, "messages must be a list"),
            ([["Hello"]], {}, "A conversation is a list of messages"),
            ([5], {}, "A conversation is a list of messages"),
            ([{"role": "user", "content": "a"}, 5], {}, "A conversation is a list of messages"),
            (conversation("a"), {"tools": 5}, "tools must be a list of objects, not 5"),
            (conversation("a"), {"tools": False}, "tools must be a list of objects, not false"),
            (conversation("a"), {"tools": 5, "tool_choice": "look"}, "tools must be a list of objects"),
            (conversation("a"), {"tool_choice": "required"}, "needs tools"),
            (conversation("a"), {"tool_choice": "look"}, "There is no tool 'look' to choose; no tools are given"),
            (conversation("a"), {"tool_choice": "look", "tools": [5, {"function": None}]}, "There is no tool 'look'"),
            (conversation("a"), {"tool_choice": {"type": "function"}}, "tool_choice must be"),
            (conversation("a"), {"tool_choice": None}, "tool_choice must be"),
            (conversation("a"), {"thinking": "no"}, "thinking must be True or False"),
            (conversation("a"), {"continue_final_message": "no"}, "continue_final_message must be True or False"),
            (conversation("a"), {"sampling_params": {"max_tokens": 3}}, "sampling_params must be"),
            ([conversation("a")] * 2, {"sampling_params": [GREEDY]}, "2 prompts and 1 sampling_params"),
        ],
    )
    def test_invalid_arguments_are_refused(self, llm, messages, options, message):
        with pytest.raises(UsageError, match=message):
            llm.chat(messages, **options)


class TestGenerate:
    def test_texts_and_token_ids_are_completed_in_order(self, llm):
        ids = llm.get_tokenizer().encode("list all files", False)
        forms = ["list all files", ids, {"prompt": "list all files"}, {"prompt_token_ids": ids}]
        outputs = llm.generate(forms, GREEDY)
        assert [output.prompt for output in outputs] == ["list all files", None, "list all files", None]
        assert {tuple(output.prompt_token_ids) for output in outputs} == {tuple(ids)}
        assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 1
        assert llm.generate(ids, GREEDY)[0].outputs == outputs[0].outputs
        assert llm.generate([], GREEDY) == []

    def test_more_prompts_than_the_batch_each_with_its_own_params(self, llm):
        params = [SamplingParams(temperature=0, max_tokens=1 + at % 3, ignore_eos=True) for at in range(12)]
        outputs = llm.generate(["list"] * 12, params)
        assert [len(output.outputs[0].token_ids) for output in outputs] == [1 + at % 3 for at in range(12)]
        assert {output.outputs[0].finish_reason for output in outputs} == {"length"}

    def test_choices_have_seeds_of_their_own(self, llm):
        params = SamplingParams(n=3, seed=5, max_tokens=6, ignore_eos=True)
        (first,), (second,) = llm.generate("git", params), llm.generate("git", params)
        assert [output.index for output in first.outputs] == [0, 1, 2]
        assert first.outputs == second.outputs
        assert len({tuple(output.token_ids) for output in first.outputs}) > 1

    def test_logprobs_are_those_of_each_token(self, llm):
        params = SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=1, ignore_eos=True)
        (output,) = llm.generate("list all files", params)
        (choice,) = output.outputs
        assert len(choice.logprobs) == len(choice.token_ids) == 4
        assert all(found[token].rank == 1 for token, found in zip(choice.token_ids, choice.logprobs, strict=True))
        total = sum(found[token].logprob for token, found in zip(choice.token_ids, choice.logprobs, strict=True))
        assert choice.cumulative_logprob == pytest.approx(total)
        assert output.prompt_logprobs[0] is None
        following = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
        assert all(token in found for token, found in following)

    def test_stop_texts_and_stop_tokens_end_a_choice(self, llm):
        (plain,) = llm.generate("list all files", SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
        tokens, text = plain.outputs[0].token_ids, plain.outputs[0].text
        word = text[len(text) // 2 :][:2]
        (stopped,) = llm.generate(
            "list all files", SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, stop=word)
        )
        assert stopped.outputs[0].text == text[: text.index(word)]
        assert (stopped.outputs[0].finish_reason, stopped.outputs[0].stop_reason) == ("stop", word)
        (kept,) = llm.generate(
            "list all files",
            SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, stop=[word], include_stop_str_in_output=True),
        )
        assert kept.outputs[0].text == text[: text.index(word)] + word
        (ended,) = llm.generate("list all files", SamplingParams(temperature=0, stop_token_ids=[tokens[3]]))
        assert ended.outputs[0].token_ids == tokens[: tokens.index(tokens[3]) + 1]
        assert (ended.outputs[0].finish_reason, ended.outputs[0].stop_reason) == ("stop", tokens[3])

    def test_a_prefix_is_found_again(self, llm):
        ids = list(range(100, 300))
        llm.generate(ids, SamplingParams(max_tokens=1))
        assert llm.generate(ids, SamplingParams(max_tokens=1))[0].num_cached_tokens == 192

    def test_defaults_are_the_models(self, llm):
        assert llm.get_default_sampling_params() == SamplingParams(temperature=0)
        asked = SamplingParams(temperature=0, max_tokens=400)
        assert (
            llm.generate("list all files")[0]
            .outputs[0]
            .text.startswith(llm.generate("list all files", asked)[0].outputs[0].text[:20])
        )

    @pytest.mark.parametrize("prompts", [3, [None], [["a"]], [[True, 1]], [1.5], b"a", [b"a"]])
    def test_prompts_of_other_types_are_refused(self, llm, prompts):
        with pytest.raises(UsageError, match="must be a text"):
            llm.generate(prompts, GREEDY)

    @pytest.mark.parametrize(
        ("prompt", "keys"), [({"a": 1, "b": 2}, "'a', 'b'"), ({"prompt": None}, "'prompt'"), ({}, "no keys")]
    )
    def test_a_dict_without_a_prompt_is_refused_by_its_keys(self, llm, prompt, keys):
        with pytest.raises(UsageError, match=f"must have prompt or prompt_token_ids; this one has {keys}"):
            llm.generate([prompt], GREEDY)

    def test_half_of_a_surrogate_pair_is_refused_by_its_place(self, llm):
        """It would become another character."""
        half, stop = "a\ud83d", SamplingParams(stop=["\udc00"])
        messages = conversation([{"type": "text", "text": "fine"}, {"type": "text", "text": half}])
        tools = [{"type": "function", "function": {"name": "f", "parameters": {half: 1}}}]
        for ask, place in (
            (lambda: llm.generate(["fine", half]), "A prompt"),
            (lambda: llm.generate({"prompt": half}), "A prompt"),
            (lambda: llm.stream("fine", stop), r"stop\[0\]"),
            (lambda: llm.chat(messages), r"messages\[0\]\['content'\]\[1\]\['text'\]"),
            (lambda: llm.chat(conversation("fine"), tools=tools), r"A key of tools\[0\]\['function'\]\['parameters'\]"),
            (lambda: llm.generate("fine", structured_outputs={"json": '{"title": "\ud83d"}'}), "The schema"),
        ):
            with pytest.raises(TextError, match=f"^{place} is not UTF-8 text: character [0-9]+ can't be encoded"):
                ask()

    def test_parts_of_a_prompt_that_no_model_reads_are_refused(self, llm):
        with pytest.raises(UsageError, match="multi_modal_data can't be read"):
            llm.generate({"prompt": "list", "multi_modal_data": {"image": "a"}}, GREEDY)
        empty = {"prompt": "list", "prompt_token_ids": None, "multi_modal_data": None}
        assert llm.generate(empty, GREEDY)[0].outputs == llm.generate("list", GREEDY)[0].outputs

    @pytest.mark.parametrize("params", [5, "a", [5], [GREEDY, 5], SamplingParams, {"max_tokens": 3}], ids=str)
    def test_sampling_params_of_other_types_are_refused(self, llm, params):
        with pytest.raises(UsageError, match="sampling_params must be SamplingParams"):
            llm.generate(["list", "git"], params)

    def test_invalid_prompt_is_refused_before_any_is_computed(self, llm):
        before = llm._engine.gauges().prompt_tokens
        for prompts, error in (
            (["list", ""], UsageError),
            (["list", [5] * 600], ContextError),
            ([[1 << 40]], UsageError),
        ):
            with pytest.raises(error):
                llm.generate(prompts, GREEDY)
            with pytest.raises(error):
                llm.stream(prompts, GREEDY)  # not only once it is advanced
        assert llm._engine.gauges().prompt_tokens == before


_SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


class TestStructuredOutputs:
    @pytest.mark.parametrize(
        ("form", "pattern"),
        [
            ({"choice": ["north", "south"]}, "north|south"),
            ({"regex": "[0-9]{3}"}, "[0-9]{3}"),
            ({"json": _SCHEMA}, r'\{\s*"a"\s*:\s*[12]\s*\}'),
            ({"json": json.dumps(_SCHEMA)}, r'\{\s*"a"\s*:\s*[12]\s*\}'),
            ({"grammar": 'start: "left" | "right"'}, "left|right"),
        ],
    )
    def test_answers_have_the_form(self, llm, form, pattern):
        params = SamplingParams(n=2, seed=1, max_tokens=60)
        outputs = llm.generate("list all files", params, structured_outputs=form)
        outputs += llm.chat(conversation("list"), params, structured_outputs=form, thinking=False)
        for choice in (choice for output in outputs for choice in output.outputs):
            assert re.fullmatch(pattern, choice.text), choice
            assert choice.finish_reason == "stop"

    @pytest.mark.parametrize(
        "form",
        [{}, {"json": 3}, {"regex": 3}, {"choice": []}, {"choice": "ab"}, {"regex": "a", "json": {}}, {"shape": "a"},
         {"json": "{"}, {"json_object": False}, {"regex": "("}, {"grammar": "start: ("},
         3, "json", [("regex", "a")], {"json": {1: 2}}, {"json": {"properties": {None: {}}}}],
        ids=str,
    )  # fmt: skip
    def test_invalid_forms_are_refused(self, llm, form):
        with pytest.raises((UsageError, TextError)):
            llm.generate("list", GREEDY, structured_outputs=form)


class TestStreams:
    def test_pieces_add_up_to_the_whole(self, llm):
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1, n=2)
        prompts = ["list all files", "git", "show"]
        whole = llm.generate(prompts, params)
        joined: dict[str, dict[int, CompletionOutput]] = {}
        for piece in llm.stream(prompts, params):
            outputs = joined.setdefault(piece.request_id, {})
            for new in piece.outputs:
                sofar = outputs.setdefault(new.index, CompletionOutput(new.index, logprobs=[]))
                assert not sofar.finished
                sofar.text += new.text
                sofar.token_ids += new.token_ids
                sofar.logprobs += new.logprobs
                sofar.finish_reason = new.finish_reason
                sofar.cumulative_logprob += new.cumulative_logprob
        found = [
            [outputs[at] for at in sorted(outputs)] for _, outputs in sorted(joined.items(), key=lambda e: int(e[0]))
        ]
        for ours, theirs in zip(found, whole, strict=True):
            for one, other in zip(ours, theirs.outputs, strict=True):
                assert (one.text, one.token_ids, one.logprobs) == (other.text, other.token_ids, other.logprobs)
                assert one.finish_reason == other.finish_reason == "length"

    def test_abandoned_stream_cancels_its_requests(self, llm):
        stream = llm.stream(["list"] * 3, SamplingParams(ignore_eos=True))
        next(stream)
        stream.close()
        llm.generate("git", SamplingParams(max_tokens=1))
        while llm._engine.gauges().running + llm._engine.gauges().waiting:
            pass
        assert llm._engine.gauges().finished["cancelled"] >= 3

    def test_chat_streams(self, llm):
        pieces = list(llm.stream_chat(conversation(QUESTIONS[0]), GREEDY, thinking=False))
        assert "".join(piece.outputs[0].text for piece in pieces) == "ls -la"
        assert [piece.finished for piece in pieces] == [False] * (len(pieces) - 1) + [True]


class TestLoading:
    def test_closed_llm_refuses(self):
        made = LLM(context=128, batch=1)
        stream = made.stream("list", SamplingParams(ignore_eos=True))
        next(stream)
        made.close()
        made.close()
        with pytest.raises(OverloadError, match="closed"):
            list(stream)
        with pytest.raises(UsageError, match="closed"):
            made.generate("list")

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"model": "/nowhere/at/all"}, SourceError, "neither a folder here"),
            ({"memory": "lots"}, UsageError, "is not a size"),
            ({"memory": "1MiB"}, UsageError, "^memory must be at least [0-9]+MiB for this model"),
            ({"plan": "plan.json", "context": 128}, UsageError, "leave out the other options"),
            ({"plan": 5}, UsageError, "plan must be a text or a path, not 5"),
            ({"model": None}, UsageError, "model must be a text or a path, not null"),
            ({"memory": [1]}, UsageError, "memory must be a size"),
            ({"memory": 2.5e9}, UsageError, "memory must be a size"),
            (
                {"memory": 16},
                UsageError,
                '^16 is a size in bytes; if 16GiB was meant, write 16GiB, from Python "16GiB"',
            ),
            ({"memory": 24000}, UsageError, "if 24000MiB was meant"),
            ({"memory": -1}, UsageError, "memory must be 0 or more bytes"),
            ({"memory": 10**400}, UsageError, "memory must be .* less than 8 EiB, not an integer of more than 64 bits"),
            ({"context": "4096"}, UsageError, "context must be a whole number, not '4096'"),
            ({"context": 1.5}, UsageError, "context must be a whole number"),
            ({"context": True}, UsageError, "context must be a whole number"),
            ({"batch": None}, UsageError, "batch must be a whole number"),
            ({"batch": 1.5}, UsageError, "batch must be a whole number"),
            ({"threads": "2"}, UsageError, "threads must be a whole number"),
            ({"threads": 0}, UsageError, "^threads must be between 1 and 512, not 0"),
            ({"trunk": "int8", "dtype": "fp32"}, UsageError, "^dtype must be bf16 with an int8 trunk"),
            ({"dtype": "bfloat16"}, UsageError, "bf16"),
            ({"max_model_len": 1024}, UsageError, "LLM has no option max_model_len: use context\\."),
            ({"gpu_memory_utilization": 0.9}, UsageError, "no option gpu_memory_utilization: use memory"),
            ({"tensor_parallel_size": 1}, UsageError, "no option tensor_parallel_size: a model is not split"),
            ({"quantization": "fp8"}, UsageError, "no option quantization: the format is the checkpoint's own"),
            ({"trust_remote_code": True}, UsageError, "no option trust_remote_code: a model's code is never run"),
            ({"seed": 0}, UsageError, "no option seed: give seed to SamplingParams"),
            ({"unheard_of": 0}, UsageError, "unheard_of: it has model, memory, context, batch, threads, trunk, dtype"),
        ],
    )
    def test_impossible_options_are_refused(self, options, error, message):
        with pytest.raises(error, match=message):
            LLM(**options)
