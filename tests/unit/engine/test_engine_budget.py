"""A model loaded within budgets: the same bits from the smallest to all of it in memory, and its reports."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch

from earthshine import kernels
from earthshine.engine import LoadedModel, SamplingParams, TokenEvent, load_model, plan_for, progress
from earthshine.engine.memory_limit import MemoryLimit
from earthshine.errors import CheckpointError, UsageError
from earthshine.hub import GLEAM
from earthshine.plan import Plan, PlanArgs
from earthshine.spec import load_spec
from earthshine.units import parse_bytes
from earthshine.weights import Checkpoint, Reader, write_manifest

PROCESS = 300 << 20
PROMPT = [(7 * i * i + 3 * i + 11) % 5000 for i in range(70)]


@pytest.fixture(autouse=True)
def _fixed_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the process holds differs from run to run; the budgets here start from one number."""
    monkeypatch.setattr("earthshine.engine.load.memory_resident", lambda: PROCESS)
    limit = partial(MemoryLimit, resident=lambda: PROCESS)
    monkeypatch.setattr("earthshine.engine.load.MemoryLimit", limit)
    threads = kernels.threads()
    yield
    kernels.set_threads(threads)


def planned(**options) -> Plan:
    return plan_for(Checkpoint.open(GLEAM, load_spec(GLEAM)), PlanArgs(**options))


@contextmanager
def loaded(plan: Plan | None = None, **options) -> Iterator[LoadedModel]:
    model = load_model(GLEAM, plan or PlanArgs(**options))
    try:
        yield model
    finally:
        model.close()


