"""What concerns one reply alone: failures, forms, scores, ends."""

import numpy as np
import pytest

from earthshine.engine import Admitted, Failed, Finished, PromptScores, Request, SamplingParams, Session, TokenEvent
from earthshine.engine.sequence import TokenSequence
from earthshine.errors import EarthshineError
from earthshine.kv import PagePool

from .conftest import SPEC, STOP, VOCAB, FakeDecoder
from .scheduling import PAGE, PROMPTS, Bench, alone, reply


def test_a_failed_step_ends_only_whom_it_concerns():
    class Broken(FakeDecoder):
        def forward(self, tokens, positions, states, *, in_groups=False):
            if 17 in tokens.tolist():
                raise RuntimeError("the disk is gone")
            return super().forward(tokens, positions, states, in_groups=in_groups)

    bench = Bench(decoder=Broken())
    good, bad = bench.ask([1, 2, 3], 1), bench.ask([4, 17, 5], 4)
    bench.run()
    assert reply(good) == alone([1, 2, 3], 1)
    assert isinstance(bad[-1], Failed)
    assert "RuntimeError" in str(bad[-1].error)
    bench.nothing_is_held()


def test_cancelled_request_is_no_longer_waited_for_by_a_step_that_failed():
    """Both prompts fail together; the second is cancelled before its chunk is computed alone."""

    class Together(FakeDecoder):
        def forward(self, tokens, positions, states, *, in_groups=False):
            if len(tokens) > 3:
                raise RuntimeError("too many")
            return super().forward(tokens, positions, states, in_groups=in_groups)

    bench = Bench(decoder=Together())
    events = [bench.ask(tokens, 1) for tokens in ([1, 2, 3], [4, 5, 6])]
    bench.run(1)
    bench.sequences[1].cancelled = True
    bench.run(1)
    assert (reply(events[0]), reply(events[1])) == (alone([1, 2, 3], 1), [Finished("cancelled")])
    assert not bench.scheduler._again
    bench.nothing_is_held()


@pytest.mark.parametrize("failures", [1, 2])
def test_logits_that_fail_end_only_whom_they_concern(failures):
    """The first call is for both replies; the second one for the first reply alone."""
    bench = Bench()
    working, calls = bench.decoder.logits, []

    def logits(hidden):
        calls.append(len(hidden))
        if len(calls) <= failures:
            raise OSError("the head can't be read")
        return working(hidden)

    bench.decoder.logits = logits
    events = [bench.ask(tokens, 2) for tokens in ([1, 2, 3], [4, 5, 6])]
    bench.run()
    assert calls[:3] == [2, 1, 1]
    assert isinstance(events[0][-1], Failed) == (failures == 2)
    assert reply(events[1]) == alone([4, 5, 6], 2)
    bench.nothing_is_held()


def test_a_sink_that_fails_ends_its_reply_alone():
    bench = Bench()
    received: list = []

    def deaf(event) -> None:
        received.append(event)
        raise RuntimeError("nobody listens")

    params = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
    bench.scheduler.queue.add(TokenSequence(-1, Request(PROMPTS[0], params), deaf, PAGE, frozenset({STOP})))
    other = bench.ask(PROMPTS[1])
    bench.run()
    assert received[0] == Admitted(0)
    assert received[-1] == Finished("cancelled")
    assert len(received) <= 3
    assert reply(other) == alone(PROMPTS[1])
    bench.nothing_is_held()


def test_decode_steps_run_beside_a_repeated_prefill_pass():
    """Two prompts fail together, and each of them is then computed alone."""

    class Together(FakeDecoder):
        def forward(self, tokens, positions, states, *, in_groups=False):
            if len(tokens) == 51:
                raise RuntimeError("too many")
            return super().forward(tokens, positions, states, in_groups=in_groups)

    bench = Bench(decoder=Together(), prefill_tokens=64, max_stall=1e-9)
    bench.ask(PROMPTS[2], 40, ignore_eos=True)
    bench.run(3)
    for prompt in (PROMPTS[1], PROMPTS[3]):
        bench.ask(prompt, 2)
    bench.scheduler.durations.add_prefill(64, 10.0)
    bench.scheduler.durations.add_decode = lambda seconds: None
    bench.scheduler.durations.decode_seconds = 0.0
    bench.decoder.steps.clear()
    bench.run(1 + 7 + 7)
    assert [len(tokens) for tokens in bench.decoder.steps] == [21, 1, 1, 1, 30, 2, 1, 1]
    bench.run()
    assert reply(bench.events[1]) == alone(PROMPTS[1], 2)


