"""Turns to pieces, with an engine that follows a script and gleam's real tokenizer and template."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

import earthshine
from earthshine.engine import Failed, Finished
from earthshine.errors import EarthshineError, OverloadError, TextError, UsageError
from earthshine.server import replies as replies_module
from earthshine.server.api import Refused
from earthshine.server.prompts import Prompts
from earthshine.server.replies import Replies
from earthshine.server.turn import Ended, Format, Opened, Said, Scored, ToolChoice, Turn
from earthshine.text import (
    ChatTemplate,
    Content,
    Reasoning,
    Tokenizer,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    load_template,
    load_tokenizer,
)

from .fake_engine import HOLD, FakeEngine, logprob_of

GLEAM = Path(earthshine.__file__).parent / "gleam"
END, EOS = 5890, 5889  # <|im_end|>, [EOS]
VOCAB, CONTEXT = 6144, 4096
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALLED = [
    *HELLO,
    {"role": "assistant", "tool_calls": [{"id": "call_abc", "function": {"name": "look", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "call_abc", "content": "nothing"},
]
SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"


def call(text: str, arguments: str) -> str:
    return f"<|tool_call_begin|>{text}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(GLEAM)


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return load_template(GLEAM)


class Asker:
    """Asks Replies with an engine that answers as told; all that was started is ended with the test."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.engine = FakeEngine(stop_tokens=(END,))
        self.engines = [self.engine]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, True)

    def says(self, *answers: Any, **options: Any) -> FakeEngine:
        """The engine's answers: texts with control tokens, or lists of events."""
        scripts = [self.ids(answer) if isinstance(answer, str) else answer for answer in answers]
        self.engine = FakeEngine(scripts, stop_tokens=(END,), **options)
        self.engines.append(self.engine)
        return self.engine

    def replies(self, **changed: Any) -> Replies:
        facts = {"vocab_size": VOCAB, "stop_tokens": (END,), "context_tokens": CONTEXT} | changed
        return Replies(
            self.engine, self.tokenizer, Prompts(self.tokenizer, self.template, {"temperature": 0.0}, **facts)
        )

    def with_replies(self, work: Callable[[Replies], Awaitable[Any]], **changed: Any) -> Any:
        async def run() -> Any:
            replies = self.replies(**changed)
            try:
                return await work(replies)
            finally:
                replies.close()

        return asyncio.run(run())

    def __call__(self, *turns: Turn, user: str = "", **changed: Any) -> list[Any]:
        async def work(replies: Replies) -> list[Any]:
            return [piece async for piece in replies.answer(turns, user)]

        return self.with_replies(work, **changed)


@pytest.fixture
def asker(tokenizer: Tokenizer, template: ChatTemplate) -> Iterator[Asker]:
    asker = Asker(tokenizer, template)
    yield asker
    for engine in asker.engines:
        engine.close()


def joined(pieces: list[Any], kind: type = Content, choice: int = 0) -> str:
    said = [piece for piece in pieces if isinstance(piece, Said) and piece.choice == choice]
    return "".join(event.text for piece in said for event in piece.events if isinstance(event, kind))


def events(pieces: list[Any]) -> list[Any]:
    """All events, arguments joined."""
    return [event for piece in pieces if isinstance(piece, Said) for event in piece.events]


def ended(pieces: list[Any], choice: int = 0) -> Ended:
    (last,) = [piece for piece in pieces if isinstance(piece, Ended) and piece.choice == choice]
    return last


def scores(pieces: list[Any]) -> list[Scored]:
    return [score for piece in pieces if isinstance(piece, Said) for score in piece.tokens]


