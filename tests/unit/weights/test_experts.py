"""Experts from disk: equal to a dense loop, whatever the budget, the order of calls or the rest of the batch."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from earthshine.errors import CheckpointError, UsageError
from earthshine.spec.model import Storage
from earthshine.weights.checkpoint import Checkpoint, ExpertExtents
from earthshine.weights.experts import ExpertStats, StoredExpert, StoredExperts, read_expert
from earthshine.weights.slots import LruSlots

from .tiny import HIDDEN, N_EXPERTS, open_tiny, tiny_spec

STORAGES = [Storage.BF16, Storage.INT4_GROUP32, Storage.FP8_BLOCK128]


def request(tokens: int, seed: int = 3, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """x, chosen, weight for top_k 2 of distinct experts."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(N_EXPERTS, generator=generator)[:2] for _ in range(tokens)])
    x = torch.randn((tokens, HIDDEN), generator=generator).to(dtype)
    return x, chosen, torch.rand((tokens, 2), generator=generator)


def one_expert(checkpoint: Checkpoint) -> int:
    return checkpoint.expert_extents(1, 0).nbytes


def dense(checkpoint: Checkpoint, layer: int, *parts: torch.Tensor) -> torch.Tensor:
    """Token by token in float64, from the decoded matrices."""
    x, chosen, weight = parts
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(len(x)):
        for expert, share in zip(chosen[token].tolist(), weight[token].double(), strict=True):
            stored = read_expert(checkpoint.expert_extents(layer, expert))
            gate, up, down = (linear.decode().double() for linear in (stored.gate, stored.up, stored.down))
            value = x[token].double()
            out[token] += share * (down @ (functional.silu(gate @ value) * (up @ value)))
    return out


@pytest.mark.parametrize("storage", STORAGES)
def test_the_sum_equals_a_dense_loop(tmp_path: Path, storage: Storage) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec(storage))
    experts = StoredExperts(checkpoint, dtype=torch.float32, budget_bytes=2**30)
    for layer in (1, 2):
        parts = request(7, seed=layer)
        wanted = dense(checkpoint, layer, *parts)
        torch.testing.assert_close(experts.ffn(layer, *parts).double(), wanted, rtol=1e-4, atol=1e-5)
        assert wanted.abs().mean() > 0.1


def test_the_sum_returns_to_the_dtype_of_x(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32))
    experts = StoredExperts(checkpoint, dtype=torch.bfloat16, budget_bytes=2**30)
    parts = request(5, dtype=torch.bfloat16)
    out = experts.ffn(1, *parts)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), dense(checkpoint, 1, *parts), rtol=0.05, atol=0.05)
    nothing = experts.ffn(1, parts[0][:0], parts[1][:0], parts[2][:0])
    assert nothing.shape == (0, HIDDEN)


def request_of(tokens: int) -> tuple[torch.Tensor, ...]:
    return request(tokens, seed=11)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_budget_of_two_experts_gives_the_same_bits(tmp_path: Path, storage: Storage) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec(storage))
    rich = StoredExperts(checkpoint, dtype=torch.float32, budget_bytes=2**30)
    poor = StoredExperts(checkpoint, dtype=torch.float32, budget_bytes=2 * one_expert(checkpoint))
    for layer, tokens in [(1, 9), (2, 4), (1, 9), (1, 1)]:
        parts = request_of(tokens)
        assert torch.equal(rich.ffn(layer, *parts), poor.ffn(layer, *parts))
    assert rich.stats.hits > poor.stats.hits
    assert poor.stats.bytes_read == poor.stats.misses * one_expert(checkpoint)


def test_the_order_of_a_tokens_choices_does_not_matter(tmp_path: Path) -> None:
    experts = StoredExperts(open_tiny(tmp_path, tiny_spec()), dtype=torch.float32, budget_bytes=2**30)
    x, chosen, weight = request_of(6)
    assert torch.equal(experts.ffn(1, x, chosen, weight), experts.ffn(1, x, chosen.flip(-1), weight.flip(-1)))


