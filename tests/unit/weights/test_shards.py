"""Opening a folder of shards: index and headers must agree, and no name or link may lead out of the folder."""

import json
import os
from pathlib import Path

import pytest
import torch

from earthshine.errors import CheckpointError
from earthshine.weights.shards import open_shards, read_tensor

from .tiny import entry, raw_file

INDEX = "model.safetensors.index.json"


def byte_shard(path: Path, **values: int) -> Path:
    """One single-byte tensor a keyword."""
    header = {name: entry("U8", [1], i, i + 1) for i, name in enumerate(values)}
    return raw_file(path, header, bytes(values.values()))


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 3}, "weight_map": weight_map}))


def two_shards(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    byte_shard(folder / "one.safetensors", a=1, b=2)
    byte_shard(folder / "two.safetensors", c=3)
    write_index(folder, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})
    return folder


def refused(folder: Path, words: str) -> str:
    with pytest.raises(CheckpointError, match=words) as caught:
        open_shards(folder)
    return str(caught.value)


def test_every_tensor_of_every_shard_is_found_and_read(tmp_path: Path) -> None:
    shards = open_shards(two_shards(tmp_path))
    assert {name: read_tensor(extent).item() for name, extent in shards.items()} == {"a": 1, "b": 2, "c": 3}


def test_a_single_file_needs_no_index(tmp_path: Path) -> None:
    byte_shard(tmp_path / "model.safetensors", a=7)
    assert read_tensor(open_shards(tmp_path)["a"]).tolist() == [7]


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    refused(tmp_path, f"neither {INDEX} nor model.safetensors")
    refused(tmp_path / "absent", "not a folder")
    refused(byte_shard(tmp_path / "file", a=1), "not a folder")


def test_values_of_every_width_survive_odd_offsets(tmp_path: Path) -> None:
    """Tensors need not be aligned in a file."""
    wide = torch.tensor([1.5, -2.0])
    header = {"pad": entry("U8", [1], 0, 1), "wide": entry("F32", [2], 1, 9), "empty": entry("BF16", [0, 3], 9, 9)}
    raw_file(tmp_path / "model.safetensors", header, b"\x00" + wide.numpy().tobytes())
    shards = open_shards(tmp_path)
    assert torch.equal(read_tensor(shards["wide"]), wide)
    assert read_tensor(shards["empty"]).shape == (0, 3)


def test_a_file_cut_after_opening_is_a_short_read(tmp_path: Path) -> None:
    path = byte_shard(tmp_path / "model.safetensors", a=1, b=2)
    shards = open_shards(tmp_path)
    os.truncate(path, path.stat().st_size - 1)
    assert read_tensor(shards["a"]).item() == 1
    with pytest.raises(CheckpointError, match="ends at byte"):
        read_tensor(shards["b"])


@pytest.mark.parametrize(
    "name", ["../../etc/passwd.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "a\\b.safetensors",
             ".hidden.safetensors", "nul\x00.safetensors", "", "../../etc/passwd", "x.bin", "é.safetensors"],
)  # fmt: skip
def test_a_shard_name_that_is_not_a_plain_file_name_is_refused(tmp_path: Path, name: str) -> None:
    two_shards(tmp_path)
    write_index(tmp_path, {"a": name})
    refused(tmp_path, "not a plain file name|name of a .safetensors file")


@pytest.mark.parametrize("weight_map", [{}, [], None, {"a": 1}, {"a": ["one.safetensors"]}, "one.safetensors"])
def test_a_weight_map_that_does_not_map_names_to_files_is_refused(tmp_path: Path, weight_map: object) -> None:
    two_shards(tmp_path)
    write_index(tmp_path, weight_map)
    refused(tmp_path, "should")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map":{"a":"x.safetensors"},"extra":1}', "\udcff"])
def test_an_index_that_is_not_the_expected_json_is_refused(tmp_path: Path, text: str) -> None:
    two_shards(tmp_path)
    (tmp_path / INDEX).write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(tmp_path, INDEX)


def test_an_index_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    two_shards(tmp_path)
    (tmp_path / INDEX).write_text('{"weight_map":{"a":"one.safetensors","a":"two.safetensors"}}')
    refused(tmp_path, "'a' twice")