def test_tokens_that_a_constraint_refuses_are_not_generated():
    class Even:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def allowed(self, likeliest=None):
            words = np.zeros(-(-VOCAB // 32), np.uint32)
            for token in range(0, VOCAB, 2):
                words[token // 32] |= np.uint32(1 << (token % 32))
            return words.view(np.int32)

        def accept(self, token: int) -> None:
            self.seen.append(token)

    bench = Bench()
    even = Even()
    events = bench.ask(PROMPTS[0], 8, constraint=even)
    bench.run()
    tokens = [event.token for event in events if isinstance(event, TokenEvent)]
    assert tokens == even.seen[: len(tokens)]
    assert all(token % 2 == 0 for token in tokens)


@pytest.mark.parametrize("params", [{}, {"logit_bias": {5: 100.0}}, {"ignore_eos": True}])
def test_a_constraint_knows_what_the_model_would_choose(params):
    class Odd:
        def __init__(self) -> None:
            self.likeliest: list[int | None] = []

        def allowed(self, likeliest=None):
            self.likeliest.append(likeliest)
            return np.full(-(-VOCAB // 32), 0xAAAAAAAA, np.uint32).view(np.int32)

        def accept(self, token: int) -> None: ...

    bench, odd = Bench(), Odd()
    bench.ask(PROMPTS[0], 4, constraint=odd, **params)
    bench.run()
    if params.get("ignore_eos"):  # then it ends nothing
        assert set(odd.likeliest) == {None}
    elif params:
        assert set(odd.likeliest) == {5}
    else:
        assert odd.likeliest[0] == alone(PROMPTS[0], 1)[0].token


@pytest.mark.parametrize("bounds", [{"min_tokens": 4}, {"allowed_token_ids": (5, 7)}])
def test_a_wish_to_end_counts_only_where_it_may_come_true(bounds):
    class Free:
        def __init__(self) -> None:
            self.likeliest: list[int | None] = []

        def allowed(self, likeliest=None):
            self.likeliest.append(likeliest)

        def accept(self, token: int) -> None: ...

    bench, free = Bench(), Free()
    bench.ask(PROMPTS[0], 5, constraint=free, stop_token_ids=(9,), logit_bias={9: 100.0, 7: 50.0}, **bounds)
    bench.run()
    assert free.likeliest == [7] * 4 + [9 if "min_tokens" in bounds else 7]


def test_a_constraint_that_fails_ends_its_reply_alone():
    class Failing:
        def allowed(self, likeliest=None):
            raise EarthshineError("no such form")

        def accept(self, token: int) -> None: ...

    bench = Bench()
    events, other = bench.ask(PROMPTS[0], constraint=Failing()), bench.ask(PROMPTS[1])
    bench.run()
    assert str(events[-1].error) == "no such form"
    assert reply(other) == alone(PROMPTS[1])


def test_scores_of_a_prompt_are_a_sessions():
    bench = Bench(prefill_tokens=7)
    bench.ask(PROMPTS[3], 1)
    bench.run()
    events = bench.ask(PROMPTS[3], 2, prompt_logprobs=2)
    bench.ask(PROMPTS[1], 9)
    bench.run()
    scores = [score for event in events if isinstance(event, PromptScores) for score in event.scores]
    pool = PagePool(SPEC.kept, PAGE, 64, FakeDecoder().dtype)
    expected = Session(FakeDecoder(), pool, fingerprint="x").score(PROMPTS[3])
    assert [score.token for score in scores] == PROMPTS[3][1:]
    assert [score.logprob for score in scores] == expected.tolist()
    assert all(len(score.top) == 2 for score in scores)
    assert events[0] == Admitted(0)
    assert reply(events) == alone(PROMPTS[3], 2)


def test_scores_are_sent_once_though_the_prompt_is_computed_twice():
    bench = Bench(prefill_tokens=8)
    events = bench.ask(PROMPTS[3], 2, prompt_logprobs=0)
    bench.run(2)
    bench.scheduler._admission.preempt(bench.sequences[0])
    bench.run()
    scores = [score for event in events if isinstance(event, PromptScores) for score in event.scores]
    assert [score.token for score in scores] == PROMPTS[3][1:]
    assert reply(events) == alone(PROMPTS[3], 2)


def test_a_context_that_is_full_ends_the_reply():
    bench = Bench(context_tokens=12)
    events = bench.ask(PROMPTS[0], 30, ignore_eos=True)
    bench.run()
    assert events[-1] == Finished("context")
    assert sum(isinstance(event, TokenEvent) for event in events) == 3
