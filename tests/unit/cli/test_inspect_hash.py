"""`inspect --hash`: checksums of the shipped model, against which its experts are held from then on."""

import json
import shutil
from pathlib import Path

import pytest

from earthshine.cli.inspect import run_inspect
from earthshine.engine.load import load_model
from earthshine.errors import CheckpointError, UsageError

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
