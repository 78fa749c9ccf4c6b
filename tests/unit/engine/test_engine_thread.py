"""Requests to an engine from any thread: each gets exactly one last event, also when the engine's thread crashes."""

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import earthshine
from earthshine.engine import Engine, EngineOptions, Failed, Finished, Request, SamplingParams, TokenEvent, load_model
from earthshine.errors import ContextError, OverloadError, UsageError
from earthshine.plan import PlanArgs

GLEAM = Path(earthshine.__file__).parent / "gleam"
PROMPT = [(7 * i * i + 3 * i + 11) % 6000 for i in range(150)]


@contextmanager
def engine(options: EngineOptions | None = None, **args) -> Iterator[Engine]:
    model = load_model(GLEAM, PlanArgs(**({"context_tokens": 512, "batch": 4} | args)))
    made = Engine(model, options)
    try:
        yield made
    finally:
        made.close()
        model.close()


class Reply:
    """The events of one request, as its sink receives them."""

    def __init__(self) -> None:
        self.events: queue.Queue = queue.Queue()

    def all(self) -> list:
        found = []
        while not (found and isinstance(found[-1], Finished | Failed)):
            found.append(self.events.get(timeout=300))
        return found


def ask(made: Engine, tokens: list[int] = PROMPT, max_tokens: int = 8, **request) -> tuple[Reply, object]:
    reply = Reply()
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return reply, made.submit(Request(tokens, params, **request), reply.events.put)


@contextmanager
def blocked(made: Engine) -> Iterator[Reply]:
    """The engine's thread waits in the sink of a request until the block ends, however it ends."""
    released, reply = threading.Event(), Reply()

    def sink(event) -> None:
        reply.events.put(event)
        released.wait(300)

    made.submit(Request(PROMPT, SamplingParams(temperature=0.0, max_tokens=2)), sink)
    try:
        reply.events.get(timeout=300)
        yield reply
    finally:
        released.set()


def tokens_of(events: list) -> list[int]:
    return [event.token for event in events if isinstance(event, TokenEvent)]


def test_requests_from_many_threads_get_what_they_get_alone():
    with engine() as made:
        alone = [tokens_of(ask(made, PROMPT[i:], tenant=f"alone {i}")[0].all()) for i in range(12)]
        found: dict[int, list[int]] = {}

        def work(i: int) -> None:
            found[i] = tokens_of(ask(made, PROMPT[i:])[0].all())

        threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert [found[i] for i in range(12)] == alone
        assert made.drain(30)
        gauges = made.gauges()
        assert gauges.finished == {"length": 24}
        assert gauges.generated_tokens == 24 * 8
        assert gauges.resident_bytes <= gauges.budget_bytes


def test_an_engine_is_stalled_while_its_thread_is_blocked_and_not_while_idle():
    with engine() as made:
        assert made.stalled_seconds() == 0.0
        with blocked(made) as reply:
            time.sleep(0.05)
            assert made.stalled_seconds() >= 0.05
        reply.all()


def test_impossible_requests_are_refused_on_submission():
    with engine() as made:
        for tokens, error, match in (
            ([], UsageError, "at least one token"),
            ([-1], UsageError, "between 0 and"),
            ([1 << 40], UsageError, "between 0 and"),
            (["a"], UsageError, "whole numbers"),
            ([5] * 512, ContextError, "maximum context length is 512 tokens here, and the request has 512"),
        ):
            with pytest.raises(error, match=match):
                ask(made, tokens)
        assert len(tokens_of(ask(made, [5] * 511, 4)[0].all())) == 1


def test_a_request_beyond_the_queue_limit_is_refused():
    with engine(EngineOptions(max_queue=2), batch=1) as made:
        with blocked(made):
            others = [ask(made, [i])[0] for i in range(2)]
            with pytest.raises(OverloadError, match="2 requests are waiting") as refused:
                ask(made, [3])
        assert 1 <= refused.value.retry_seconds <= 60
        assert [reply.all()[-1].reason for reply in others] == ["length", "length"]


