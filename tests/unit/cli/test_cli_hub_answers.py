"""Answers of a hub that lies, fails or changes in between: nothing is written outside, and nothing is called whole."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from earthshine.errors import SourceError
from earthshine.hub import GLEAM, find_downloaded, size_on_disk
from earthshine.hub.download import download, pending_download
from earthshine.hub.fetch import RemoteFile, fetch_files
from earthshine.spec import load_spec

from .hub_server import COMMIT, digest

OTHER_COMMIT = "f" * 40
DIGEST = "a" * 64


@pytest.fixture
def near(hub, monkeypatch):
    """The hub, for downloads in this process."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("EARTHSHINE_HOME", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, hub.environment[name])
    return hub


def _lfs(digest):
    return {"lfs": {"oid": digest, "size": 9, "pointerSize": 130}}


def test_a_digest_that_is_a_path_writes_nothing(hub, tmp_path):
    hub.listed = {"model.safetensors": _lfs("../../../victim")}
    done = hub.run("pull", "team/gleam")
    assert done.returncode == 1
    assert "'../../../victim' is not the digest of 'model.safetensors'" in done.stderr
    assert not list(tmp_path.rglob("victim*"))


@pytest.mark.parametrize(
    ("commit", "listed", "reason"),
    [
        ("../../victim", {}, "is not a commit"),
        (COMMIT, {"config.json": {"oid": "../../victim"}}, "is not the digest of 'config.json'"),
        (COMMIT, {"tiktoken.model": _lfs("A" * 64)}, "is not the digest of 'tiktoken.model'"),
        (COMMIT, {"model.safetensors": _lfs(COMMIT)}, "is not the digest of 'model.safetensors'"),
        (COMMIT, {"model.safetensors": {"path": "../../victim.safetensors"}}, "is not a file's name"),
        (COMMIT, {"model.safetensors": {"path": "\x1b[2J.safetensors"}}, "is not a file's name"),
        (COMMIT, {"model.safetensors": {"size": -1}}, "-1 is not the size of 'model.safetensors'"),
    ],
)
def test_what_is_no_commit_digest_name_or_size_is_refused(near, commit, listed, reason):
    near.commits, near.listed = [commit], listed
    for ask in (partial(download, weights=True), pending_download):
        with pytest.raises(SourceError, match=r"The hub's answer for team/gleam is damaged: ") as refusal:
            ask("team/gleam")
        assert reason in str(refusal.value)
    assert near.served == []


def test_a_header_that_is_a_path_writes_nothing(near, tmp_path):
    near.headers = {"ETag": '"../../../victim"', "X-Linked-Etag": '"../../../victim"', "X-Repo-Commit": "../../victim"}
    folder = download("team/gleam", weights=True)
    assert not list(tmp_path.rglob("victim*"))
    assert folder.name == COMMIT
    for path in folder.iterdir():
        assert os.readlink(path) == f"../../blobs/{digest(GLEAM / path.name)}"
        assert path.read_bytes() == (GLEAM / path.name).read_bytes()
    assert find_downloaded("team/gleam").whole


def test_a_small_file_that_is_not_the_listed_one_is_refused(near):
    for listed, reason in (({"oid": DIGEST[:40]}, "arrived damaged"), ({"size": 5}, "sends more of config.json than")):
        near.listed = {"config.json": listed}
        with pytest.raises(SourceError, match=reason):
            download("team/gleam", weights=False)
        assert not list((near.model / "snapshots").rglob("config.json"))
    near.listed = {}
    assert (download("team/gleam", weights=False) / "config.json").exists()


