"""Measuring kernels: work is counted, all given memory is used, and the time is bounded."""

import itertools

import pytest
import torch

from earthshine import kernels
from earthshine.errors import KernelError
from earthshine.kernels import library, measure
from earthshine.storage import Storage


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices and conversations a thousandth of the true ones, and repeats of one call."""
    monkeypatch.setattr(measure, "HIDDEN", 256)
    monkeypatch.setattr(measure, "INTERMEDIATE", 128)
    monkeypatch.setattr(measure, "CONTEXT_TOKENS", 256)
    monkeypatch.setattr(measure, "_SAMPLE_SECONDS", 0.0)


class Clock:
    """Every call of a kernel takes a second, and nothing else takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    ticking = Clock()
    monkeypatch.setattr(measure.time, "perf_counter", ticking)
    monkeypatch.setattr(measure, "_MOST_SECONDS", 1000.0)
    return ticking


class TestMemory:
    def test_it_is_as_large_as_asked_and_holds_normal_numbers(self) -> None:
        for nbytes in (4096, 5_000_001):
            memory = measure.make_memory(nbytes)
            assert (memory.shape, memory.dtype) == ((nbytes,), torch.uint8)
            values = memory[: nbytes // 2 * 2].view(torch.bfloat16)
            assert torch.isfinite(values).all()
            assert 0.9 < values.float().std() < 1.1

    @pytest.mark.parametrize("nbytes", [1 << 60, 1 << 63, 1 << 80])
    def test_more_than_can_be_mapped_is_refused(self, nbytes: int) -> None:
        with pytest.raises(KernelError, match="more than this machine can map"):
            measure.make_memory(nbytes)


@pytest.mark.usefixtures("native_library")
class TestReading:
    @pytest.mark.parametrize("nbytes", [0, 1, 7, 8, 255, 256, 257, (4 << 20) + 3, (8 << 20) + 261])
    def test_every_byte_is_read_once_whatever_the_set_and_the_threads(self, nbytes: int) -> None:
        """The exclusive or of all words is what torch finds, one byte lane at a time."""
        memory = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(nbytes))
        padded = torch.cat([memory, torch.zeros(-nbytes % 8, dtype=torch.uint8)]).view(-1, 8)
        lanes = [int(sum((padded[:, i] >> bit & 1).sum().item() % 2 << bit for bit in range(8))) for i in range(8)]
        expected = int.from_bytes(bytes(lanes), "little")
        before = library.instruction_set()
        try:
            for name, n_threads in itertools.product(library.instruction_sets(), (1, 3)):
                library.force(name)
                library.set_threads(n_threads)
                assert measure.read_word(memory) == expected, (name, n_threads)
        finally:
            library.force(before)
            library.set_threads(1)

    def test_the_c_interface_checks_its_own_arguments(self) -> None:
        loaded, memory = library.library(), torch.zeros(64, dtype=torch.uint8)
        word = torch.full((1,), 7, dtype=torch.int64)
        for nbytes in (-1, -(2**63), 2**62, 2**63 - 1):
            assert loaded.es_read(memory.data_ptr(), nbytes, word.data_ptr()) == 2
        assert loaded.es_read(None, 64, word.data_ptr()) == loaded.es_read(memory.data_ptr(), 64, None) == 1
        assert word.item() == 7
        assert loaded.es_read(None, 0, word.data_ptr()) == 0
        assert word.item() == 0


