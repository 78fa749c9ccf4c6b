"""`list` and `rm` with models that are damaged, lead elsewhere, or can't be read."""

import json
import os
import shutil

import pytest

from earthshine.hub import GLEAM

from .hub_server import COMMIT, make_model

UNPRIVILEGED = """
import ctypes
libc, version = ctypes.CDLL(None), 0x20080522
libc.capset((ctypes.c_uint32 * 2)(version, 0), (ctypes.c_uint32 * 6)())
"""  # without its capabilities, root too is refused what the mode of a file forbids
LONG = json.dumps({"weight_map": {"a": "a" * 300 + ".safetensors"}})


@pytest.mark.parametrize("text", ["{", '{"weight_map": {"a": "../x.safetensors"}}', '{"weight_map": {}}', LONG])
def test_a_damaged_index_is_listed_as_damage(home, earthshine, text):
    here = make_model(home, "team/a")
    (here / "model.safetensors.index.json").write_text(text)
    (one,) = json.loads(earthshine("list", "--json")[1])
    assert not one["whole"]
    assert "model.safetensors.index.json" in one["damage"]
    _, out, _ = earthshine("list")
    assert "damaged: model.safetensors.index.json" in out
    assert "without weights" not in out
    assert earthshine("rm", "team/a", "--yes")[::2] == (0, "")
    assert not here.exists()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda weights: weights.mkdir(), "is not a regular file"),
        (os.mkfifo, "is not a regular file"),
        (lambda weights: weights.symlink_to("/etc/passwd"), "a link that leaves the model's folder"),
        (lambda weights: weights.symlink_to(weights.name), "Too many levels of symbolic links"),
    ],
)
def test_what_is_no_weight_file_is_listed_as_damage(home, earthshine, make, says):
    make(make_model(home, "team/a") / "model.safetensors")
    make_model(home, "team/b", model=GLEAM / "model.safetensors")
    one, other = json.loads(earthshine("list", "--json")[1])
    assert (one["whole"], other["whole"]) == (False, True)
    assert says in one["damage"]
    assert earthshine("rm", "team/a", "--yes")[::2] == (0, "")


def test_list_does_not_walk_what_a_link_out_of_the_downloads_leads_to(home, tmp_path, earthshine):
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    for path in (tmp_path / "disk" / "near", tmp_path / "disk" / "deep" / "far"):
        path.write_bytes(bytes(1000))
    home.mkdir()
    (home / "models--team--a").symlink_to(tmp_path / "disk")
    (one,) = json.loads(earthshine("list", "--json")[1])
    assert (one["bytes"], one["whole"]) == (1000, False)


def test_a_commit_named_by_a_pipe_keeps_no_one_waiting(home, earthshine):
    here = make_model(home, "team/a")
    shutil.copytree(here, here.with_name("b" * 40))
    (here.parents[1] / "refs").mkdir()
    os.mkfifo(here.parents[1] / "refs" / "main")
    assert earthshine("list")[0] == 0


@pytest.mark.parametrize(
    "closed", [".", "snapshots", f"snapshots/{COMMIT}", f"snapshots/{COMMIT}/config.json", "../.."]
)
def test_what_this_user_may_not_read_is_listed_so(hub, tmp_path, closed):
    make_model(hub.home, "team/b")
    outside = make_model(tmp_path / "outside" / "models", "team/c").parents[1]
    (hub.home / "models--team--a").symlink_to(outside)
    path = outside / closed
    path.chmod(0)
    try:
        done = hub.run("list", before=UNPRIVILEGED)
    finally:
        path.chmod(0o700)
    assert (done.returncode, done.stderr.count("\n")) == (0, 2), done.stderr
    states = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "can't be read: Permission denied" in states["team/a"]
    assert "without weights" in states["team/b"]


def test_a_folder_of_downloads_that_this_user_may_not_read_is_named(hub):
    hub.home.mkdir()
    hub.home.chmod(0)
    try:
        done = hub.run("list", before=UNPRIVILEGED)
    finally:
        hub.home.chmod(0o700)
    assert done.returncode == 1
    assert "models', can't be read: Permission denied" in done.stderr


def test_a_link_that_leads_nowhere_is_listed_and_removed(home, tmp_path, earthshine):
    """The disk that holds a model may not be mounted."""
    home.mkdir()
    (home / "models--team--a").symlink_to(tmp_path / "disk" / "a")
    (make_model(home, "team/b").parents[1] / "blobs").symlink_to(tmp_path / "disk" / "b")
    _, out, _ = earthshine("list")
    for name in ("a", "b"):
        assert f"link to {tmp_path / 'disk' / name}, which is not there" in out
    code, out, err = earthshine("rm", "team/a", "--yes")
    assert (code, err) == (0, "")
    assert f"without {tmp_path / 'disk' / 'a'}" in out
    assert not os.path.lexists(home / "models--team--a")
