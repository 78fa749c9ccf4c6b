"""`earthshine bench machine` as a person runs it, over matrices and files a thousandth of the true ones."""

import datetime
import functools
import json
import os
from pathlib import Path

import pytest

from earthshine.cli import bench
from earthshine.kernels import measure
from earthshine.machine import disk, network, own_machine, processors, read_machine
from earthshine.machine.disk import Rates

KIB = 1 << 10
ROWS = {"disk, 4.00 KiB, depth 1", "disk, 64.00 KiB, depth 4", "memory", "int4, 1 row", "bf16, 16 rows",
        "fp8, 512 rows", "int8, 64 rows", "attention, 64 heads, 1 token", "attention, 64 heads, 256 tokens",
        "overhead per layer", "network, loopback", "network, round trip"}  # fmt: skip


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that profiles are saved in by default; what is measured is small."""
    monkeypatch.setattr(bench, "REPEATS", 2)
    monkeypatch.setattr(bench, "_MEMORY_BYTES", 2 << 20)
    monkeypatch.setattr(bench, "_LAYER_TOKENS", 12)
    monkeypatch.setattr(bench, "last_cache_bytes", lambda: 0)
    monkeypatch.setattr(measure, "HIDDEN", 256)
    monkeypatch.setattr(measure, "INTERMEDIATE", 128)
    monkeypatch.setattr(measure, "CONTEXT_TOKENS", 512)
    monkeypatch.setattr(measure, "_SAMPLE_SECONDS", 0.0005)
    monkeypatch.setattr(disk, "BLOCKS", (4 * KIB, 64 * KIB))
    monkeypatch.setattr(disk, "LEAST_BYTES", 256 * KIB)
    monkeypatch.setattr(bench, "measure_folder", functools.partial(disk.measure_folder, most_bytes=512 * KIB))
    monkeypatch.setattr(disk, "_TARGET_BYTES", 256 * KIB)
    monkeypatch.setattr(disk, "_refuse_memory", lambda *_: None)
    monkeypatch.setattr(network, "_ROUND_BYTES", 2 << 20)
    monkeypatch.setattr(network, "_QUESTIONS", 5)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "earthshine"


def test_a_profile_is_shown_and_saved_where_it_is_looked_for(earthshine, state: Path) -> None:
    code, out, err = earthshine("bench", "machine")
    assert (code, err) == (0, "")
    assert os.listdir(state) == ["machine.json"]
    found = own_machine(state / "machine.json")
    assert found.measured == datetime.date.today().isoformat()
    assert found.processors == processors()
    assert [rows for rows, _ in found.products["int4"]] == [1, 4, 16, 64, 512]
    assert [rows for rows, _ in found.attention] == [16, 64, 16384]
    assert found.network is not None
    assert found.layer_seconds > 0
    lines = out.splitlines()
    assert lines[0] == found.name
    assert lines[1] == found.source
    assert "past the page cache" in found.source or "asked to forget" in found.source
    assert lines[-1] == f"saved as {state / 'machine.json'}"
    shown = {line[:31].rstrip() for line in lines}
    assert shown >= ROWS, ROWS - shown


def test_one_document_with_every_spread(earthshine, state: Path, tmp_path: Path) -> None:
    place = tmp_path / "else where" / "mine.json"
    code, out, err = earthshine("bench", "machine", "--json", "--save", place, "--threads", 1)
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["saved"] == str(place)
    assert not state.exists()
    machine = read_machine(place)
    assert document["machine"] == json.loads(place.read_text())
    assert machine.processors == 1
    assert "with 1 threads" in machine.source
    spread = {line["what"]: line for line in document["spread"]}
    assert set(spread) >= ROWS
    assert all(0 < line["least"] <= line["median"] <= line["most"] for line in spread.values())
    assert machine.memory_read == pytest.approx(spread["memory"]["median"], rel=1e-3)
    assert machine.product_flops("fp8", 512) == pytest.approx(spread["fp8, 512 rows"]["median"], rel=1e-3)


def test_the_disk_is_measured_by_what_is_named(earthshine, state: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_bytes(os.urandom(300 * KIB))
    (tmp_path / "folder").mkdir()
    asked = []
    for name in ("measure_file", "measure_folder"):
        real = getattr(bench, name)
        monkeypatch.setattr(bench, name, lambda path, real=real, name=name: (asked.append((name, path)), real(path))[1])
    assert earthshine("bench", "machine", "--file", tmp_path / "file")[0] == 0
    assert "Disk: with an existing file" in read_machine(state / "machine.json").source
    assert earthshine("bench", "machine", "--folder", tmp_path / "folder")[0] == 0
    assert "Disk: with a file written for it" in read_machine(state / "machine.json").source
    assert asked == [("measure_file", tmp_path / "file"), ("measure_folder", tmp_path / "folder")]


def test_parts_that_can_not_be_measured_are_named(earthshine, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = Rates({(4096, 1): (1e9, 2e9), (4096, 2): (1e9, 1.1e9)}, direct=False)
    busy = iter([100.0, 1e6])
    monkeypatch.setattr(bench, "busy_seconds", lambda: next(busy))
    monkeypatch.setattr(bench, "measure_folder", lambda _: rates)
    monkeypatch.setattr(bench, "measure_loopback", lambda: None)
    code, out, _ = earthshine("bench", "machine")
    assert code == 0
    found = read_machine(state / "machine.json")
    assert found.network is None
    assert "Network: could not be measured." in found.source
    assert "through the page cache after dropping its pages" in found.source
    assert "network, loopback" not in out
    assert "Other programs used" in found.source
    assert "Measure again when no other programs run." in out


def test_idle_machine_is_not_reported(earthshine, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "busy_seconds", lambda: 0.0)
    code, out, _ = earthshine("bench", "machine")
    assert code == 0
    assert "Other programs" not in read_machine(state / "machine.json").source
    assert "nothing else runs" not in out


class TestRefusals:
    @pytest.fixture(autouse=True)
    def _nothing_is_measured(self, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("measure_file", "measure_folder"):
            monkeypatch.setattr(bench, name, lambda *_: pytest.fail("it was measured"))

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["--threads", "0"], "--threads must be between 1 and 512, not 0"),
            (["--threads", "-1"], "not -1"),
            (["--threads", "100000"], "not 100000"),
            (["--save", "{tmp}"], "is a folder; name a file, such as"),
            (["--save", "{tmp}/file/machine.json"], "can't be created: "),
            (["--folder", "{tmp}/absent"], "is not a folder; name one on the disk"),
            (["--folder", "{tmp}/file"], "is not a folder"),
            (["--folder", "{tmp}", "--file", "{tmp}/file"], "--file and --folder both choose"),
        ],
    )
    def test_wrong_use_is_one_sentence(self, earthshine, tmp_path: Path, arguments: list[str], text: str) -> None:
        (tmp_path / "file").touch()
        code, out, err = earthshine("bench", "machine", *(word.format(tmp=tmp_path) for word in arguments))
        assert (code, out) == (2, "")
        assert err.startswith("earthshine: ")
        assert text in err
        assert len(err.splitlines()) == 1

    def test_a_folder_that_can_t_be_written(self, earthshine, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(os, "access", lambda *_: False)
        code, _, err = earthshine("bench", "machine", "--save", tmp_path / "machine.json")
        assert code == 2
        assert "can't be written; name a file in another folder with --save" in err

    def test_too_little_memory(self, earthshine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench, "memory_available", lambda: 1000 << 20)
        code, _, err = earthshine("bench", "machine")
        assert code == 2
        assert "1000.00 MiB of memory are free; measuring needs 1.00 GiB" in err

    def test_no_home(self, earthshine, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(_: Path) -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_STATE_HOME")
        monkeypatch.setattr(Path, "expanduser", unknown)
        code, _, err = earthshine("bench", "machine")
        assert code == 2
        assert "The home folder is unknown; set XDG_STATE_HOME" in err


def test_a_small_file_and_holes_are_refused(earthshine, state: Path, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x")
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(1 << 30)
    for name, text in (
        ("small", "has 1 B; 256.00 KiB or more are needed"),
        ("holes", "mostly holes"),
        ("no", "opened"),
    ):
        code, out, err = earthshine("bench", "machine", "--file", tmp_path / name)
        assert (code, out) == (2, "")
        assert text in err
    assert list(state.iterdir()) == []


def test_an_interrupt_leaves_nothing(earthshine, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(disk, "_round", interrupted)
    code, out, _ = earthshine("bench", "machine")
    assert (code, out) == (130, "")
    assert list(state.iterdir()) == []


def test_help_names_the_options(earthshine) -> None:
    code, out, _ = earthshine("bench", "machine", "--help")
    assert code == 0
    for option in ("--save", "--folder", "--file", "--json", "--threads"):
        assert option in out
    assert "machine" in earthshine("bench", "--help")[1]
