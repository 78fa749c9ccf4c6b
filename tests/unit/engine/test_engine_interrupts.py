"""Interrupts at any moment of a prompt or an answer, everything streaming: nothing hangs, and nothing is lost."""

import gc
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from earthshine.engine import LoadedModel, SamplingParams, Session, TokenEvent, load_model, plan_for
from earthshine.hub import GLEAM
from earthshine.plan import Wishes
from earthshine.spec import load_spec
from earthshine.weights import Checkpoint

PROMPT = [(7 * i * i + 3 * i + 11) % 5000 for i in range(100)]
UNITS = (*(f"layers.{i}" for i in range(5)), "head")


@pytest.fixture
def streaming() -> Iterator[LoadedModel]:
    plan = plan_for(Checkpoint.open(GLEAM, load_spec(GLEAM)), Wishes(threads=1))
    little = replace(plan.division, streamed=UNITS, embedding_on_disk=True, slots_per_layer=20, transit_slots=2)
    model = load_model(GLEAM, replace(plan, division=little))
    yield model
    model.close()


@pytest.fixture
def alarm() -> Iterator[None]:
    """SIGALRM interrupts as SIGINT does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # a callback of a test library would swallow an interrupt that falls into it
    yield
    gc.enable()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def answer(session: Session) -> list[tuple[int, float]]:
    session.sync(PROMPT)
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
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
