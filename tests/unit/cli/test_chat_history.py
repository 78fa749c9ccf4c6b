"""The file of questions: private, bounded, shared by sessions, and never a reason to stop."""

import errno
import json
import os

import pytest

from earthshine.cli.history import MOST_BYTES, MOST_CHARACTERS, MOST_ENTRIES, History
from earthshine.errors import UsageError


def test_questions_come_back_in_their_order_whatever_they_hold(tmp_path):
    history = History(tmp_path / "new" / "folder" / "questions.jsonl")
    assert history.read() == []
    questions = ["one", "two\nlines", '"quoted" \u2615', "\x1b[31m", "\ud800"]
    for question in questions:
        history.add(question)
    assert History(tmp_path / "new" / "folder" / "questions.jsonl").read() == questions
    assert (tmp_path / "new" / "folder" / "questions.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_file_that_others_can_read_is_made_private(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('"one"\n')
    path.chmod(0o644)
    assert History(path).read() == ["one"]
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    History(path).add("two")
    assert path.stat().st_mode & 0o777 == 0o600


def test_damaged_lines_are_left_out(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b'"one"\n{"a": 1}\n\xff\xfe\n"cut of\n' + b"[" * 100_000 + b'\n""\n17\n\n"two"\n')
    assert History(path).read() == ["one", "two"]
    assert path.read_bytes() == b'"one"\n"two"\n'


def test_the_oldest_questions_go_and_very_long_ones_are_not_kept(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(f"{json.dumps(str(n))}\n" for n in range(MOST_ENTRIES + 5)))
    assert History(path).read() == [str(n) for n in range(5, MOST_ENTRIES + 5)]
    assert len(path.read_text().splitlines()) == MOST_ENTRIES
    assert path.stat().st_mode & 0o777 == 0o600
    History(path).add("x" * (MOST_CHARACTERS + 1))
    assert len(path.read_text().splitlines()) == MOST_ENTRIES


def test_the_file_stays_small_where_it_is_only_added_to(tmp_path):
    path = tmp_path / "questions.jsonl"
    history, largest = History(path), 0
    for number in range(60):
        history.add(f"{number} " + "\u2615" * 65_000)
        largest = max(largest, path.stat().st_size)
    assert 2 * MOST_BYTES - (1 << 20) < largest <= 2 * MOST_BYTES + (1 << 20)
    kept = [question.split()[0] for question in History(path).read()]
    assert kept == [str(number) for number in range(60 - len(kept), 60)]
    assert len(kept) > 5


def test_of_a_large_file_the_newest_questions_are_kept(tmp_path):
    path = tmp_path / "questions.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 30)  # without taking room on the disk
        file.seek(0, os.SEEK_END)
        file.write(b'\n"one"\n"two"\n')
    assert History(path).read() == ["one", "two"]
    assert path.read_bytes() == b'"one"\n"two"\n'


def test_two_sessions_add_to_one_file(tmp_path):
    first, second = (History(tmp_path / "questions.jsonl") for _ in range(2))
    for number in range(20):
        (first, second)[number % 2].add(str(number))
    assert first.read() == [str(number) for number in range(20)]


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, kind):
    path = tmp_path / "questions.jsonl"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(UsageError, match="not a regular file"):
        History(path).read()
    with pytest.raises(UsageError, match="can't be written"):
        History(path).add("one")


def test_a_full_disk_is_an_error_of_one_sentence(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(UsageError, match=r"questions.jsonl' can't be written: No space left on device\.$"):
        History(tmp_path / "questions.jsonl").add("one")
