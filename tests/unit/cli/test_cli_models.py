"""`pull`, `list` and `rm` against a hub on loopback: only what is needed, resumed, within the folder of downloads."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from earthshine.hub import GLEAM
from earthshine.units import format_bytes

from .hub_server import COMMIT, digest, make_model

SMALL_LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (12 << 20, 12 << 20))"
SMALL_DISK = "import earthshine.hub.download as module; module.free_bytes = lambda _: 5 << 20"


@pytest.fixture
def sharded(hub, tmp_path):
    """The hub with gleam in two shards, beside a third weight file that no index names."""
    folder = Path(shutil.copytree(GLEAM, tmp_path / "sharded"))
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    hub.folder = folder
    return hub


def _listed(hub):
    done = hub.run("list", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _blob(hub, name="model.safetensors"):
    return hub.model / "blobs" / digest(hub.folder / name)


def test_pull_fetches_what_the_index_names_and_nothing_else(sharded):
    done = sharded.run("pull", "team/gleam")
    assert done.returncode == 0, done.stderr
    assert "to download: " in done.stderr
    assert "which the disk holds: " in done.stderr
    assert "team/gleam is whole" in done.stdout
    assert {line.split()[1] for line in sharded.weights_served()} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    assert not [line for line in sharded.served if "modeling.py" in line]
    answer = sharded.run("chat", "team/gleam", "-p", "hello")
    assert answer.stdout.startswith("Hello!"), answer.stderr
    before = len(sharded.weights_served())
    again = sharded.run("pull", "team/gleam")
    assert (again.returncode, "to download" in again.stdout) == (0, False)
    assert len(sharded.weights_served()) == before


def test_every_request_of_a_pull_shows_the_token(hub):
    hub.environment["HF_TOKEN"] = "hf_mine"
    assert hub.run("pull", "team/gleam").returncode == 0
    assert hub.tokens == {"Bearer hf_mine"}


def test_list_says_which_weight_files_are_absent(sharded):
    sharded.run("pull", "team/gleam")
    (one,) = _listed(sharded)
    assert (one["name"], one["family"], one["whole"], one["weight_files"]) == ("team/gleam", "kimi_k25", True, 2)
    assert one["bytes"] >= sum(path.stat().st_size for path in sharded.folder.glob("model-*.safetensors"))
    (sharded.model / "snapshots" / COMMIT / "model-00002-of-00002.safetensors").unlink()
    (sharded.home / "models--other--vision" / "snapshots" / "aaaa").mkdir(parents=True)
    table = sharded.run("list").stdout
    assert "1 of 2 weight files" in table
    assert "not read by Earthshine" in next(line for line in table.splitlines() if line.startswith("other/vision"))
    assert [one["whole"] for one in _listed(sharded)] == [False, False]


def test_list_of_a_model_without_weights_says_so(hub):
    assert _listed(hub) == []
    hub.run("inspect", "team/gleam")
    assert "without weights" in hub.run("list").stdout


def test_a_killed_pull_goes_on_within_the_file(hub):
    hub.stall_after = 15_000_000
    part = _blob(hub).with_name(_blob(hub).name + ".incomplete")
    with hub.popen("pull", "team/gleam") as process:
        while process.poll() is None and not (part.exists() and part.stat().st_size):
            time.sleep(0.05)
        process.kill()
    arrived = part.stat().st_size
    assert 0 < arrived <= 15_000_000
    hub.stall_after = None
    done = hub.run("pull", "team/gleam")
    assert done.returncode == 0, done.stderr
    assert hub.weights_served()[-1] == f"GET model.safetensors bytes={arrived}-"
    assert _blob(hub).read_bytes() == (GLEAM / "model.safetensors").read_bytes()
    assert not part.exists()


def test_a_part_that_is_damaged_is_found_and_fetched_again(hub):
    blob = _blob(hub)
    blob.parent.mkdir(parents=True)
    blob.with_name(blob.name + ".incomplete").write_bytes(bytes(1_000_000))
    done = hub.run("pull", "team/gleam")
    assert done.returncode == 1
    assert "model.safetensors of team/gleam arrived damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert not blob.exists()
    assert hub.run("pull", "team/gleam").returncode == 0
    assert blob.read_bytes() == (GLEAM / "model.safetensors").read_bytes()


def test_a_disk_that_is_too_small_is_refused_before_a_weight_is_fetched(hub):
    for command in (["pull", "team/gleam"], ["chat", "team/gleam", "-p", "hello"]):
        done = hub.run(*command, before=SMALL_DISK)
        assert done.returncode == 1
        assert "team/gleam needs 19.50 MiB, which the disk can't hold: " in done.stderr
        assert "has 5.00 MiB free. Free 14.50 MiB more, or set EARTHSHINE_HOME" in done.stderr
    assert hub.weights_served() == []


def test_a_disk_that_is_full_in_the_middle_keeps_what_it_has(hub):
    """The kernel refuses a write, here by a limit on a file's size."""
    done = hub.run("pull", "team/gleam", before=SMALL_LIMIT)
    assert done.returncode == 1
    assert "takes no more" in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.run("pull", "team/gleam").returncode == 0
    assert hub.weights_served()[-1] == f"GET model.safetensors bytes={12 << 20}-"
    assert _blob(hub).read_bytes() == (GLEAM / "model.safetensors").read_bytes()


