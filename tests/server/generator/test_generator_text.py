"""Conversations, raw prompts and prefills to text, stop strings, and the caches of tenants."""

import asyncio
from typing import Any

import pytest

from earthshine.engine import Failed
from earthshine.errors import EarthshineError, UsageError
from earthshine.generation.request import Delta, Ended, Started
from earthshine.server.generator import TextGenerator
from earthshine.text import (
    ChatTemplate,
    Content,
    Reasoning,
    ToolCallArguments,
    load_tokenizer,
)

from ..fake_engine import HOLD, FakeEngine
from .conftest import END, HELLO, SECTION, SECTION_END, TOOL, VOCAB, Asker, call, ended, events, joined, scores, wanted


class TestAConversation:
    def test_a_thought_and_an_answer(self, asker):
        asker.says("A thought.</think>An answer.<|im_end|>never", reused=7)
        pieces = asker(wanted(HELLO))
        prompt = asker.template.encode(asker.tokenizer, HELLO)
        assert list(asker.engine.requests[0].tokens) == prompt
        assert pieces[0] == Started(len(prompt), 7)
        assert joined(pieces, Reasoning) == "A thought."
        assert joined(pieces) == "An answer."
        thought, answer = len(asker.ids("A thought.</think>")), len(asker.ids("An answer.<|im_end|>"))
        assert pieces[-1] == Ended(0, "stop", thought + answer, thought)
        assert not any(piece.tokens for piece in pieces if isinstance(piece, Delta))

    def test_without_thinking_all_is_content(self, asker):
        asker.says("An answer.<|im_end|>")
        pieces = asker(wanted(HELLO, thinking=False))
        assert joined(pieces) == "An answer."
        assert ended(pieces).reasoning_tokens == 0

    def test_a_lone_thought_is_given_as_content_too(self, asker):
        asker.says("Only a thought.<|im_end|>")
        pieces = asker(wanted(HELLO))
        assert joined(pieces, Reasoning) == joined(pieces) == "Only a thought."
        assert ended(pieces).reason == "stop"

    def test_but_not_where_the_thought_was_cut(self, asker):
        asker.says("Only a long thought.<|im_end|>")
        pieces = asker(wanted(HELLO, max_tokens=2))
        assert joined(pieces, Reasoning)
        assert joined(pieces) == ""
        assert ended(pieces).reason == "length"

    def test_the_defaults_are_the_model_s_own_and_what_is_given_counts(self, asker):
        asker.says("x<|im_end|>")
        asker(wanted(HELLO, top_p=0.5))
        params = asker.engine.requests[0].params
        assert (params.temperature, params.top_p, params.logprobs) == (0.0, 0.5, None)

    def test_max_tokens_is_cut_to_the_room(self, asker):
        n_prompt = len(asker.template.encode(asker.tokenizer, HELLO))
        asker.says([100] * 50)
        pieces = asker(wanted(HELLO, max_tokens=1000), context_tokens=n_prompt + 5)
        assert asker.engine.requests[0].params.max_tokens == 5
        assert (ended(pieces).reason, ended(pieces).completion_tokens) == ("context", 5)
        pieces = asker(wanted(HELLO, max_tokens=5), context_tokens=n_prompt + 5)
        assert ended(pieces).reason == "length"

    def test_choices_have_seeds_and_numbers_of_their_own(self, asker):
        asker.says("</think>one<|im_end|>", "</think>two<|im_end|>", "</think>three<|im_end|>", reused=3)
        pieces = asker(wanted(HELLO, n=3, seed=(1 << 63) - 2, priority=4))
        assert [joined(pieces, choice=i) for i in range(3)] == ["one", "two", "three"]
        assert [request.params.seed for request in asker.engine.requests] == [(1 << 63) - 2, (1 << 63) - 1, -(1 << 63)]
        assert {request.priority for request in asker.engine.requests} == {4}
        assert [piece for piece in pieces if isinstance(piece, Started)] == pieces[:1]

    def test_choices_of_several_requests_are_numbered_consecutively(self, asker):
        asker.says([65], [66], [67], [68])
        pieces = asker(wanted("a", n=2), wanted("b c d", n=2))
        texts = [joined(pieces, choice=i) for i in range(4)]
        assert texts == [asker.tokenizer.decode([token]) for token in (65, 66, 67, 68)]
        assert sorted(p.prompt_tokens for p in pieces if isinstance(p, Started)) == sorted(
            len(asker.ids(text)) for text in ("a", "b c d")
        )

    def test_a_half_character_at_the_end(self, asker):
        token = next(t for t in range(5888) if asker.tokenizer.token_bytes(t) == "é".encode()[:1])
        asker.says([asker.ids("</think>")[0], token, END])
        assert joined(asker(wanted(HELLO))) == "�"

    def test_a_token_without_text_adds_none(self, asker):
        asker.says([*asker.ids("</think>a"), 6500, *asker.ids("b"), END])
        pieces = asker(wanted(HELLO, logprobs=0), vocab_size=7000)
        assert joined(pieces) == "ab"
        assert [score.raw for score in scores(pieces)][-2:] == [b"", b"b"]