class TestAConversation:
    def test_a_thought_and_an_answer(self, asker):
        asker.says("A thought.</think>An answer.<|im_end|>never", reused=7)
        pieces = asker(Turn(HELLO))
        prompt = asker.template.encode(asker.tokenizer, HELLO)
        assert list(asker.engine.requests[0].tokens) == prompt
        assert pieces[0] == Opened(len(prompt), 7)
        assert joined(pieces, Reasoning) == "A thought."
        assert joined(pieces) == "An answer."
        thought, answer = len(asker.ids("A thought.</think>")), len(asker.ids("An answer.<|im_end|>"))
        assert pieces[-1] == Ended(0, "stop", thought + answer, thought)
        assert not any(piece.tokens for piece in pieces if isinstance(piece, Said))

    def test_without_thinking_all_is_content(self, asker):
        asker.says("An answer.<|im_end|>")
        pieces = asker(Turn(HELLO, thinking=False))
        assert joined(pieces) == "An answer."
        assert ended(pieces).reasoning_tokens == 0

    def test_a_lone_thought_is_given_as_content_too(self, asker):
        asker.says("Only a thought.<|im_end|>")
        pieces = asker(Turn(HELLO))
        assert joined(pieces, Reasoning) == joined(pieces) == "Only a thought."
        assert ended(pieces).reason == "stop"

    def test_but_not_where_the_thought_was_cut(self, asker):
        asker.says("Only a long thought.<|im_end|>")
        pieces = asker(Turn(HELLO, sampling={"max_tokens": 2}))
        assert joined(pieces, Reasoning)
        assert joined(pieces) == ""
        assert ended(pieces).reason == "length"

    def test_the_defaults_are_the_model_s_own_and_what_is_given_counts(self, asker):
        asker.says("x<|im_end|>")
        asker(Turn(HELLO, sampling={"top_p": 0.5}))
        params = asker.engine.requests[0].params
        assert (params.temperature, params.top_p, params.logprobs) == (0.0, 0.5, None)

    def test_max_tokens_is_cut_to_the_room(self, asker):
        n_prompt = len(asker.template.encode(asker.tokenizer, HELLO))
        asker.says([100] * 50)
        pieces = asker(Turn(HELLO, sampling={"max_tokens": 1000}), context_tokens=n_prompt + 5)
        assert asker.engine.requests[0].params.max_tokens == 5
        assert (ended(pieces).reason, ended(pieces).completion_tokens) == ("context", 5)
        pieces = asker(Turn(HELLO, sampling={"max_tokens": 5}), context_tokens=n_prompt + 5)
        assert ended(pieces).reason == "length"

    def test_choices_have_seeds_and_numbers_of_their_own(self, asker):
        asker.says("</think>one<|im_end|>", "</think>two<|im_end|>", "</think>three<|im_end|>", reused=3)
        pieces = asker(Turn(HELLO, n=3, sampling={"seed": (1 << 63) - 2}, priority=4))
        assert [joined(pieces, choice=i) for i in range(3)] == ["one", "two", "three"]
        assert [request.params.seed for request in asker.engine.requests] == [(1 << 63) - 2, (1 << 63) - 1, -(1 << 63)]
        assert {request.priority for request in asker.engine.requests} == {4}
        assert [piece for piece in pieces if isinstance(piece, Opened)] == pieces[:1]

    def test_choices_of_several_turns_are_counted_through(self, asker):
        asker.says([65], [66], [67], [68])
        pieces = asker(Turn("a", n=2), Turn("b c d", n=2))
        texts = [joined(pieces, choice=i) for i in range(4)]
        assert texts == [asker.tokenizer.decode([token]) for token in (65, 66, 67, 68)]
        assert sorted(p.prompt_tokens for p in pieces if isinstance(p, Opened)) == sorted(
            len(asker.ids(text)) for text in ("a", "b c d")
        )

    def test_a_half_character_at_the_end(self, asker):
        token = next(t for t in range(5888) if asker.tokenizer.token_bytes(t) == "é".encode()[:1])
        asker.says([asker.ids("</think>")[0], token, END])
        assert joined(asker(Turn(HELLO))) == "�"

    def test_a_token_without_text_adds_none(self, asker):
        asker.says([*asker.ids("</think>a"), 6500, *asker.ids("b"), END])
        pieces = asker(Turn(HELLO, logprobs=0), vocab_size=7000)
        assert joined(pieces) == "ab"
        assert [score.raw for score in scores(pieces)][-2:] == [b"", b"b"]


