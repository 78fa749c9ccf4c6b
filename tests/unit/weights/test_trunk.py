"""The trunk from disk: published values in memory and streamed, checked at every read, and int8 close to them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from earthshine.errors import CheckpointError, UsageError
from earthshine.kernels import Matrix, Weight, decode
from earthshine.spec.layout import trunk_tensors
from earthshine.storage import Storage
from earthshine.weights.checkpoint import Checkpoint
from earthshine.weights.formats import encode_int8
from earthshine.weights.manifest import load_manifest, trunk_ranges, write_manifest
from earthshine.weights.reading import Reader, Ticket
from earthshine.weights.trunk import StoredTrunk, embedding_bytes, units

from .tiny import HIDDEN, open_tiny, tiny_spec

MODELS = [(Storage.BF16, Storage.BF16), (Storage.BF16, Storage.FP8_BLOCK128), (Storage.INT4_GROUP32, Storage.BF16)]
UNITS = ("layers.0", "layers.1", "layers.2", "head")
Values = dict[str, torch.Tensor]


@pytest.fixture
def reader() -> Iterator[Reader]:
    with Reader() as opened:
        yield opened


@pytest.fixture(params=MODELS, ids=["bf16", "fp8", "int4"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    """In several shards, so that a unit's tensors lie in more than one."""
    experts, trunk = request.param
    return open_tiny(tmp_path, tiny_spec(experts, trunk), shard_bytes=90_000)


def wide(weight: torch.Tensor | Matrix) -> torch.Tensor:
    return (decode(weight) if isinstance(weight, Matrix) else weight).double()


def published(checkpoint: Checkpoint) -> Values:
    """Every tensor in fp64, read by the checkpoint alone."""
    return {tensor.name: checkpoint.trunk(tensor.name).double() for tensor in trunk_tensors(checkpoint.spec)}


def values(trunk: StoredTrunk, n_layers: int = 3) -> Values:
    """Every tensor in fp64, in the order of a forward pass."""
    found = {"embed": trunk.embed(torch.arange(50)).double()}
    for i in range(n_layers):
        with trunk.layer(i) as layer:
            found |= {f"layers.{i}.{name}": wide(weight).clone() for name, weight in layer.items()}
    with trunk.head() as head:
        return found | {"norm": trunk.norm.double(), "head": wide(head).clone()}


def assert_published(checkpoint: Checkpoint, found: Values) -> None:
    wanted = published(checkpoint)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
        assert value.abs().max() > 0


STREAMED = [(), UNITS, ("layers.1",), ("layers.0", "head"), ("layers.0", "layers.1", "layers.2")]


@pytest.mark.parametrize("streamed", STREAMED, ids=lambda names: "+".join(names) or "none")
@pytest.mark.parametrize("checked", [False, True], ids=["", "manifest"])
def test_every_value_is_the_published_one_wherever_it_lies(
    checkpoint: Checkpoint, reader: Reader, streamed: tuple[str, ...], checked: bool
) -> None:
    if checked:
        write_manifest(checkpoint, reader, lambda *_: None)
    trunk = StoredTrunk(
        checkpoint,
        reader,
        streamed=frozenset(streamed),
        embedding_on_disk=bool(streamed),
        manifest=load_manifest(checkpoint),
    )
    for _ in range(3):
        assert_published(checkpoint, values(trunk))
    sizes = units(checkpoint)
    once = sum(sizes[name].nbytes for name in streamed)
    assert trunk.bytes_streamed == (once if len(streamed) <= 2 else 3 * once)  # two units keep the two buffers


def test_units_in_any_order_and_twice_are_the_published_ones(checkpoint: Checkpoint, reader: Reader) -> None:
    trunk = StoredTrunk(checkpoint, reader, streamed=frozenset(UNITS))
    wanted = published(checkpoint)
    for index in (2, 2, 0, 1, 0, 0, 3, 1, 3, 3, 2, 0, 2):
        if index == 3:
            with trunk.head() as head:
                assert torch.equal(wide(head), wanted["head"])
            continue
        with trunk.layer(index) as layer:
            assert_layer(layer, index, wanted)


def assert_layer(layer: Mapping[str, Weight], index: int, wanted: Values) -> None:
    for name, weight in layer.items():
        assert torch.equal(wide(weight), wanted[f"layers.{index}.{name}"]), (index, name)


@pytest.mark.parametrize("held", [0, 1, 2])
def test_leased_layer_stays_while_another_pass_runs(checkpoint: Checkpoint, reader: Reader, held: int) -> None:
    trunk = StoredTrunk(checkpoint, reader, streamed=frozenset(UNITS))
    wanted = published(checkpoint)
    with trunk.layer(held) as layer:
        for _ in range(2):
            assert_published(checkpoint, values(trunk))
            assert_layer(layer, held, wanted)
    assert_published(checkpoint, values(trunk))


