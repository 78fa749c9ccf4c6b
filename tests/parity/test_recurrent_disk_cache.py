"""Kimi-Linear with a disk cache: pages come back with the recurrent state after them, and replies keep their bits."""

from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest
import torch

from earthshine.engine import (
    Admitted,
    Engine,
    EngineOptions,
    Failed,
    Finished,
    Request,
    SamplingParams,
    TokenEvent,
    load_model,
)
from earthshine.engine.load import LoadedModel
from earthshine.engine.scheduler import Scheduler
from earthshine.engine.sequence import TokenSequence
from earthshine.kv import BlobLayout, PageFiles, PagePool, PrefixCache
from earthshine.plan import PlanArgs

from .tiny import VOCAB, KimiLinear, write_tiny

PROMPT = [(7 * i * i + 3 * i + 11) % (VOCAB - 1) for i in range(150)]
PAGE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"), KimiLinear())


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LoadedModel]:
    loaded = load_model(folder, PlanArgs(context_tokens=256, batch=2, threads=1))
    yield loaded
    loaded.close()


def params(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


def alone(model: LoadedModel, tokens: list[int], max_tokens: int) -> list:
    session = model.session()
    session.sync(tokens)
    found = list(session.generate(params(max_tokens)))
    session.close()
    return found


def served(folder: Path, disk: Path, *asked: tuple[list[int], int]) -> list[tuple[int, list]]:
    """A server's whole life: tokens reused and events of each request, one after the other."""
    loaded, found = load_model(folder, PlanArgs(context_tokens=256, batch=2, threads=1)), []
    engine = Engine(loaded, EngineOptions(disk_cache_bytes=64 << 20, disk_cache_folder=disk))
    try:
        for tokens, max_tokens in asked:
            events: Queue = Queue()
            engine.submit(Request(tokens, params(max_tokens)), events.put)
            received = [events.get(timeout=300)]
            while not isinstance(received[-1], Finished | Failed):
                received.append(events.get(timeout=300))
            assert isinstance(received[0], Admitted)
            found.append((received[0].reused, received[1:]))
    finally:
        engine.close()
        loaded.close()
    return found


def tokens_of(events: list) -> list[int]:
    return [event.token for event in events if isinstance(event, TokenEvent)]


def test_prefix_is_found_with_its_state_after_a_restart(folder, model, tmp_path):
    """The state after the prompt's last full page, and the one after the last page that the reply filled."""
    ((reused, first),) = served(folder, tmp_path, (PROMPT, 50))
    assert (reused, first) == (0, alone(model, PROMPT, 50))
    longer = [*PROMPT, *tokens_of(first), 3, 4, 5]
    again = served(folder, tmp_path, (PROMPT, 8), (longer, 8))
    assert again == [(128, alone(model, PROMPT, 8)), (192, alone(model, longer, 8))]


def test_damaged_state_is_computed_again(folder, model, tmp_path):
    served(folder, tmp_path, (PROMPT, 8))
    sizes = {path: path.stat().st_size for path in tmp_path.rglob("*.kv")}
    with_state = [path for path, size in sizes.items() if size == max(sizes.values())]
    assert (len(sizes), len(with_state)) == (2, 1)
    raw = bytearray(with_state[0].read_bytes())
    raw[-100] ^= 1  # in the last recurrent layer's state
    with_state[0].write_bytes(raw)
    expected = alone(model, PROMPT, 8)
    assert served(folder, tmp_path, (PROMPT, 8), (PROMPT, 8)) == [(0, expected), (128, expected)]
    assert served(folder, tmp_path, (PROMPT, 8)) == [(128, expected)]


def test_preempted_sequence_is_restored_from_disk_with_its_state(model, tmp_path):
    layout = BlobLayout.of(model.spec.kept, model.fingerprint, torch.bfloat16)
    files = PageFiles(tmp_path, layout, PAGE, 1 << 26)
    pool = PagePool(model.spec.kept, PAGE, 4, torch.bfloat16)
    cache = PrefixCache(pool, [files], files, keep_all=False)
    scheduler = Scheduler(
        model.decoder, pool, cache, max_running=1, context_tokens=256, prefill_tokens=256, max_stall=1.0
    )
    events: list = []
    sequence = TokenSequence(0, Request(PROMPT, params(60)), events.append, PAGE, frozenset())
    scheduler.queue.add(sequence)
    while len(sequence.tokens) < 200:
        scheduler.step()
    assert files.stats.pages == 0
    scheduler._admission.preempt(sequence)
    while not cache.make_room(4):  # others need all of the pool
        cache.wait(60)
    assert cache.flush(60)
    assert (files.stats.pages, files.stats.failed_writes) == (3, 0)
    computed = scheduler.counts.prompt_tokens
    while scheduler.queue.busy:
        scheduler.step()
    assert files.stats.pages_read == 3
    assert scheduler.counts.prompt_tokens - computed == 200 - 192
    assert events[1:] == alone(model, PROMPT, 60)
    cache.clear()
    assert (pool.free_pages, pool.states.free) == (4, pool.states.n_slots)
    cache.close()
