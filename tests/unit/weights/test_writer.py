"""Encoders compared with their definitions and compressed-tensors; shards are written as a whole or not at all."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints.writer import (
    Streamed,
    encode_fp8,
    encode_int4,
    published_tensors,
    write_checkpoint,
    write_shards,
)

from earthshine import kernels
from earthshine.errors import CheckpointError, Unsupported, UsageError
from earthshine.storage import Storage
from earthshine.weights.header import read_header
from earthshine.weights.shards import open_shards, read_tensor

from .tiny import random_tensors, tiny_spec


def weights(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    return torch.randn((rows, columns), generator=torch.Generator().manual_seed(seed))


def test_int4_packs_low_nibble_first_with_offset_eight() -> None:
    row = torch.zeros(1, 32)
    row[0, :3] = torch.tensor([-7.5, 7.5, 1.0])
    packed, scale, shape = encode_int4(row)
    assert scale.tolist() == [[1.0]]
    assert shape.tolist() == [1, 32]
    # -7.5 rounds to -8 (code 0), 7.5 rounds to 8 and is cut to 7 (code 15), 1 is code 9, 0 is code 8.
    assert packed.view(torch.uint8)[0, :3].tolist() == [0xF0, 0x89, 0x88]


def test_int4_is_within_half_a_step_below_the_cut() -> None:
    weight = weights(24, 96)
    packed, scale, _ = encode_int4(weight)
    step = scale.float().repeat_interleave(32, 1)
    error = (kernels.decode(kernels.int4_matrix(packed, scale)).float() - weight).abs()
    inside = weight < 7 * step
    assert (error <= 0.5 * step * 1.02 + weight.abs() * 2**-8)[inside].all()
    assert (error <= step * 1.02)[~inside].all()


def test_int4_of_zeros_decodes_to_zeros() -> None:
    packed, scale, _ = encode_int4(torch.zeros(2, 64))
    assert (scale > 0).all()
    assert torch.equal(kernels.decode(kernels.int4_matrix(packed, scale)), torch.zeros(2, 64, dtype=torch.bfloat16))


def test_int4_equals_compressed_tensors_both_ways() -> None:
    """Scale, codes and decompressed values are those of the publisher's own library."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    weight = weights(16, 128)
    packed, scale, shape = encode_int4(weight)
    args = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=32, symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    groups = weight.reshape(16, 4, 32)
    theirs, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    assert torch.equal(scale, theirs.to(torch.bfloat16))
    state = PackedQuantizationCompressor.compress({"weight": weight, "weight_scale": scale.float()}, scheme)
    assert torch.equal(packed, state["weight_packed"])
    stored = {"weight_packed": packed, "weight_scale": scale, "weight_shape": shape}
    value = PackedQuantizationCompressor.decompress(stored, scheme)["weight"]
    assert torch.equal(kernels.decode(kernels.int4_matrix(packed, scale)), value)


def test_fp8_scales_each_block_by_its_own_maximum_and_crops_edges() -> None:
    weight = weights(200, 300)
    weight[130:, 260:] = 0
    codes, scale = encode_fp8(weight)
    assert scale.shape == (2, 3)
    assert scale[0, 0] == weight[:128, :128].abs().max() / 448
    assert scale[1, 2] == weight[128:, 256:].abs().max() / 448
    assert codes.float().abs().max() == 448
    # e4m3 has 3 bits of mantissa: half a step is 1/16 of the value, or 2^-10 scales where it is subnormal.
    wide = scale.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    error = (kernels.decode(kernels.fp8_matrix(codes, scale)).float() - weight).abs()
    assert (error <= weight.abs() * (2**-4 + 2**-8) + wide * 2**-10).all()
    assert encode_fp8(torch.zeros(3, 5))[1].tolist() == [[1.0]]


@pytest.mark.parametrize("encode", [encode_int4, encode_fp8])
def test_values_that_are_not_finite_are_not_encoded(encode: object) -> None:
    assert callable(encode)
    for bad in (float("nan"), float("inf")):
        weight = weights(2, 32)
        weight[1, 3] = bad
        with pytest.raises(UsageError, match="NaN or infinite"):
            encode(weight)


def test_int4_refuses_a_width_that_is_not_a_multiple_of_its_group() -> None:
    with pytest.raises(UsageError, match="multiple of 32"):
        encode_int4(weights(2, 40))


def some_tensors() -> list[tuple[str, torch.Tensor]]:
    return [
        ("a", weights(4, 4)),
        ("b", weights(4, 4, 2).to(torch.bfloat16).t()),
        ("c", torch.tensor(5)),
        ("d", weights(4, 4, 3).to(torch.float8_e4m3fn)),
    ]


def test_a_single_shard_is_one_file_without_index(tmp_path: Path) -> None:
    files = write_checkpoint(tmp_path / "new", some_tensors(), 10**6)
    assert [path.name for path in files] == ["model.safetensors"]
    assert sorted(tmp_path.rglob("*.*")) == [files[0]]
    shards = open_shards(tmp_path / "new")
    for name, tensor in some_tensors():
        assert torch.equal(read_tensor(shards[name]).float(), tensor.float())


def test_shards_are_cut_at_the_limit_and_named_as_published(tmp_path: Path) -> None:
    files = write_checkpoint(tmp_path, some_tensors(), 50)
    names = [f"model-0000{i}-of-000003.safetensors" for i in (1, 2, 3)]
    assert [path.name for path in files] == [*names, "model.safetensors.index.json"]
    index = json.loads(files[-1].read_text())
    assert index["weight_map"] == {"a": names[0], "b": names[1], "c": names[1], "d": names[2]}
    assert index["metadata"]["total_size"] == 64 + 32 + 8 + 16
    assert list(open_shards(tmp_path)) == ["a", "b", "c", "d"]


