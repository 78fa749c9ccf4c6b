"""The disk cache of pages: what is read is what was written for just these tokens, whatever happens on the disk."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from earthshine.errors import BlobError, UsageError
from earthshine.kv import BlobLayout, BlobWriter, LatentFormat, PageFiles, page_folder

LAYOUT = BlobLayout("moon-1", LatentFormat.BF16, 3, 4, 2)
PAGE_TOKENS = 8
BLOCK = 4096  # what a page of these tests occupies


@dataclass(frozen=True)
class Page:
    key: bytes
    prior: bytes
    start: int
    tokens: tuple[int, ...]
    latents: tuple[torch.Tensor, ...]

    @property
    def named(self):
        return self.key, self.prior, self.start, self.tokens


def make_page(number: int, layout: BlobLayout = LAYOUT) -> Page:
    generator = torch.Generator().manual_seed(number)
    shape = (PAGE_TOKENS, layout.latent_dim)
    latents = tuple(torch.randn(shape, generator=generator).to(layout.format.dtype) for _ in range(layout.n_layers))
    key, prior = (bytes([each, *range(31)]) for each in (number + 1, number + 101))
    return Page(key, prior, PAGE_TOKENS * number, tuple(range(number, number + PAGE_TOKENS)), latents)


PAGES = [make_page(number) for number in range(40)]


@pytest.fixture
def make_files(tmp_path):
    made = []

    def make(limit_bytes=1 << 20, folder=tmp_path / "cache", layout=LAYOUT, page_tokens=PAGE_TOKENS, **options):
        made.append(PageFiles(folder, layout, page_tokens, limit_bytes, **options))
        return made[-1]

    yield make
    for files in made:
        files.close()


def put(files: PageFiles, *pages: Page) -> list[bool]:
    """Write pages one after another and wait for each; what `done` was told."""
    told: list[bool] = []
    for page in pages:
        files.write(*page.named, lambda page=page: page.latents, told.append)
        assert files.flush(10)
    return told


def holds(files: PageFiles, page: Page) -> bool:
    """Whether the page is read; what is read must be right."""
    layers = files.read(*page.named)
    if layers is not None:
        assert len(layers) == len(page.latents)
        assert all(a.dtype is b.dtype and torch.equal(a, b) for a, b in zip(layers, page.latents, strict=True))
    return layers is not None


def path_of(folder: Path, page: Page) -> Path:
    """Where the page lies, below the one subfolder."""
    (home,) = folder.iterdir()
    return home / page.key[:1].hex() / f"{page.key.hex()}.kv"


def listed(files: PageFiles) -> list[int]:
    return [number for number, page in enumerate(PAGES) if page.key in files]


class TestPages:
    def test_a_page_comes_back_and_is_counted(self, make_files, tmp_path):
        files = make_files()
        assert not holds(files, PAGES[1])
        assert put(files, *PAGES[:3]) == [True, True, True]
        assert listed(files) == [0, 1, 2]
        assert all(holds(files, page) for page in PAGES[:3])
        stats = files.stats
        assert (stats.pages, stats.pages_read, stats.pages_written) == (3, 3, 3)
        assert (stats.damaged, stats.failed_writes, stats.evicted) == (0, 0, 0)
        assert stats.bytes == 3 * BLOCK
        assert files.problem is None
        path = path_of(tmp_path / "cache", PAGES[0])
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in list(path.parents)[:3])

    def test_a_page_that_is_there_is_not_written_again(self, make_files):
        files = make_files()
        assert put(files, PAGES[0], PAGES[0]) == [True, True]
        assert files.stats.pages_written == 1

    def test_done_is_called_by_the_writing_thread_after_the_page_is_there(self, make_files):
        files, seen = make_files(), []
        files.write(
            *PAGES[0].named,
            lambda: PAGES[0].latents,
            lambda good: seen.append((good, PAGES[0].key in files, threading.current_thread().name)),
        )
        assert files.flush(10)
        assert seen == [(True, True, "page-files")]

    @pytest.mark.parametrize("change", ["prior", "start", "tokens"])
    def test_a_page_of_another_place_or_other_tokens_is_not_given_out(self, make_files, change):
        files, page = make_files(), PAGES[3]
        put(files, page)
        other = {"prior": PAGES[4].prior, "start": 32, "tokens": (*page.tokens[:7], 99)}[change]
        assert files.read(page.key, **{"prior": page.prior, "start": 24, "tokens": page.tokens, change: other}) is None
        assert files.stats.damaged == 1
        assert page.key not in files
        assert not holds(files, page)

    def test_arguments_that_name_no_page_are_refused(self, make_files):
        files, page = make_files(), PAGES[1]
        with pytest.raises(UsageError, match="a key of 32 bytes and 8 tokens"):
            files.read(page.key[:31], page.prior, page.start, page.tokens)
        with pytest.raises(UsageError, match="8 tokens"):
            files.write(page.key, page.prior, page.start, page.tokens[:7], lambda: [], lambda good: None)
        with pytest.raises(BlobError, match="does not name them"):
            files.read(page.key, bytes(32), page.start, page.tokens)

    def test_latents_that_do_not_fit_cost_one_page_and_not_the_thread(self, make_files):
        files, told = make_files(), []
        for latents in (PAGES[0].latents[:2], tuple(each[:3] for each in PAGES[0].latents), None):
            files.write(*PAGES[0].named, lambda latents=latents: latents, told.append)
        assert files.flush(10)
        assert told == [False, False, False]
        assert "could not be taken over" in files.problem
        assert listed(files) == []
        assert put(files, PAGES[0]) == [True]
        assert files.problem is None
        assert files.stats.failed_writes == 3


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
        theirs = make_files(folder=tmp_path / "theirs", layout=BlobLayout("moon-2", LatentFormat.BF16, 3, 4, 2))
        mine, page = make_files(folder=tmp_path / "mine"), PAGES[5]
        put(theirs, page)
        put(mine, page)
        shutil.copy(path_of(tmp_path / "theirs", page), path_of(tmp_path / "mine", page))
        assert not holds(mine, page)
        assert mine.stats.damaged == 1
        assert holds(theirs, page)

    @pytest.mark.parametrize("kind", ["link", "dangling", "folder", "full folder", "pipe"])
    def test_what_is_no_file_is_neither_followed_nor_waited_for(self, make_files, tmp_path, kind):
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


class TestLimit:
    def test_the_longest_unused_goes_first_and_the_limit_holds_at_every_step(self, make_files):
        files = make_files(4 * BLOCK)
        put(files, *PAGES[:4])
        assert holds(files, PAGES[0])
        files.used([PAGES[2].key, PAGES[1].key, b"unknown"])
        for number, left in ((4, [0, 1, 2, 4]), (5, [1, 2, 4, 5]), (6, [1, 4, 5, 6]), (7, [4, 5, 6, 7])):
            put(files, PAGES[number])
            assert listed(files) == left
            assert files.stats.bytes <= 4 * BLOCK
        assert files.stats.evicted == 4

    def test_what_lies_on_the_disk_is_what_is_counted(self, make_files, tmp_path):
        files = make_files(5 * BLOCK)
        put(files, *PAGES[:12])
        found = list((tmp_path / "cache").rglob("*.kv"))
        assert sorted(path.stem for path in found) == sorted(page.key.hex() for page in PAGES[7:12])
        assert sum(path.stat().st_blocks * 512 for path in found) == files.stats.bytes == 5 * BLOCK

    def test_a_restart_finds_the_pages_in_the_order_of_their_use(self, make_files):
        files = make_files()
        put(files, *PAGES[:6])
        assert all(holds(files, PAGES[number]) for number in (3, 0))
        files.close()
        files = make_files(4 * BLOCK)
        assert files.stats.evicted == 2
        assert listed(files) == [0, 3, 4, 5]
        put(files, PAGES[6], PAGES[7])
        assert listed(files) == [0, 3, 6, 7]
        assert all(holds(files, PAGES[number]) for number in (0, 3, 6, 7))
        assert (files.stats.pages_read, files.stats.damaged) == (4, 0)

    def test_a_clock_that_jumped_disturbs_only_the_order(self, make_files, tmp_path):
        files = make_files()
        put(files, *PAGES[:4])
        files.close()
        for number, when in ((0, 1 << 33), (1, -(1 << 30))):
            os.utime(path_of(tmp_path / "cache", PAGES[number]), (when, when))
        files = make_files(2 * BLOCK)
        assert listed(files) == [0, 3]
        assert put(files, PAGES[4]) == [True]
        assert holds(files, PAGES[0]) is True

    def test_more_files_than_a_cache_makes_are_refused(self, make_files, monkeypatch):
        files = make_files()
        put(files, *PAGES[:4])
        files.close()
        monkeypatch.setattr(page_folder, "_MOST_NAMES", 3)
        with pytest.raises(UsageError, match="holds more than 3 files; empty it or name another"):
            make_files()
        monkeypatch.undo()
        assert make_files().stats.pages == 4

    def test_foreign_names_are_left_alone(self, make_files, tmp_path):
        files = make_files()
        put(files, PAGES[0])
        shelf = path_of(tmp_path / "cache", PAGES[0]).parent
        files.close()
        others = [shelf / "notes.txt", shelf / f"{'ff' * 32}.kv", shelf / f"{PAGES[0].key.hex().upper()}A.kv"]
        for path in others:
            path.write_text("not a page", encoding="utf-8")
        files = make_files()
        assert (files.stats.pages, files.stats.damaged) == (1, 0)
        assert all(path.exists() for path in others)


class TestFolder:
    def test_a_limit_below_a_page_is_refused(self, make_files, tmp_path):
        with pytest.raises(
            UsageError, match=r"4095 B holds no page of this model; one takes 4\.00 KiB|4\.00 KiB holds"
        ):
            make_files(BLOCK - 1)
        assert not (tmp_path / "cache").exists()
        with pytest.raises(UsageError, match="at least 1 token, not 0"):
            make_files(page_tokens=0)

    def test_impossible_folders_are_refused(self, make_files, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        for folder in (tmp_path / "file" / "below", tmp_path / "a\0b", tmp_path / ("a" * 5000), Path("/proc/cache")):
            with pytest.raises(UsageError, match="can't be made"):
                make_files(folder=folder)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
    def test_a_folder_that_can_not_be_written_is_refused(self, make_files, tmp_path):
        make_files().close()
        (home,) = (tmp_path / "cache").iterdir()
        home.chmod(0o500)
        with pytest.raises(UsageError, match="can't write"):
            make_files()

    def test_a_failing_probe_is_a_refusal(self, make_files, monkeypatch):
        def fail(self):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(page_folder.PageFolder, "_discard_unfinished", fail)
        with pytest.raises(UsageError, match=r"can't write to .*: Read-only file system"):
            make_files()
        monkeypatch.undo()
        make_files()

    def test_a_link_in_place_of_the_models_folder_is_refused(self, make_files, tmp_path):
        make_files().close()
        (home,) = (tmp_path / "cache").iterdir()
        home.rename(tmp_path / "aside")
        home.symlink_to(tmp_path / "aside")
        with pytest.raises(UsageError, match="can't be made"):
            make_files()

    def test_one_use_at_a_time(self, make_files):
        files = make_files()
        put(files, PAGES[0])
        with pytest.raises(UsageError, match=f"in use by process {os.getpid()}; name another folder"):
            make_files()
        assert holds(files, PAGES[0])
        files.close()
        assert holds(make_files(), PAGES[0])

    def test_models_and_page_sizes_share_a_folder_without_meeting(self, make_files):
        mine = make_files()
        put(mine, PAGES[0])
        other_model = make_files(layout=BlobLayout("moon-2", LatentFormat.BF16, 3, 4, 2))
        other_size = make_files(page_tokens=4)
        assert (other_model.stats.pages, other_size.stats.pages) == (0, 0)
        put(other_model, PAGES[0])
        assert holds(mine, PAGES[0])
        assert holds(other_model, PAGES[0])

    def test_what_a_killed_process_left_unfinished_is_removed(self, make_files, tmp_path):
        files = make_files()
        put(files, PAGES[0])
        files.close()
        (home,) = (tmp_path / "cache").iterdir()
        (home / "unfinished").write_bytes(b"half a page")
        assert holds(make_files(), PAGES[0])
        assert sorted(path.name for path in home.iterdir()) == ["01", "lock"]


class TestFailures:
    def test_a_full_queue_refuses_at_once(self, make_files):
        files, told, begun, go = make_files(most_waiting=2), [], threading.Event(), threading.Event()

        def slow():
            begun.set()
            assert go.wait(10)
            return PAGES[0].latents

        files.write(*PAGES[0].named, slow, told.append)
        assert begun.wait(10)
        for page in PAGES[1:5]:
            files.write(*page.named, lambda page=page: page.latents, told.append)
        assert told == [False, False]
        assert not files.flush(0.01)
        go.set()
        assert files.flush(10)
        assert told == [False, False, True, True, True]
        assert (listed(files), files.stats.failed_writes) == ([0, 1, 2], 2)

    def test_closing_tells_those_that_wait_and_leaves_nothing_open(self, make_files):
        files, told, begun, go = make_files(), [], threading.Event(), threading.Event()

        def slow():
            begun.set()
            assert go.wait(10)
            return PAGES[0].latents

        for page in PAGES[:3]:
            files.write(*page.named, slow, told.append)
        assert begun.wait(10)
        threading.Timer(0.05, go.set).start()
        files.close()
        assert told == [True, False, False]
        files.close()
        assert files.read(*PAGES[0].named) is None
        assert put(files, PAGES[4]) == [False]
        assert listed(make_files()) == [0]

    def test_an_error_while_writing_rests_the_disk_and_is_told(self, make_files, tmp_path, monkeypatch):
        now = [100.0]
        files = make_files(clock=lambda: now[0])
        put(files, *PAGES[:20])
        whole = BlobWriter.layer

        def fail(self, index, latents):
            if index == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            whole(self, index, latents)

        monkeypatch.setattr(BlobWriter, "layer", fail)
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
            told = put(files, *PAGES[:30])
            good = told.index(False)
            assert 5 < good < 17
            assert told == [True] * good + [False] * (30 - good)
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
        for turn in range(300):
            page = PAGES[turn * 5 % 12]
            files.write(*page.named, lambda page=page: page.latents, lambda good: None)
            if turn % 10 == 0:
                assert files.flush(10)
            assert files.stats.bytes <= 6 * BLOCK
        stop.set()
        for reader in readers:
            reader.join()
        assert wrong == []
        assert any(read)
        assert files.stats.damaged == 0


KILLED = """
import sys
from pathlib import Path
import torch
from earthshine.kv import BlobLayout, LatentFormat, PageFiles