class TestRates:
    def test_memory_is_its_bytes_a_second(self, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
        monkeypatch.setattr(measure, "read_word", lambda _: setattr(clock, "now", clock.now + 2))
        assert measure.read_rates(torch.zeros(10, dtype=torch.uint8), 3) == [5.0] * 3

    @pytest.mark.usefixtures("_small")
    @pytest.mark.parametrize("rows", [1, 3])
    @pytest.mark.parametrize("form", list(Storage))
    def test_a_product_is_twice_its_values_and_rows(self, monkeypatch, clock: Clock, form: Storage, rows: int) -> None:
        used, linear = [], kernels.linear

        def seen(x: torch.Tensor, weight: kernels.Matrix) -> torch.Tensor:
            clock.now += 1
            assert x.shape == (rows, 256)
            assert (weight.storage, weight.shape) == (form, (128, 256))
            used.append(weight.codes.data_ptr())
            return linear(x, weight)

        monkeypatch.setattr(kernels, "linear", seen)
        memory = measure.make_memory(300_000)
        assert measure.linear_rates(memory, form, rows, 4) == [2 * 128 * 256 * rows] * 4
        there = {matrix.codes.data_ptr() for matrix in measure._matrices(memory, form, 128, 256)}
        assert len(there) >= 4
        if rows == 1:  # each repeat goes through all of the memory
            assert (set(used), len(used)) == (there, 1 + 4 * len(there))
        else:
            assert len(set(used)) == min(5, len(there))
        assert min(used) == memory.data_ptr()
        assert max(used) < memory.data_ptr() + 300_000

    @pytest.mark.usefixtures("_small")
    @pytest.mark.parametrize(("rows", "together"), [(1, 8), (16, 8), (64, 1)])
    def test_experts_are_as_a_layer_s(self, monkeypatch, clock: Clock, rows: int, together: int) -> None:
        moe_ffn, memory = kernels.moe_ffn, measure.make_memory(1_000_000)

        def seen(x, experts, token, begin, each) -> None:
            clock.now += 1
            assert len(experts) == together
            assert begin == [rows * i for i in range(together + 1)]
            assert token.tolist() == list(range(rows)) * together
            assert (experts[0].gate.shape, experts[0].down.shape) == ((128, 256), (256, 128))
            moe_ffn(x, experts, token, begin, each)

        monkeypatch.setattr(kernels, "moe_ffn", seen)
        rates = measure.expert_rates(memory, Storage.INT4_GROUP32, rows, 2)
        assert rates == [6 * 128 * 256 * rows * together] * 2

    @pytest.mark.usefixtures("_small")
    def test_experts_share_no_byte(self) -> None:
        experts = list(measure._experts(measure.make_memory(200_000), Storage.INT4_GROUP32))
        parts = [part for expert in experts for part in (expert.gate, expert.up, expert.down)]
        spans = sorted((tensor.data_ptr(), tensor.numel()) for part in parts for tensor in (part.codes, part.scales))
        assert len(experts) == 200_000 // (3 * (128 * 256 * 9 // 16))
        assert all(first + nbytes <= after for (first, nbytes), (after, _) in itertools.pairwise(spans))

    @pytest.mark.usefixtures("_small")
    def test_attention_counts_what_each_query_sees(self, monkeypatch, clock: Clock) -> None:
        attend, starts = kernels.paged_attention, []

        def seen(query, pool, sequences, scale, value_dim) -> torch.Tensor:
            clock.now += 1
            assert (query.shape, value_dim, scale) == ((3, 4, 576), 512, 1 / 24)
            assert (sequences[0].count, sequences[0].start) == (3, 253)
            starts.append(sequences[0].pages[0].item())
            return attend(query, pool, sequences, scale, value_dim=value_dim)

        monkeypatch.setattr(kernels, "paged_attention", seen)
        memory = measure.make_memory(3 * 256 * 576 * 2 + 1000)
        assert measure.attention_rates(memory, 4, 3, 5) == [2 * 4 * (576 + 512) * (254 + 255 + 256)] * 5
        assert starts == [0, 4, 8, 0, 4, 8]

    def test_the_first_call_is_not_counted_and_slow_ones_end_soon(self, monkeypatch, clock: Clock) -> None:
        monkeypatch.setattr(measure, "_MOST_SECONDS", 25.0)
        seconds = iter([100.0] + [10.0] * 9)
        calls = itertools.repeat(lambda: setattr(clock, "now", clock.now + next(seconds)))
        assert list(measure._rates(calls, 50, 5)) == [0.1]
        monkeypatch.setattr(measure, "_SAMPLE_SECONDS", 1.0)
        quick = itertools.repeat(lambda: setattr(clock, "now", clock.now + 0.125))
        assert list(measure._rates(quick, 1, 3)) == [8.0] * 3

    def test_stopped_clock_causes_no_division_by_zero(self, clock: Clock) -> None:
        rates = measure._rates(itertools.repeat(lambda: None), 1, 2)
        assert len(rates) == 2
        assert all(rate > 0 for rate in rates)

    def test_too_little_memory_is_refused(self) -> None:
        little = measure.make_memory(1 << 20)
        for call in (
            lambda: measure.linear_rates(little, Storage.BF16, 1, 1),
            lambda: measure.expert_rates(little, Storage.INT4_GROUP32, 1, 1),
            lambda: measure.attention_rates(little, 16, 1, 1),
        ):
            with pytest.raises(KernelError, match="give more memory"):
                call()

    def test_it_measures_where_torch_serves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(library, "available", lambda: False)
        assert min(measure.read_rates(measure.make_memory(1 << 20), 2)) > 0