def test_the_safetensors_library_reads_what_is_written(tmp_path: Path) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    write_checkpoint(tmp_path, some_tensors(), 10**6)
    loaded = load_file(tmp_path / "model.safetensors")
    assert {name: value.tolist() for name, value in loaded.items()} == {
        name: tensor.tolist() for name, tensor in some_tensors()
    }


def test_a_failure_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[str, torch.Tensor]]:
        yield from some_tensors()
        raise RuntimeError("no more")

    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RuntimeError, match="no more"):
        write_checkpoint(tmp_path, failing(), 64)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([], "no tensors"),
        ([("a", torch.zeros(1)), ("a", torch.zeros(1))], "'a' is given twice"),
        ([("z", torch.zeros(1, dtype=torch.complex64))], "can't be stored"),
        ([("__metadata__", torch.zeros(1))], "can't be stored"),
    ],
)
def test_tensors_that_can_not_be_stored_are_refused(
    tmp_path: Path, tensors: list[tuple[str, torch.Tensor]], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        write_checkpoint(tmp_path, tensors, 100)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    (written,) = write_checkpoint(tmp_path, some_tensors(), 10**6)
    before = written.read_bytes()
    with pytest.raises(UsageError, match="already holds a checkpoint"):
        write_checkpoint(tmp_path, [("x", torch.zeros(3))], 10**6)
    assert written.read_bytes() == before


def test_a_folder_that_can_not_be_written_is_a_checkpoint_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="can't be written"):
        write_checkpoint(tmp_path / "file", some_tensors(), 100)


def test_names_and_shapes_that_do_not_fit_the_spec_are_refused() -> None:
    spec = tiny_spec()
    tensors = random_tensors(spec)
    with pytest.raises(UsageError, match="among them 'extra'"):
        list(published_tensors(spec, tensors | {"extra": torch.zeros(1)}))
    with pytest.raises(UsageError, match="norm has shape \\[3\\]"):
        list(published_tensors(spec, tensors | {"norm": torch.zeros(3)}))
    with pytest.raises(UsageError, match=r"norm is torch\.float16"):
        list(published_tensors(spec, tensors | {"norm": tensors["norm"].half()}))
    del tensors["head"]
    with pytest.raises(UsageError, match="among them 'head'"):
        list(published_tensors(spec, tensors))


def test_a_width_that_int4_can_not_hold_is_refused_by_name() -> None:
    spec = replace(tiny_spec(Storage.INT4_GROUP32), hidden=40)
    with pytest.raises(Unsupported, match=r"experts\.0\.gate_proj has 40 inputs"):
        list(published_tensors(spec, {}))


def test_the_data_of_a_shard_begins_at_a_multiple_of_eight(tmp_path: Path) -> None:
    for letters in range(1, 9):
        (path,) = write_checkpoint(tmp_path / str(letters), [("x" * letters, torch.zeros(1))], 100)
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_a_shard_may_be_exactly_as_large_as_the_limit(tmp_path: Path) -> None:
    tensors = [(name, torch.zeros(4)) for name in "abcd"]
    assert len(write_checkpoint(tmp_path, tensors, 32)) == 3  # two shards and the index


def test_the_index_comes_last_and_a_failing_rename_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, renamed = Path.rename, list[str]()

    def failing(self: Path, target: Path) -> Path:
        renamed.append(target.name)
        if target.name.endswith("index.json"):
            raise OSError(5, "no more")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(CheckpointError, match="no more"):
        write_checkpoint(tmp_path, some_tensors(), 50)
    assert len(renamed) == 4
    assert list(tmp_path.iterdir()) == []


def test_a_streamed_tensor_is_written_piece_by_piece_and_its_gaps_are_zeros(tmp_path: Path) -> None:
    pieces = [(4, b"\x00\x00\x80\x3f"), (4096 * 4, b"\x00\x00\x00\x40")]
    streamed = Streamed(torch.float32, (2, 1 << 20), lambda: iter(pieces))
    (path,) = write_checkpoint(tmp_path, [("a", streamed), ("b", torch.ones(3))], 10**9)
    shards = open_shards(tmp_path)
    value = read_tensor(shards["a"])
    assert value.shape == (2, 1 << 20)
    assert value.nonzero().tolist() == [[0, 1], [0, 4096]]
    assert (value[0, 1], value[0, 4096]) == (1, 2)
    assert read_tensor(shards["b"]).tolist() == [1, 1, 1]
    assert path.stat().st_size > 8 << 20
    assert path.stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("piece", [(-1, b"x"), (0, b"x" * 17), (16, b"x")])
def test_a_piece_outside_its_tensor_is_refused(tmp_path: Path, piece: tuple[int, bytes]) -> None:
    with pytest.raises(UsageError, match="'a' was given data outside its 16 bytes"):
        write_checkpoint(tmp_path, [("a", Streamed(torch.float32, (4,), lambda: [piece]))], 100)
    assert list(tmp_path.iterdir()) == []


def test_shards_are_written_as_they_are_given(tmp_path: Path) -> None:
    files = write_shards(tmp_path, ([("b", torch.zeros(4)), ("a", torch.ones(1))], [("c", torch.zeros(2))]))
    assert [extent.name for extent in read_header(files[0]).extents] == ["b", "a"]
    assert len(files) == 3
    with pytest.raises(UsageError, match="'c' is given twice"):
        write_shards(tmp_path / "new", [[("c", torch.zeros(1))], [("c", torch.zeros(1))]])
    assert not (tmp_path / "new").exists()
