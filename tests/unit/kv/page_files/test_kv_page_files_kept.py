"""Pages that were written are found, within the size limit and in the cache's own folder."""

import errno
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from earthshine.errors import BlobError, UsageError
from earthshine.kv import BlobLayout, PageParts, ValueFormat, page_folder

from .conftest import BLOCK, PAGES, PARTS, holds, listed, path_of, put


class TestPages:
    def test_page_is_read_back_and_counted(self, make_files, tmp_path):
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
            lambda: PageParts(PAGES[0].latents),
            lambda good: seen.append((good, PAGES[0].key in files, threading.current_thread().name)),
        )
        assert files.flush(10)
        assert seen == [(True, True, "page-files")]

    @pytest.mark.parametrize("change", ["prior", "start", "tokens"])
    def test_a_page_of_another_place_or_other_tokens_is_not_given_out(self, make_files, change):
        files, page = make_files(), PAGES[3]
        put(files, page)
        other = {"prior": PAGES[4].key.prior, "start": 32, "tokens": (*page.tokens[:7], 99)}[change]
        key = page.key if change == "tokens" else replace(page.key, **{change: other})
        assert files.read(key, other if change == "tokens" else page.tokens) is None
        assert files.stats.damaged == 1
        assert page.key not in files
        assert not holds(files, page)

    def test_arguments_that_name_no_page_are_refused(self, make_files):
        files, page = make_files(), PAGES[1]
        with pytest.raises(UsageError, match="a key of 32 bytes"):
            files.read(replace(page.key, key=page.key.key[:31]), page.tokens)
        with pytest.raises(UsageError, match="8 tokens"):
            files.write(page.key, page.tokens[:7], lambda: PageParts([]), lambda good: None)
        with pytest.raises(BlobError, match="does not name them"):
            files.read(replace(page.key, prior=bytes(32)), page.tokens)

    def test_latents_that_do_not_fit_cost_one_page_and_not_the_thread(self, make_files):
        files, results = make_files(), []
        for latents in (PAGES[0].latents[:2], tuple(each[:3] for each in PAGES[0].latents), None):
            files.write(*PAGES[0].named, lambda latents=latents: PageParts(latents), results.append)
        assert files.flush(10)
        assert results == [False, False, False]
        assert "could not be taken over" in files.problem
        assert listed(files) == []
        assert put(files, PAGES[0]) == [True]
        assert files.problem is None
        assert files.stats.failed_writes == 3


class TestLimit:
    def test_the_longest_unused_goes_first_and_the_limit_holds_at_every_step(self, make_files):
        files = make_files(4 * BLOCK)
        put(files, *PAGES[:4])
        assert holds(files, PAGES[0])
        files.used([PAGES[2].key, PAGES[1].key, PAGES[39].key])
        for number, left in ((4, [0, 1, 2, 4]), (5, [1, 2, 4, 5]), (6, [1, 4, 5, 6]), (7, [4, 5, 6, 7])):
            put(files, PAGES[number])
            assert listed(files) == left
            assert files.stats.bytes <= 4 * BLOCK
        assert files.stats.evicted == 4

    def test_counted_bytes_are_those_on_the_disk(self, make_files, tmp_path):
        files = make_files(5 * BLOCK)
        put(files, *PAGES[:12])
        found = list((tmp_path / "cache").rglob("*.kv"))
        assert sorted(path.stem for path in found) == sorted(page.key.key.hex() for page in PAGES[7:12])
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
        others = [shelf / "notes.txt", shelf / f"{'ff' * 32}.kv", shelf / f"{PAGES[0].key.key.hex().upper()}A.kv"]
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
        other_model = make_files(layout=BlobLayout("moon-2", ValueFormat.BF16, PARTS))
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
