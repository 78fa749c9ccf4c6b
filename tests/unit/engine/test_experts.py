"""Routed experts: equal to a dense loop, and the same bits whatever the slots, the calls before and the reads."""

import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from earthshine import kernels
from earthshine.engine import experts as experts_module
from earthshine.engine.experts import RoutedExperts
from earthshine.errors import CheckpointError, UsageError
from earthshine.kernels import reference
from earthshine.models import result_of
from earthshine.storage import Storage
from earthshine.weights import ExpertStore
from earthshine.weights.checkpoint import Checkpoint
from earthshine.weights.placement import slot_bytes
from earthshine.weights.reading import Reader, Ticket

from ..weights.tiny import HIDDEN, N_EXPERTS, expert_values, open_tiny, tiny_spec

STORAGES = [Storage.BF16, Storage.INT4_GROUP32, Storage.FP8_BLOCK128]
Request = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def request(tokens: int, seed: int = 3, dtype: torch.dtype = torch.bfloat16, top_k: int = 2) -> Request:
    """x, chosen, weight, each token's experts distinct."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(N_EXPERTS, generator=generator)[:top_k] for _ in range(tokens)])
    x = torch.randn((tokens, HIDDEN), generator=generator).to(dtype)
    return x, chosen, torch.rand((tokens, top_k), generator=generator)


def store(checkpoint: Checkpoint, slots: int, transit: int = 1, **options: Any) -> ExpertStore:
    options = {"reader": Reader(), "dtype": torch.bfloat16} | options
    return ExpertStore(checkpoint, slots_per_layer=slots, transit_slots=transit, **options)


def routed(*arguments: Any, **options: Any) -> RoutedExperts:
    return RoutedExperts(store(*arguments, **options))


def dense_loop(checkpoint: Checkpoint, layer: int, parts: Request) -> torch.Tensor:
    """Token by token in float64, from the decoded matrices."""
    x, chosen, weight = parts
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(len(x)):
        for expert, share in zip(chosen[token].tolist(), weight[token].double(), strict=True):
            gate, up, down = (matrix.double() for matrix in expert_values(checkpoint, layer, expert))
            value = x[token].double()
            out[token] += share * (down @ (functional.silu(gate @ value) * (up @ value)))
    return out


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_equals_a_dense_loop(tmp_path: Path, storage: Storage, dtype: torch.dtype) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec(storage), shard_bytes=60_000)
    experts = routed(checkpoint, 2, dtype=dtype)
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for layer in (1, 2):
        parts = request(7, seed=layer, dtype=dtype)
        wanted, found = dense_loop(checkpoint, layer, parts), experts.ffn(layer, *parts)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, **near)
        assert wanted.abs().mean() > 0.1


@pytest.fixture(autouse=True)
def _row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle need not give a row the same bits in any company; where it serves, it gets one row at a time."""

    def moe_ffn(x: Any, experts: Any, token: torch.Tensor, begin: Any, each: torch.Tensor) -> None:
        for expert, first, last in zip(experts, begin[:-1], begin[1:], strict=True):
            for p in range(first, last):
                reference.moe_ffn(x, [expert], token[p : p + 1], [0, 1], each[p : p + 1])

    if any((one.operation, one.name) == ("moe_ffn", "torch") for one in kernels.implementations()):
        monkeypatch.setattr(kernels, "moe_ffn", moe_ffn)