class TestStopStrings:
    def test_over_several_tokens(self, asker):
        asker.says("</think>one two three four five<|im_end|>")
        pieces = asker(Turn(HELLO, stop=["wo thr"]))
        assert joined(pieces) == "one t"
        assert (ended(pieces).reason, ended(pieces).stop_text) == ("stop", "wo thr")
        assert asker.engine.idle()

    def test_the_engine_is_told_to_end(self, asker):
        engine = asker.says([*asker.ids("</think>one two"), HOLD, END])
        assert joined(asker(Turn(HELLO, stop=["two"]))) == "one "
        assert engine.idle()
        assert engine.cancelled == engine.requests

    def test_kept_if_wanted(self, asker):
        asker.says("</think>one two three<|im_end|>")
        pieces = asker(Turn(HELLO, stop=["two"], keep_stop=True))
        assert joined(pieces) == "one two"
        assert ended(pieces).stop_text == "two"

    def test_begun_and_not_met(self, asker):
        asker.says("</think>one tw<|im_end|>")
        pieces = asker(Turn(HELLO, stop=["two"]))
        assert joined(pieces) == "one tw"
        assert (ended(pieces).reason, ended(pieces).stop_text) == ("stop", None)

    def test_neither_thoughts_nor_calls_stop(self, asker):
        text = f"STOP</think>a{SECTION}{call('functions.look:0', '{}STOP')}{SECTION_END}b<|im_end|>"
        asker.says(text.replace("{}STOP", '{"at": "STOP"}'))
        pieces = asker(Turn(HELLO, tools=[TOOL], stop=["STOP", "ab"]))
        assert joined(pieces, Reasoning) == "STOP"
        assert joined(pieces, ToolCallArguments) == '{"at": "STOP"}'
        assert joined(pieces) == "ab"  # a call stands between the two letters
        assert ended(pieces).reason == "tool_calls"

    def test_scores_of_tokens_within_one_are_not_told(self, asker):
        asker.says("</think>one two three four<|im_end|>")
        pieces = asker(Turn(HELLO, stop=[" two three"], logprobs=0))
        told = b"".join(score.raw for score in scores(pieces))
        assert told == b"</think>one"

    def test_the_score_of_a_token_that_is_told_in_part_is_told(self, asker):
        ids = [*asker.ids("</think>one"), next(t for t in range(5888) if asker.tokenizer.token_bytes(t) == b" two")]
        asker.says([*ids, END])
        pieces = asker(Turn(HELLO, stop=["wo"], logprobs=0))
        assert joined(pieces) == "one t"
        assert [score.token for score in scores(pieces)] == ids

    def test_what_the_same_token_settles_after_one_is_not_told(self, asker):
        asker.says(f"</think>{SECTION}before STOP{call('functions.look:0', '{}')}{SECTION_END}<|im_end|>")
        pieces = asker(Turn(HELLO, tools=[TOOL], stop=["STOP"]))
        assert events(pieces) == [Content("before ")]
        assert (ended(pieces).reason, ended(pieces).stop_text) == ("stop", "STOP")

    def test_what_befalls_the_engine_after_one_is_not_told(self, asker):
        engine = asker.says([*asker.ids("</think>one two three"), Failed(EarthshineError("It broke."))])

        async def work(replies: Replies) -> list[Any]:
            pieces = replies.answer([Turn(HELLO, stop=["two"])], "")
            first = await anext(pieces)
            await asyncio.to_thread(engine.idle)
            return [first, *[piece async for piece in pieces]]

        pieces = asker.with_replies(work)
        assert joined(pieces) == "one "
        assert ended(pieces).reason == "stop"

    def test_scores_wait_with_their_text(self, asker):
        asker.says("</think>one two<|im_end|>")
        pieces = asker(Turn(HELLO, stop=[" two three"], logprobs=0))
        assert b"".join(score.raw for score in scores(pieces)) == b"</think>one two"

    @pytest.mark.parametrize("stop", [[""], ["x"] * 65])
    def test_refused(self, asker, stop):
        with pytest.raises(UsageError, match="Stop strings"):
            asker(Turn(HELLO, stop=stop))


