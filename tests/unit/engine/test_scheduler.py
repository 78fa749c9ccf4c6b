"""The scheduler against single sessions: whatever else runs, each reply is what it would be alone."""

import time

import pytest

from earthshine.engine import Admitted, Failed, Finished, TokenEvent

from .scheduling import PAGE, PROMPTS, Bench, alone, reply


def test_replies_together_are_what_they_are_alone():
    bench = Bench(prefill_tokens=7)
    replies = [bench.ask(prompt, max_tokens=3 + 2 * i) for i, prompt in enumerate(PROMPTS)]
    bench.run()
    for i, prompt in enumerate(PROMPTS):
        assert reply(replies[i]) == alone(prompt, 3 + 2 * i)
        assert replies[i][0] == Admitted(0)
    counts = bench.scheduler.counts
    assert counts.prompt_tokens == counts.prefix_queries == sum(map(len, PROMPTS))
    assert counts.generated_tokens == sum(len(reply(each)) for each in replies) - sum(
        each[-1].reason != "stop" for each in replies
    )
    assert bench.scheduler.durations.decode_seconds > 0
    bench.nothing_is_held()


def test_a_request_that_arrives_later_changes_nothing_for_others():
    bench = Bench()
    first = bench.ask(PROMPTS[1], 12)
    bench.run(3)
    second = bench.ask(PROMPTS[3], 5)
    bench.run()
    assert reply(first) == alone(PROMPTS[1], 12)
    assert reply(second) == alone(PROMPTS[3], 5)


def test_decoding_replies_share_a_step():
    bench = Bench()
    for prompt in PROMPTS:
        bench.ask(prompt, 12, ignore_eos=True)
    bench.run()
    assert [len(tokens) for tokens in bench.decoder.steps].count(len(PROMPTS)) >= 2


def test_a_prefix_is_computed_once():
    bench = Bench()
    bench.ask(PROMPTS[1])
    bench.run()
    again = bench.ask(PROMPTS[1] + [1, 2])
    other = bench.ask(PROMPTS[1][:10])
    bench.run()
    assert again[0] == Admitted(24 - 24 % PAGE if len(PROMPTS[1]) >= 24 else 20)
    assert other[0] == Admitted(8)
    assert reply(again) == alone(PROMPTS[1] + [1, 2])
    assert reply(other) == alone(PROMPTS[1][:10])


def test_generated_tokens_are_a_prefix_for_later_requests():
    bench = Bench()
    first = bench.ask(PROMPTS[0], 8)
    bench.run()
    generated = [event.token for event in first if isinstance(event, TokenEvent)]
    whole = PROMPTS[0] + generated + [1]
    again = bench.ask(whole)
    bench.run()
    assert again[0].reused >= (len(whole) - 2) // PAGE * PAGE
    assert reply(again) == alone(whole)


def test_the_last_token_is_computed_even_if_all_pages_are_there():
    bench = Bench()
    tokens = PROMPTS[3][:16]
    bench.ask(tokens)
    bench.run()
    again = bench.ask(tokens)
    bench.run()
    assert again[0] == Admitted(12)
    assert reply(again) == alone(tokens)


def test_tenants_share_nothing():
    bench = Bench()
    bench.ask(PROMPTS[1], tenant="one")
    bench.run()
    other = bench.ask(PROMPTS[1], tenant="other")
    bench.run()
    assert other[0] == Admitted(0)


def test_equal_prompts_at_once_are_computed_once():
    bench = Bench(prefill_tokens=8)
    replies = [bench.ask(PROMPTS[3], 4) for _ in range(4)]
    bench.run()
    assert [each[0].reused for each in replies] == [0, 28, 28, 28]
    assert all(reply(each) == alone(PROMPTS[3], 4) for each in replies)
    prompt_tokens = sum(len(tokens) for tokens in bench.decoder.steps) - 4 * 3
    assert prompt_tokens == 30 + 3 * 2


def test_no_more_run_than_max_running():
    bench = Bench(max_running=2)
    for prompt in PROMPTS:
        bench.ask(prompt, 6)
    while bench.scheduler.queue.busy:
        bench.scheduler.step()
        assert len(bench.scheduler.queue.running) <= 2
    assert all(reply(replies) == alone(prompt, 6) for replies, prompt in zip(bench.events, PROMPTS, strict=True))


