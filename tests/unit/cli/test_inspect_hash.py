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


def test_a_config_alone_has_no_weights_to_make_checksums_of(tmp_path: Path) -> None:
    shutil.copy(GLEAM / "config.json", tmp_path)
    with pytest.raises(UsageError, match="has no weights to make checksums of"):
        run_inspect(str(tmp_path), None, True, True)