def test_a_disk_without_links_holds_the_files_themselves(near, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    folder = download("team/gleam", weights=True)
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert find_downloaded("team/gleam").whole
    before = len(near.served)
    assert download("team/gleam", weights=True) == folder
    assert len(near.served) == before


def test_a_link_that_leads_nowhere_is_made_anew(near):
    folder = download("team/gleam", weights=True)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/nowhere/at/all")
    assert (download("team/gleam", weights=False) / "config.json").read_bytes() == (GLEAM / "config.json").read_bytes()


def test_a_link_in_place_of_a_part_is_not_followed(near, tmp_path):
    (tmp_path / "victim").write_bytes(b"kept")
    (tmp_path / f"{DIGEST}.incomplete").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        fetch_files("team/gleam", COMMIT, tmp_path, [RemoteFile("model.safetensors", 2, DIGEST, True)])
    assert (tmp_path / "victim").read_bytes() == b"kept"


def test_a_file_that_another_process_has_brought_leaves_no_part(near, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", before := 12345)
    (tmp_path / DIGEST).write_bytes(b"here")
    fetch_files("team/gleam", COMMIT, tmp_path, [RemoteFile("model.safetensors", 4, DIGEST, True)])
    assert os.listdir(tmp_path) == [DIGEST]
    from huggingface_hub import constants

    assert before == constants.DOWNLOAD_CHUNK_SIZE


def test_a_hub_that_fails_once_starts_no_download_without_its_checks(near):
    near.failures = 1
    with pytest.raises(SourceError, match="500"):
        download("team/gleam", weights=True)
    assert near.served == []
    folder = download("team/gleam", weights=True)
    near.failures = 1
    assert download("team/gleam", weights=True) == folder


def test_pull_without_the_hub_needs_all_weights_here(hub):
    """Also of a snapshot that another program made, without the library's copy of the listing."""
    shutil.copytree(GLEAM, hub.model / "snapshots" / COMMIT, ignore=shutil.ignore_patterns("*.safetensors"))
    (hub.model / "refs").mkdir()
    (hub.model / "refs" / "main").write_text(COMMIT)
    hub.environment["HF_HUB_OFFLINE"] = "1"
    done = hub.run("pull", "team/gleam")
    assert (done.returncode, done.stdout) == (1, "")
    assert "team/gleam" in done.stderr
    del hub.environment["HF_HUB_OFFLINE"]
    assert hub.run("pull", "team/gleam").returncode == 0
    hub.environment["HF_HUB_OFFLINE"] = "1"
    assert "is whole" in hub.run("pull", "team/gleam").stdout


def test_pull_calls_nothing_whole_that_is_not(earthshine, tmp_path, monkeypatch):
    here = tmp_path / "models--team--gleam" / "snapshots" / COMMIT
    here.mkdir(parents=True)
    shutil.copy(GLEAM / "config.json", here)
    monkeypatch.setenv("EARTHSHINE_HOME", str(tmp_path))
    monkeypatch.setattr("earthshine.hub.find_readable", lambda *_: None)
    code, out, err = earthshine("pull", "team/gleam")
    assert (code, out) == (1, "")
    assert "is not whole: without weights" in err


def test_a_repository_that_changes_in_between_is_fetched_as_it_was_listed(near):
    near.commits = [COMMIT, OTHER_COMMIT]
    folder = download("team/gleam", weights=True)
    assert folder.name == COMMIT
    assert os.listdir(folder.parent) == [COMMIT]
    assert (folder / "model.safetensors").exists()
    assert (near.model / "refs" / "main").read_text() == COMMIT
    assert download("team/gleam", weights=True).name == OTHER_COMMIT
    assert (near.model / "refs" / "main").read_text() == OTHER_COMMIT


def test_neither_code_nor_pickles_named_like_a_tokenizer_are_fetched(near, tmp_path):
    near.folder = Path(shutil.copytree(GLEAM, tmp_path / "other"))
    for name in ("tokenizer_x.py", "tokenizer.pkl"):
        (near.folder / name).write_text("1")
    folder = download("team/gleam", weights=False)
    assert not [name for name in os.listdir(folder) if name.endswith((".py", ".pkl"))]


def test_only_parts_that_a_download_goes_on_from_are_counted(near):
    """huggingface_hub's own parts have a random number in their names; a part beside the whole file is of no use."""
    blobs = near.model / "blobs"
    blobs.mkdir(parents=True)
    spec = load_spec(GLEAM)
    config = GLEAM / "config.json"
    (blobs / f"{DIGEST}.incomplete").write_bytes(bytes(8192))
    (blobs / f"{'b' * 64}.1234abcd.incomplete").write_bytes(bytes(4096))
    (blobs / f"{'c' * 64}.incomplete").write_bytes(bytes(2048))
    (blobs / ("c" * 64)).write_bytes(bytes(2048))
    (blobs / f"{'d' * 64}.incomplete").symlink_to(GLEAM / "model.safetensors")
    near.failures = 1
    assert size_on_disk("team/gleam", config, spec).present_bytes == 8192
    file = RemoteFile("model.safetensors", 8192, DIGEST, True)
    assert file.arrived(blobs) == 8192
    assert RemoteFile("model.safetensors", 8000, DIGEST, True).arrived(blobs) == 0, "it is emptied"