def test_hits_misses_and_bytes_are_counted(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32))
    size = one_expert(checkpoint)
    experts = StoredExperts(checkpoint, dtype=torch.float32, budget_bytes=2 * size)
    x, weight = torch.ones(1, HIDDEN), torch.ones(1, 2)
    expected = [([0, 1], 0, 2), ([1, 0], 2, 2), ([0, 2], 3, 3), ([0, 2], 5, 3), ([1, 5], 5, 5)]
    for chosen, hits, misses in expected:
        experts.ffn(1, x, torch.tensor([chosen]), weight)
        assert experts.stats == ExpertStats(hits, misses, misses * size)
    experts.ffn(2, x, torch.tensor([[1, 5]]), weight)
    assert experts.stats.misses == 7


def test_a_budget_below_one_expert_names_the_smallest_that_works(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32))
    size = one_expert(checkpoint)
    with pytest.raises(UsageError, match=f"the smallest budget that works is {size} bytes"):
        StoredExperts(checkpoint, dtype=torch.float32, budget_bytes=size - 1)
    single = StoredExperts(checkpoint, dtype=torch.float32, budget_bytes=size)
    parts = request_of(5)
    whole = StoredExperts(checkpoint, dtype=torch.float32, budget_bytes=2**30)
    assert torch.equal(single.ffn(1, *parts), whole.ffn(1, *parts))


def test_an_expert_that_fails_to_load_is_not_kept(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec())
    experts = StoredExperts(checkpoint, dtype=torch.float32, budget_bytes=2**30)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    x, chosen, weight = torch.ones(1, HIDDEN), torch.tensor([[N_EXPERTS - 1]]), torch.ones(1, 1)
    with pytest.raises(CheckpointError, match="ends at byte"):
        experts.ffn(2, x, chosen, weight)
    assert experts.stats == ExpertStats(0, 0, 0)
    path.write_bytes(whole)
    assert experts.ffn(2, x, chosen, weight).isfinite().all()


def test_slots_never_hold_more_than_their_budget_and_evict_the_least_recent() -> None:
    slots: LruSlots[str] = LruSlots(10)
    for expert in (0, 1):
        slots.make_room(4)
        slots.keep((0, expert), "abc"[expert], 4)
    assert slots.look((0, 0)) == "a"
    slots.make_room(5)
    assert slots.resident_bytes == 4
    slots.keep((0, 2), "c", 5)
    assert (slots.look((0, 0)), slots.look((0, 1)), slots.look((0, 2))) == ("a", None, "c")
    slots.make_room(10)
    assert (len(slots), slots.resident_bytes) == (0, 0)


def test_outputs_are_summed_in_fp32_whatever_x_is(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec())
    experts = StoredExperts(checkpoint, dtype=torch.bfloat16, budget_bytes=2**30)
    x, chosen, weight = request(16, dtype=torch.bfloat16)
    parts = [experts.ffn(1, x.float(), chosen[:, [k]], weight[:, [k]]) for k in (0, 1)]
    assert torch.equal(experts.ffn(1, x, chosen, weight), (parts[0] + parts[1]).bfloat16())


def test_an_expert_in_more_digits_than_bf16_has_is_refused_there(tmp_path: Path) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec(), dtype=torch.float32)
    experts = StoredExperts(checkpoint, dtype=torch.bfloat16, budget_bytes=2**30)
    with pytest.raises(CheckpointError, match=r"experts\..*load this model in fp32"):
        experts.ffn(1, *request(1, dtype=torch.bfloat16))


def test_room_is_made_before_an_expert_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec())
    experts = StoredExperts(checkpoint, dtype=torch.float32, budget_bytes=one_expert(checkpoint))
    resident = []

    def reading(extents: ExpertExtents) -> StoredExpert:
        resident.append(experts._slots.resident_bytes)
        return read_expert(extents)

    monkeypatch.setattr("earthshine.weights.experts.read_expert", reading)
    experts.ffn(1, *request(3))
    assert len(resident) > 1
    assert set(resident) == {0}
