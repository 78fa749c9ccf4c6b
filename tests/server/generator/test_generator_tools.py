"""Tool calls and log-probabilities in replies."""

import pytest

from earthshine.errors import TextError, UsageError
from earthshine.generation.request import Delta, Ended, Format, Scored, ToolChoice
from earthshine.text import (
    Content,
    Reasoning,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)

from ..fake_engine import HOLD, logprob_of
from .conftest import CALLED, END, HELLO, SECTION, SECTION_END, TOOL, call, ended, events, joined, scores, wanted


class TestTools:
    def test_ids_count_over_the_conversation(self, asker):
        calls = call("functions.look:0", '{"a": 1}') + call("functions.peek:7", "{}")
        asker.says(f"</think>Now.{SECTION}{calls}{SECTION_END}<|im_end|>")
        pieces = asker(wanted(CALLED, tools=[TOOL]))
        assert "functions.look:0" in asker.tokenizer.decode(asker.engine.requests[0].tokens)
        starts = [event for event in events(pieces) if isinstance(event, ToolCallStart)]
        assert starts == [
            ToolCallStart(0, "functions.look:1", "look"),
            ToolCallStart(1, "functions.peek:2", "peek"),
        ]
        assert joined(pieces, ToolCallArguments) == '{"a": 1}{}'
        assert [event.index for event in events(pieces) if isinstance(event, ToolCallEnd)] == [0, 1]
        assert ended(pieces).reason == "tool_calls"

    def test_one_within_a_thought_is_found(self, asker):
        asker.says(f"I shall{SECTION}{call('functions.look:0', '{}')}{SECTION_END}<|im_end|>")
        pieces = asker(wanted(HELLO, tools=[TOOL]))
        assert joined(pieces, Reasoning) == "I shall"
        assert joined(pieces) == ""
        assert ended(pieces).reason == "tool_calls"

    def test_a_call_that_is_cut_off_does_not_count_as_tool_calls(self, asker):
        asker.says(f"</think>{SECTION}<|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>{{<|im_end|>")
        pieces = asker(wanted(HELLO, tools=[TOOL]))
        assert not any(isinstance(event, ToolCallEnd) for event in events(pieces))
        assert ended(pieces).reason == "stop"

    def test_one_alone(self, asker):
        engine = asker.says([*asker.ids(f"</think>{SECTION}{call('functions.look:0', '{}')}"), HOLD])
        pieces = asker(wanted(HELLO, tools=[TOOL], parallel_tool_calls=False))
        assert len([event for event in events(pieces) if isinstance(event, ToolCallStart)]) == 1
        assert ended(pieces).reason == "tool_calls"
        assert engine.idle()
        assert engine.cancelled == engine.requests

    @pytest.mark.parametrize(
        "asked",
        [
            wanted(HELLO, tools=[TOOL], tool_choice=ToolChoice("named", "look")),
            wanted(HELLO, tools=[TOOL], tool_choice=ToolChoice("required"), parallel_tool_calls=False),
            wanted(HELLO, tools=[TOOL], parallel_tool_calls=False),
        ],
    )
    def test_no_second_call_is_allowed(self, asker, asked):
        first, second = (call(f"functions.look:{number}", "{}") for number in (0, 1))
        asker.says(f"</think>{SECTION}{first}{SECTION_END}<|im_end|>")
        assert ended(asker(asked)).reason == "tool_calls"
        constraint = asker.engine.requests[0].constraint
        assert constraint is not None
        asker.says([HOLD])
        grammar = asker.replies()._prompts.choices(asked)[0].request.constraint
        assert grammar is not None
        for token in asker.ids(f"</think>{SECTION}{first}"):
            grammar.accept(token)
        with pytest.raises(TextError, match="not one that"):
            grammar.accept(asker.ids(second)[0])

    def test_thoughts_end_at_their_bound(self, asker):
        asker.says("One two</think>Yes.<|im_end|>", "One two three</think>Yes.<|im_end|>")
        most = len(asker.ids("One two"))
        assert joined(asker(wanted(HELLO, thinking_tokens=most))) == "Yes."
        with pytest.raises(TextError, match="not one that"):
            asker(wanted(HELLO, thinking_tokens=most))

    @pytest.mark.parametrize("asked", [wanted(HELLO), wanted(HELLO, tools=[TOOL], tool_choice=ToolChoice("none"))])
    def test_without_tools_markers_are_text(self, asker, asked):
        text = f"{SECTION}{call('functions.look:0', '{}')}{SECTION_END}"
        asker.says(f"</think>{text}<|im_end|>")
        pieces = asker(asked)
        assert joined(pieces) == text
        assert ended(pieces).reason == "stop"
        assert asker.engine.requests[0].tokens == asker.template.encode(asker.tokenizer, HELLO)

    def test_a_call_that_is_required_is_enforced(self, asker):
        asker.says(f"Hm.</think>{SECTION}{call('functions.look:0', '{}')}{SECTION_END}<|im_end|>")
        pieces = asker(wanted(HELLO, tools=[TOOL], tool_choice=ToolChoice("named", "look")))
        assert ended(pieces).reason == "tool_calls"
        constraint = asker.engine.requests[0].constraint
        assert constraint is not None  # the fake passed it every token, and it accepted them all
        with pytest.raises(TextError, match="not among the tools"):
            asker(wanted(HELLO, tools=[TOOL], tool_choice=ToolChoice("named", "peek")))

    def test_its_number_too(self, asker):
        asker.says(f"</think>{SECTION}{call('functions.look:1', '{}')}{SECTION_END}<|im_end|>")
        pieces = asker(wanted(CALLED, tools=[TOOL], tool_choice=ToolChoice("required")))
        assert events(pieces)[0] == ToolCallStart(0, "functions.look:1", "look")

    def test_a_format_is_enforced_after_the_thought(self, asker):
        asker.says("Hm.</think>yes<|im_end|>")
        pieces = asker(wanted(HELLO, format=Format("choice", ["yes", "no"]), n=2))
        assert joined(pieces, choice=1) == "yes"
        first, second = (request.constraint for request in asker.engine.requests)
        assert first is not None
        assert first is not second

    def test_a_tool_without_a_name(self, asker):
        with pytest.raises(UsageError, match="function with a name"):
            asker(wanted(HELLO, tools=[{"type": "function", "function": {"description": "none"}}]))


