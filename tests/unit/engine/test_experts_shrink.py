"""A store that shrinks: the memory leaves, the store works on with what is left, and no bit changes."""

import mmap
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest
import torch

from earthshine.engine.experts import RoutedExperts
from earthshine.errors import CheckpointError, UsageError
from earthshine.machine import memory_resident
from earthshine.spec.model import ModelSpec, MoeSpec
from earthshine.storage import Storage
from earthshine.weights import experts as store_module
from earthshine.weights.placement import slot_bytes
from earthshine.weights.reading import Reader
from earthshine.weights.slots import Arena

from ..weights.tiny import HIDDEN, N_EXPERTS, open_tiny, tiny_spec
from .test_experts import _row_by_row, outputs, routed  # noqa: F401  (an autouse fixture among them)

PAGE = 4096


def wide_spec(intermediate: int = 3200) -> ModelSpec:
    """Experts of 3 MB, so that a slot is seen in the process's memory."""
    spec = tiny_spec()
    moe = spec.layers[1].ffn
    assert isinstance(moe, MoeSpec)
    layers = tuple(
        replace(layer, ffn=replace(moe, intermediate=intermediate)) if layer.ffn is moe else layer
        for layer in spec.layers
    )
    return replace(spec, layers=layers)


def same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def slots_of(experts: RoutedExperts) -> dict[int, int]:
    return dict(experts.store._home.n_slots)


def test_a_table_of_every_expert_ends_when_the_store_shrinks(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32))
    with Reader() as reader:
        experts = routed(checkpoint, N_EXPERTS, 0, reader=reader)
        assert experts.table(1) is None, "nothing is loaded yet"
        experts.store.preload(lambda done, total: None)
        table = experts.table(1)
        assert table is not None
        assert len(table) == N_EXPERTS
        assert experts.table(1) is table
        table.count.n += 7
        assert experts.stats.hits == 7
        experts.store.shrink(1)
        assert experts.table(1) is None
        assert experts.stats.hits == 7


def at_each_line(call: Callable[[], object], meanwhile: Callable[[], object]) -> int:
    """Runs `call` with `meanwhile` before each line of the store's module, as another thread may; how many times."""
    times = 0

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., object] | None:
        nonlocal times
        if frame.f_code.co_filename != store_module.__file__:
            return None
        times += 1
        meanwhile()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return times


def test_stats_may_be_read_while_tables_come_and_go(tmp_path: Path) -> None:
    """No hit counts twice and none is lost, whichever lines of two threads coincide."""
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32))
    with Reader() as reader:
        experts = routed(checkpoint, N_EXPERTS, 0, reader=reader)
        experts.store.preload(lambda done, total: None)
        first = experts.table(1)
        assert first is not None
        first.count.n += 7
        found: list[int] = []

        def add_tables() -> None:
            """As many as there are calls, as of a model of many layers."""
            experts.store._tables[100 + len(experts.store._tables)] = first

        assert at_each_line(lambda: found.append(experts.stats.hits), add_tables)
        assert at_each_line(lambda: experts.store.shrink(1), lambda: found.append(experts.stats.hits)) > 3
        assert set(found) == {7}


@pytest.mark.parametrize(("slots", "transit"), [(N_EXPERTS, 0), (N_EXPERTS, 2), (4, 2), (3, 1), (1, 1)])
@pytest.mark.parametrize("at_once", [1, 3])
def test_results_are_the_same_until_no_slot_is_left_and_then(
    tmp_path: Path, slots: int, transit: int, at_once: int
) -> None:
    """A store that held every expert keeps two slots to read into, any other those it had."""
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32))
    wanted = outputs(routed(checkpoint, N_EXPERTS, 0))
    each = slot_bytes(checkpoint)
    with Reader() as reader:
        experts = routed(checkpoint, slots, transit, reader=reader)
        assert same(outputs(experts), wanted)
        given = 0
        while more := experts.store.shrink(at_once * each):
            assert more <= at_once * each
            assert more % each == 0
            given += more
            counts = slots_of(experts).values()
            assert max(counts) - min(counts) <= 1, "the layer with the most loses first"
            assert same(outputs(experts), wanted)
        kept_for_reads = 2 if slots == N_EXPERTS else 0
        assert given == (2 * slots - kept_for_reads) * each
        assert slots_of(experts) == {1: 0, 2: 0}
        before = experts.stats
        assert same(outputs(experts), wanted), "on transit slots alone"
        after = experts.stats
        assert after.hits == before.hits
        assert after.misses > before.misses
        assert experts.store.shrink(1 << 40) == 0


def test_shrinking_rounds_up_to_whole_slots(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec())
    each = slot_bytes(checkpoint)
    experts = routed(checkpoint, 5, 1)
    assert experts.store.shrink(1) == each
    assert experts.store.shrink(each) == each
    assert experts.store.shrink(each + 1) == 2 * each
    assert experts.store.shrink(1 << 50) == 6 * each


def test_shrinking_by_zero_changes_nothing(tmp_path: Path) -> None:
    experts = routed(open_tiny(tmp_path, tiny_spec()), N_EXPERTS, 0)
    experts.store.preload(lambda done, total: None)
    for nbytes in (0, -1, -(10**9)):
        assert experts.store.shrink(nbytes) == 0
    outputs(experts)
    assert experts.stats.misses == 2 * N_EXPERTS, "every expert is still there"
    assert slots_of(experts) == {1: N_EXPERTS, 2: N_EXPERTS}


