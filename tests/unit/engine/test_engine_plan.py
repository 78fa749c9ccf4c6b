"""A plan as the engine takes it: its own or saved, for these files in this process, and never on trust."""

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from earthshine import kernels
from earthshine.engine import LoadedModel, SamplingParams, TokenEvent, load_model, plan_for
from earthshine.errors import ContextError, UsageError
from earthshine.hub import GLEAM
from earthshine.machine import memory_resident, memory_total
from earthshine.plan import Plan, PlanArgs, model_name, plan_json, read_plan
from earthshine.spec import load_spec
from earthshine.weights import Checkpoint

PROMPT = [(7 * i * i + 3 * i + 11) % 5000 for i in range(70)]
MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = kernels.threads()
    yield
    kernels.set_threads(threads)


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint.open(GLEAM, load_spec(GLEAM))


@pytest.fixture
def plan(checkpoint: Checkpoint) -> Plan:
    return plan_for(checkpoint, PlanArgs(4 * GIB, 512, threads=1))


@contextmanager
def loaded(plan: Plan | PlanArgs) -> Iterator[LoadedModel]:
    model = load_model(GLEAM, plan)
    try:
        yield model
    finally:
        model.close()


def answer(model: LoadedModel) -> list[tuple[int, float]]:
    session = model.session()
    session.sync(PROMPT)
    events = session.generate(SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    return [(event.token, event.logprob) for event in events if isinstance(event, TokenEvent)]


def changed(plan: Plan, **memory: Any) -> Plan:
    return replace(plan, memory=replace(plan.memory, **memory))


def test_a_saved_plan_is_what_the_engine_then_uses(tmp_path: Path, plan: Plan) -> None:
    file = tmp_path / "plan.json"
    other = changed(plan, slots_per_layer=20, transit_slots=3, streamed=("layers.2",), embedding_on_disk=True)
    file.write_text(plan_json(replace(other, threads=2)))
    with loaded(plan) as model:
        wanted = answer(model)
    with loaded(read_plan(file)) as model:
        assert model.plan == replace(other, threads=2)
        assert answer(model) == wanted
        store = model.experts.store
        assert set(store._home.n_slots.values()) == {20}
        assert store._arena.n_slots == 4 * 20 + 3
        assert model.decoder.trunk.bytes_streamed > 0
        assert model.memory_limit.budget_bytes == plan.memory.budget_bytes


HUGE = 1 << 50


@pytest.mark.parametrize(
    ("memory", "others", "message"),
    [
        ({"transit_slots": 300_000}, {}, "The plan takes .* but its budget is"),
        ({"transit_slots": HUGE}, {}, "The plan takes .* but its budget is"),
        ({"budget_bytes": 400 * MIB}, {}, "The plan takes .* but its budget is 400.00 MiB; create a new one"),
        (
            {"slots_per_layer": HUGE},
            {},
            f"must be 0 to 96 for this model, not {HUGE}; create a new one",
        ),
        ({"slots_per_layer": 97}, {}, "must be 0 to 96 for this model, not 97; create a new one"),
        ({"pages": 1 << 20}, {}, "The plan takes .* but its budget is"),
        ({"budget_bytes": HUGE}, {}, "budget of 1048576.00 GiB|budget of 1024.00 TiB"),
        ({}, {"process_bytes": HUGE}, "The plan takes"),
        ({"context_tokens": 4097}, {}, "context must be between 1 and 4096 tokens with this model, not 4097"),
        ({"batch": 5000}, {}, "batch must be between 1 and 4096 sequences, not 5000"),
        ({}, {"threads": 1000}, "threads must be between 1 and 512, not 1000"),
        ({}, {"trunk": "fp4"}, "trunk must be bf16 or int8, not 'fp4'"),
        ({}, {"trunk": "int8", "dtype": "fp32"}, "dtype must be bf16 with an int8 trunk"),
        ({"streamed": ("layers.1",)}, {"dtype": "fp32"}, "must stay in memory; create a new one"),
        ({"streamed": ("layers.1",)}, {"trunk": "int8"}, "must stay in memory; create a new one"),
        ({"streamed": ("layers.5",)}, {}, "streams layers that this model does not have"),
        (
            {"slots_per_layer": 95, "transit_slots": 0},
            {},
            "at least 1, because slots_per_layer is 95",
        ),
        (
            {"slots_per_layer": 0, "transit_slots": 0},
            {},
            "slots_per_layer is 0 and a layer has 96 experts",
        ),
        ({}, {"model": "kimi_k25-0123456789abcdef"}, "The plan is for 'kimi_k25-0123456789abcdef', and this model is"),
    ],
    ids=str,
)
def test_a_plan_that_does_not_fit_is_refused_whatever_its_file_says(
    tmp_path: Path, plan: Plan, memory: dict[str, Any], others: dict[str, Any], message: str
) -> None:
    """Before anything is read, and the reading threads have ended."""
    before, threads = memory_resident(), threading.active_count()
    with pytest.raises(UsageError, match=message) as refusal:
        load_model(GLEAM, replace(changed(plan, **memory), **others))
    assert "\n" not in str(refusal.value)
    assert memory_resident() - before < 60 * MIB
    assert threading.active_count() == threads


def test_more_slots_than_fit_pass_the_reader_but_not_the_engine(tmp_path: Path, plan: Plan) -> None:
    """Also where the file's own parts add up to less than the budget: the engine counts them again."""
    parts = dict(plan.memory.parts) | {"margin": 0}
    tight = changed(plan, budget_bytes=plan.memory.planned_bytes - 1, parts=parts)
    (tmp_path / "plan.json").write_text(plan_json(tight))
    found = read_plan(tmp_path / "plan.json")
    assert found == tight
    with pytest.raises(UsageError, match="create a new one with earthshine plan --save"):
        load_model(GLEAM, found)


def test_a_plan_is_for_one_model(tmp_path: Path, plan: Plan, checkpoint: Checkpoint) -> None:
    other = replace(checkpoint.spec, norm_eps=2e-5)
    with pytest.raises(UsageError, match="create a new one with earthshine plan --save"):
        load_model(GLEAM, replace(plan, model=model_name(other)))
    assert plan.model == model_name(checkpoint.spec)


def test_plan_options_are_planned_for_this_process(checkpoint: Checkpoint) -> None:
    plan = plan_for(checkpoint, PlanArgs())
    assert plan.process_bytes >= 288 * MIB
    assert plan.memory.parts["process"] == plan.process_bytes
    assert plan.memory.budget_bytes <= memory_total()
    assert (plan.machine, plan.forecast) == ("rates unknown", {})
    with pytest.raises(UsageError, match=r"memory must be at most .*, which this process may use here, not"):
        plan_for(checkpoint, PlanArgs(memory_bytes=memory_total() + 1))
    with loaded(PlanArgs(threads=1)) as model:
        assert model.plan.model == plan.model


def test_open_sessions_share_the_plans_pages() -> None:
    """Two conversations of 500 tokens have 8 pages of 64 each, however they are divided."""
    with loaded(PlanArgs(context_tokens=500, batch=2, threads=1)) as model:
        first, second = model.session(), model.session(500)
        with pytest.raises(UsageError, match=r"A context of 1 tokens takes 1 pages, .* leave 0; close one"):
            model.session(1)
        assert answer_of(first) == answer_of(second)
        del second
        gc.collect()
        third, fourth = model.session(64), model.session(7 * 64 - 63)
        with pytest.raises(UsageError, match="leave 0"):
            model.session(1)
        for session in (first, third, fourth):
            session.close()
        del third
        gc.collect()
        assert model.pages.left == 16, "each page came back once"
        long = model.session(1000)
        assert long.sync((PROMPT * 20)[:1000]).computed == 1000
        with pytest.raises(ContextError, match="this session's context is 1000"):
            long.sync((PROMPT * 20)[:1001])
        for wrong in (0, -1, 1025):
            with pytest.raises(UsageError, match=r"between 1 and 1024 tokens with this plan, not"):
                model.session(wrong)
        assert model.pages.left == 0


def answer_of(session: Any) -> list[int]:
    session.sync(PROMPT)
    return [event.token for event in session.generate(SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
            if isinstance(event, TokenEvent)]  # fmt: skip


def test_a_session_holds_no_more_than_the_models_context() -> None:
    """However many conversations the pages are for."""
    with loaded(PlanArgs(context_tokens=4096, batch=2, threads=1)) as model:
        with pytest.raises(UsageError, match="between 1 and 4096 tokens with this plan, not 4097"):
            model.session(4097)
        assert model.pages.left == 128


def test_pages_that_can_not_be_had_are_not_counted_as_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_left(*sizes: object) -> None:
        raise ContextError("no memory")

    with loaded(PlanArgs(context_tokens=500, threads=1)) as model:
        with monkeypatch.context() as patched:
            patched.setattr("earthshine.engine.load.PagePool", nothing_left)
            with pytest.raises(ContextError):
                model.session()
        assert model.pages.left == 8
        model.session()


_PEAK = """
import sys
from pathlib import Path
from earthshine.engine import load_model, plan_for
from earthshine.plan import PlanArgs
from earthshine.spec import load_spec
from earthshine.weights import Checkpoint
dtype, folder = sys.argv[1], Path(sys.argv[2])
args = dict(dtype=dtype, threads=1, context_tokens=1600)
least = plan_for(Checkpoint.open(folder, load_spec(folder)), PlanArgs(**args)).memory.smallest
model = load_model(folder, PlanArgs(least, **args))
assert model.plan.memory.budget_bytes == least
model.session().sync([(7 * i * i + 3 * i + 11) % 5000 for i in range(1599)])
status = Path("/proc/self/status").read_text()  # ru_maxrss would count the process that started this one
print(1024 * int(status.partition("VmHWM:")[2].split()[0]), least)
"""


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_long_prompt_stays_below_the_smallest_budget(dtype: str) -> None:
    command = [sys.executable, "-c", _PEAK, dtype, str(GLEAM)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    peak, budget = map(int, done.stdout.split())
    assert 100 * MIB < peak <= budget