def test_an_index_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    two_shards(tmp_path)
    os.truncate(tmp_path / INDEX, 2**40)
    refused(tmp_path, "more than 100000000 bytes")


def test_all_disagreements_are_reported_together(tmp_path: Path) -> None:
    two_shards(tmp_path)
    byte_shard(tmp_path / "two.safetensors", c=3, b=9, stray=1)
    places = {"a": "one", "b": "one", "c": "two", "lost": "one", "gone": "three", "moved": "two"}
    write_index(tmp_path, {name: f"{place}.safetensors" for name, place in places.items()})
    message = refused(tmp_path, "6 problems")
    assert "the shard three.safetensors is absent" in message
    assert "'b' is in two shards" in message
    assert "'b' is not in one.safetensors" in message
    assert "'lost' is not in one.safetensors" in message
    assert "'moved' is not in two.safetensors" in message
    assert "'stray' is in a shard, but not in the index" in message
    assert "'gone'" not in message


def test_a_long_list_of_problems_is_cut_and_counted(tmp_path: Path) -> None:
    two_shards(tmp_path)
    names = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    write_index(tmp_path, names | {f"lost{i}": "two.safetensors" for i in range(500)})
    message = refused(tmp_path, "500 problems")
    assert message.count("'lost") == 20
    assert "and 480 more" in message


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    folder = two_shards(tmp_path / "model")
    outside = (folder / "two.safetensors").rename(tmp_path / "two")
    (folder / "two.safetensors").symlink_to(outside)
    refused(folder, "'two.safetensors' is a link that leaves")
    (folder / "two.safetensors").unlink()
    (folder / "two.safetensors").symlink_to("one.safetensors")
    refused(folder, "not in the index|in two shards")


def test_an_index_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = two_shards(tmp_path / "model")
    (folder / INDEX).rename(tmp_path / "elsewhere")
    (folder / INDEX).symlink_to(tmp_path / "elsewhere")
    refused(folder, "is a link that leaves")


def hub_cache(root: Path) -> Path:
    """A snapshot as huggingface_hub lays it out: every file a relative link to a blob of the same repository."""
    snapshot = two_shards(root / "models--org--name" / "snapshots" / "0123abcd")
    blobs = root / "models--org--name" / "blobs"
    blobs.mkdir()
    for i, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / f"hash{i}")
        path.symlink_to(f"../../blobs/hash{i}")
    return snapshot


def test_links_to_the_blobs_of_the_same_cached_repository_are_followed(tmp_path: Path) -> None:
    shards = open_shards(hub_cache(tmp_path))
    assert {name: read_tensor(extent).item() for name, extent in shards.items()} == {"a": 1, "b": 2, "c": 3}


def test_a_shard_may_be_a_link_to_a_shard_on_another_disk(tmp_path: Path) -> None:
    folder = two_shards(tmp_path / "model")
    outside = (folder / "two.safetensors").rename(tmp_path / "moved.safetensors")
    (folder / "two.safetensors").symlink_to(outside)
    assert read_tensor(open_shards(folder)["c"]).item() == 3


def test_blobs_may_lie_on_another_disk_whole_or_each_under_its_digest(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path / "cache")
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(tmp_path / "disk")
    blobs.symlink_to(tmp_path / "disk")
    assert read_tensor(open_shards(snapshot)["c"]).item() == 3
    digest = "0123456789abcdef" * 4
    (tmp_path / "other").mkdir()
    (blobs / "hash2").resolve().rename(tmp_path / "other" / digest)
    (blobs / digest).symlink_to(tmp_path / "other" / digest)
    (snapshot / "two.safetensors").unlink()
    (snapshot / "two.safetensors").symlink_to(f"../../blobs/{digest}")
    assert read_tensor(open_shards(snapshot)["c"]).item() == 3
    (blobs / digest).unlink()
    (blobs / digest).symlink_to(byte_shard(tmp_path / "secret", c=3))
    refused(snapshot, "is a link that leaves")


def test_links_to_another_cached_repository_are_refused(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path)
    other = tmp_path / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    byte_shard(other / "hash", c=3)
    (snapshot / "two.safetensors").unlink()
    (snapshot / "two.safetensors").symlink_to("../../../models--org--other/blobs/hash")
    refused(snapshot, "is a link that leaves")
