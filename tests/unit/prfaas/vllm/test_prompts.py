"""Prompts under way: peers read each layer as soon as it is computed, and never from blocks that vLLM uses again."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from earthshine.errors import UnavailableError

from .engine import Engine, latents

TOKENS = list(range(100, 228))
LATE = 300.0  # seconds that no sound test takes


def started(hold_seconds: float = 0.0) -> Engine:
    return Engine(TOKENS, hold_seconds)


def until() -> float:
    return time.monotonic() + LATE


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LATE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def background():
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def test_each_layer_can_be_read_before_the_next_is_computed(background):
    engine = started()
    engine.begin(0, 80, new=True)
    with engine.prompts.reader("", TOKENS[:64], until()) as reader:
        assert reader.beyond(0) == 80
        first = background(reader.rows, 0, 0, 64)
        second: Future = background(reader.rows, 1, 0, 64)
        engine.compute(0, 0, 80)
        assert torch.equal(first.result(LATE), latents(0, 0, 64))
        assert not second.done()
        engine.compute(1, 0, 80)
        engine.compute(2, 0, 80)
        assert torch.equal(second.result(LATE), latents(1, 0, 64))
        engine.prompts.end_step()
        further = background(reader.beyond, 80)
        engine.step(80, 128)
        assert further.result(LATE) == 128
        assert torch.equal(reader.rows(1, 64, 128), latents(1, 64, 128))


def test_reader_may_come_before_its_prompt(background):
    engine = started()
    opened = threading.Event()

    def read() -> torch.Tensor:
        opened.set()
        with engine.prompts.reader("", TOKENS, until()) as reader:
            return reader.rows(0, 0, 128)

    read_rows = background(read)
    opened.wait(LATE)
    engine.step(0, 128, new=True)
    assert torch.equal(read_rows.result(LATE), latents(0, 0, 128))


def test_cached_prefix_is_there_from_the_start():
    engine = started()
    engine.cache.write(1, engine.blocks, 0, latents(1, 0, 64))
    engine.begin(64, 128, new=True)
    with engine.prompts.reader("", TOKENS, until()) as reader:
        assert torch.equal(reader.rows(1, 0, 64), latents(1, 0, 64))


def test_only_the_same_tokens_of_the_same_tenant_are_found():
    engine = started()
    engine.step(0, 128, new=True)
    assert engine.prompts.has("", TOKENS[:64])
    assert not engine.prompts.has("other", TOKENS[:64])
    assert not engine.prompts.has("", [*TOKENS[:63], 1])
    assert not engine.prompts.has("", [*TOKENS, 1])
    with (
        pytest.raises(UnavailableError, match="did not get this prompt in time"),
        engine.prompts.reader("other", TOKENS, time.monotonic()),
    ):
        pass


def test_blocks_are_released_when_the_last_reader_is_gone():
    engine = started()
    engine.step(0, 128, new=True)
    with engine.prompts.reader("", TOKENS, until()) as reader:
        assert engine.prompts.release(["a"]) == set()
        assert torch.equal(reader.rows(0, 0, 128), latents(0, 0, 128))
    assert engine.prompts.release([]) == {"a"}
    assert engine.prompts.release([]) == set()
    assert not engine.prompts.has("", TOKENS)


def test_prompt_without_readers_is_released_at_once():
    engine = started()
    engine.step(0, 128, new=True)
    assert engine.prompts.release(["a"]) == {"a"}


def test_only_requests_that_vllm_waits_for_are_released():
    engine = started()
    assert engine.prompts.release(["never ordered"]) == set()
    engine.step(0, 128, new=True)
    engine.prompts.preempt(["a"])
    assert engine.prompts.release(["a"]) == {"a"}
    assert engine.prompts.release(["a"]) == set()


def test_held_prompt_waits_for_its_peer():
    engine = started(hold_seconds=LATE)
    engine.step(0, 128, new=True, held=True)
    assert engine.prompts.release(["a"]) == set()
    with engine.prompts.reader("", TOKENS, until()) as reader:
        reader.served()
    assert engine.prompts.release([]) == {"a"}


def test_held_prompt_is_released_after_its_time():
    engine = started(hold_seconds=0.0)
    engine.step(0, 128, new=True, held=True)
    assert engine.prompts.release(["a"]) == {"a"}


def test_held_prompt_that_was_not_computed_is_released_at_once():
    engine = started(hold_seconds=LATE)
    engine.step(0, 80, new=True, held=True)
    assert engine.prompts.release(["a"]) == {"a"}


def test_preempted_prompt_fails_its_reader_and_starts_again(background):
    engine = started()
    engine.step(0, 80, new=True)
    with engine.prompts.reader("", TOKENS, until()) as reader:
        waiting = background(reader.rows, 0, 0, 128)
        engine.prompts.preempt(["a"])
        with pytest.raises(UnavailableError, match="preempted"):
            waiting.result(LATE)
        with pytest.raises(UnavailableError, match="preempted"):
            reader.rows(0, 0, 16)
    engine.step(0, 128, new=True)
    with engine.prompts.reader("", TOKENS, until()) as again:
        assert torch.equal(again.rows(1, 0, 128), latents(1, 0, 128))


def test_preemption_waits_for_a_read_under_way(background, monkeypatch):
    engine, inside, go = started(), threading.Event(), threading.Event()
    engine.step(0, 128, new=True)
    real = engine.cache.read

    def slow(*args):
        inside.set()
        assert go.wait(LATE)
        return real(*args)

    monkeypatch.setattr(engine.cache, "read", slow)
    with engine.prompts.reader("", TOKENS, until()) as reader:
        reading = background(reader.rows, 0, 0, 128)
        assert inside.wait(LATE)
        preempting = background(engine.prompts.preempt, ["a"])
        eventually(lambda: reader.prompt.lost)
        assert not preempting.done()
        go.set()
        preempting.result(LATE)
        assert torch.equal(reading.result(LATE), latents(0, 0, 128))


def test_request_that_ends_early_fails_its_reader(background):
    engine = started()
    engine.step(0, 80, new=True)
    with engine.prompts.reader("", TOKENS, until()) as reader:
        waiting = background(reader.beyond, 80)
        engine.prompts.release(["a"])
        with pytest.raises(UnavailableError, match="before its prompt was computed"):
            waiting.result(LATE)
        assert torch.equal(reader.rows(0, 0, 64), latents(0, 0, 64))


def test_closing_ends_every_wait(background):
    engine = started()
    engine.begin(0, 80, new=True)
    with engine.prompts.reader("", TOKENS, until()) as reader:
        waiting = background(reader.rows, 1, 0, 64)
        engine.prompts.close()
        with pytest.raises(UnavailableError, match="shutting down"):
            waiting.result(LATE)