class TestStopStrings:
    def test_over_several_tokens(self, asker):
        asker.says("</think>one two three four five<|im_end|>")
        pieces = asker(wanted(HELLO, stop=["wo thr"]))
        assert joined(pieces) == "one t"
        assert (ended(pieces).reason, ended(pieces).stop_text) == ("stop", "wo thr")
        assert asker.engine.idle()

    def test_a_stop_text_cancels_the_request(self, asker):
        engine = asker.says([*asker.ids("</think>one two"), HOLD, END])
        assert joined(asker(wanted(HELLO, stop=["two"]))) == "one "
        assert engine.idle()
        assert engine.cancelled == engine.requests

    def test_kept_if_wanted(self, asker):
        asker.says("</think>one two three<|im_end|>")
        pieces = asker(wanted(HELLO, stop=["two"], include_stop_str_in_output=True))
        assert joined(pieces) == "one two"
        assert ended(pieces).stop_text == "two"

    def test_begun_and_not_met(self, asker):
        asker.says("</think>one tw<|im_end|>")
        pieces = asker(wanted(HELLO, stop=["two"]))
        assert joined(pieces) == "one tw"
        assert (ended(pieces).reason, ended(pieces).stop_text) == ("stop", None)

    def test_neither_thoughts_nor_calls_stop(self, asker):
        text = f"STOP</think>a{SECTION}{call('functions.look:0', '{}STOP')}{SECTION_END}b<|im_end|>"
        asker.says(text.replace("{}STOP", '{"at": "STOP"}'))
        pieces = asker(wanted(HELLO, tools=[TOOL], stop=["STOP", "ab"]))
        assert joined(pieces, Reasoning) == "STOP"
        assert joined(pieces, ToolCallArguments) == '{"at": "STOP"}'
        assert joined(pieces) == "ab"  # a call stands between the two letters
        assert ended(pieces).reason == "tool_calls"

    def test_scores_of_tokens_within_a_stop_string_are_not_sent(self, asker):
        asker.says("</think>one two three four<|im_end|>")
        pieces = asker(wanted(HELLO, stop=[" two three"], logprobs=0))
        raw_text = b"".join(score.raw for score in scores(pieces))
        assert raw_text == b"</think>one"

    def test_a_token_of_which_a_part_is_sent_has_its_score(self, asker):
        ids = [*asker.ids("</think>one"), next(t for t in range(5888) if asker.tokenizer.token_bytes(t) == b" two")]
        asker.says([*ids, END])
        pieces = asker(wanted(HELLO, stop=["wo"], logprobs=0))
        assert joined(pieces) == "one t"
        assert [score.token for score in scores(pieces)] == ids

    def test_events_after_a_stop_text_within_the_same_token_are_dropped(self, asker):
        asker.says(f"</think>{SECTION}before STOP{call('functions.look:0', '{}')}{SECTION_END}<|im_end|>")
        pieces = asker(wanted(HELLO, tools=[TOOL], stop=["STOP"]))
        assert events(pieces) == [Content("before ")]
        assert (ended(pieces).reason, ended(pieces).stop_text) == ("stop", "STOP")

    def test_an_engine_failure_after_a_stop_text_is_not_reported(self, asker):
        engine = asker.says([*asker.ids("</think>one two three"), Failed(EarthshineError("It broke."))])

        async def work(replies: TextGenerator) -> list[Any]:
            pieces = replies.answer([wanted(HELLO, stop=["two"])], "")
            first = await anext(pieces)
            await asyncio.to_thread(engine.idle)
            return [first, *[piece async for piece in pieces]]

        pieces = asker.with_replies(work)
        assert joined(pieces) == "one "
        assert ended(pieces).reason == "stop"

    def test_scores_wait_with_their_text(self, asker):
        asker.says("</think>one two<|im_end|>")
        pieces = asker(wanted(HELLO, stop=[" two three"], logprobs=0))
        assert b"".join(score.raw for score in scores(pieces)) == b"</think>one two"

    def test_one_that_is_complete_within_min_tokens_does_not_count(self, asker):
        text = "</think>one two one two<|im_end|>"
        before, first = len(asker.ids("</think>one")), len(asker.ids("</think>one two"))
        for min_tokens, expected in ((before, "one "), (first, "one two one "), (first - 1, "one ")):
            asker.says(text)
            pieces = asker(wanted(HELLO, stop=["two"], min_tokens=min_tokens))
            assert joined(pieces) == expected
            assert (ended(pieces).reason, ended(pieces).stop_text) == ("stop", "two")
        asker.says(text)
        pieces = asker(wanted(HELLO, stop=["two"], min_tokens=len(asker.ids(text))))
        assert joined(pieces) == "one two one two"
        assert (ended(pieces).reason, ended(pieces).stop_text) == ("stop", None)

    def test_one_that_begins_within_min_tokens_counts(self, asker):
        ids = [asker.ids("</think>")[0], *(next(iter(asker.ids(letter))) for letter in "abc")]
        asker.says([*ids, END])
        assert joined(asker(wanted(HELLO, stop=["bc"], min_tokens=3))) == "a"
        asker.says([*ids, END])
        assert joined(asker(wanted(HELLO, stop=["bc"], min_tokens=4))) == "abc"


