"""The memory limit: below it nothing goes, near it slots go, the rest is refused; then with gleam in memory."""

import gc
import mmap
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from earthshine import kernels
from earthshine.engine import LoadedModel, PromptProgress, SamplingParams, Session, TokenEvent, load_model, progress
from earthshine.engine.memory_limit import NEAR_BYTES, MemoryLimit
from earthshine.errors import BudgetError
from earthshine.hub import GLEAM
from earthshine.machine import memory_resident
from earthshine.plan import PlanArgs

MIB = 1 << 20
BUDGET = 1000 * MIB
PROMPT = [(7 * i * i + 3 * i + 11) % 5000 for i in range(70)]


class Process:
    """Holds `held` bytes, of which `slots` bytes can be given back in steps of `step`; `idle` of those were never used,
    and go first."""

    def __init__(self, held: int, slots: int = 0, step: int = MIB, idle: int = 0) -> None:
        self.held, self.slots, self.step, self.idle = held, slots, step, idle
        self.asked: list[int] = []

    def shrink(self, nbytes: int) -> int:
        self.asked.append(nbytes)
        given = min(-(-nbytes // self.step) * self.step, self.slots)
        self.slots -= given
        unused = min(given, self.idle)
        self.idle -= unused
        self.held -= given - unused
        return given

    def limit(self) -> MemoryLimit:
        return MemoryLimit(BUDGET, self.shrink, lambda: self.held)


@pytest.mark.parametrize("held", [0, BUDGET // 2, BUDGET - NEAR_BYTES])
def test_below_the_limit_nothing_is_released(held: int) -> None:
    process = Process(held, slots=500 * MIB)
    limit = process.limit()
    limit.check()
    assert (process.asked, limit.released_bytes) == ([], 0)


@pytest.mark.parametrize("over", [1, MIB, NEAR_BYTES, NEAR_BYTES + 1, 100 * MIB])
def test_near_it_as_much_goes_as_is_missing(over: int) -> None:
    process = Process(BUDGET - NEAR_BYTES + over, slots=500 * MIB)
    limit = process.limit()
    limit.check()
    assert process.asked == [over]
    assert process.held <= BUDGET - NEAR_BYTES
    assert limit.released_bytes == -(-over // MIB) * MIB == 500 * MIB - process.slots
    limit.check()
    assert process.asked == [over], "once there is room, no more goes"


def test_slots_that_were_never_used_free_nothing_so_more_of_them_go() -> None:
    process = Process(BUDGET, slots=200 * MIB, idle=90 * MIB)
    process.limit().check()
    assert process.held == BUDGET - NEAR_BYTES
    assert process.slots == 200 * MIB - 90 * MIB - NEAR_BYTES


def test_step_near_the_limit_runs_without_slots() -> None:
    for held in (BUDGET - NEAR_BYTES + 1, BUDGET):
        Process(held).limit().check()


@pytest.mark.parametrize(("held", "slots"), [(BUDGET + 1, 0), (BUDGET + 100 * MIB, 99 * MIB)])
def test_over_it_without_slots_a_step_is_refused(held: int, slots: int) -> None:
    process = Process(held, slots=slots)
    with pytest.raises(BudgetError) as refusal:
        process.limit().check()
    message = str(refusal.value)
    assert "more than its budget of 1000.00 MiB, and all expert slots are already freed" in message
    assert "raise the memory budget" in message
    assert process.slots == 0
    process.held = BUDGET
    process.limit().check()  # once the program has freed something, it goes on


def test_what_is_about_to_be_allocated_counts() -> None:
    process = Process(BUDGET - NEAR_BYTES - 30 * MIB, slots=50 * MIB)
    limit = process.limit()
    limit.require(30 * MIB, "A copy")
    assert process.asked == []
    limit.require(70 * MIB, "A copy")
    assert process.asked == [40 * MIB]
    with pytest.raises(
        BudgetError, match=r"^A copy takes 300.00 MiB, but of the budget of 1000.00 MiB only 128.00 MiB "
    ):
        limit.require(300 * MIB, "A copy")
    assert process.slots == 0
    process.held = BUDGET + 5
    with pytest.raises(BudgetError, match=r"only 0 B are left"):
        limit.require(0, "A copy")


# ---- with gleam, and a ballast beside it


@pytest.fixture
def ballast() -> Iterator[Callable[[int], None]]:
    """Memory of the rest of the program: this number of bytes more, all of them used."""
    maps: list[mmap.mmap] = []

    def hold(nbytes: int) -> None:
        held = mmap.mmap(-1, nbytes)
        for at in range(0, nbytes, 4096):
            held[at] = 1
        maps.append(held)

    threads = kernels.threads()
    yield hold
    for held in maps:
        held.close()
    kernels.set_threads(threads)


def loaded(**args: object) -> LoadedModel:
    return load_model(GLEAM, PlanArgs(**({"context_tokens": 256, "threads": 1} | args)))


def near(model: LoadedModel) -> None:
    """From now on the budget is what the process holds already and what lies near it, whatever that is here."""
    gc.collect()
    model.memory_limit.budget_bytes = memory_resident() + NEAR_BYTES


def answer(session: Session) -> list[tuple[int, float]]:
    session.sync(PROMPT)
    events = session.generate(SamplingParams(temperature=0, max_tokens=10, ignore_eos=True))
    return [(event.token, event.logprob) for event in events if isinstance(event, TokenEvent)]


@pytest.mark.parametrize("slots", ["all", "some"])
def test_growing_program_takes_slots_and_changes_no_answer(ballast: Callable[[int], None], slots: str) -> None:
    """Slots go in steps; a step without one left is refused, and goes on when there is more room."""
    model = loaded()
    if slots == "some":
        plan = model.plan
        model.close()
        model = load_model(GLEAM, replace(plan, memory=replace(plan.memory, slots_per_layer=40, transit_slots=4)))
    home, session = model.experts.store._home, model.session()
    assert (model.plan.memory.transit_slots == 0) == (slots == "all")
    wanted = answer(session)
    n_slots = sum(home.n_slots.values())
    size = n_slots * model.experts.store._arena.slot_bytes // 8  # 4.7 or 2 MiB
    near(model)
    for step in range(3):
        ballast(size)
        session.clear()
        assert answer(session) == wanted
        assert model.memory_limit.released_bytes >= size * (step + 1) - 2 * MIB
        assert memory_resident() < model.memory_limit.budget_bytes, "the slots' memory really left"
    assert 0 < sum(home.n_slots.values()) < n_slots
    assert model.memory_limit.released_bytes == len(home.given_back) * model.experts.store._arena.slot_bytes
    ballast(NEAR_BYTES + 60 * MIB)
    session.clear()
    with pytest.raises(BudgetError, match="all expert slots are already freed"):
        answer(session)
    assert set(home.n_slots.values()) == {0}
    assert session.tokens == (), "the refused prompt is forgotten"
    model.memory_limit.budget_bytes += NEAR_BYTES + 120 * MIB
    reads = model.experts.stats.misses
    assert answer(session) == wanted, "without a single slot"
    assert model.experts.stats.misses > reads
    model.close()


def test_a_reply_that_meets_the_limit_midway_can_go_on(ballast: Callable[[int], None]) -> None:
    model = loaded()
    session = model.session()
    wanted = answer(session)
    session.clear()
    session.sync(PROMPT)
    near(model)
    events = session.generate(SamplingParams(temperature=0, max_tokens=10, ignore_eos=True))
    found = [next(events) for _ in range(4)]
    model.memory_limit.budget_bytes -= NEAR_BYTES + 100 * MIB
    with pytest.raises(BudgetError):
        next(events)
    assert session.tokens == (*PROMPT, *(token for token, _ in wanted[:4]))
    model.memory_limit.budget_bytes += NEAR_BYTES + 200 * MIB
    rest = session.generate(SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    found += [event for event in rest if isinstance(event, TokenEvent)]
    assert [(event.token, event.logprob) for event in found] == wanted
    model.close()


def test_a_prompt_is_watched_layer_by_layer_and_a_refused_one_leaves_nothing(
    ballast: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program grows while a prompt is computed: after the next layer that ends, and nothing of it is held."""
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0)
    model = loaded(context_tokens=1000)
    session = model.session()
    wanted = answer(session)
    session.sync(PROMPT[:20])
    near(model)
    model.memory_limit.budget_bytes += 500 * MIB
    reports: list[PromptProgress] = []

    def grow(report: PromptProgress) -> None:
        reports.append(report)
        if report.processed > report.cached:
            model.memory_limit.budget_bytes -= 700 * MIB

    with pytest.raises(BudgetError):
        session.sync((PROMPT * 10)[:600], grow)
    assert len(reports) == 2, "at the beginning, and once of five layers"
    assert session.tokens == tuple(PROMPT[:20])
    model.memory_limit.budget_bytes += 700 * MIB
    assert answer(session) == wanted
    model.close()


def test_a_copy_of_the_state_needs_room() -> None:
    """100 tokens of gleam are 78 KiB; where they can't be had the copy is refused, and the session goes on."""
    model = loaded(batch=2)
    session = model.session()
    wanted = answer(session)
    blob = session.snapshot()
    held = session.tokens
    model.memory_limit._resident = lambda: model.memory_limit.budget_bytes - 10_000
    with pytest.raises(BudgetError, match=r"^A copy of the session's state takes .* KiB, but of the budget of .* only"):
        session.snapshot()
    assert session.tokens == held
    model.memory_limit._resident = lambda: 0
    again = session.snapshot()
    assert again.header == blob.header
    other = model.session(150)
    other.restore(blob)
    assert other.tokens == held
    assert answer(session) == wanted
    model.close()