def test_third_pass_is_refused_and_the_others_go_on(checkpoint: Checkpoint, reader: Reader) -> None:
    trunk = StoredTrunk(checkpoint, reader, streamed=frozenset(UNITS))
    with trunk.layer(0) as first, trunk.layer(2) as second:
        with pytest.raises(UsageError, match="no third one"):
            trunk.layer(1)
        assert_layer(first, 0, published(checkpoint))
        assert_layer(second, 2, published(checkpoint))
    assert_published(checkpoint, values(trunk))


def test_lease_ends_with_whoever_held_it(checkpoint: Checkpoint, reader: Reader) -> None:
    """As where an interrupt comes between a lease and its `with`."""
    trunk = StoredTrunk(checkpoint, reader, streamed=frozenset(UNITS))
    for index in (0, 2, 1, 0, 2):
        trunk.layer(index)
    assert_published(checkpoint, values(trunk))


def test_a_unit_that_stays_is_the_same_object_and_one_asked_for_again_at_once_is_not_read_again(
    checkpoint: Checkpoint, reader: Reader
) -> None:
    trunk = StoredTrunk(checkpoint, reader, streamed=frozenset(("layers.1", "layers.2")))
    with trunk.layer(0) as first, trunk.layer(0) as again:
        assert again is first
    with trunk.layer(1) as first:
        before = trunk.bytes_streamed
    with trunk.layer(1) as again:
        assert again is first
    assert trunk.bytes_streamed == before


def test_stored_matrices_stay_as_published(tmp_path: Path, reader: Reader) -> None:
    """FP8 is used from its bytes; what attention takes apart is decoded, and router biases are fp32."""
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.BF16, Storage.FP8_BLOCK128))
    with StoredTrunk(checkpoint, reader).layer(1) as layer:
        assert_as_published(layer)


def assert_as_published(layer: Mapping[str, Weight]) -> None:
    assert isinstance(layer["attention.o"], Matrix)
    assert layer["attention.o"].storage is Storage.FP8_BLOCK128
    assert isinstance(layer["attention.kv_b"], torch.Tensor)
    assert layer["router_bias"].dtype == torch.float32
    assert layer["attention_norm"].dtype == torch.bfloat16


def flip(checkpoint: Checkpoint, name: str, at: int = 5) -> tuple[Path, int]:
    """Turns one bit of a tensor on disk."""
    span = dict(trunk_ranges(checkpoint))[name][0]
    with span.file.open("rb+") as file:
        file.seek(span.offset + at)
        byte = file.read(1)[0]
        file.seek(span.offset + at)
        file.write(bytes([byte ^ 1]))
    return span.file, span.offset


@pytest.mark.parametrize("streamed", [(), UNITS], ids=["resident", "streamed"])
@pytest.mark.parametrize("name", ["layers.0.attention.kv_a", "layers.2.router", "head"])
def test_a_flipped_bit_is_refused_and_named(
    checkpoint: Checkpoint, reader: Reader, streamed: tuple[str, ...], name: str
) -> None:
    write_manifest(checkpoint, reader, lambda *_: None)
    file, offset = flip(checkpoint, name)
    with Reader() as fresh, pytest.raises(CheckpointError, match=f"trunk tensor {name} .*{file.name}.* byte {offset}"):
        values(StoredTrunk(checkpoint, fresh, streamed=frozenset(streamed), manifest=load_manifest(checkpoint)))


class Failing(Reader):
    """Reads of some tensors fail while `broken` says so."""

    def __init__(self, broken: set[tuple[str, int]]) -> None:
        super().__init__()
        self.broken = broken

    def _read(self, segment: Any) -> None:
        if (segment.file.name, segment.offset) in self.broken:
            raise CheckpointError("The disk can't be read.")
        super()._read(segment)


@pytest.mark.parametrize("streamed", [UNITS, ("layers.1",), ("layers.0", "layers.2")], ids="+".join)
@pytest.mark.parametrize("name", ["layers.1.attention.o", "layers.0.ffn.up", "head"])
def test_after_a_read_that_failed_the_unit_can_be_had_again(
    tmp_path: Path, streamed: tuple[str, ...], name: str
) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec())
    span = dict(trunk_ranges(checkpoint))[name][0]
    unit = name if name == "head" else name[:8]
    with Failing(set()) as reader:
        trunk = StoredTrunk(checkpoint, reader, streamed=frozenset(streamed))
        reader.broken = {(span.file.name, span.offset)}
        if trunk._streaming is not None:
            for buffer in trunk._streaming._buffers:  # what was read ahead
                buffer.settle()
        if unit in streamed:
            for _ in range(2):
                with pytest.raises(CheckpointError, match="can't be read"):
                    trunk._weights(unit).__enter__()
                with pytest.raises(CheckpointError, match="can't be read"):
                    values(trunk)
        reader.broken = set()
        if unit in streamed:
            trunk._weights(unit)
        for _ in range(2):
            assert_published(checkpoint, values(trunk))


