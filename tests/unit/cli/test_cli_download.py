"""A model named by its Hugging Face id, against a hub of our own on loopback: fetched, resumed, and refused plainly."""

import json

from earthshine.units import format_bytes


def test_an_id_is_downloaded_and_answers(hub):
    done = hub.run("chat", "team/gleam", "-p", "list all files")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not [line for line in hub.served if "modeling.py" in line], "code is never fetched"


def test_inspect_of_an_id_fetches_no_weights(hub):
    done = hub.run("inspect", "team/gleam")
    assert done.returncode == 0, done.stderr
    assert "kimi_k25" in done.stdout
    assert not [line for line in hub.served if "safetensors" in line]


def test_interrupted_download_is_resumed(hub):
    hub.break_after = 15_000_000
    done = hub.run("chat", "team/gleam", "-p", "list all files")
    if done.returncode:
        assert "run the same command again" in done.stderr
        done = hub.run("chat", "team/gleam", "-p", "list all files")
    assert done.returncode == 0, done.stderr
    ranges = [line for line in hub.served if line.startswith("GET model.safetensors bytes=")]
    assert ranges
    assert 0 < int(ranges[-1].split("=")[1].split("-")[0]) <= 15_000_000


def test_an_id_that_does_not_exist_is_named(hub):
    done = hub.run("chat", "team/nothing", "-p", "hello")
    assert done.returncode == 1
    assert "team/nothing" in done.stderr
    assert "kept" not in done.stderr, "nothing has been downloaded"
    assert "Traceback" not in done.stderr


def test_what_is_downloaded_is_said_before_and_only_then(hub):
    """With its size, which is that of the files, and the disk's free space; the same figure in plan and inspect."""
    nbytes = (hub.folder / "model.safetensors").stat().st_size
    asked = [json.loads(hub.run(command, "team/gleam", "--json").stdout) for command in ("plan", "inspect")]
    for found in (asked[0]["answer"], asked[1]["summary"]):
        assert nbytes <= found["download_bytes"] <= found["model_bytes"] < nbytes + (4 << 20)
    first, again = (hub.run("chat", "team/gleam", "-p", "list all files") for _ in range(2))
    assert f"team/gleam, to download: {format_bytes(nbytes)}, which the disk holds: " in first.stderr
    assert "to download" not in again.stderr
    assert first.stdout == again.stdout
    later = json.loads(hub.run("plan", "team/gleam", "--json").stdout)["answer"]
    assert (later["download_bytes"], later["runs"]) == (0, True)
