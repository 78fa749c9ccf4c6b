"""Interrupts at any moment of a prompt or an answer, everything streaming: nothing hangs, and nothing is lost."""

import gc
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

import pytest

from earthshine.engine import LoadedModel, SamplingParams, Session, TokenEvent, load_model, plan_for
from earthshine.hub import GLEAM
from earthshine.plan import PlanArgs
from earthshine.spec import load_spec
from earthshine.weights import Checkpoint

PROMPT = [(7 * i * i + 3 * i + 11) % 5000 for i in range(100)]
UNITS = (*(f"layers.{i}" for i in range(5)), "head")


@pytest.fixture
def streaming() -> Iterator[LoadedModel]:
    plan = plan_for(Checkpoint.open(GLEAM, load_spec(GLEAM)), PlanArgs(threads=1))
    little = replace(plan.memory, streamed=UNITS, embedding_on_disk=True, slots_per_layer=20, transit_slots=2)
    model = load_model(GLEAM, replace(plan, memory=little))
    yield model
    model.close()


@contextmanager
def at_each_call(act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` where Python looks for signals: as one of its functions begins, and after a call of a function in C.

    Not before each line: between the end of a `with` block and the release of its lock no interrupt can fall.
    """

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_return"):
            act()

    before = sys.getprofile()
    gc.disable()  # a callback of a test library would swallow an interrupt that falls into it
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)
        gc.enable()


def answer(session: Session) -> list[tuple[int, float]]:
    session.sync(PROMPT)
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    return [(event.token, event.logprob) for event in session.generate(greedy) if isinstance(event, TokenEvent)]


def test_an_interrupt_at_any_moment_leaves_a_session_that_answers_the_same(streaming: LoadedModel) -> None:
    session = streaming.session(200)
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == interrupt_at:
            raise KeyboardInterrupt

    interrupt_at = -1
    with at_each_call(count):
        expected = answer(session)
    usual, draw, interrupted = calls, random.Random(0), 0
    for _ in range(24):
        session.clear()
        calls, interrupt_at = 0, draw.randrange(1, usual)
        try:
            with at_each_call(count):
                answer(session)
        except KeyboardInterrupt:
            interrupted += 1
        assert answer(session) == expected
    assert interrupted >= 8  # a run waits for its reader more or less often, so that its calls may be fewer