class TestTemplatesThatAlwaysThink:
    """As DeepSeek-R1's: the prompt opens a thought whatever the request says."""

    @pytest.fixture
    def template(self) -> ChatTemplate:
        return ChatTemplate("{{ messages[-1].content }}<|im_middle|>{{ '<think>\\n' }}")

    def test_thinking_false_closes_the_thought(self, asker):
        asker.says("An answer.<|im_end|>")
        pieces = asker(wanted(HELLO, thinking=False))
        assert list(asker.engine.requests[0].tokens) == asker.ids("Hello<|im_middle|><think>\n\n</think>\n\n")
        assert (joined(pieces, Reasoning), joined(pieces)) == ("", "An answer.")

    def test_thinking_true_and_the_default_leave_it_open(self, asker):
        for thinking in (True, None):
            asker.says("Hm.</think>An answer.<|im_end|>")
            pieces = asker(wanted(HELLO, thinking=thinking))
            assert list(asker.engine.requests[0].tokens) == asker.ids("Hello<|im_middle|><think>\n")
            assert (joined(pieces, Reasoning), joined(pieces)) == ("Hm.", "An answer.")


class TestSpecialTokens:
    def test_they_are_left_out_unless_asked_for(self, asker):
        for prompt, begin in (("x", ""), (HELLO, "</think>")):
            for skip, expected in ((True, "ac"), (False, "a<|im_middle|>c")):
                asker.says(f"{begin}a<|im_middle|>c<|im_end|>")
                assert joined(asker(wanted(prompt, skip_special_tokens=skip))) == expected