class TestTools:
    def test_ids_count_over_the_conversation(self, asker):
        calls = call("functions.look:0", '{"a": 1}') + call("functions.peek:7", "{}")
        asker.says(f"</think>Now.{SECTION}{calls}{SECTION_END}<|im_end|>")
        pieces = asker(Turn(CALLED, tools=[TOOL]))
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
        pieces = asker(Turn(HELLO, tools=[TOOL]))
        assert joined(pieces, Reasoning) == "I shall"
        assert joined(pieces) == ""
        assert ended(pieces).reason == "tool_calls"

    def test_one_that_is_cut_off_is_no_reason(self, asker):
        asker.says(f"</think>{SECTION}<|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>{{<|im_end|>")
        pieces = asker(Turn(HELLO, tools=[TOOL]))
        assert not any(isinstance(event, ToolCallEnd) for event in events(pieces))
        assert ended(pieces).reason == "stop"

    def test_one_alone(self, asker):
        engine = asker.says([*asker.ids(f"</think>{SECTION}{call('functions.look:0', '{}')}"), HOLD])
        pieces = asker(Turn(HELLO, tools=[TOOL], parallel_calls=False))
        assert len([event for event in events(pieces) if isinstance(event, ToolCallStart)]) == 1
        assert ended(pieces).reason == "tool_calls"
        assert engine.idle()
        assert engine.cancelled == engine.requests

    @pytest.mark.parametrize(
        "turn",
        [
            Turn(HELLO, tools=[TOOL], tool_choice=ToolChoice("named", "look")),
            Turn(HELLO, tools=[TOOL], tool_choice=ToolChoice("required"), parallel_calls=False),
            Turn(HELLO, tools=[TOOL], parallel_calls=False),
        ],
    )
    def test_no_second_call_is_allowed(self, asker, turn):
        first, second = (call(f"functions.look:{number}", "{}") for number in (0, 1))
        asker.says(f"</think>{SECTION}{first}{SECTION_END}<|im_end|>")
        assert ended(asker(turn)).reason == "tool_calls"
        constraint = asker.engine.requests[0].constraint
        assert constraint is not None
        asker.says([HOLD])
        grammar = asker.replies()._prompts.prepare(turn).constraint()
        assert grammar is not None
        for token in asker.ids(f"</think>{SECTION}{first}"):
            grammar.accept(token)
        with pytest.raises(TextError, match="not one that"):
            grammar.accept(asker.ids(second)[0])

    def test_thoughts_end_at_their_bound(self, asker):
        asker.says("One two</think>Yes.<|im_end|>", "One two three</think>Yes.<|im_end|>")
        most = len(asker.ids("One two"))
        assert joined(asker(Turn(HELLO, thought_tokens=most))) == "Yes."
        with pytest.raises(TextError, match="not one that"):
            asker(Turn(HELLO, thought_tokens=most))

    @pytest.mark.parametrize("turn", [Turn(HELLO), Turn(HELLO, tools=[TOOL], tool_choice=ToolChoice("none"))])
    def test_without_tools_markers_are_text(self, asker, turn):
        text = f"{SECTION}{call('functions.look:0', '{}')}{SECTION_END}"
        asker.says(f"</think>{text}<|im_end|>")
        pieces = asker(turn)
        assert joined(pieces) == text
        assert ended(pieces).reason == "stop"
        assert asker.engine.requests[0].tokens == asker.template.encode(asker.tokenizer, HELLO)

    def test_a_call_that_is_required_is_enforced(self, asker):
        asker.says(f"Hm.</think>{SECTION}{call('functions.look:0', '{}')}{SECTION_END}<|im_end|>")
        pieces = asker(Turn(HELLO, tools=[TOOL], tool_choice=ToolChoice("named", "look")))
        assert ended(pieces).reason == "tool_calls"
        constraint = asker.engine.requests[0].constraint
        assert constraint is not None  # the fake told it every token, and it took them all
        with pytest.raises(TextError, match="not among the tools"):
            asker(Turn(HELLO, tools=[TOOL], tool_choice=ToolChoice("named", "peek")))

    def test_its_number_too(self, asker):
        asker.says(f"</think>{SECTION}{call('functions.look:1', '{}')}{SECTION_END}<|im_end|>")
        pieces = asker(Turn(CALLED, tools=[TOOL], tool_choice=ToolChoice("required")))
        assert events(pieces)[0] == ToolCallStart(0, "functions.look:1", "look")

    def test_a_format_is_enforced_after_the_thought(self, asker):
        asker.says("Hm.</think>yes<|im_end|>")
        pieces = asker(Turn(HELLO, format=Format("choice", ["yes", "no"]), n=2))
        assert joined(pieces, choice=1) == "yes"
        first, second = (request.constraint for request in asker.engine.requests)
        assert first is not None
        assert first is not second

    def test_a_tool_without_a_name(self, asker):
        with pytest.raises(Refused, match="function with a name"):
            asker(Turn(HELLO, tools=[{"type": "function", "function": {"description": "none"}}]))


