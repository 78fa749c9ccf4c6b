"""Checksums beside the shards: damage is named, and a manifest that does not fit is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3

from earthshine.engine.experts import RoutedExperts
from earthshine.errors import CheckpointError
from earthshine.spec.layout import trunk_tensors
from earthshine.storage import Storage
from earthshine.weights import manifest as manifest_module
from earthshine.weights.checkpoint import Checkpoint
from earthshine.weights.experts import ExpertStore
from earthshine.weights.manifest import MANIFEST_NAME, load_manifest, trunk_ranges, write_manifest
from earthshine.weights.reading import Reader
from earthshine.weights.shards import read_bytes

from .tiny import HIDDEN, N_EXPERTS, open_tiny, tiny_spec


def hashed(folder: Path, **options: Any) -> Checkpoint:
    checkpoint = open_tiny(folder, tiny_spec(Storage.INT4_GROUP32), **options)
    with Reader() as reader:
        assert write_manifest(checkpoint, reader, lambda done, total: None) == folder / MANIFEST_NAME
    return checkpoint


@pytest.mark.parametrize("chunk", [32 << 20, 5000])
def test_a_manifest_has_the_hash_of_every_expert_and_trunk_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(manifest_module, "_CHUNK", chunk)
    checkpoint = open_tiny(tmp_path, tiny_spec(Storage.INT4_GROUP32), shard_bytes=60_000)
    progress: list[tuple[int, int]] = []
    with Reader() as reader:
        write_manifest(checkpoint, reader, lambda done, total: progress.append((done, total)))
    assert progress[-1] == (checkpoint.coverage().nbytes("trunk") + checkpoint.coverage().nbytes("experts"),) * 2
    found = load_manifest(checkpoint)
    assert found is not None
    for layer in (1, 2):
        for expert in range(N_EXPERTS):
            ranges = checkpoint.expert_extents(layer, expert).ranges
            raw = b"".join(bytes(read_bytes(span.file, span.offset, span.nbytes)) for span in ranges)
            assert found.experts[layer][32 * expert :][:32] == blake3(raw).digest()
    for tensor in trunk_tensors(checkpoint.spec):
        value = checkpoint.trunk(tensor.name)
        assert found.trunk[tensor.name] == blake3(value.view(torch.uint8).numpy().tobytes()).digest()


def test_a_folder_without_a_manifest_has_none(tmp_path: Path) -> None:
    assert load_manifest(open_tiny(tmp_path, tiny_spec())) is None


def test_a_damaged_expert_is_named_and_the_others_work(tmp_path: Path) -> None:
    """One bit of expert 3's weights, which no check of values would see."""
    checkpoint = hashed(tmp_path)
    span = checkpoint.expert_extents(2, 3).ranges[0]
    raw = bytearray(span.file.read_bytes())
    raw[span.offset + 1000] ^= 16
    span.file.write_bytes(raw)
    x, weight = torch.ones(1, HIDDEN, dtype=torch.bfloat16), torch.ones(1, 1)
    with Reader() as reader:
        options = {"slots_per_layer": 2, "transit_slots": 1, "dtype": torch.bfloat16}
        checked = ExpertStore(checkpoint, reader=reader, manifest=load_manifest(checkpoint), **options)
        with pytest.raises(
            CheckpointError, match=rf"expert 3 of layer 2 .*twice read: 'model.safetensors'.*byte {span.offset}"
        ):
            RoutedExperts(checked).ffn(2, x, torch.tensor([[3]]), weight)
        assert checked.stats.rereads == 1
        plain = ExpertStore(checkpoint, reader=reader, **options)
        for expert in (2, 4):
            wanted, found = (
                RoutedExperts(store).ffn(2, x, torch.tensor([[expert]]), weight) for store in (plain, checked)
            )
            assert torch.equal(wanted, found)


def test_a_damaged_trunk_tensor_is_named(tmp_path: Path) -> None:
    found = load_manifest(checkpoint := hashed(tmp_path))
    assert found is not None
    ranges = dict(trunk_ranges(checkpoint))["layers.1.attention.o"]
    raw = read_bytes(ranges[0].file, ranges[0].offset, ranges[0].nbytes)
    found.check_trunk("layers.1.attention.o", [raw], ranges[0])
    raw[7] ^= 1
    with pytest.raises(CheckpointError, match=f"layers.1.attention.o does not match .* byte {ranges[0].offset}"):
        found.check_trunk("layers.1.attention.o", [raw], ranges[0])


def shards_of_another_size(document: dict[str, Any]) -> None:
    document["shards"]["model.safetensors"] += 1


CHANGES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda document: document.update(version=2), "of version 1 and blake3"),
    (lambda document: document.update(hash="md5"), "of version 1 and blake3"),
    (lambda document: document.update(more=1), "should hold experts, hash, shards, trunk, version"),
    (lambda document: document.pop("trunk"), "should hold experts"),
    (shards_of_another_size, "made of other shards"),
    (lambda document: document.update(shards=[]), "made of other shards"),
    (lambda document: document["trunk"].pop("norm"), "under trunk what the model has"),
    (lambda document: document["experts"].update({"3": ""}), "under experts what the model has"),
    (lambda document: document.update(experts=7), "under experts what the model has"),
    (lambda document: document["experts"].update({"1": document["experts"]["1"][2:]}), "6 hashes for experts 1"),
    (lambda document: document["experts"].update({"2": 5}), "6 hashes for experts 2"),
    (lambda document: document["trunk"].update(norm="g" * 64), "1 hashes for trunk norm"),
    (lambda document: document["trunk"].update(norm=document["trunk"]["norm"] + " "), "1 hashes for trunk norm"),
]


@pytest.mark.parametrize(("change", "problem"), CHANGES)
def test_a_manifest_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    checkpoint = hashed(tmp_path)
    path = tmp_path / MANIFEST_NAME
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=problem):
        load_manifest(checkpoint)


def test_manifest_that_is_not_json_or_links_elsewhere_is_refused(tmp_path: Path) -> None:
    checkpoint = hashed(tmp_path / "model")
    path = tmp_path / "model" / MANIFEST_NAME
    raw = path.read_bytes()
    path.write_bytes(raw[:-30])
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_manifest(checkpoint)
    path.unlink()
    (tmp_path / "elsewhere").write_bytes(raw)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="leaves the model's folder"):
        load_manifest(checkpoint)


def test_a_manifest_that_can_not_be_finished_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = hashed(tmp_path)
    before = (tmp_path / MANIFEST_NAME).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("earthshine.weights.manifest.os.fsync", full)
    with Reader() as reader, pytest.raises(CheckpointError, match="can't be written: No space left"):
        write_manifest(checkpoint, reader, lambda done, total: None)
    assert (tmp_path / MANIFEST_NAME).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST_NAME, "model.safetensors"]