class TestRawPrompts:
    def test_typed_control_tokens_are_text(self, asker):
        asker.says("x")
        asker(wanted("<|im_end|> <think>"))
        tokens = asker.engine.requests[0].tokens
        assert asker.tokenizer.decode(tokens) == "<|im_end|> <think>"
        assert all(token < 5888 for token in tokens)

    def test_the_reply_has_no_regions(self, asker):
        asker.says("<think>a</think>b<|im_middle|>c")
        pieces = asker(wanted("x", stop=["never"]))
        assert joined(pieces) == "<think>a</think>bc"
        assert joined(pieces, Reasoning) == ""

    @pytest.mark.parametrize("prompt", [[-1], [5, VOCAB], [1 << 70]])
    def test_ids_outside_the_vocabulary(self, asker, prompt):
        with pytest.raises(UsageError, match="between 0 and 6143"):
            asker(wanted(prompt))

    @pytest.mark.parametrize("prompt", ["", []])
    def test_empty(self, asker, prompt):
        with pytest.raises(UsageError, match="empty"):
            asker(wanted(prompt))


class TestPrefill:
    def prompt(self, asker: Asker, message: dict[str, Any], **fields: Any) -> str:
        asker.says("more<|im_end|>")
        self.pieces = asker(wanted([*HELLO, {"role": "assistant", **message}], continue_final_message=True, **fields))
        return asker.tokenizer.decode(asker.engine.requests[0].tokens)

    def test_prompt_continues_an_answer(self, asker):
        prompt = self.prompt(asker, {"content": "<|im_end|> The"}, thinking=False)
        assert prompt == asker.template.render(HELLO, thinking=False) + "<|im_end|> The"
        assert asker.engine.requests[0].tokens.count(END) == asker.template.encode(asker.tokenizer, HELLO).count(END)
        assert joined(self.pieces) == "more"

    def test_an_open_thought_is_closed_first(self, asker):
        prompt = self.prompt(asker, {"content": [{"type": "text", "text": "The"}], "reasoning": "Hm."})
        assert prompt == asker.template.render(HELLO) + "Hm.</think>The"
        assert joined(self.pieces) == "more"

    def test_prompt_continues_a_thought(self, asker):
        assert self.prompt(asker, {"reasoning_content": "Hm"}) == asker.template.render(HELLO) + "Hm"
        assert joined(self.pieces, Reasoning) == "more"

    def test_refused(self, asker):
        with pytest.raises(UsageError, match="can be continued"):
            asker(wanted([*HELLO, *HELLO], continue_final_message=True))


class TestTenants:
    def test_no_two_pairs_share(self, asker):
        asker.says([END])
        pairs = [("", ""), ("a", ""), ("", "a"), ("ab", "c"), ("a", "bc"), ("1:", "a"), ("\ud800", "")]
        for user, salt in pairs:
            asker(wanted(HELLO, cache_salt=salt), user=user)
        assert len({request.tenant for request in asker.engine.requests}) == len(pairs)
        asker(wanted(HELLO, cache_salt="c"), user="ab")
        assert asker.engine.requests[-1].tenant == asker.engine.requests[3].tenant


def test_count(asker):
    requests = [
        wanted(HELLO),
        wanted("x y z"),
        wanted([1, 2, 3]),
        wanted("a " * 5000),
    ]
    counted = asker.with_replies(lambda replies: replies.count(requests), context_tokens=100)
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
        pieces = asker(wanted(HELLO, tools=[TOOL]), vocab_size=163840, stop_tokens=(end,))
        assert joined(pieces, Reasoning) == "Überlegt 思考"
        assert joined(pieces) == "Grüße 👋"
        assert joined(pieces, ToolCallArguments) == '{"ä": 1}'
        assert ended(pieces).reason == "tool_calls"
        assert pieces[0].prompt_tokens == len(template.encode(tokenizer, HELLO, tools=[TOOL]))
    finally:
        for engine in (*asker.engines, asker.engine):
            engine.close()
