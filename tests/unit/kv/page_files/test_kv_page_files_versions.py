"""Pages of older versions are deleted with their folders; files that a cache does not make are kept."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from earthshine.kv.header import VERSION
from earthshine.kv.page_folder import PageFolder

from .conftest import PAGES, holds, path_of, put

DIGEST = "0123456789abcdef" * 2
OLDER = (DIGEST, f"v{VERSION - 1}-{DIGEST}")
PAGE = f"{'0a' * 32}.kv"


def made(parent: Path, name: str) -> Path:
    """A folder with a page in it, as a cache leaves it."""
    folder = PageFolder(parent / name)
    folder.write(bytes.fromhex("0a" * 32), lambda file: file.write(b"page"), 0)
    folder.close()
    return parent / name


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", OLDER)
@pytest.mark.parametrize("unfinished", [False, True])
def test_a_folder_of_an_older_version_is_deleted(make_files, tmp_path, name, unfinished):
    old = made(tmp_path / "cache", name)
    if unfinished:
        (old / "unfinished").write_bytes(b"half a page")
    files = make_files()
    put(files, PAGES[0])
    assert not old.exists()
    assert path_of(tmp_path / "cache", PAGES[0]).parents[1].name.startswith(f"v{VERSION}-")
    assert holds(files, PAGES[0])


@pytest.mark.parametrize("name", [f"v{VERSION}-{DIGEST}", f"v{VERSION + 1}-{DIGEST}"])
def test_folders_of_this_version_and_of_newer_ones_stay(make_files, tmp_path, name):
    kept = made(tmp_path / "cache", name)
    before = everything(kept)
    make_files()
    assert everything(kept) == before


@pytest.mark.parametrize("name", ["notes", DIGEST[1:], f"{DIGEST}0", DIGEST.upper(), f"v-{DIGEST}", f"v1-{DIGEST}.old"])
def test_folders_of_other_names_stay(make_files, tmp_path, name):
    kept = made(tmp_path / "cache", name)
    before = everything(kept)
    make_files()
    assert everything(kept) == before


STRANGE: dict[str, Callable[[Path], object]] = {
    "a file beside the pages": lambda old: (old / "notes.txt").write_text("mine"),
    "a file among the pages": lambda old: (old / "0a" / "notes.txt").write_text("mine"),
    "a folder beside the pages": lambda old: (old / "zz").mkdir(),
    "a folder with a page's name": lambda old: (old / "0a" / f"{'0a' * 31}0b.kv").mkdir(),
    "a page in another's place": lambda old: (old / "0a" / f"{'0b' * 32}.kv").write_bytes(b""),
    "a link with a page's name": lambda old: (old / "0a" / f"{'0a' * 31}0b.kv").symlink_to(old / "lock"),
    "a link in place of pages": lambda old: (old / "0b").symlink_to(old / "0a"),
    "a file in place of pages": lambda old: (old / "0b").write_bytes(b""),
    "no lock": lambda old: (old / "lock").unlink(),
    "a folder in place of the lock": lambda old: ((old / "lock").unlink(), (old / "lock").mkdir()),
    "a pipe in place of the lock": lambda old: ((old / "lock").unlink(), os.mkfifo(old / "lock")),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_a_folder_that_holds_anything_else_stays_whole(make_files, tmp_path, strange):
    old = made(tmp_path / "cache", DIGEST)
    STRANGE[strange](old)
    before = everything(old)
    make_files()
    assert everything(old) == before


def test_a_link_with_an_older_name_is_not_followed(make_files, tmp_path):
    elsewhere = made(tmp_path / "elsewhere", DIGEST)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / DIGEST).symlink_to(elsewhere)
    make_files()
    assert everything(elsewhere) == ["0a", f"0a/{PAGE}", "lock"]


def test_a_folder_in_use_stays_until_it_is_free(make_files, tmp_path):
    old = made(tmp_path / "cache", DIGEST)
    user = PageFolder(old)
    files = make_files()
    assert everything(old) == ["0a", f"0a/{PAGE}", "lock"]
    user.close()
    files.close()
    make_files()
    assert not old.exists()
