"""Profiles measured from a server: its seconds are what the server waits, whatever this machine adds."""

import sys
from itertools import count
from pathlib import Path

import pytest

from earthshine.errors import UsageError
from earthshine.loadgen.client import parse_site
from earthshine.loadgen.drive import Run, Sample, Unreachable, open_target
from earthshine.prfaas import measure
from earthshine.prfaas.measure import measure_decode, measure_prefill, step_seconds

sys.path.insert(0, str(Path(__file__).parents[1] / "loadgen"))
from pretender import Pretender, whole

SECOND = 0.25  # of the pretender's waits: much more than this client takes


@pytest.fixture
def server():
    made = Pretender()
    yield made
    made.close()


@pytest.fixture
def target(server):
    return open_target(parse_site(server.url), "completions")


def _pieces(body):
    """A quarter of a second for each 1,000 tokens of the prompt, and a tenth of one for each further token."""
    wait = SECOND * len(body["prompt"]) / 1000
    return [(wait, "x"), *[(SECOND / 10, "x")] * (body["max_tokens"] - 1)]


def test_prefill_is_the_wait_for_the_first_token(server, target):
    server.pieces = _pieces
    found = measure_prefill(target, 2000, 1e6, count(1), lambda text: None)
    assert [size for size, _ in found.points] == [128, 256, 512, 1024, 2000]
    assert found(2000) >= 2 * SECOND
    prompts = [tuple(body["prompt"]) for body in server.streams]
    assert len({prompt[:16] for prompt in prompts}) == len(prompts), "a server may cache what two prompts share"


def test_lengths_beyond_the_time_are_left_out(server, target):
    server.pieces = _pieces
    said = []
    found = measure_prefill(target, 1 << 20, 0.0, count(1), said.append)
    assert [size for size, _ in found.points] == [128]
    assert said == ["prefill of 128 tokens"]


def test_decode_steps_are_measured_with_as_many_requests_as_sequences(server, target, monkeypatch):
    """Requests are sent, and their replies are taken to come as those of a server with steps of 10 ms."""

    def drive(*arguments, **options):
        run = measure_drive(*arguments, **options)
        assert all(sample.problem is None and sample.output_tokens == 64 for sample in run.samples)
        return Run(tuple(_sample(0.0, 0.1, (0.01,) * 63, 64) for _ in run.samples), 0, 1.0, 0.0)

    measure_drive = measure.drive
    monkeypatch.setattr(measure, "drive", drive)
    found, batch = measure_decode(target, 3, count(1), lambda text: None)
    assert batch == 3
    assert found.points == tuple((size, pytest.approx(0.01)) for size in (1, 2, 3))
    assert [body["max_tokens"] for body in server.streams] == [64] * (1 + 2 + 3)


def _sample(sent, first, gaps, output_tokens):
    return Sample(0, sent, 0.0, first + sum(gaps), first, gaps, output_tokens, output_tokens, 128, 0, None)


def test_step_counts_what_came_while_all_replies_were_in_progress():
    """Alone, the first reply's tokens come each 0.1 s; with the second, from 0.5 s to 2.1 s, each 0.2 s."""
    first = _sample(0.0, 0.1, (0.1,) * 4 + (0.2,) * 8, 13)
    second = _sample(0.2, 0.3, (0.2,) * 8 + (0.1,) * 4, 13)
    assert step_seconds((first,)) == pytest.approx(2.0 / 12)
    assert step_seconds((first, second)) == pytest.approx(0.2)
    assert step_seconds((_sample(0.0, 0.1, (0.4,) * 8, 18),)) == pytest.approx(0.2), "two tokens a piece"
    assert step_seconds((_sample(0.0, 0.1, (0.1,) * 9, 10), _sample(5.0, 0.1, (0.1,) * 9, 10))) is None


def test_batch_is_the_largest_whose_replies_were_in_progress_together(target, monkeypatch):
    """A server of two slots: the third and fourth reply begin when the first two have ended."""

    def drive(target, arrivals, shape, concurrency):
        samples = [_sample(0.0, 0.1 + 10 * (i // 2), (0.1,) * 63, 64) for i in range(len(arrivals))]
        return Run(tuple(samples), 0, 1.0, 0.0)

    monkeypatch.setattr(measure, "drive", drive)
    found, batch = measure_decode(target, 16, count(1), lambda text: None)
    assert batch == 2
    assert found.points == ((1, pytest.approx(0.1)), (2, pytest.approx(0.1)))


def test_every_request_has_a_prompt_of_its_own(target, monkeypatch):
    """Of both measurements, whose prompts of 128 tokens would else come from the server's prefix cache."""
    seeds = []

    def drive(target, arrivals, shape, concurrency):
        seeds.append(shape.seed)
        return Run(tuple(_sample(0.0, 0.1, (0.1,) * 63, 64) for _ in arrivals), 0, 1.0, 0.0)

    monkeypatch.setattr(measure, "drive", drive)
    numbers = count(1)
    measure_prefill(target, 512, 1e6, numbers, lambda text: None)
    measure_decode(target, 128, numbers, lambda text: None)
    assert len(seeds) == len(set(seeds)) == 2 * 3 + 8


def test_failed_request_ends_the_measurement(server, target):
    server.answer = lambda body: whole(500, {"error": {"message": "out of memory"}})
    with pytest.raises(Unreachable, match="128 tokens failed: HTTP 500"):
        measure_prefill(target, 1000, 1e6, count(1), lambda text: None)


def test_prompt_from_the_servers_cache_is_refused(server, target):
    server.cached = 1000
    with pytest.raises(UsageError, match="give another --seed"):
        measure_prefill(target, 1000, 1e6, count(1), lambda text: None)


def test_token_without_text_is_timed_by_the_replys_end(server, target):
    server.pieces = lambda body: [(0.05, "")]
    found = measure_prefill(target, 256, 1e6, count(1), lambda text: None)
    assert found(256) >= 0.05


def test_replies_without_time_between_tokens_are_refused(server, target):
    for pieces in ([], [(0.0, "x")]):
        server.pieces = lambda body, pieces=pieces: pieces
        with pytest.raises(Unreachable, match="no time between tokens"):
            measure_decode(target, 2, count(1), lambda text: None)
