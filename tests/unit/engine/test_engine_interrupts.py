"""Interrupts at any moment of a prompt or an answer, everything streaming: nothing hangs, and nothing is lost."""

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from earthshine.cli.source import GLEAM
from earthshine.engine import LoadedModel, LoadOptions, SamplingParams, Session, TokenEvent, load_model
from earthshine.plan import divide

PROMPT = [(7 * i * i + 3 * i + 11) % 5000 for i in range(100)]
UNITS = (*(f"layers.{i}" for i in range(5)), "head")


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoadedModel]:
    little = {"streamed": UNITS, "embedding_on_disk": True, "slots_per_layer": 20, "transit_slots": 2}
    monkeypatch.setattr("earthshine.engine.load.divide", lambda *sizes, **how: replace(divide(*sizes, **how), **little))
    model = load_model(GLEAM, LoadOptions(threads=1))
    yield model
    model.close()


@pytest.fixture
def alarm() -> Iterator[None]:
    """SIGALRM interrupts as SIGINT does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def answer(session: Session) -> list[tuple[int, float]]:
    session.sync(PROMPT)
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_stop=True)
    return [(event.token, event.logprob) for event in session.generate(greedy) if isinstance(event, TokenEvent)]


def test_an_interrupt_at_any_moment_leaves_a_session_that_answers_the_same(streaming: LoadedModel, alarm: None) -> None:
    session = streaming.session(200)
    began = time.monotonic()
    expected = answer(session)
    usual = time.monotonic() - began
    draw, interrupted = random.Random(0), 0
    for _ in range(24):
        session.close()
        try:
            signal.setitimer(signal.ITIMER_REAL, draw.random() * usual + 1e-4)
            answer(session)
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert answer(session) == expected
    assert interrupted >= 8