class Interrupted(Reader):
    """Ctrl-C at the n-th read that is queued, before or right after it is."""

    def __init__(self, countdown: int, after: bool) -> None:
        super().__init__()
        self.countdown, self._after = countdown, after

    def queue(self, ticket: Ticket, *options: Any) -> None:
        self.countdown -= 1
        if self.countdown == 0 and not self._after:
            raise KeyboardInterrupt
        super().queue(ticket, *options)
        if self.countdown == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("countdown", [1, 2, 9, 14, 40])
def test_after_an_interruption_no_half_read_unit_is_used(tmp_path: Path, countdown: int, after: bool) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec())
    with Interrupted(0, after) as reader:
        trunk = StoredTrunk(checkpoint, reader, streamed=frozenset(UNITS))
        reader.countdown = countdown
        with pytest.raises(KeyboardInterrupt):
            [values(trunk) for _ in range(9)]
        for index in (2, 0, 1, 1):
            with trunk.layer(index) as layer:
                assert_layer(layer, index, published(checkpoint))
        assert_published(checkpoint, values(trunk))


def test_progress_is_reported_in_bytes_to_the_end(checkpoint: Checkpoint, reader: Reader) -> None:
    reports: list[tuple[int, int]] = []
    StoredTrunk(checkpoint, reader, streamed=frozenset(["layers.1"]), progress=lambda *pair: reports.append(pair))
    sizes = {name: unit.nbytes for name, unit in units(checkpoint).items() if name != "layers.1"}
    assert [done for done, _ in reports] == [sum(list(sizes.values())[: i + 1]) for i in range(3)]
    assert {total for _, total in reports} == {sum(sizes.values())}


def test_embedding_rows_from_disk_are_those_of_the_whole(checkpoint: Checkpoint, reader: Reader) -> None:
    memory, disk = (StoredTrunk(checkpoint, reader, embedding_on_disk=on_disk) for on_disk in (False, True))
    for tokens in ([0], [49], [7, 7, 0, 49, 7], list(range(50)), []):
        ids = torch.tensor(tokens, dtype=torch.int64)
        assert torch.equal(disk.embed(ids), memory.embed(ids))
    assert disk.embed(torch.tensor([[1, 2], [3, 1]])).shape == (2, 2, HIDDEN)
    assert embedding_bytes(checkpoint.spec) == 2 * 50 * HIDDEN


def test_an_embedding_published_in_fp32_is_used_where_bf16_holds_it(tmp_path: Path, reader: Reader) -> None:
    exact = open_tiny(tmp_path / "exact", tiny_spec(), widen=True)
    assert_published(exact, values(StoredTrunk(exact, reader, streamed=frozenset(UNITS), embedding_on_disk=True)))
    finer = open_tiny(tmp_path / "finer", tiny_spec(), dtype=torch.float32)
    with pytest.raises(CheckpointError, match="more digits than bf16"):
        StoredTrunk(finer, reader)


def test_an_embedding_file_that_was_written_to_is_refused(tmp_path: Path, reader: Reader) -> None:
    checkpoint = open_tiny(tmp_path, tiny_spec())
    trunk = StoredTrunk(checkpoint, reader, embedding_on_disk=True)
    trunk.embed(torch.tensor([1]))
    flip(checkpoint, "embed")
    with pytest.raises(CheckpointError, match="was written to while in use"):
        trunk.embed(torch.tensor([1]))


def test_int8_rounds_matrices_to_within_half_a_step_and_nothing_else(checkpoint: Checkpoint, reader: Reader) -> None:
    found, wanted = values(StoredTrunk(checkpoint, reader, int8=True)), published(checkpoint)
    for tensor in trunk_tensors(checkpoint.spec):
        name, value = tensor.name, wanted[tensor.name]
        rounded = (tensor.linear or name == "head") and not name.endswith("kv_b")
        assert torch.equal(found[name], value) != rounded, name
        if rounded:
            step = value.abs().max() / 127
            assert (found[name] - value).abs().max() <= 0.51 * step + 2.0**-8 * value.abs().max()
            assert torch.nn.functional.cosine_similarity(found[name].flatten(), value.flatten(), 0) > 0.9999


def test_int8_halves_a_large_matrix_and_keeps_what_it_can_represent() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(-127, 128, (33, 300), generator=generator)
    for first in (0, 128, 256):
        whole[:, first] = 127  # each group's largest, so that its step is the power of two
    whole[5] = 0
    weight = (whole * 2.0**-9).bfloat16()
    encoded = encode_int8(weight)
    assert encoded.storage is Storage.INT8_GROUP128
    assert torch.equal(decode(encoded), weight)
    big = torch.randn(256, 2048, generator=generator).bfloat16()
    assert encode_int8(big).nbytes == 256 * 2048 + 256 * 16 * 4
    assert encode_int8(big).nbytes < 0.52 * 2 * big.numel()