class TestScores:
    def test_of_the_reply(self, asker):
        asker.says("</think>Hi there<|im_end|>")
        pieces = asker(Turn(HELLO, logprobs=2))
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
        pieces = asker(Turn(ids, echo=True, logprobs=1, prompt_logprobs=1, sampling={"max_tokens": 2}))
        prompt = pieces[1]
        assert prompt.events == [Content("Some longer text to be scored")]
        assert prompt.tokens[0] == Scored(ids[0], asker.tokenizer.token_bytes(ids[0]), None)
        assert [score.token for score in prompt.tokens] == ids
        assert [score.logprob for score in prompt.tokens[1:]] == [logprob_of(token) for token in ids[1:]]
        assert [score.token for score in scores(pieces)[len(ids) :]] == [70, 71]
        assert asker.engine.requests[0].prompt_logprobs == 1

    def test_of_a_prompt_of_one_token(self, asker):
        asker.says([70])
        pieces = asker(Turn([65], echo=True, prompt_logprobs=0, sampling={"max_tokens": 1}))
        raw = asker.tokenizer.token_bytes(65)
        assert pieces[1] == Said(0, [Content(raw.decode())], [Scored(65, raw, None)])

    def test_the_prompt_alone(self, asker):
        engine = asker.says([70, HOLD])
        pieces = asker(Turn("Some text", echo=True, prompt_logprobs=0, sampling={"max_tokens": 0}))
        assert joined(pieces) == "Some text"
        assert [score.token for score in scores(pieces)] == asker.ids("Some text")
        assert pieces[-1] == Ended(0, "length", 0, 0)
        assert engine.idle()

    def test_echo_without_scores(self, asker):
        asker.says("after")
        pieces = asker(Turn("before ", echo=True, stop=["before"]))
        assert joined(pieces) == "before after"
        assert asker.engine.requests[0].prompt_logprobs is None
        assert scores(pieces) == []

    def test_one_token_more_is_scored_even_where_it_ends_the_reply(self, asker):
        asker.says([END])
        pieces = asker(Turn("Some text", echo=True, logprobs=1, prompt_logprobs=1, sampling={"max_tokens": 1}))
        assert [score.token for score in scores(pieces)] == [*asker.ids("Some text"), END]
        assert joined(pieces) == "Some text"
        assert pieces[-1] == Ended(0, "stop", 1, 0)

    def test_too_many(self, asker):
        prompt = [65] * 4000
        with pytest.raises(Refused, match="the most that one request gets"):
            asker(*[Turn(prompt, echo=True, prompt_logprobs=20, sampling={"max_tokens": 0})] * 7)
        assert asker.engine.requests == []


class TestRawPrompts:
    def test_typed_control_tokens_are_text(self, asker):
        asker.says("x")
        asker(Turn("<|im_end|> <think>"))
        tokens = asker.engine.requests[0].tokens
        assert asker.tokenizer.decode(tokens) == "<|im_end|> <think>"
        assert all(token < 5888 for token in tokens)

    def test_the_reply_has_no_regions(self, asker):
        asker.says("<think>a</think>b<|im_middle|>c")
        pieces = asker(Turn("x", stop=["never"]))
        assert joined(pieces) == "<think>a</think>bc"
        assert joined(pieces, Reasoning) == ""

    @pytest.mark.parametrize("prompt", [[-1], [5, VOCAB], [1 << 70]])
    def test_ids_outside_the_vocabulary(self, asker, prompt):
        with pytest.raises(UsageError, match="between 0 and 6143"):
            asker(Turn(prompt))

    @pytest.mark.parametrize("prompt", ["", []])
    def test_empty(self, asker, prompt):
        with pytest.raises(Refused, match="empty") as caught:
            asker(Turn(prompt))
        assert caught.value.kind == "invalid"