def test_cancelled_requests_end_and_free_their_pages():
    with engine() as made:
        reply, ticket = ask(made, max_tokens=300)
        while not isinstance(reply.events.get(timeout=300), TokenEvent):
            pass
        made.cancel(ticket)
        assert reply.all()[-1] == Finished("cancelled")
        made.cancel(ticket)
        assert made.drain(300)
        gauges = made.gauges()
        assert gauges.pages_free + gauges.pages_cached == gauges.pages


def test_a_drained_engine_refuses_requests():
    with engine() as made:
        reply, _ = ask(made, max_tokens=20)
        assert made.drain(30)
        assert reply.all()[-1] == Finished("length")
        with pytest.raises(OverloadError, match="shutting down"):
            ask(made)


def test_close_ends_running_requests():
    with engine() as made:
        replies = [ask(made, PROMPT[i:], max_tokens=300)[0] for i in range(6)]
        assert not made.drain(0.01)
        made.close()
        assert {each.all()[-1].reason for each in replies} <= {"cancelled", "length"}
        assert not made.alive


def test_thread_crash_fails_queued_requests():
    with engine() as made:
        hook, threading.excepthook = threading.excepthook, lambda args: None
        try:
            made._scheduler.step = lambda: 1 / 0
            reply, _ = ask(made)
            assert "ZeroDivisionError" in str(reply.all()[-1].error)
            made._thread.join(300)
        finally:
            threading.excepthook = hook
        with pytest.raises(OverloadError):
            ask(made)
        time.sleep(0.01)
        assert made.stalled_seconds() > 0


def test_a_request_submitted_while_the_thread_crashes_is_refused():
    with engine() as made:
        hook, threading.excepthook = threading.excepthook, lambda args: None
        try:
            made._scheduler.step = lambda: 1 / 0
            late: list = []

            def again(event) -> None:
                try:
                    ask(made, [1])
                except OverloadError as error:
                    late.append(error)

            made.submit(Request(PROMPT, SamplingParams(max_tokens=2)), again)
            made._thread.join(300)
        finally:
            threading.excepthook = hook
        assert len(late) == 1


def test_drain_cancels_requests_that_outlast_its_time():
    with engine() as made:
        reply, _ = ask(made, max_tokens=300)
        assert not made.drain(0)
        assert reply.all()[-1] == Finished("cancelled")
        assert made.alive


def test_close_interrupts_a_prefill_pass_between_layers():
    with engine() as made:
        forward, layers, begun = made._scheduler._decoder.forward, [], threading.Event()

        def slow(tokens, positions, context, *, in_groups=False):
            passing = forward(tokens, positions, context, in_groups=in_groups)
            for index, _ in enumerate(passing):
                layers.append(index)
                begun.set()
                while not made._ending:
                    time.sleep(0.001)
                yield

        made._scheduler._decoder.forward = slow
        reply, _ = ask(made)
        assert begun.wait(300)
        made.close()
        assert layers == [0]
        assert reply.all()[-1] == Finished("cancelled")


def test_a_prefix_is_found_after_a_restart(tmp_path):
    options = EngineOptions(disk_cache_bytes=64 << 20, disk_cache_folder=tmp_path)
    answers = []
    for run in range(2):
        with engine(options) as made:
            events = ask(made)[0].all()
            assert events[0].reused == (128 if run else 0)
            answers.append(tokens_of(events))
    assert answers[0] == answers[1]


def test_nothing_stays_on_disk_without_a_disk_cache():
    with engine() as made:
        folder = made._folder
        assert folder.is_dir()
        ask(made)[0].all()
    assert not folder.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_stall": 0.0},
        {"max_stall": float("nan")},
        {"max_queue": 0},
        {"disk_cache_bytes": -1},
        {"disk_cache_bytes": 9},
    ],
)
def test_impossible_engine_options_are_refused(wrong):
    with pytest.raises(UsageError):
        EngineOptions(**wrong)