class Unpunctual(Reader):
    """Starts reads late and in any order, from a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__(threads=3)
        self._random = random.Random(seed)

    def queue(self, ticket: Ticket, *options: Any) -> None:
        threading.Timer(self._random.random() * 0.004, super().queue, (ticket, *options)).start()


def outputs(experts: RoutedExperts) -> list[torch.Tensor]:
    """Steps of one token, of a few and of many, over two layers."""
    calls = [(1, 1), (2, 1), (1, 3), (2, 40), (1, 1), (1, 1), (2, 3), (1, 40), (2, 1)]
    return [experts.ffn(layer, *request(tokens, seed=i)) for i, (layer, tokens) in enumerate(calls)]


@pytest.mark.parametrize("each_rows", [3, 7, 10_000])
def test_slots_order_of_reads_and_waves_do_not_change_a_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each_rows: int
) -> None:
    """From nothing resident and one slot for all that passes through, to everything resident."""
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32))
    wanted = outputs(routed(checkpoint, N_EXPERTS, 0))
    monkeypatch.setattr(experts_module, "_EACH_BYTES", each_rows * 4 * HIDDEN)
    for seed, (slots, transit) in enumerate([(0, 1), (0, 4), (1, 1), (2, 1), (3, 5), (5, 2), (6, 0)]):
        with Unpunctual(seed) as reader:
            found = outputs(routed(checkpoint, slots, transit, reader=reader))
        assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True)), (slots, transit)


@pytest.mark.parametrize(("slots", "transit"), [(0, 1), (1, 2), (2, 1), (5, 2)])
def test_other_calls_may_run_between_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slots: int, transit: int
) -> None:
    """A call of forty tokens; between groups of two experts, calls of its own layer and another, and a slot less."""
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32))
    plain = routed(checkpoint, N_EXPERTS, 0)
    long, others = request(40), [(layer, request(3, seed=9 + layer)) for layer in (1, 2)]
    wanted, others_wanted = plain.ffn(1, *long), [plain.ffn(layer, *parts) for layer, parts in others]
    monkeypatch.setattr(experts_module, "_GROUP", 2)
    experts = routed(checkpoint, slots, transit)
    forward, found = experts.ffn_in_groups(1, *long), []
    for _ in range(N_EXPERTS // 2 - 1):
        next(forward)
        experts.store.shrink(1)
        found.append([experts.ffn(layer, *parts) for layer, parts in others])
    assert torch.equal(result_of(forward), wanted)
    assert all(torch.equal(a, b) for each in found for a, b in zip(each, others_wanted, strict=True))
    assert torch.equal(experts.ffn(1, *long), wanted)


@pytest.mark.parametrize(("slots", "transit"), [(1, 1), (2, 1), (3, 2)])
def test_interrupted_call_leaves_slots_for_random_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slots: int, transit: int
) -> None:
    """Whatever was called before and whatever is called meanwhile, each layer keeps to its slots."""
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32))
    plain, experts = routed(checkpoint, N_EXPERTS, 0), routed(checkpoint, slots, transit)
    monkeypatch.setattr(experts_module, "_GROUP", 1)
    random_, calls = random.Random(slots), 0

    def call() -> tuple[int, Request]:
        return random_.choice([1, 2]), request(random_.choice([1, 2, 3, 40]), seed=random_.randrange(50))

    def check(found: torch.Tensor, layer: int, parts: Request) -> None:
        nonlocal calls
        calls += 1
        assert torch.equal(found, plain.ffn(layer, *parts))
        assert all(len(experts.store._home.resident(each)) <= slots for each in (1, 2))

    for _ in range(150):
        layer, parts = call()
        forward = experts.ffn_in_groups(layer, *parts)
        try:
            while True:
                next(forward)
                other, others = call()
                check(experts.ffn(other, *others), other, others)
        except StopIteration as end:
            check(end.value, layer, parts)
    assert calls > 300


def test_a_call_that_is_closed_between_groups_leaves_the_store_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts, long = routed(open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32)), 2), request(40)
    wanted = experts.ffn(1, *long)
    monkeypatch.setattr(experts_module, "_GROUP", 2)
    forward = experts.ffn_in_groups(1, *long)
    next(forward)
    forward.close()
    slots = [held.slot for layer in (1, 2) for held in experts.store._home.resident(layer).values()]
    assert sorted([*slots, *experts.store._home._free]) == list(range(5))
    assert torch.equal(experts.ffn(1, *long), wanted)


def test_the_order_of_a_tokens_choices_does_not_matter(tmp_path: Path) -> None:
    experts = routed(open_tiny(tmp_path, tiny_spec()), N_EXPERTS)
    x, chosen, weight = request(6, top_k=4)
    assert torch.equal(experts.ffn(1, x, chosen, weight), experts.ffn(1, x, chosen.flip(-1), weight.flip(-1)))


def test_outputs_are_summed_in_fp32_and_return_to_the_dtype_of_x(tmp_path: Path) -> None:
    experts = routed(open_tiny(tmp_path, tiny_spec()), N_EXPERTS)
    x, chosen, weight = request(16)
    parts = [experts.ffn(1, x.float(), chosen[:, [k]], weight[:, [k]]) for k in (0, 1)]
    assert parts[0].dtype == torch.float32
    assert torch.equal(experts.ffn(1, x, chosen, weight), (parts[0] + parts[1]).bfloat16())
    assert experts.ffn(1, x[:0], chosen[:0], weight[:0]).shape == (0, HIDDEN)


def test_an_expert_is_read_once_a_call_and_counted(tmp_path: Path) -> None:
    """With every expert resident only first uses miss; without slots every use is read."""
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32))
    size = checkpoint.expert_extents(1, 0).nbytes
    parts = request(40)
    for slots, transit, second in [(N_EXPERTS, 0, (N_EXPERTS, N_EXPERTS)), (0, 2, (0, 2 * N_EXPERTS))]:
        experts = routed(checkpoint, slots, transit)
        for hits, misses in ((0, N_EXPERTS), second):
            experts.ffn(1, *parts)
            stats = experts.stats
            assert (stats.hits, stats.misses, stats.bytes_read) == (hits, misses, misses * size)
        assert stats.read_wait_seconds > 0


def test_what_is_used_again_and_again_keeps_its_slot(tmp_path: Path) -> None:
    """Experts 0 and 1 in every step, two slots, and a passer-by in each: the passer-by is never admitted."""
    experts = routed(open_tiny(tmp_path, tiny_spec()), 2)
    x, weight = torch.ones(1, HIDDEN, dtype=torch.bfloat16), torch.ones(1, 3)
    for step in range(8):
        experts.ffn(1, x, torch.tensor([[0, 1, 2 + step % 4]]), weight)
    assert (experts.stats.hits, experts.stats.misses) == (14, 10)


def test_fewer_slots_than_work_are_refused(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec())
    for slots, transit in [(5, 0), (0, 0), (-1, 1)]:
        with pytest.raises(UsageError, match="transit_slots must be at least 1"):
            routed(checkpoint, slots, transit)
    with pytest.raises(UsageError, match="more memory than this machine can map"):
        routed(checkpoint, 2, 2**40)
    with pytest.raises(UsageError, match="Layer 0 has no routed experts"):
        routed(checkpoint, 2).ffn(0, *request(1))


def test_memory_is_the_slots_of_the_layers_and_those_of_transit(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec())
    size = slot_bytes(checkpoint)
    assert size % 4096 == 0
    assert 0 <= size - checkpoint.expert_extents(1, 0).nbytes <= 3 * 8192 + 4095
    for slots, transit, n_slots in [(0, 1, 1), (2, 3, 7), (6, 0, 12), (100, 0, 12), (100, 2, 14)]:
        assert store(checkpoint, slots, transit).nbytes == n_slots * size


def test_a_failed_read_leaves_the_store_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever read of a call fails, the next calls give the right bits and no slot is lost."""
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.FP8_BLOCK128))
    wanted = outputs(routed(checkpoint, N_EXPERTS, 0))
    for failing in range(1, 14, 3):
        experts = routed(checkpoint, 2, 2)
        real, count = Reader._read, [0]

        def reading(self: Reader, segment: Any, count: list[int] = count, failing: int = failing) -> None:
            count[0] += 1
            if count[0] == failing:
                raise CheckpointError("a bad sector")
            real(self, segment)  # noqa: B023

        monkeypatch.setattr(Reader, "_read", reading)
        with pytest.raises(CheckpointError, match="a bad sector"):
            outputs(experts)
        assert all(torch.equal(a, b) for a, b in zip(wanted, outputs(experts), strict=True))
        monkeypatch.setattr(Reader, "_read", real)
        assert len(experts.store._home._free) >= 2