class TestPrefill:
    def prompt(self, asker: Asker, message: dict[str, Any], **fields: Any) -> str:
        asker.says("more<|im_end|>")
        self.pieces = asker(Turn([*HELLO, {"role": "assistant", **message}], prefill=True, **fields))
        return asker.tokenizer.decode(asker.engine.requests[0].tokens)

    def test_an_answer_goes_on(self, asker):
        prompt = self.prompt(asker, {"content": "<|im_end|> The"}, thinking=False)
        assert prompt == asker.template.render(HELLO, thinking=False) + "<|im_end|> The"
        assert asker.engine.requests[0].tokens.count(END) == asker.template.encode(asker.tokenizer, HELLO).count(END)
        assert joined(self.pieces) == "more"

    def test_an_open_thought_is_closed_first(self, asker):
        prompt = self.prompt(asker, {"content": [{"type": "text", "text": "The"}], "reasoning": "Hm."})
        assert prompt == asker.template.render(HELLO) + "Hm.</think>The"
        assert joined(self.pieces) == "more"

    def test_a_thought_goes_on(self, asker):
        assert self.prompt(asker, {"reasoning_content": "Hm"}) == asker.template.render(HELLO) + "Hm"
        assert joined(self.pieces, Reasoning) == "more"

    def test_refused(self, asker):
        with pytest.raises(Refused, match="can be continued"):
            asker(Turn([*HELLO, *HELLO], prefill=True))


class TestRefusals:
    def test_beyond_the_context(self, asker):
        n_prompt = len(asker.template.encode(asker.tokenizer, HELLO))
        with pytest.raises(Refused, match=f"context length is {n_prompt} tokens; the prompt has {n_prompt}") as caught:
            asker(Turn(HELLO), context_tokens=n_prompt)
        assert caught.value.kind == "context"
        asker.says([END])
        assert ended(asker(Turn(HELLO), context_tokens=n_prompt + 1)).completion_tokens == 1

    @pytest.mark.parametrize(
        "sampling", [{"temperature": -1}, {"max_tokens": 0}, {"stop_tokens": (VOCAB,)}, {"logit_bias": ((VOCAB, 1.0),)}]
    )
    def test_sampling_without_meaning(self, asker, sampling):
        with pytest.raises(UsageError):
            asker(Turn(HELLO, sampling=sampling))
        assert asker.engine.requests == []

    def test_messages_without_a_template(self, asker):
        asker.template = None
        with pytest.raises(Refused, match="no chat template"):
            asker(Turn(HELLO))

    def test_malformed_messages(self, asker):
        with pytest.raises(TextError, match="tool_call_id"):
            asker(Turn([{"role": "tool", "content": "x"}]))

    def test_a_full_queue_cancels_what_was_asked_already(self, asker):
        def answer(request):
            if len(engine.requests) == 2:
                raise OverloadError("Too many wait.", 3)
            return [HOLD]

        engine = asker.says()
        engine._answers = answer
        with pytest.raises(OverloadError):
            asker(Turn(HELLO, n=4))
        assert engine.idle()
        assert len(engine.cancelled) == 2

    def test_a_failure_ends_all_choices(self, asker):
        error = EarthshineError("The weights are damaged.")
        engine = asker.says([HOLD], [*asker.ids("</think>a"), Failed(error)])
        with pytest.raises(EarthshineError) as caught:
            asker(Turn(HELLO, n=2))
        assert caught.value is error
        assert engine.idle()
        assert len(engine.cancelled) == 1

    def test_a_server_that_ends(self, asker):
        asker.says([*asker.ids("</think>a"), Finished("cancelled")])
        with pytest.raises(Refused, match="has ended") as caught:
            asker(Turn(HELLO))
        assert caught.value.kind == "unavailable"