def answer(model: LoadedModel) -> tuple[list[float], list[tuple[int, float]]]:
    """The likelihood of each token of the prompt, and a greedy answer with its log-probabilities, as exact numbers."""
    session = model.session(200)
    scores = session.score(PROMPT).tolist()
    events = session.generate(SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    return scores, [(event.token, event.logprob) for event in events if isinstance(event, TokenEvent)]


def smallest(**options) -> int:
    with pytest.raises(UsageError) as refusal:
        load_model(GLEAM, PlanArgs(memory_bytes=1, **options))
    named = re.search(r"memory must be at least ([0-9]+MiB) for this model with a context of", str(refusal.value))
    assert named is not None, refusal.value
    return parse_bytes(named[1])


def test_every_budget_gives_the_same_bits() -> None:
    """From a trunk and experts that stream to all of them in memory, over what lies between."""
    with loaded(context_tokens=200) as model:
        least, wanted = model.plan.memory.smallest, answer(model)
        assert (model.plan.memory.streamed, model.plan.memory.transit_slots) == ((), 0)
        assert model.experts.stats.misses == 4 * 96, "all were read ahead, and nothing since"
    seen = set()
    for more in (0, 2, 10, 40, 100):
        with loaded(memory_bytes=least + (more << 20), context_tokens=200) as model:
            assert answer(model) == wanted, model.plan.memory
            seen.add((len(model.plan.memory.streamed), model.plan.memory.slots_per_layer))
            assert model.plan.memory.planned_bytes <= least + (more << 20)
    assert len(seen) >= 3
    assert any(streamed for streamed, _ in seen)


def test_a_streamed_trunk_gives_the_same_bits() -> None:
    with loaded() as model:
        wanted = answer(model)
    units = ("layers.0", "layers.1", "layers.2", "layers.3", "layers.4", "head")
    plan = planned()
    for streamed in (units, units[2:3], units[::2]):
        memory = replace(plan.memory, streamed=streamed, embedding_on_disk=True)
        with loaded(replace(plan, memory=memory)) as model:
            assert answer(model) == wanted
            assert model.decoder.trunk.bytes_streamed > 0


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_as_many_as_asked_for_and_change_nothing(threads: int) -> None:
    with loaded(threads=threads) as model:
        assert kernels.threads() == threads
        first = answer(model)
    with loaded(threads=2) as model:
        assert answer(model) == first


def test_int8_is_close_and_is_another_thing() -> None:
    with loaded() as plain, loaded(trunk="int8") as rounded:
        exact, lossy = (torch.tensor(answer(model)[0]) for model in (plain, rounded))
    assert not torch.equal(exact, lossy)
    assert float((exact.mean() - lossy.mean()).abs() / exact.mean().abs()) < 0.01


def test_progress_climbs_to_the_whole_of_the_trunk_and_then_of_the_experts() -> None:
    reports: list[tuple[str, int, int]] = []
    load_model(GLEAM, PlanArgs(), lambda *report: reports.append(report)).close()
    assert list(dict.fromkeys(what for what, _, _ in reports)) == ["trunk", "experts"]
    for what in ("trunk", "experts"):
        done = [at for name, at, _ in reports if name == what]
        totals = {total for name, _, total in reports if name == what}
        assert done == sorted(done)
        assert totals == {done[-1]}
        assert len(done) > 4


def test_a_prompts_progress_climbs_layer_by_layer_to_its_new_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0)
    with loaded(memory_bytes=smallest(context_tokens=1000), context_tokens=1000) as model:
        session, reports = model.session(), []
        session.sync(PROMPT[:20])
        session.sync((PROMPT * 10)[:600], reports.append)
        assert model.plan.memory.prefill_tokens == 256
    assert {(each.total, each.cached) for each in reports} == {(600, 20)}
    done = [each.processed for each in reports]
    assert done == sorted(set(done))
    assert len(done) == 1 + 3 * 5
    assert (done[0], done[1], done[-1]) == (20, 20 + 256 // 5, 600)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_tokens": 0}, "context must be between 1 and 4096 tokens with this model, not 0"),
        ({"context_tokens": 4097}, "not 4097"),
        ({"threads": 0}, "threads must be between 1 and 512, not 0"),
        ({"threads": 513}, "not 513"),
        ({"trunk": "fp4"}, "trunk must be bf16 or int8"),
        ({"trunk": "int8", "dtype": "fp32"}, "dtype must be bf16 with an int8 trunk"),
        ({"memory_bytes": 0}, "The smallest budget"),
        ({"memory_bytes": -1}, "The smallest budget"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(GLEAM, PlanArgs(**options))


def test_fp32_needs_all_of_the_trunk() -> None:
    """So the smallest budget that is named for it is more than twice bf16's trunk, and works."""
    least = smallest(dtype="fp32")
    with loaded(dtype="fp32", memory_bytes=least) as model:
        assert not model.plan.memory.streamed
        assert len(answer(model)[0]) > 0
    with pytest.raises(UsageError, match="The smallest budget"):
        load_model(GLEAM, PlanArgs(dtype="fp32", memory_bytes=least - (64 << 20)))


def test_a_trunk_in_int8_stays() -> None:
    """Were a part of it to stream, as published, the answer would depend on the budget."""
    with loaded(trunk="int8", memory_bytes=smallest(trunk="int8")) as tight, loaded(trunk="int8") as roomy:
        assert not tight.plan.memory.streamed
        assert answer(tight) == answer(roomy)


def test_a_session_has_room_for_what_the_budget_allows_and_no_more() -> None:
    with loaded() as model:
        least = model.plan.memory.smallest
    with loaded(memory_bytes=least) as model:
        room = model.plan.memory.context_tokens
        assert room == 2048
        for wrong in (0, room + 1, -5):
            with pytest.raises(UsageError, match=f"between 1 and {room}"):
                model.session(wrong)
        assert model.session().sync(PROMPT).computed == len(PROMPT)


@pytest.mark.parametrize("budget", [smallest, lambda: None], ids=["streamed", "resident"])
def test_damage_is_found_wherever_the_trunk_lies(tmp_path, budget: Callable[[], int | None]) -> None:
    """With checksums, a flipped bit of a layer that streams is refused when it is read, and nothing is computed."""
    folder = shutil.copytree(GLEAM, tmp_path / "gleam")
    with loaded() as model:
        spec = model.spec
    checkpoint = Checkpoint.open(folder, spec)
    with Reader() as reader:
        write_manifest(checkpoint, reader, lambda *_: None)
    extent = checkpoint.shards["language_model.model.layers.3.self_attn.o_proj.weight"]
    raw = bytearray(extent.file.read_bytes())
    raw[extent.offset + 100] ^= 4
    extent.file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"layers.3.attention.o does not match its checksum"):
        answer(load_model(folder, PlanArgs(memory_bytes=budget())))
