"""A session against the whole recomputation: whatever was reused, dropped or abandoned, the tokens are the same."""

import dataclasses
from itertools import islice
from typing import ClassVar

import numpy as np
import pytest
import torch

from earthshine.engine import Finished, SamplingParams, StepRow, Synced, TokenEvent, step
from earthshine.errors import ContextError, UsageError
from earthshine.kv import PageTable

PROMPT = [5, 1, 4, 1, 5, 9, 2, 6, 5, 3]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def greedy_by_hand(decoder, make_pool, prompt, count):
    """Each token from a whole forward pass over everything before it."""
    tokens = list(prompt)
    for _ in range(count):
        hidden = step(decoder, [StepRow(PageTable(make_pool()), tokens)])[0]
        tokens.append(int(decoder.logits(hidden[-1:])[0].argmax()))
    return tokens[len(prompt) :]


def produced(events):
    return [event.token for event in events if isinstance(event, TokenEvent)]


def test_generation_equals_recomputing_everything_for_each_token(make_session, make_decoder, make_pool):
    session = make_session(prefill_tokens=3)
    assert session.sync(PROMPT) == Synced(0, 10)
    events = list(session.generate(GREEDY))
    expected = greedy_by_hand(make_decoder(), make_pool, PROMPT, 12)
    assert produced(events) == expected
    assert events[-1] == Finished("length")
    assert session.tokens == (*PROMPT, *expected)
    assert len(set(expected)) > 4