def test_the_memory_really_leaves(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, wide_spec())
    each = slot_bytes(checkpoint)
    assert each > 3_000_000
    for slots, transit in ((N_EXPERTS, 0), (4, 2)):
        with Reader() as reader:
            experts = routed(checkpoint, slots, transit, reader=reader)
            outputs(experts)
            before = memory_resident()
            given = experts.store.shrink(5 * each)
            assert given == 5 * each
            fallen = before - memory_resident()
            assert 0.95 * given < fallen < given + (1 << 20), (slots, fallen, given)
            outputs(experts)
            assert before - memory_resident() > 0.8 * given, "and stays away while the store works on"


def test_slots_that_went_are_never_used_again(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec())
    experts = routed(checkpoint, 4, 2)
    outputs(experts)
    home = experts.store._home
    experts.store.shrink(3 * experts.store._arena.slot_bytes)
    gone = set(home.given_back)
    assert len(gone) == 3
    for _ in range(3):
        outputs(experts)
        held = {one.slot for layer in (1, 2) for one in home.resident(layer).values()}
        assert not gone & (held | set(home._free))
        assert len(held | set(home._free)) == experts.store._arena.n_slots - 3
    for slot in gone:
        assert not experts.store._arena.tensor(slot).any(), "its bytes are gone"


def test_a_store_that_held_all_reads_what_it_lost(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec())
    experts = routed(checkpoint, N_EXPERTS, 0)
    experts.store.preload(lambda done, total: None)
    outputs(experts)
    assert experts.stats.misses == 2 * N_EXPERTS
    experts.store.shrink(1)
    outputs(experts)
    assert experts.stats.misses > 2 * N_EXPERTS
    with pytest.raises(UsageError, match="only where every one has a slot"):
        experts.store.preload(lambda done, total: None)


def test_the_experts_least_wanted_lose_their_slots(tmp_path: Path) -> None:
    """0 and 1 are in every step; of three slots a layer, they keep the two that are left."""
    experts = routed(open_tiny(tmp_path, tiny_spec()), 3)
    x, weight = torch.ones(1, HIDDEN, dtype=torch.bfloat16), torch.ones(1, 3)
    for step in range(12):
        for layer in (1, 2):
            experts.ffn(layer, x, torch.tensor([[0, 1, 2 + step % 4]]), weight)
    experts.store.shrink(2 * experts.store._arena.slot_bytes)
    assert slots_of(experts) == {1: 2, 2: 2}
    before = experts.stats
    for layer in (1, 2):
        experts.ffn(layer, x, torch.tensor([[0, 1, 5]]), weight)
    assert (experts.stats.hits - before.hits, experts.stats.misses - before.misses) == (4, 2)


def test_a_failed_call_beforehand_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever read fails: slots that it left in the middle are taken back first, so as many go as were asked for."""
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.FP8_BLOCK128))
    wanted = outputs(routed(checkpoint, N_EXPERTS, 0))
    real = Reader._read
    for failing in range(1, 13, 3):
        for slots, transit in ((2, 2), (N_EXPERTS, 0)):
            experts, count = routed(checkpoint, slots, transit), [0]

            def reading(self: Reader, segment: object, count: list[int] = count, failing: int = failing) -> None:
                count[0] += 1
                if count[0] == failing:
                    raise CheckpointError("a bad sector")
                real(self, segment)

            monkeypatch.setattr(Reader, "_read", reading)
            with pytest.raises(CheckpointError, match="a bad sector"):
                outputs(experts)
            monkeypatch.setattr(Reader, "_read", real)
            home = experts.store._home
            assert experts.store.shrink(2 * experts.store._arena.slot_bytes) == 2 * experts.store._arena.slot_bytes
            held = {one.slot for layer in (1, 2) for one in home.resident(layer).values()}
            assert sorted([*home.given_back, *home._free, *held]) == list(range(experts.store._arena.n_slots))
            assert not experts.store._arrivals._reads
            assert same(outputs(experts), wanted)


def test_a_failed_call_afterwards_brings_no_slot_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec())
    experts = routed(checkpoint, 4, 2)
    wanted = outputs(experts)
    home = experts.store._home
    experts.store.shrink(3 * experts.store._arena.slot_bytes)
    gone, real = set(home.given_back), Reader._read

    def failing(self: Reader, segment: object) -> None:
        raise CheckpointError("a bad sector")

    monkeypatch.setattr(Reader, "_read", failing)
    with pytest.raises(CheckpointError, match="a bad sector"):
        outputs(experts)
    monkeypatch.setattr(Reader, "_read", real)
    assert same(outputs(experts), wanted)
    held = {one.slot for layer in (1, 2) for one in home.resident(layer).values()}
    assert not gone & (held | set(home._free))
    assert not any(experts.store._arena.tensor(slot).any() for slot in gone)


def test_a_model_without_experts_frees_nothing(tmp_path: Path) -> None:
    spec = tiny_spec()
    experts = routed(open_tiny(tmp_path, replace(spec, layers=spec.layers[:1])), 0, 0)
    assert experts.store.shrink(1 << 30) == 0


@pytest.mark.parametrize("page", [PAGE, 16 * PAGE])
def test_only_a_slots_own_pages_go(monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    """Where the system's pages are larger than ours, those that a slot shares with its neighbours stay."""
    arena = Arena(40 * PAGE, 5)
    monkeypatch.setattr(mmap, "PAGESIZE", page)
    for slot in range(5):
        arena.tensor(slot).fill_(7)
    arena.give_back(2)
    assert all(bool((arena.tensor(slot) == 7).all()) for slot in (0, 1, 3, 4))
    left = int((arena.tensor(2) == 7).sum())
    assert left == (0 if page == PAGE else 40 * PAGE - 32 * PAGE)
    small = Arena(PAGE, 4)
    small.tensor(1).fill_(7)
    small.give_back(1)
    assert bool(small.tensor(1).any()) == (page > PAGE)
