"""Damaged pages, and disks and writers that fail."""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest

from earthshine.cli.log import configure_log
from earthshine.kv import BlobLayout, BlobWriter, PageFiles, PageKey, PageParts, Part, ValueFormat, page_folder

from .conftest import BLOCK, KILLED, PAGES, PARTS, holds, listed, path_of, put


@pytest.fixture
def server_log(monkeypatch, capsys):
    """Configures logging as `earthshine serve` does; what it returns reads the lines."""
    names = (None, "earthshine", "py.warnings")
    before = {name: logging.getLogger(name).level for name in names}

    def configure(as_json):
        monkeypatch.setattr(logging.root, "handlers", [])
        configure_log(as_json)
        return lambda: capsys.readouterr().err.splitlines()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield configure
        logging.captureWarnings(False)
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


class TestDamage:
    def test_every_changed_byte_is_found_and_the_file_deleted(self, make_files, tmp_path):
        files, page = make_files(), PAGES[0]
        put(files, page)
        path = path_of(tmp_path / "cache", page)
        sound = path.read_bytes()
        for position in range(len(sound)):
            wrong = bytearray(sound)
            wrong[position] ^= 1 << position % 8
            path.write_bytes(wrong)
            assert files.read(*page.named) is None
            assert not path.exists()
            put(files, page)
        assert files.stats.damaged == len(sound)
        assert holds(files, page)

    @pytest.mark.parametrize("length", [0, 10, 50, 120, 200, -17, -1, None], ids=str)
    def test_a_file_of_another_length_is_deleted_now_or_at_the_next_start(self, make_files, tmp_path, length):
        files, (first, second) = make_files(), PAGES[:2]
        put(files, first, second)
        for page in (first, second):
            path = path_of(tmp_path / "cache", page)
            sound = path.read_bytes()
            path.write_bytes(sound[:length] if length is not None else sound + b"\0")
        assert not holds(files, first)
        assert not path_of(tmp_path / "cache", first).exists()
        files.close()
        files = make_files()
        assert files.stats.damaged == 1
        assert listed(files) == []
        assert not path_of(tmp_path / "cache", second).exists()

    def test_another_models_file_is_not_believed(self, make_files, tmp_path):
        theirs = make_files(folder=tmp_path / "theirs", layout=BlobLayout("moon-2", ValueFormat.BF16, PARTS))
        mine, page = make_files(folder=tmp_path / "mine"), PAGES[5]
        put(theirs, page)
        put(mine, page)
        shutil.copy(path_of(tmp_path / "theirs", page), path_of(tmp_path / "mine", page))
        assert not holds(mine, page)
        assert mine.stats.damaged == 1
        assert holds(theirs, page)

    @pytest.mark.parametrize("kind", ["link", "dangling", "folder", "full folder", "pipe"])
    def test_links_and_pipes_are_neither_followed_nor_waited_for(self, make_files, tmp_path, kind):
        files, page = make_files(), PAGES[0]
        put(files, page)
        path, aside = path_of(tmp_path / "cache", page), tmp_path / "aside"
        path.rename(aside)
        if kind == "pipe":
            os.mkfifo(path)
        elif "folder" in kind:
            (path / "inner" if kind == "full folder" else path).mkdir(parents=True)
        else:
            path.symlink_to(aside if kind == "link" else tmp_path / "absent")
        assert not holds(files, page)
        assert aside.exists()
        assert files.stats.damaged == 1
        good = put(files, page)
        assert good == [kind not in ("folder", "full folder")]
        assert holds(files, page) is good[0]
        assert not path.is_symlink()

    def test_a_link_in_place_of_an_inner_folder_is_not_followed(self, make_files, tmp_path):
        files, page = make_files(), PAGES[0]
        put(files, page)
        shelf = path_of(tmp_path / "cache", page).parent
        shelf.rename(tmp_path / "aside")
        shelf.symlink_to(tmp_path / "aside")
        assert not holds(files, page)
        assert len(list((tmp_path / "aside").iterdir())) == 1
        files.close()
        files = make_files()
        assert listed(files) == []
        assert put(files, page) == [True]
        assert not shelf.is_symlink()

    def test_a_process_that_deletes_files_does_no_harm(self, make_files, tmp_path):
        files = make_files()
        put(files, *PAGES[:4])
        path_of(tmp_path / "cache", PAGES[0]).unlink()
        shutil.rmtree(path_of(tmp_path / "cache", PAGES[1]).parent)
        assert [holds(files, page) for page in PAGES[:4]] == [False, False, True, True]
        assert (files.stats.damaged, files.stats.bytes) == (0, 2 * BLOCK)
        assert put(files, PAGES[1]) == [True]
        shutil.rmtree(tmp_path / "cache")
        assert [holds(files, page) for page in PAGES[:4]] == [False] * 4
        assert put(files, PAGES[5]) == [False]
        assert "No such file" in files.problem

    def test_a_lack_of_descriptors_is_not_the_files_fault(self, make_files, monkeypatch):
        files = make_files()
        put(files, PAGES[0])

        def fail(self, key):
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(page_folder.PageFolder, "open", fail)
        assert not holds(files, PAGES[0])
        monkeypatch.undo()
        assert holds(files, PAGES[0])
        assert files.stats.damaged == 0


