"""What a download takes, and whether the disk holds it: of files that are there, are partly there, and are not."""

from dataclasses import replace
from pathlib import Path

from earthshine.hub import GLEAM
from earthshine.plan import download
from earthshine.plan.download import Download, download_of, weights_bytes
from earthshine.spec import load_spec

from .made_up import GIB, k2_6, made, written


def test_k2_6_takes_what_its_tensors_do(shared_data: Path) -> None:
    """Experts of 23,040 times 24,772,632 bytes, and a trunk of 23,444,463,616 in bf16."""
    assert weights_bytes(k2_6(shared_data)) == 23_040 * 24_772_632 + 23_444_463_616


def test_a_trunk_in_fp8_is_counted_as_published(tmp_path: Path) -> None:
    spec = made("fp8")
    checkpoint = written(tmp_path, "fp8")
    stored = sum(share.nbytes for share in checkpoint.coverage().shares)
    assert abs(weights_bytes(spec) - stored) < 0.001 * stored


def test_weights_that_are_here_are_not_downloaded(tmp_path: Path) -> None:
    found = download_of(load_spec(GLEAM), GLEAM, tmp_path)
    assert found.missing_bytes == found.lacking_bytes == 0
    assert found.sentence().startswith("none: the weights are here")


def test_a_config_alone_is_downloaded_whole(tmp_path: Path) -> None:
    found = download_of(load_spec(GLEAM), GLEAM / "config.json", tmp_path / "absent")
    assert found.missing_bytes == found.total_bytes == weights_bytes(load_spec(GLEAM))
    assert found.free_bytes is not None
    assert found.lacking_bytes == 0
    assert "which the disk holds" in found.sentence()


def test_a_download_that_stopped_counts_what_has_arrived(tmp_path: Path) -> None:
    (tmp_path / "model-00001.safetensors").write_bytes(b"x" * 2_000_000)
    spec = load_spec(GLEAM)
    found = download_of(spec, tmp_path, tmp_path, arrived_bytes=8192)
    assert found.present_bytes == 2_000_000 + 8192
    assert found.missing_bytes == weights_bytes(spec) - found.present_bytes
    assert "more, of 19" in found.sentence()
    assert download_of(spec, tmp_path, tmp_path, 5_000_000).total_bytes == 5_000_000


def test_a_disk_that_is_too_small_lacks_the_rest(tmp_path: Path) -> None:
    found = Download(10 * GIB, 2 * GIB, tmp_path, 5 * GIB)
    assert (found.missing_bytes, found.lacking_bytes) == (8 * GIB, 3 * GIB)
    size = "8.00 GiB more (8.59 GB on a drive's label), of 10.00 GiB"
    assert found.sentence().startswith(f"{size}, which the disk can't hold: ")
    assert found.sentence().endswith(" has 5.00 GiB free (5.37 GB)")
    unknown = replace(found, free_bytes=None)
    assert (unknown.lacking_bytes, unknown.sentence()) == (0, size)
    assert replace(unknown, present_bytes=0).sentence() == "10.00 GiB (10.7 GB on a drive's label)"


def test_files_that_are_gone_count_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "absent")
    assert download.present_bytes(tmp_path) == download.present_bytes(tmp_path / "config.json") == 0