@pytest.mark.parametrize("shrinks", [False, True], ids=["goes on", "shrinks"])
def test_an_interrupted_call_leaves_the_store_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shrinks: bool
) -> None:
    """Its reads are under way when the call is interrupted; none writes into a slot that was since given back."""
    checkpoint = open_tiny(tmp_path, tiny_spec())
    wanted = outputs(routed(checkpoint, N_EXPERTS, 0))
    gate = threading.Event()
    real, wait = Reader._read, Ticket.wait

    def slow(self: Reader, segment: Any) -> None:
        gate.wait(300)
        real(self, segment)

    def interrupted(self: Ticket) -> None:
        raise KeyboardInterrupt

    experts = routed(checkpoint, 2, 4)
    with monkeypatch.context() as patched:
        patched.setattr(Reader, "_read", slow)
        patched.setattr(Ticket, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            outputs(experts)
        filling = [ticket for ticket, _ in experts.store._arrivals._reads.values()]
        assert filling
        threading.Timer(0.05, gate.set).start()
        patched.setattr(Ticket, "wait", wait)
        if shrinks:
            each = experts.store._arena.slot_bytes
            assert experts.store.shrink(4 * each) == 4 * each
        else:
            assert all(torch.equal(a, b) for a, b in zip(wanted, outputs(experts), strict=True))
    assert all(ticket.ended for ticket in filling)
    for slot in experts.store._home.given_back:
        assert not experts.store._arena.tensor(slot).any()
    assert all(torch.equal(a, b) for a, b in zip(wanted, outputs(experts), strict=True))


def test_everything_can_be_loaded_ahead(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32))
    experts = routed(checkpoint, N_EXPERTS, 0)
    progress: list[tuple[int, int]] = []
    experts.store.preload(lambda done, total: progress.append((done, total)))
    total = 2 * N_EXPERTS * checkpoint.expert_extents(1, 0).nbytes
    assert (len(progress), progress[-1]) == (2 * N_EXPERTS, (total, total))
    outputs(experts)
    assert experts.stats.misses == 2 * N_EXPERTS
    with pytest.raises(UsageError, match="only where every one has a slot"):
        store(checkpoint, 2).preload(lambda done, total: None)


def test_an_expert_in_more_digits_than_bf16_has_is_refused_there(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec(), dtype=torch.float32)
    with pytest.raises(CheckpointError, match=r"experts\..*load this model in fp32"):
        routed(checkpoint, 1).ffn(1, *request(1))
    parts = request(3, dtype=torch.float32)
    assert routed(checkpoint, 1, dtype=torch.float32).ffn(1, *parts).isfinite().all()


def test_fp32_experts_that_are_whole_in_bf16_give_the_bits_of_bf16_ones(tmp_path: Path) -> None:
    spec = tiny_spec()
    narrow = open_tiny(tmp_path / "narrow", spec)
    wide = open_tiny(tmp_path / "wide", spec, widen=True)
    assert slot_bytes(wide) > slot_bytes(narrow)
    for a, b in zip(outputs(routed(narrow, 2)), outputs(routed(wide, 2)), strict=True):
        assert torch.equal(a, b)