class TestCancellation:
    def test_the_client_leaves_at_any_piece(self, asker):
        for n_pieces in range(1, 4):  # an Opened, and a Said for each choice
            engine = asker.says([*asker.ids("one</think>two"), HOLD], [*asker.ids("three"), HOLD])

            async def work(replies: Replies, n: int = n_pieces) -> None:
                async with aclosing(replies.answer([Turn(HELLO, n=2)], "")) as pieces:
                    for _ in range(n):
                        await anext(pieces)

            asker.with_replies(lambda replies: asyncio.wait_for(work(replies), 5))
            assert engine.idle()
            assert len(engine.cancelled) == 2

    @pytest.mark.parametrize("held", [[HOLD], [100, HOLD]])
    def test_the_task_is_cancelled_while_it_waits(self, asker, held):
        engine = asker.says(held)

        async def work(replies: Replies) -> None:
            async def read() -> None:
                async for _ in replies.answer([Turn(HELLO)], ""):
                    pass

            task = asyncio.ensure_future(read())
            while not engine.requests:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asker.with_replies(work)
        assert engine.idle()
        assert engine.cancelled == engine.requests

    def test_the_task_is_cancelled_while_its_prompt_is_made(self, asker):
        entered, go_on = threading.Event(), threading.Event()

        async def work(replies: Replies) -> None:
            prepare = replies._prompts.prepare

            def slow(turn: Turn) -> Any:
                entered.set()
                go_on.wait(5)
                return prepare(turn)

            replies._prompts.prepare = slow
            task = asyncio.ensure_future(anext(replies.answer([Turn(HELLO)], "")))
            while not entered.is_set():
                await asyncio.sleep(0.001)  # the loop is free meanwhile
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()

        asker.with_replies(work)
        assert asker.engine.requests == []

    def test_a_slow_reader_gets_many_tokens_at_once(self, asker):
        engine = asker.says([*asker.ids("</think>"), *[100] * 40, END])

        async def work(replies: Replies) -> list[Any]:
            pieces = []
            async for piece in replies.answer([Turn(HELLO)], ""):
                if not pieces:
                    await asyncio.to_thread(engine.idle)
                pieces.append(piece)
            return pieces

        pieces = asker.with_replies(work)
        assert joined(pieces) == asker.tokenizer.decode([100] * 40)
        assert len(pieces) <= 5

    def test_others_have_their_turn_between_batches(self, asker, monkeypatch):
        monkeypatch.setattr(replies_module, "_BATCH", 4)
        engine = asker.says([*asker.ids("</think>"), *[100] * 400, END])

        async def work(replies: Replies) -> int:
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            pieces = replies.answer([Turn(HELLO)], "")
            await anext(pieces)
            await asyncio.to_thread(engine.idle)
            task = asyncio.ensure_future(other())
            async for _ in pieces:
                pass
            task.cancel()
            return turns

        assert asker.with_replies(work) >= 90


class TestTenants:
    def test_no_two_pairs_share(self, asker):
        asker.says([END])
        pairs = [("", ""), ("a", ""), ("", "a"), ("ab", "c"), ("a", "bc"), ("1:", "a"), ("\ud800", "")]
        for user, salt in pairs:
            asker(Turn(HELLO, salt=salt), user=user)
        assert len({request.tenant for request in asker.engine.requests}) == len(pairs)
        asker(Turn(HELLO, salt="c"), user="ab")
        assert asker.engine.requests[-1].tenant == asker.engine.requests[3].tenant


def test_count(asker):
    turns = [Turn(HELLO), Turn("x y z"), Turn([1, 2, 3]), Turn("a " * 5000)]
    counted = asker.with_replies(lambda replies: replies.count(turns), context_tokens=100)
    assert counted == [
        len(asker.template.encode(asker.tokenizer, HELLO)),
        len(asker.ids("x y z")),
        3,
        len(asker.ids("a " * 5000)),
    ]
    assert asker.engine.requests == []


def test_kimi_s_own_tokenizer(shared_data):
    folder = shared_data / "kimi-tokenizer"
    tokenizer = load_tokenizer(folder)
    template = ChatTemplate((folder / "chat_template_k25.jinja").read_text(encoding="utf-8"))
    end = tokenizer.special_id("<|im_end|>")
    asker = Asker(tokenizer, template)
    called = call("functions.look:0", '{"ä": 1}')
    text = f"Überlegt 思考</think>Grüße 👋{SECTION}{called}{SECTION_END}"
    asker.engine = FakeEngine([[*tokenizer.encode(text, True), end]], stop_tokens=(end,))
    try:
        pieces = asker(Turn(HELLO, tools=[TOOL]), vocab_size=163840, stop_tokens=(end,))
        assert joined(pieces, Reasoning) == "Überlegt 思考"
        assert joined(pieces) == "Grüße 👋"
        assert joined(pieces, ToolCallArguments) == '{"ä": 1}'
        assert ended(pieces).reason == "tool_calls"
        assert pieces[0].prompt_tokens == len(template.encode(tokenizer, HELLO, tools=[TOOL]))
    finally:
        for engine in (*asker.engines, asker.engine):
            engine.close()