def test_pull_refuses_a_family_that_is_not_read_before_its_weights(hub, tmp_path):
    hub.folder = Path(shutil.copytree(GLEAM, tmp_path / "other"))
    config = json.loads((GLEAM / "config.json").read_text()) | {"model_type": "qwen3_next"}
    (hub.folder / "config.json").write_text(json.dumps(config))
    done = hub.run("pull", "team/gleam")
    assert done.returncode == 1
    assert "qwen3_next is not implemented" in done.stderr
    assert hub.weights_served() == []


def test_a_repository_without_safetensors_is_refused_by_name(hub, tmp_path):
    hub.folder = Path(shutil.copytree(GLEAM, tmp_path / "other"))
    (hub.folder / "model.safetensors").rename(hub.folder / "model.gguf")
    done = hub.run("pull", "team/gleam")
    assert done.returncode == 1
    assert "team/gleam has no safetensors weights" in done.stderr


def test_rm_needs_yes_without_a_terminal_and_says_what_it_frees(hub):
    hub.run("pull", "team/gleam")
    done = hub.run("rm", "team/gleam")
    assert done.returncode == 2
    assert "frees 19.5" in done.stderr
    assert "--yes" in done.stderr
    assert _blob(hub).exists()
    (hub.home / ".locks" / hub.model.name).mkdir(parents=True)  # by another program
    done = hub.run("rm", "team/gleam", "--yes")
    assert done.returncode == 0, done.stderr
    assert "frees 19.5" in done.stdout
    assert not hub.model.exists()
    assert not list((hub.home / ".locks").iterdir())
    assert hub.run("rm", "team/gleam", "--yes").returncode == 1


@pytest.mark.parametrize(("typed", "code", "kept"), [("", 1, True), ("maybe\n", 1, True), ("y\n", 0, False)])
def test_rm_asks_on_a_terminal_and_only_yes_removes(hub, typed, code, kept):
    hub.run("pull", "team/gleam")
    on_a_terminal = "import sys; sys.stdin.isatty = lambda: True"
    done = hub.run("rm", "team/gleam", before=on_a_terminal, input=typed)
    assert (done.returncode, _blob(hub).exists()) == (code, kept), done.stderr
    assert ("Nothing was removed." in done.stdout) is kept


def test_rm_names_the_folder_that_keeps_it_from_looking_at_the_whole_cache(hub):
    hub.run("pull", "team/gleam")
    denied = (
        "import huggingface_hub\n"
        "def denied(_): raise PermissionError(13, 'Permission denied', 'models--b--other/snapshots')\n"
        "huggingface_hub.scan_cache_dir = denied"
    )
    done = hub.run("rm", "team/gleam", "--yes", before=denied)
    assert done.returncode == 1
    assert "team/gleam is not removed" in done.stderr
    assert "models--b--other/snapshots' can't be read (Permission denied)" in done.stderr