def test_a_constraint_restricts_every_token_and_is_advanced_by_each(make_session):
    class Descending:
        """Allows the tokens below the last one."""

        below = 7
        seen: ClassVar[list[int]] = []

        def allowed(self, likeliest=None):
            assert likeliest is None, "with ignore_eos no token ends the reply"
            return np.array([(1 << self.below) - 1, *[0] * (n_words - 1)], np.int32)

        def accept(self, token):
            self.seen.append(token)
            self.below = token or 7

    session = make_session()
    n_words = -(-session._spec.vocab_size // 32)
    session.sync(PROMPT)
    constraint = Descending()
    tokens = produced(session.generate(GREEDY, constraint))
    assert tokens == constraint.seen
    assert len(tokens) == 12
    assert all(token < (before or 7) for before, token in zip([7, *tokens], tokens, strict=False))


def test_a_prompt_passes_in_steps_of_prefill_tokens(make_session, decoder):
    make_session(decoder, prefill_tokens=4).sync(PROMPT)
    assert decoder.steps == [PROMPT[:4], PROMPT[4:8], PROMPT[8:]]


def test_answer_in_the_next_prompt_is_reused(make_session, decoder):
    """The last token sampled has no latent yet and is computed with what follows it."""
    session = make_session(decoder)
    session.sync(PROMPT)
    answer = produced(session.generate(GREEDY))
    assert session.sync([*PROMPT, *answer, 7, 7]) == Synced(21, 3)
    assert decoder.steps[-1] == [answer[-1], 7, 7]


@pytest.mark.parametrize(
    ("following", "expected"),
    [
        (PROMPT, Synced(10, 0)),
        ([*PROMPT, 8], Synced(10, 1)),
        (PROMPT[:6], Synced(5, 1)),
        ([*PROMPT[:6], 30, 31], Synced(6, 2)),
        ([30, *PROMPT], Synced(0, 11)),
        ([30], Synced(0, 1)),
    ],
)
def test_sync_reuses_the_common_prefix_and_continues_as_if_new(make_session, following, expected):
    session, fresh = make_session(), make_session()
    session.sync(PROMPT)
    assert session.sync(following) == expected
    fresh.sync(following)
    assert session.tokens == tuple(following)
    assert list(session.generate(GREEDY)) == list(fresh.generate(GREEDY))


def test_the_same_prompt_again_computes_nothing(make_session, decoder):
    session = make_session(decoder)
    session.sync(PROMPT)
    steps = len(decoder.steps)
    session.sync(PROMPT)
    assert len(decoder.steps) == steps
    first = next(session.generate(GREEDY))
    assert len(decoder.steps) == steps
    session.sync(PROMPT)
    assert len(decoder.steps) == steps
    assert next(session.generate(GREEDY)) == first


@pytest.mark.parametrize("events", range(6))
def test_an_abandoned_generation_leaves_a_sound_session(make_session, events):
    """Stopped after any number of events, the session continues, and syncs, like a fresh one."""
    session, fresh = make_session(prefill_tokens=3), make_session()
    session.sync(PROMPT)
    stream = session.generate(GREEDY)
    begun = [next(stream).token for _ in range(events)]
    stream.close()
    assert session.tokens == (*PROMPT, *begun)
    fresh.sync([*PROMPT, *begun])
    assert list(islice(session.generate(GREEDY), 3)) == list(islice(fresh.generate(GREEDY), 3))
    session.sync([*PROMPT, 33])
    fresh.sync([*PROMPT, 33])
    assert list(session.generate(GREEDY)) == list(fresh.generate(GREEDY))


def test_an_iterator_does_not_go_on_over_a_session_that_changed(make_session):
    session = make_session()
    session.sync(PROMPT)
    for change in (lambda: session.sync([1, 2]), lambda: next(session.generate(GREEDY)), session.close):
        session.sync(PROMPT)
        stream = session.generate(GREEDY)
        next(stream)
        change()
        held = session.tokens
        with pytest.raises(UsageError, match="changed while it generated"):
            next(stream)
        assert session.tokens == held


def test_stop_token_ends_generation_without_an_event(make_session):
    reference = make_session()
    reference.sync(PROMPT)
    answer = produced(reference.generate(GREEDY))
    at = next(i for i in range(2, 12) if answer[i] not in answer[:i])
    session = make_session()
    session.sync(PROMPT)
    events = list(session.generate(SamplingParams(temperature=0, stop_token_ids=(answer[at],))))
    assert produced(events) == answer[:at]
    assert events[-1] == Finished("stop", answer[at])
    assert session.tokens == (*PROMPT, *answer[: at + 1])


def test_the_models_own_stop_tokens_end_generation_unless_ignored(make_session, make_decoder):
    plain = make_session()
    plain.sync(PROMPT)
    answer = produced(plain.generate(GREEDY))
    at = next(i for i in range(2, 12) if answer[i] not in answer[:i])
    spec = dataclasses.replace(make_decoder().spec, stop_tokens=(answer[at],))
    session = make_session(make_decoder(spec=spec))
    session.sync(PROMPT)
    assert list(session.generate(SamplingParams(temperature=0)))[-1] == Finished("stop", answer[at])
    session.sync(PROMPT)
    assert produced(session.generate(GREEDY)) == answer


def test_generation_ends_where_the_context_does(make_session):
    session = make_session()
    session.sync(PROMPT)
    events = list(session.generate(SamplingParams(temperature=0, ignore_eos=True)))
    assert events[-1] == Finished("context")
    assert len(session.tokens) == 64
    assert list(session.generate(GREEDY)) == [Finished("context")]


def test_generation_ends_where_the_pages_do(make_session, make_pool):
    """12 places: the token sampled after the last of them is emitted, and has nowhere to go."""
    session = make_session(pool=make_pool(n_pages=3))
    session.sync(PROMPT)
    events = list(session.generate(SamplingParams(temperature=0, ignore_eos=True)))
    assert (len(produced(events)), events[-1]) == (3, Finished("context"))
    assert session.sync(PROMPT[:9]) == Synced(8, 1)


def test_a_prompt_beyond_context_or_pages_changes_nothing(make_session, make_pool):
    session, small = make_session(), make_session(pool=make_pool(n_pages=3))
    cases = ((session, 65, "65 tokens; the model.s context is 64"), (small, 13, "13 tokens; .* hold 12"))
    for one, length, message in cases:
        one.sync(PROMPT)
        stream = one.generate(GREEDY)
        begun = next(stream)
        for call in (one.sync, one.score):
            with pytest.raises(ContextError, match=message):
                call([1] * length)
        assert one.tokens == (*PROMPT, begun.token)
        assert isinstance(next(stream), TokenEvent)


def test_pages_that_would_be_dropped_count_as_room(make_session, make_pool):
    pool = make_pool(n_pages=3)
    session = make_session(pool=pool)
    session.sync(PROMPT)
    assert pool.free_pages == 0
    assert session.sync([7] * 12) == Synced(0, 12)
    session.clear()
    assert pool.free_pages == 3
    assert session.tokens == ()
    assert session.snapshot().header.tail_dim == 0
    assert session.sync(PROMPT) == Synced(0, 10)


def test_closed_session_releases_its_pages_once_and_is_refused(make_session, make_pool):
    pool, closed = make_pool(n_pages=3), []
    session = make_session(pool=pool, on_close=lambda: closed.append(pool.free_pages))
    session.sync(PROMPT)
    blob = session.snapshot()
    session.close()
    session.close()
    assert closed == [3]
    assert session.tokens == ()
    for use in (
        lambda: session.sync(PROMPT),
        lambda: session.score(PROMPT),
        lambda: session.generate(GREEDY),
        lambda: session.restore(blob),
        session.snapshot,
        session.clear,
    ):
        with pytest.raises(UsageError, match=r"session is closed|empty session"):
            use()


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_a_failing_prefill_keeps_what_was_computed(make_session, decoder, make_decoder, fail_at):
    session, fresh = make_session(decoder, prefill_tokens=4), make_session()
    decoder.fail_at = fail_at
    with pytest.raises(RuntimeError):
        session.sync(PROMPT)
    assert session.tokens == tuple(PROMPT[: 4 * (fail_at - 1)])
    decoder.fail_at = None
    assert session.sync(PROMPT).reused == 4 * (fail_at - 1)
    fresh.sync(PROMPT)
    assert list(session.generate(GREEDY)) == list(fresh.generate(GREEDY))


def test_a_failing_step_of_generation_can_be_repeated(make_session, decoder):
    session, fresh = make_session(decoder), make_session()
    session.sync(PROMPT)
    fresh.sync(PROMPT)
    expected = list(fresh.generate(GREEDY))
    decoder.fail_at = 3
    stream = session.generate(GREEDY)
    begun = [next(stream), next(stream)]
    with pytest.raises(RuntimeError):
        next(stream)
    assert begun == expected[:2]
    decoder.fail_at = None
    assert produced(session.generate(GREEDY))[:10] == produced(expected)[2:]


def test_scores_are_the_log_likelihoods_of_each_next_token(make_session, make_decoder, make_pool):
    tokens = [(7 * i * i + 3 * i) % 40 for i in range(50)]
    session, decoder = make_session(prefill_tokens=7), make_decoder()
    hidden = step(decoder, [StepRow(PageTable(make_pool()), tokens)])[0]
    logits = decoder.logits(hidden).double()
    expected = [float(logits[i, tokens[i + 1]] - logits[i].exp().sum().log()) for i in range(49)]
    scores = session.score(tokens)
    assert scores.dtype is torch.float32
    assert torch.allclose(scores.double(), torch.tensor(expected).double(), atol=1e-5)
    assert session.tokens == tuple(tokens)
    assert session.sync(tokens) == Synced(49, 1)


def test_scores_never_hold_more_logits_than_those_of_64_rows(make_session, make_decoder, make_pool, monkeypatch):
    decoder = make_decoder(spec=dataclasses.replace(make_decoder().spec, max_context=2000))
    rows = []
    plain = decoder.logits
    monkeypatch.setattr(decoder, "logits", lambda hidden: (rows.append(len(hidden)), plain(hidden))[1])
    tokens = [(7 * i * i + 3 * i) % 40 for i in range(1301)]
    whole = make_session(decoder, make_pool(n_pages=400), prefill_tokens=2000).score(tokens)
    assert rows == [*[64] * 20, 20]
    rows.clear()
    pieces = make_session(decoder, make_pool(n_pages=400), prefill_tokens=700).score(tokens)
    assert rows == [*[64] * 10, 60, *[64] * 9, 24]
    assert torch.equal(whole, pieces)


def test_token_ids_outside_the_vocabulary_are_refused(make_session):
    session = make_session()
    for tokens in ([], [40], [-1], ["a"], [1.5], [None]):
        with pytest.raises(UsageError):
            session.sync(tokens)
    with pytest.raises(UsageError, match="at least two"):
        session.score([1])
    with pytest.raises(UsageError, match="empty session"):
        session.generate(GREEDY)
    assert session.tokens == ()


def test_a_pool_of_another_shape_and_an_empty_step_are_refused(make_session, make_pool):
    with pytest.raises(UsageError, match=r"torch\.float32"):
        make_session(pool=make_pool(dtype=torch.float32))
    with pytest.raises(UsageError, match="prefill_tokens"):
        make_session(prefill_tokens=0)


def test_two_sessions_share_a_pool_without_touching_each_other(make_session, make_pool):
    pool = make_pool()
    one, other, fresh = make_session(pool=pool), make_session(pool=pool), make_session()
    one.sync(PROMPT)
    other.sync(PROMPT[::-1])
    streams = one.generate(GREEDY), other.generate(GREEDY)
    mixed = [event for pair in zip(*streams, strict=True) for event in pair]
    for events, prompt in ((mixed[::2], PROMPT), (mixed[1::2], PROMPT[::-1])):
        fresh.sync(prompt)
        assert events == list(fresh.generate(GREEDY))
