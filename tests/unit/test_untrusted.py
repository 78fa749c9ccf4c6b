"""Untrusted files and JSON are read within limits, in their folder and without repeated keys, or refused."""

import os
from pathlib import Path

import pytest

from earthshine.errors import SpecError, TextError
from earthshine.untrusted import MAX_DEPTH, parse_object, read_file, real_path, require_depth, resolve_in, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (1.5, "1.5"), ("a\x1b\ud800", r"'a\x1b\ud800'"), (["a", None], "['a', null]"),
     ("y" * 81, "'" + "y" * 77 + "...'"), ("y" * 80, f"'{'y' * 80}'"),
     (10**30, "an integer of more than 64 bits"), ([[1]], "a list of 1 entries")],
)  # fmt: skip
def test_a_value_is_shown_short_and_in_printable_ascii(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize("refusal", [SpecError, TextError])
@pytest.mark.parametrize(
    ("raw", "says"),
    [(b"[]", "no JSON object"), (b"{", "not JSON"), (b"\xff", "byte 0"), (b'{"a":1,"a":2}', "'a' twice"),
     (b'{"a":NaN}', "NaN"), (b'{"a":1e999}', "1e999"), (b'{"a":' + b"9" * 5000 + b"}", "too many digits"),
     (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "levels deep"), (b"[" * 10**6, "levels deep")],
)  # fmt: skip
def test_what_readers_disagree_on_is_refused_as_the_caller_says(raw: bytes, says: str, refusal: type) -> None:
    with pytest.raises(refusal, match=f"It .*{says}"):
        parse_object(raw, "It", refusal)


def test_the_deepest_permitted_object_is_read() -> None:
    assert parse_object(b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH, "It", SpecError).keys() == {"a"}
    require_depth("text", "It", SpecError)


def test_a_link_is_followed_within_the_folder_and_to_the_hubs_blobs_only(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--name" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    for target in ("blobs/hash", "refs/main", "snapshots/other/file"):
        place = folder.parents[1] / target
        place.parent.mkdir(exist_ok=True)
        place.write_text("here")
        (folder / place.name).symlink_to(place)
    assert read_file(resolve_in(folder, "hash", SpecError), "hash", 4, SpecError) == b"here"
    for name in ("main", "file", "../other/file"):
        with pytest.raises(SpecError, match="leaves the model's folder"):
            resolve_in(folder, name, SpecError)


def test_blobs_near_a_folder_that_is_not_a_snapshot_are_outside_it(tmp_path: Path) -> None:
    folder, blob = tmp_path / "models" / "mine", tmp_path / "blobs" / "hash"
    for place in (folder, blob.parent):
        place.mkdir(parents=True)
    blob.write_text("here")
    (folder / "hash").symlink_to(blob)
    with pytest.raises(SpecError, match="leaves the model's folder"):
        resolve_in(folder, "hash", SpecError)


def test_only_short_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")
    for name, says in (("long", "more than 4 bytes"), ("pipe", "not a regular file"), (".", "not a regular file"),
                       ("absent", "No such file"), ("a\0b", "not one")):  # fmt: skip
        with pytest.raises(TextError, match=f"It .*{says}"):
            read_file(tmp_path / name, "It", 4, TextError)


@pytest.mark.parametrize(("name", "says"), [("loop", "It can't be opened: Too many levels"), ("a\0b", "is not a path")])
def test_a_loop_of_links_and_an_impossible_name_are_refused(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(TextError, match=says):
        read_file(real_path(tmp_path / name, TextError), "It", 4, TextError)