def test_rm_refuses_while_a_process_has_a_file_open(hub):
    hub.run("pull", "team/gleam")
    code = "import sys; file = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    link = hub.model / "snapshots" / COMMIT / "model.safetensors"
    command = [sys.executable, "-c", code, str(link)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        reader.stdout.readline()
        done = hub.run("rm", "team/gleam", "--yes")
        assert done.returncode == 1
        assert f"(process {reader.pid})" in done.stderr
        assert link.exists()
    assert hub.run("rm", "team/gleam", "--yes").returncode == 0


def test_rm_leaves_what_lies_outside_and_a_copy_with_the_same_commit(hub, tmp_path):
    hub.run("pull", "team/gleam")
    shutil.copytree(hub.model, hub.home / "models--team--copy", symlinks=True)
    (hub.model / "blobs").rename(tmp_path / "disk")
    (hub.model / "blobs").symlink_to(tmp_path / "disk")
    done = hub.run("rm", "team/gleam", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"without {tmp_path / 'disk'}" in done.stdout
    assert (tmp_path / "disk" / _blob(hub).name).exists()
    assert not os.path.lexists(hub.model)
    (one,) = _listed(hub)
    assert (one["name"], one["whole"]) == ("team/copy", True)


def test_what_a_link_leads_to_outside_counts_neither_as_the_models_nor_as_freed(home, tmp_path, earthshine):
    (tmp_path / "mine.safetensors").write_bytes(bytes(1 << 20))
    here = make_model(home, "team/a", model=tmp_path / "mine.safetensors")
    config_bytes = (GLEAM / "config.json").stat().st_size
    (one,) = json.loads(earthshine("list", "--json")[1])
    assert (one["whole"], one["bytes"]) == (True, config_bytes)
    assert f"frees {format_bytes(config_bytes)}" in earthshine("rm", "team/a", "--yes")[1]
    assert (tmp_path / "mine.safetensors").exists()
    assert not here.exists()


def test_rm_does_not_call_freed_what_another_model_shares(home, earthshine):
    """The library keeps files of several models once, in the folder of downloads, and links their blobs to them."""
    digest = "c" * 64
    store = home / "shared" / digest
    store.parent.mkdir(parents=True)
    store.write_bytes(bytes(1 << 20))
    for name in ("team/a", "team/b"):
        here = make_model(home, name, model=f"../../blobs/{digest}")
        (here.parents[1] / "blobs").mkdir()
        (here.parents[1] / "blobs" / digest).symlink_to(store)
    first, second = json.loads(earthshine("list", "--json")[1])
    assert first["bytes"] == second["bytes"] > 1 << 20
    question = earthshine("rm", "team/a")[2]
    assert f"frees {format_bytes(first['bytes'] - (1 << 20))}." in question
    shutil.rmtree(home / "models--team--b")
    assert f"frees {format_bytes(first['bytes'])}." in earthshine("rm", "team/a")[2]


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_list_fits_the_terminal_and_stays_whole_in_a_pipe(home, earthshine, monkeypatch, columns):
    names = ["team/a-model-of-a-long-name", "team/b"]
    for name in names:
        make_model(home, name)
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = earthshine("list")[1].splitlines()
    assert [row.split()[0] for row in rows] == ["model", "gleam", *names]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", earthshine("list")[1])
    assert all(name in shown.replace("\n", "") for name in names)
    assert all(len(line) <= columns for line in shown.splitlines())


def test_names_and_folders_are_printed_without_control_sequences(earthshine, tmp_path, monkeypatch):
    odd = tmp_path / "a\x1b[2Jb"
    odd.mkdir()
    for words in (("pull", odd), ("pull", f"{odd}/absent"), ("rm", odd), ("chat", "--plan", odd)):
        _, out, err = earthshine(*words)
        assert out + err
        assert "\x1b" not in out + err
    monkeypatch.setenv("EARTHSHINE_HOME", str(odd))
    make_model(odd, "team/a")
    for words in (("list",), ("rm", "team/a"), ("rm", "team/a", "--yes")):
        _, out, err = earthshine(*words)
        assert "\\x1b" in out + err
        assert "\x1b" not in out + err


@pytest.mark.parametrize("name", ["../secret", "/etc", "a/../b", "team/--", "team/gleam/..", ".", "nothing", ""])
def test_rm_takes_nothing_but_ids(earthshine, tmp_path, monkeypatch, name):
    monkeypatch.setenv("EARTHSHINE_HOME", str(tmp_path / "models"))
    (tmp_path / "secret").mkdir()
    code, _, err = earthshine("rm", name, "--yes")
    assert code == 1
    assert "is not in the folder of downloads" in err
    assert (tmp_path / "secret").exists()


def test_gleam_can_neither_be_removed_nor_needs_a_pull(earthshine):
    assert earthshine("rm", "gleam", "--yes")[0] == 1
    assert earthshine("pull", "gleam")[:2] == (0, "gleam is on this machine already.\n")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["pu"], ["pull"]),
        (["chat", "te"], ["team/gleam"]),
        (["chat", "gl"], ["gleam"]),
        (["inspect", "./te"], []),  # the shell's own completion of paths follows
        (["chat", "--no-th"], ["--no-thinking"]),
    ],
)
def test_the_shell_completes_commands_options_and_models(earthshine, tmp_path, monkeypatch, typed, expected):
    (tmp_path / "models--team--gleam" / "snapshots").mkdir(parents=True)
    monkeypatch.setenv("EARTHSHINE_HOME", str(tmp_path))
    monkeypatch.setenv("_EARTHSHINE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(["earthshine", *typed]))
    monkeypatch.setenv("COMP_CWORD", str(len(typed)))
    code, out, err = earthshine()
    assert (code, err) == (0, "")
    assert out.split() == expected
