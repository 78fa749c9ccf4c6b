"""`inspect --hash`: checksums of the shipped model, against which its experts are held from then on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from earthshine.cli.inspect import run_inspect
from earthshine.engine.load import load_model
from earthshine.errors import CheckpointError, UsageError
from earthshine.spec import load_spec
from earthshine.weights import Checkpoint
from earthshine.weights.manifest import trunk_ranges

GLEAM = Path(__file__).parents[3] / "src/earthshine/gleam"


def test_checksums_are_written_beside_the_shards_and_held_against(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(GLEAM, tmp_path / "gleam"))
    run_inspect(str(folder), None, True, True)
    printed = json.loads(capsys.readouterr().out)
    weights = folder / "model.safetensors"
    assert printed["manifest"]["written"] == str(folder / "earthshine.manifest.json")
    assert printed["manifest"]["bytes_hashed"] == sum(share["bytes"] for share in printed["weights"].values())
    assert printed["manifest"]["bytes_per_second"] > 0
    load_model(folder)
    with weights.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError):
        load_model(folder)


def test_checksums_of_the_installed_gleam_are_refused() -> None:
    before = sorted(GLEAM.iterdir())
    for name in (None, "gleam", str(GLEAM)):
        with pytest.raises(UsageError, match="gleam is part of the installed package, which is not changed; copy"):
            run_inspect(name, None, True, True)
    assert sorted(GLEAM.iterdir()) == before


def test_a_folder_that_can_not_be_written_is_refused_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(GLEAM, tmp_path / "gleam"))
    read: list[object] = []
    monkeypatch.setattr("earthshine.weights.write_manifest", lambda *args: read.append(args))
    monkeypatch.setattr("earthshine.cli.inspect.os.access", lambda path, mode: Path(path) != folder)
    with pytest.raises(UsageError, match="can't be written, and checksums are kept beside the weights"):
        run_inspect(str(folder), None, True, True)
    assert not read


def test_a_config_alone_has_no_weights_to_make_checksums_of(tmp_path: Path) -> None:
    shutil.copy(GLEAM / "config.json", tmp_path)
    with pytest.raises(UsageError, match="has no weights to make checksums of"):
        run_inspect(str(tmp_path), None, True, True)


@pytest.mark.parametrize("at", ["trunk", "expert"])
def test_checksums_that_files_no_longer_match_are_kept(tmp_path: Path, earthshine: Any, at: str) -> None:
    folder = Path(shutil.copytree(GLEAM, tmp_path / "gleam"))
    weights, manifest = folder / "model.safetensors", folder / "earthshine.manifest.json"
    assert earthshine("inspect", folder, "--hash")[0] == 0
    before = manifest.read_bytes()
    assert earthshine("inspect", folder, "--hash")[0] == 0, "the same files once more"
    assert manifest.read_bytes() == before
    checkpoint = Checkpoint.open(folder, load_spec(folder))
    ranges = dict(trunk_ranges(checkpoint))["norm"] if at == "trunk" else checkpoint.expert_extents(1, 3).ranges
    with weights.open("r+b") as file:
        file.seek(ranges[0].offset)
        byte = file.read(1)[0]
        file.seek(ranges[0].offset)
        file.write(bytes([byte ^ 1]))
    code, out, err = earthshine("inspect", folder, "--hash")
    assert (code, out) == (1, "")
    what = "The trunk tensor norm" if at == "trunk" else "Expert 3 of layer 1"
    assert f"{what} in 'model.safetensors' does not match the checksum" in err
    assert f"remove '{manifest}', then create it again" in err
    assert manifest.read_bytes() == before
    manifest.unlink()
    assert earthshine("inspect", folder, "--hash")[0] == 0
    assert manifest.read_bytes() != before
