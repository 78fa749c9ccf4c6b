"""Safetensors headers: valid ones are read, and every kind of invalid one is refused."""

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earthshine.errors import CheckpointError
from earthshine.weights.header import ITEM_BYTES, TensorExtent, read_header
from earthshine.weights.shards import TORCH_DTYPES, read_tensor

from .tiny import entry, raw_file

SOUND = {"__metadata__": {"format": "pt"}, "a": entry("F32", [2, 3], 0, 24), "b": entry("BF16", [4], 24, 32)}


def test_extents_are_absolute_and_in_order_of_data(tmp_path: Path) -> None:
    header = {"late": entry("U8", [3], 8, 11), "early": entry("I64", [], 0, 8), "none": entry("F32", [0, 5], 8, 8)}
    path = raw_file(tmp_path / "x.safetensors", header, bytes(11))
    start = 8 + len(json.dumps(header))
    assert read_header(path).extents == (
        TensorExtent("early", "I64", (), path, start, 8),
        TensorExtent("none", "F32", (0, 5), path, start + 8, 0),
        TensorExtent("late", "U8", (3,), path, start + 8, 3),
    )


def test_a_header_padded_with_spaces_is_sound(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "x", json.dumps(SOUND).encode() + b"   \n ", bytes(32))
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    assert [extent.name for extent in header.extents] == ["a", "b"]


def test_every_dtype_of_the_table_has_the_size_that_torch_gives_it() -> None:
    assert {name: dtype.itemsize for name, dtype in TORCH_DTYPES.items()} == ITEM_BYTES


def refused(path: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_header(path)


def test_a_file_shorter_than_the_length_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x02\x00\x00")
    refused(tmp_path / "x", "shorter than a safetensors header")


@pytest.mark.parametrize("length", [0, 1, 10**6, 100_000_001, 2**63, 2**64 - 1])
def test_an_absurd_header_length_is_refused_before_it_is_allocated(tmp_path: Path, length: int) -> None:
    refused(raw_file(tmp_path / "x", SOUND, bytes(32), length), "claims a header of")


def test_a_header_above_the_limit_is_refused_even_where_the_file_is_as_long(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "x", SOUND, b"", 100_000_001)
    os.truncate(path, 200_000_000)  # sparse
    refused(path, "claims a header of 100000001 bytes")


def test_truncated_data_is_refused(tmp_path: Path) -> None:
    refused(raw_file(tmp_path / "x", SOUND, bytes(31)), "data outside the file")


def test_data_that_no_tensor_owns_is_refused(tmp_path: Path) -> None:
    refused(raw_file(tmp_path / "x", SOUND, bytes(33)), "1 bytes after the last tensor")


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    header = {"a": entry("U8", [8], 0, 8), "b": entry("U8", [8], 4, 12)}
    refused(raw_file(tmp_path / "x", header, bytes(12)), "'b' overlaps")


def test_a_hole_between_tensors_is_refused(tmp_path: Path) -> None:
    header = {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 8, 12)}
    refused(raw_file(tmp_path / "x", header, bytes(12)), "'b' leaves a hole")


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    one = json.dumps(entry("U8", [4], 0, 4))
    refused(raw_file(tmp_path / "x", f'{{"a":{one},"a":{one}}}'.encode(), bytes(4)), "'a' twice")
    nested = b'{"a":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}}'
    refused(raw_file(tmp_path / "y", nested, bytes(4)), "'dtype' twice")


@pytest.mark.parametrize(
    "shape", [[2**32, 2**32], [2**62, 2], [2**62, 0], [10**4000], [-1], [2.0], [True], ["4"], 4, None, [1] * 9]
)
def test_shape_that_overflows_or_is_not_a_list_of_counts_is_refused(tmp_path: Path, shape: object) -> None:
    header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}
    refused(raw_file(tmp_path / "x", header, bytes(4)), "tensor 'a' has a shape")


def test_a_length_that_is_not_shape_times_item_is_refused(tmp_path: Path) -> None:
    refused(raw_file(tmp_path / "x", {"a": entry("F32", [2], 0, 4)}, bytes(4)), "dtype and shape need another")


@pytest.mark.parametrize("dtype", ["F12", "bf16", 7, None, ["F32"]])
def test_an_unknown_dtype_is_refused(tmp_path: Path, dtype: object) -> None:
    header = {"a": {"dtype": dtype, "shape": [1], "data_offsets": [0, 4]}}
    refused(raw_file(tmp_path / "x", header, bytes(4)), "a dtype that is not one of")


@pytest.mark.parametrize("offsets", [[0], [0, 4, 4], [0, 4.0], [False, 4], "04", [4, 0], [-4, 0]])
def test_data_offsets_that_are_no_range_of_the_file_are_refused(tmp_path: Path, offsets: object) -> None:
    header = {"a": {"dtype": "U8", "shape": [4], "data_offsets": offsets}}
    refused(raw_file(tmp_path / "x", header, bytes(4)), "data_offsets that|data outside")


@pytest.mark.parametrize(
    "text",
    [b"[]", b"{", b"{}}", b'{"a":1}', b'{"a":{}}', b"\xff\xfe{}", b'{"__metadata__":{"n":1}}', b'{"__metadata__":[]}',
     b'{"a":NaN}', b'{"a":' + b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}", b" {}", b'{"\xff":1}'],
)  # fmt: skip
def test_a_header_that_is_not_the_expected_json_is_refused(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(CheckpointError):
        read_header(raw_file(tmp_path / "x", text))


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A pipe would block for ever, and a link would be followed out of the folder."""
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a regular file")
    refused(tmp_path, "not a regular file")
    refused(tmp_path / "absent", "No such file")
    (tmp_path / "link").symlink_to(raw_file(tmp_path / "x", SOUND, bytes(32)))
    refused(tmp_path / "link", "can't be opened")


def test_a_hostile_name_can_not_write_to_the_terminal(tmp_path: Path) -> None:
    header = {"\x1b]0;x\x07\ud800" + "y" * 10**5: entry("U8", [4], 0, 5)}
    with pytest.raises(CheckpointError) as caught:
        read_header(raw_file(tmp_path / "x", header, bytes(5)))
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


_TEXT = json.dumps(SOUND).encode()
_EDIT = st.tuples(st.integers(0, len(_TEXT) + 7), st.sampled_from(["set", "cut", "add"]), st.binary(max_size=6))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(_EDIT, min_size=1, max_size=4))
def test_mutated_headers_raise_nothing_but_checkpoint_error(
    tmp_path: Path, edits: list[tuple[int, str, bytes]]
) -> None:
    raw = bytearray(len(_TEXT).to_bytes(8, "little") + _TEXT + bytes(32))
    for position, kind, data in edits:
        raw[position : position + (0 if kind == "add" else len(data))] = b"" if kind == "cut" else data
    path = tmp_path / "x"
    path.write_bytes(raw)
    try:
        header = read_header(path)
    except CheckpointError:
        return
    for extent in header.extents:
        assert read_tensor(extent).numel() == math.prod(extent.shape)