class TestScores:
    def test_of_the_reply(self, asker):
        asker.says("</think>Hi there<|im_end|>")
        pieces = asker(wanted(HELLO, logprobs=2))
        ids = asker.ids("</think>Hi there")
        assert [score.token for score in scores(pieces)] == ids
        assert [score.logprob for score in scores(pieces)] == [logprob_of(token) for token in ids]
        first = scores(pieces)[1]
        assert first.raw == asker.tokenizer.token_bytes(ids[1])
        following = asker.tokenizer.token_bytes(ids[1] + 1)
        assert first.top == ((ids[1], first.raw, first.logprob), (ids[1] + 1, following, first.logprob - 1))

    def test_of_the_prompt(self, asker):
        ids = asker.ids("Some longer text to be scored")
        asker.says([70, 71, END])
        pieces = asker(wanted(ids, echo=True, logprobs=1, prompt_logprobs=1, max_tokens=2))
        prompt = pieces[1]
        assert prompt.events == [Content("Some longer text to be scored")]
        assert prompt.tokens[0] == Scored(ids[0], asker.tokenizer.token_bytes(ids[0]), None)
        assert [score.token for score in prompt.tokens] == ids
        assert [score.logprob for score in prompt.tokens[1:]] == [logprob_of(token) for token in ids[1:]]
        assert [score.token for score in scores(pieces)[len(ids) :]] == [70, 71]
        assert asker.engine.requests[0].params.prompt_logprobs == 1

    def test_of_a_prompt_of_one_token(self, asker):
        asker.says([70])
        pieces = asker(wanted([65], echo=True, prompt_logprobs=0, max_tokens=1))
        raw = asker.tokenizer.token_bytes(65)
        assert pieces[1] == Delta(0, [Content(raw.decode())], [Scored(65, raw, None)])

    def test_the_prompt_alone(self, asker):
        engine = asker.says([70, HOLD])
        pieces = asker(wanted("Some text", echo=True, prompt_logprobs=0, prompt_only=True, max_tokens=1))
        assert joined(pieces) == "Some text"
        assert [score.token for score in scores(pieces)] == asker.ids("Some text")
        assert pieces[-1] == Ended(0, "length", 0, 0)
        assert engine.idle()

    def test_echo_without_scores(self, asker):
        asker.says("after")
        pieces = asker(wanted("before ", echo=True, stop=["before"]))
        assert joined(pieces) == "before after"
        assert asker.engine.requests[0].params.prompt_logprobs is None
        assert scores(pieces) == []

    def test_one_token_more_is_scored_even_where_it_ends_the_reply(self, asker):
        asker.says([END])
        pieces = asker(wanted("Some text", echo=True, logprobs=1, prompt_logprobs=1, max_tokens=1))
        assert [score.token for score in scores(pieces)] == [*asker.ids("Some text"), END]
        assert joined(pieces) == "Some text"
        assert pieces[-1] == Ended(0, "stop", 1, 0)

    def test_too_many(self, asker):
        prompt = [65] * 4000
        with pytest.raises(UsageError, match="one request may ask for"):
            asker(*[wanted(prompt, echo=True, prompt_logprobs=20, prompt_only=True, max_tokens=1)] * 7)
        assert asker.engine.requests == []