files = PageFiles(Path(sys.argv[1]), BlobLayout("moon-1", LatentFormat.FP32, 4, 2048, 0), 64, 1 << 30)
tokens = tuple(range(64))
for number in range(10**6):
    key = number.to_bytes(32, "big")
    latents = [torch.full((64, 1), float(number + layer)).expand(64, 2048) for layer in range(4)]
    files.write(key, key, 0, tokens, lambda: latents, lambda good: None)
    files.flush(10)
    print(number, flush=True)
"""


@pytest.mark.parametrize("pages", [3, 17])
def test_a_killed_writer_leaves_only_whole_pages(tmp_path, pages):
    """Pages of 2 MiB and little else to do, so that the kill mostly falls into a write."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        for _ in range(pages):
            assert child.stdout.readline()
        time.sleep(0.0005)
        child.send_signal(signal.SIGKILL)
    files = PageFiles(tmp_path, BlobLayout("moon-1", LatentFormat.FP32, 4, 2048, 0), 64, 1 << 30)
    (home,) = tmp_path.iterdir()
    assert not (home / "unfinished").exists()
    assert files.stats.pages >= pages
    for number in range(files.stats.pages):
        key = number.to_bytes(32, "big")
        layers = files.read(key, key, 0, tuple(range(64)))
        assert all(bool((latents == number + layer).all()) for layer, latents in enumerate(layers))
    assert files.stats.damaged == 0
    files.close()