class TestFailures:
    def test_a_full_queue_refuses_at_once(self, make_files):
        files, results, begun, go = make_files(most_waiting=2), [], threading.Event(), threading.Event()

        def slow():
            begun.set()
            assert go.wait(300)
            return PageParts(PAGES[0].latents)

        files.write(*PAGES[0].named, slow, results.append)
        assert begun.wait(300)
        for page in PAGES[1:5]:
            files.write(*page.named, lambda page=page: PageParts(page.latents), results.append)
        assert results == [False, False]
        assert not files.flush(0.01)
        go.set()
        assert files.flush(10)
        assert results == [False, False, True, True, True]
        assert (listed(files), files.stats.failed_writes) == ([0, 1, 2], 2)

    def test_closing_tells_those_that_wait_and_leaves_nothing_open(self, make_files):
        files, results, begun, go = make_files(), [], threading.Event(), threading.Event()

        def slow():
            begun.set()
            assert go.wait(300)
            return PageParts(PAGES[0].latents)

        for page in PAGES[:3]:
            files.write(*page.named, slow, results.append)
        assert begun.wait(300)
        threading.Timer(0.05, go.set).start()
        files.close()
        assert results == [True, False, False]
        files.close()
        assert files.read(*PAGES[0].named) is None
        assert put(files, PAGES[4]) == [False]
        assert listed(make_files()) == [0]

    @pytest.mark.parametrize("level", ["file", "shelf"])
    def test_folder_with_a_pages_name_is_skipped_with_a_log_line(self, make_files, tmp_path, caplog, level):
        files = make_files()
        taken = path_of(tmp_path / "cache", PAGES[0])
        if level == "file":
            (taken / "inner").mkdir(parents=True)
        else:
            taken.parent.write_text("a file, where a folder belongs")
        assert put(files, PAGES[0], PAGES[1]) == [False, True]
        assert files.problem is None
        assert files.stats.failed_writes == 1
        assert f"A page is not kept in '{taken.parents[1]}': {taken.parent.name}/{taken.name}: " in caplog.text
        assert holds(files, PAGES[1])
        assert not holds(files, PAGES[0])

    @pytest.mark.parametrize("as_json", [False, True])
    def test_the_servers_log_has_the_warning_and_none_of_libraries(self, make_files, tmp_path, server_log, as_json):
        files = make_files()
        taken = path_of(tmp_path / "cache", PAGES[0])
        (taken / "inner").mkdir(parents=True)
        read = server_log(as_json)
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        assert put(files, PAGES[0]) == [False]
        if as_json:
            warnings.warn("an old setting", UserWarning, stacklevel=1)
        lines = read()
        assert len(lines) == 1 + as_json
        assert f"A page is not kept in '{taken.parents[1]}': " in lines[0]
        assert "an old setting" in lines[-1] or not as_json

    def test_page_that_became_a_folder_is_evicted_like_others(self, make_files, tmp_path):
        files = make_files(2 * BLOCK)
        put(files, *PAGES[:2])
        path_of(tmp_path / "cache", PAGES[0]).unlink()
        path_of(tmp_path / "cache", PAGES[0]).mkdir()
        assert put(files, *PAGES[2:5]) == [True, True, True]
        assert (listed(files), files.stats.failed_writes) == ([3, 4], 0)

    def test_a_write_error_pauses_writing_and_is_reported(self, make_files, tmp_path, monkeypatch):
        now = [100.0]
        files = make_files(clock=lambda: now[0])
        put(files, *PAGES[:20])
        whole = BlobWriter.part

        def fail(self, index, latents):
            if index == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            whole(self, index, latents)

        monkeypatch.setattr(BlobWriter, "part", fail)
        assert put(files, PAGES[20]) == [False]
        monkeypatch.undo()
        (home,) = (tmp_path / "cache").iterdir()
        assert not (home / "unfinished").exists()
        assert "No space left on device. It is tried again after 30 seconds" in files.problem
        assert listed(files) == list(range(2, 20))
        now[0] = 129.9
        assert put(files, PAGES[21]) == [False]
        assert holds(files, PAGES[5])
        now[0] = 130.0
        assert put(files, PAGES[21]) == [True]
        assert files.problem is None
        assert (files.stats.failed_writes, files.stats.evicted) == (2, 2)

    def test_a_file_that_can_not_be_deleted_stays_counted(self, make_files, monkeypatch):
        files = make_files(2 * BLOCK)
        put(files, *PAGES[:2])

        def fail(self, key):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(page_folder.PageFolder, "remove", fail)
        assert put(files, PAGES[2]) == [False]
        assert (listed(files), files.stats.bytes, files.stats.evicted) == ([0, 1], 2 * BLOCK, 0)
        assert "Read-only" in files.problem

    def test_a_disk_that_is_really_full(self, make_files, tmp_path):
        folder = tmp_path / "small"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed here")
        now = [0.0]
        files = make_files(folder=folder, clock=lambda: now[0])
        try:
            results = put(files, *PAGES[:30])
            good = results.index(False)
            assert 5 < good < 17
            assert results == [True] * good + [False] * (30 - good)
            assert "No space left on device" in files.problem
            assert listed(files) == list(range(1, good))
            now[0] = 30.0
            assert put(files, PAGES[35]) == [True]
            assert files.problem is None
            assert sum(holds(files, page) for page in PAGES) == len(listed(files)) == good
            files.close()
            files = make_files(folder=folder)
            assert files.stats.pages == good
        finally:
            files.close()
            subprocess.run(["umount", str(folder)], check=True)

    def test_readers_beside_a_writer_see_whole_pages_only(self, make_files):
        files, stop, wrong, read = make_files(6 * BLOCK), threading.Event(), [], []

        def look(first):
            number = first
            while not stop.is_set():
                number = (number + 7) % 12
                try:
                    read.append(holds(files, PAGES[number]))
                except Exception as error:
                    wrong.append(error)

        readers = [threading.Thread(target=look, args=(first,)) for first in (0, 5)]
        for reader in readers:
            reader.start()
        for number in range(300):
            page = PAGES[number * 5 % 12]
            files.write(*page.named, lambda page=page: PageParts(page.latents), lambda good: None)
            if number % 10 == 0:
                assert files.flush(10)
            assert files.stats.bytes <= 6 * BLOCK
        stop.set()
        for reader in readers:
            reader.join()
        assert wrong == []
        assert any(read)
        assert files.stats.damaged == 0


@pytest.mark.parametrize("pages", [3, 17])
def test_a_killed_writer_leaves_only_whole_pages(forker, tmp_path, pages):
    """Pages of 2 MiB and little else to do, so that the kill mostly falls into a write."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with forker.popen(command, stdout=subprocess.PIPE, text=True) as child:
        for _ in range(pages):
            assert child.stdout.readline()
        time.sleep(0.0005)
        child.send_signal(signal.SIGKILL)
    files = PageFiles(
        tmp_path, BlobLayout("moon-1", ValueFormat.FP32, tuple(Part(i, 2048) for i in range(4))), 64, 1 << 30
    )
    (home,) = tmp_path.iterdir()
    assert not (home / "unfinished").exists()
    assert files.stats.pages >= pages
    for number in range(files.stats.pages):
        name = number.to_bytes(32, "big")
        layers = files.read(PageKey(name, name, 0), tuple(range(64))).rows
        assert all(bool((latents == number + layer).all()) for layer, latents in enumerate(layers))
    assert files.stats.damaged == 0
    files.close()
