"""How far a prompt is: what its client gets, and what the gauges and forecasts say."""

from itertools import pairwise

import pytest

from earthshine.engine import Admitted, Finished, PromptProgress, SamplingParams, Session, TokenEvent, progress
from earthshine.engine.durations import Durations
from earthshine.engine.progress import report_progress
from earthshine.engine.waits import prompts_under_way
from earthshine.kv import PagePool

from .conftest import CONTEXT, SPEC, FakeDecoder
from .scheduling import PAGE, PROMPTS, Bench, alone, reply

PROMPT = PROMPTS[3]  # 30 tokens


@pytest.fixture
def every_layer(monkeypatch):
    """Progress after each layer, however fast the machine is."""
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0)


def reports(events):
    return [event for event in events if isinstance(event, PromptProgress)]


def test_a_client_that_asks_gets_each_layer_of_each_pass(every_layer):
    bench = Bench(prefill_tokens=16)
    events = bench.ask(PROMPT, progress=True)
    bench.run()
    found = reports(events)
    assert [each.processed for each in found] == [0, 5, 10, 16, 20, 25, 30]  # 16 tokens and 14, over 3 layers
    assert {(each.total, each.cached) for each in found} == {(30, 0)}
    assert all(before.seconds <= after.seconds for before, after in pairwise(found))
    assert isinstance(events[0], Admitted)
    assert isinstance(events[1 + len(found)], TokenEvent), "all before the first token"
    assert reply(events) == alone(PROMPT)


def test_a_client_that_does_not_ask_gets_none(every_layer):
    bench = Bench()
    events = bench.ask(PROMPT)
    bench.run()
    assert not reports(events)


def test_however_many_layers_pass_there_are_few_events(monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 1e9)
    bench = Bench(prefill_tokens=4)
    events = bench.ask(PROMPT, progress=True)
    bench.run()
    assert [each.processed for each in reports(events)] == [0, 30], "the beginning and the end come always"


def test_tokens_that_were_found_count_as_processed(every_layer):
    bench = Bench()
    bench.ask(PROMPT)
    bench.run()
    events = bench.ask([*PROMPT, 1, 2], progress=True)
    bench.run()
    first, *_, last = reports(events)
    assert (first.total, first.cached, first.processed) == (32, 28, 28)
    assert last.processed == 32


def test_a_prefill_pass_in_pieces_between_decode_steps_reports_too(every_layer):
    bench = Bench(max_stall=0.0)
    bench.ask(PROMPTS[0], 20, ignore_eos=True)
    bench.run(3)
    events = bench.ask(PROMPT, progress=True)
    bench.run()
    processed = [each.processed for each in reports(events)]
    assert len(processed) > 3
    assert processed == sorted(set(processed))
    assert processed[-1] == 30


def test_a_preempted_prompt_never_goes_back(every_layer):
    bench = Bench(n_pages=10, max_running=4)
    replies = [bench.ask(prompt, 8, progress=True, ignore_eos=True) for prompt in (PROMPT, PROMPTS[1], PROMPTS[0])]
    bench.run()
    assert bench.scheduler.counts.preemptions
    for events in replies:
        processed = [each.processed for each in reports(events)]
        assert processed == sorted(set(processed))
        assert processed[-1] == reports(events)[-1].total


def test_the_gauges_count_prompts_while_they_are_computed():
    seen = []
    bench = Bench(prefill_tokens=16, poll=lambda: seen.append(prompts_under_way(bench.scheduler.queue.running)))
    bench.ask(PROMPT)
    bench.run()
    assert (30, 0, 0.0) in seen
    assert prompts_under_way(bench.scheduler.queue.running) == (0, 0, 0.0)


def test_a_later_prompt_is_expected_to_take_what_an_earlier_one_took():
    bench = Bench(prefill_tokens=16)
    first = bench.ask(PROMPT, progress=True)
    bench.run()
    expected = bench.scheduler.durations.prompt_seconds(31, 16, by_token=False)
    second = bench.ask([3, *PROMPT], progress=True)
    bench.run()
    assert reports(first)[0].seconds_left is None
    assert reports(second)[0].seconds_left == expected > 0
    assert reports(second)[-1].seconds_left == 0


def test_the_own_rate_of_a_prompt_replaces_what_was_expected(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    sent = []
    report = report_progress(1000, 200, sent.append, expected=10.0)
    now[0] += 20
    report(600)
    half = pytest.approx(0.5 * (1 / 16 * 10 + 15 / 16 * 40))
    assert sent == [PromptProgress(1000, 200, 200, 0.0, 10.0), PromptProgress(1000, 200, 600, 20.0, half)]
    now[0] += 0.1
    report(700)
    assert len(sent) == 2, "too soon"
    now[0] += 10
    report(600)
    assert len(sent) == 2, "no news"
    report(1000)
    assert (sent[2].processed, sent[2].seconds_left) == (1000, 0)


@pytest.mark.parametrize("expected", [18.0, None])
def test_a_prompt_that_gets_slower_is_forecast_by_its_later_part(monkeypatch, expected):
    """18 s for the tokens alone, as short prompts took, and twice that for attention over those before."""
    now, sent = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    report = report_progress(10_000, 0, sent.append, expected=expected)
    for percent in range(1, 100):
        share = percent / 100
        now[0] = 18 * share + 36 * share**2
        report(10_000 * share)
    for event, least in ((sent[35], 0.5), (sent[65], 0.65), (sent[90], 0.75)):
        left = 54 - event.seconds
        assert least * left < event.seconds_left < left


def test_the_first_layers_alone_are_no_forecast(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    sent = []
    report = report_progress(1000, 0, sent.append)
    now[0] = 1.0
    report(20)
    assert sent[-1].seconds_left is None
    now[0] = 10.0
    report(500)
    assert sent[-1].seconds_left == pytest.approx(9 / 480 * 500, rel=0.001), "at the rate of all but the first 20"


def test_a_pass_that_streams_costs_as_much_for_few_tokens():
    durations = Durations()
    assert durations.prompt_seconds(100, 8192, by_token=False) is None
    durations.add_prefill(8192, 80.0)
    durations.add_decode(2.0)
    assert durations.prompt_seconds(100, 8192, by_token=False) == 80
    assert durations.prompt_seconds(16384, 8192, by_token=False) == 160
    assert durations.prompt_seconds(16400, 8192, by_token=False) == 240
    assert durations.prompt_seconds(4096, 8192, by_token=True) == 40
    assert durations.prompt_seconds(10, 8192, by_token=True) == 2, "at least a decode step"
    assert durations.prompt_seconds(16384 + 4096, 8192, by_token=True) == 200


def test_a_session_tells_how_far_its_prompt_is(every_layer):
    pool, found = PagePool(SPEC.kept, PAGE, 64, FakeDecoder().dtype), []
    session = Session(FakeDecoder(), pool, fingerprint="fake-1", context_tokens=CONTEXT, prefill_tokens=16)
    session.sync(PROMPT, found.append)
    assert [each.processed for each in found] == [0, 5, 10, 16, 20, 25, 30]
    found.clear()
    session.sync([*PROMPT, 5, 6, 7], found.append)
    assert [(each.cached, each.processed) for each in found] == [(30, 30), (30, 31), (30, 32), (30, 33)]
    found.clear()
    session.sync([*PROMPT, 5, 6, 7], found.append)
    assert [each.processed for each in found] == [33], "nothing is left to compute"
    assert isinstance(list(session.generate(SamplingParams(temperature=0.0, max_tokens=2)))[-1], Finished)