@pytest.mark.parametrize("n_pages", [16, 18, 20])
def test_sequences_are_preempted_when_pages_run_out_and_go_on(n_pages):
    """Four replies of up to 60 tokens, 15 pages each."""
    bench = Bench(n_pages=n_pages)
    for prompt in PROMPTS:
        bench.ask(prompt, 30, ignore_eos=True)
    bench.run()
    assert bench.scheduler.counts.preemptions > 0
    for replies, prompt in zip(bench.events, PROMPTS, strict=True):
        assert reply(replies) == alone(prompt, 30, ignore_eos=True)
        assert sum(isinstance(event, Admitted) for event in replies) == 1
    bench.nothing_is_held()


def test_lower_numbers_go_first_and_push_others_aside():
    bench = Bench(max_running=1)
    slow = bench.ask(PROMPTS[0], 20, priority=5, ignore_eos=True)
    bench.run(3)
    soon = bench.ask(PROMPTS[2], 3, priority=1)
    late = bench.ask(PROMPTS[2][:1], 3, priority=9)
    ended: list[int] = []
    while bench.scheduler.queue.busy:
        bench.scheduler.step()
        ended += [i for i, r in enumerate(bench.sequences) if r.ended and i not in ended]
    assert ended == [1, 0, 2]
    assert bench.scheduler.counts.preemptions == 1
    assert reply(slow) == alone(PROMPTS[0], 20, ignore_eos=True)
    assert reply(soon) == reply(late) == alone(PROMPTS[2], 3)


def test_a_cancelled_reply_ends_within_a_step():
    bench = Bench()
    replies, other = bench.ask(PROMPTS[0], 20, ignore_eos=True), bench.ask(PROMPTS[1], 8)
    bench.run(4)
    bench.sequences[0].cancelled = True
    bench.scheduler.step()
    assert replies[-1] == Finished("cancelled")
    assert not [event for event in replies[:-1] if isinstance(event, Finished)]
    bench.run()
    assert reply(other) == alone(PROMPTS[1], 8)
    bench.nothing_is_held()


def test_prefill_pass_of_cancelled_requests_is_closed():
    bench = Bench()

    def cancel() -> None:
        bench.sequences[0].cancelled = True

    bench.scheduler._poll = cancel
    replies = bench.ask(PROMPTS[3])
    bench.run(1)
    assert replies == [Admitted(0), Finished("cancelled")]
    assert not bench.scheduler.queue.busy
    bench.nothing_is_held()


def test_waiting_requests_can_be_cancelled():
    bench = Bench(max_running=1)
    bench.ask(PROMPTS[0])
    waiting = bench.ask(PROMPTS[1])
    bench.sequences[1].cancelled = True
    bench.run()
    assert waiting == [Finished("cancelled")]


def test_decode_steps_run_between_the_layers_of_a_long_prefill_pass():
    bench = Bench(prefill_tokens=64, max_stall=0.02)
    bench.ask(PROMPTS[2], 40, ignore_eos=True)
    bench.run(3)
    fast = bench.decoder.forward

    def forward(tokens, positions, states, *, in_groups=False):
        passing = fast(tokens, positions, states, in_groups=in_groups)
        while True:
            try:
                next(passing)
            except StopIteration as end:
                return end.value
            if len(tokens) > 1:
                time.sleep(0.03)
            yield

    bench.decoder.forward = forward
    long = bench.ask(PROMPTS[3], 2)
    bench.scheduler.durations.add_prefill(64, 10.0)
    bench.run(7)
    assert [len(tokens) for tokens in bench.decoder.steps[-4:]] == [30, 1, 1, 1]
    bench.decoder.forward = fast
    bench.run()
    assert reply(bench.events[0]) == alone(PROMPTS[2], 40, ignore_eos=True)
    assert reply(long) == alone(PROMPTS[3], 2)


def test_decode_shares_the_step_where_prefill_is_short():
    bench = Bench(max_stall=60.0)
    bench.scheduler.durations.add_prefill(64, 0.001)
    bench.ask(PROMPTS[2], 9, ignore_eos=True)
    bench.run(2)
    bench.ask(PROMPTS[3], 2)
    bench.scheduler.step()
    assert len(bench.decoder.steps[-1]) == 16


def test_failure_without_a_message_of_its_own_is_logged_with_its_traceback(caplog):
    bench = Bench()
    bench.decoder.fail_at = 1
    events = bench.ask(PROMPTS[0])
    bench.run()
    assert isinstance(events[-1], Failed)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "the disk is gone" in str(record.exc_info[1])
    assert "in forward" in caplog.text
