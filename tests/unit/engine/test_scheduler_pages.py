"""Pages that leave memory and come back, and how much room there is."""

import threading
from types import SimpleNamespace

import pytest

from earthshine.engine import Admitted, Finished
from earthshine.kv import PageFiles, PageKey, PageKeys, PageParts, PagePool, PrefixCache, prefix_cache

from .conftest import SPEC, FakeDecoder
from .scheduling import LAYOUT, PAGE, PROMPTS, Bench, alone, reply


def test_preempted_sequence_finds_its_pages_on_disk(tmp_path):
    files = PageFiles(tmp_path, LAYOUT, PAGE, 1 << 20)
    bench = Bench(n_pages=16, files=files, keep_all=False)
    for prompt in PROMPTS:
        bench.ask(prompt, 30, ignore_eos=True)
    bench.run()
    assert files.stats.pages_read > 0
    for events, prompt in zip(bench.events, PROMPTS, strict=True):
        assert reply(events) == alone(prompt, 30, ignore_eos=True)
    files.close()


def test_prefix_is_read_from_disk_after_a_restart(tmp_path):
    for run in range(2):
        files = PageFiles(tmp_path, LAYOUT, PAGE, 1 << 20)
        bench = Bench(files=files)
        events = bench.ask(PROMPTS[3])
        bench.run()
        assert events[0] == Admitted(28 if run else 0)
        assert reply(events) == alone(PROMPTS[3])
        assert files.flush(10)
        files.close()
    assert files.stats.pages_read == 7


def test_prompt_preempted_before_its_pages_are_read_counts_once(tmp_path):
    files = PageFiles(tmp_path, LAYOUT, PAGE, 1 << 20)
    bench = Bench(files=files)
    bench.ask(PROMPTS[3])
    bench.run()
    bench.forget()
    bench.ask(PROMPTS[3])
    bench.scheduler._admission.admit(())
    bench.scheduler._admission.preempt(bench.sequences[1])
    bench.run()
    assert bench.scheduler.counts.prefix_queries == 2 * len(PROMPTS[3])
    assert bench.scheduler.counts.prefix_hits == 28
    files.close()


def test_a_damaged_page_is_computed_again(tmp_path):
    files = PageFiles(tmp_path, LAYOUT, PAGE, 1 << 20)
    bench = Bench(files=files)
    bench.ask(PROMPTS[3])
    bench.run()
    bench.forget()
    third = bench.sequences[0].keys(12)[2]
    (path,) = tmp_path.rglob(f"{third.key.hex()}*")
    raw = bytearray(path.read_bytes())
    raw[-40] ^= 1
    path.write_bytes(raw)
    again = bench.ask(PROMPTS[3])
    bench.run()
    assert again[0] == Admitted(8)
    assert reply(again) == alone(PROMPTS[3])
    assert files.stats.damaged == 1
    files.close()


class SlowDisk(PageFiles):
    """Reads nothing until it is let."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.open = threading.Event()

    def read(self, *page):
        self.open.wait(60)
        return super().read(*page)


def test_request_that_waits_for_pages_does_not_hold_up_others(tmp_path):
    files = SlowDisk(tmp_path, LAYOUT, PAGE, 1 << 20)
    bench = Bench(files=files)
    bench.ask(PROMPTS[3])
    bench.run()
    bench.forget()
    again, other = bench.ask(PROMPTS[3]), bench.ask(PROMPTS[1], 8)
    while not bench.sequences[2].ended:
        bench.scheduler.step()
    assert reply(other) == alone(PROMPTS[1], 8)
    assert again == []
    files.open.set()
    bench.run()
    assert again[0] == Admitted(28)
    assert reply(again) == alone(PROMPTS[3])
    bench.nothing_is_held()
    files.close()


def test_cancelled_request_releases_pages_that_are_being_read(tmp_path):
    files = SlowDisk(tmp_path, LAYOUT, PAGE, 1 << 20)
    bench = Bench(files=files)
    bench.ask(PROMPTS[3])
    bench.run()
    bench.forget()
    again = bench.ask(PROMPTS[3])
    bench.scheduler.step()
    assert bench.pool.free_pages == bench.pool.n_pages - 7
    bench.sequences[1].cancelled = True
    threading.Timer(0.05, files.open.set).start()
    bench.run()
    assert again == [Finished("cancelled")]
    bench.nothing_is_held()
    files.close()


class SlowFiles:
    """Writes a page whenever `work` is called."""

    def __init__(self) -> None:
        self.written: dict[PageKey, PageParts] = {}
        self.jobs: list = []
        self.n_writes = 0

    def __contains__(self, key: PageKey) -> bool:
        return key in self.written

    def has_state(self, key: PageKey) -> bool:
        return False

    def read(self, key, tokens):
        return self.written[key]

    def write(self, key, tokens, parts, done, *, with_state=False) -> None:
        self.n_writes += 1
        self.jobs.append((key, parts, done))

    def used(self, keys) -> None: ...

    def close(self) -> None: ...

    def work(self) -> None:
        key, parts, done = self.jobs.pop(0)
        self.written[key] = PageParts([part.clone() for part in parts().rows])
        done(True)


class FullDisk(SlowFiles):
    """Begins to write and then has no room."""

    def work(self) -> None:
        _, _, done = self.jobs.pop(0)
        done(False)


def cached(n_pages: int, files: SlowFiles, keep_all: bool) -> tuple[PagePool, PrefixCache, list, list[int]]:
    """A cache of four pages that are in use; and their keys and numbers."""
    pool = PagePool(SPEC.kept, PAGE, n_pages, FakeDecoder().dtype)
    cache = PrefixCache(pool, [files], files, keep_all=keep_all)
    keys, pages = PageKeys("", PAGE).of(list(range(4 * PAGE)), 4), pool.allocate(4)
    for key, page in zip(keys, pages, strict=True):
        cache.add(key, page, list(range(key.start, key.start + PAGE)))
    return pool, cache, keys, pages


def test_pages_that_are_in_use_are_no_room_even_while_they_are_written():
    files = SlowFiles()
    pool, cache, _, pages = cached(5, files, keep_all=True)
    assert len(files.jobs) == 4
    assert (cache.room(), cache.idle_pages) == (1, 0)
    assert not cache.make_room(2)
    pool.release(pages)
    assert (cache.room(), cache.idle_pages) == (5, 4)
    assert cache.room(besides=pages[:2]) == 3


def test_no_more_pages_go_to_disk_than_are_evicted():
    files = SlowFiles()
    pool, cache, keys, pages = cached(4, files, keep_all=False)
    cache.touch(keys)
    cache.spill(keys)
    pool.release(pages)
    for _ in range(2):
        assert not cache.make_room(2)
        assert cache.room() == 4
        files.work()
    assert cache.make_room(2)
    assert set(files.written) == {keys[3], keys[2]}
    assert files.n_writes == 2
    assert cache.pages(keys) == pages[:2]


def test_pages_that_need_not_be_written_are_evicted_first():
    """Though the others were unused for longer; only for more than that is the disk waited for."""
    files = SlowFiles()
    pool, cache, keys, pages = cached(4, files, keep_all=False)
    cache.spill(keys[:2])
    cache.touch(keys)
    cache.touch(keys[2:])
    pool.release(pages)
    assert cache.make_room(2)
    assert files.jobs == []
    assert not cache.make_room(3)
    assert [key for key, _, _ in files.jobs] == [keys[1]]


def test_nothing_is_evicted_where_it_would_not_suffice():
    pool, cache, keys, pages = cached(4, SlowFiles(), keep_all=False)
    pool.release(pages[2:])
    assert not cache.make_room(3)
    assert cache.pages(keys) == pages


def test_replies_go_on_while_another_waits_for_pages_to_be_written():
    """The disk writes nothing: what needs no new page is computed, step by step, and nobody is preempted."""
    files = SlowFiles()
    bench = Bench(n_pages=8, files=files)
    bench.ask(PROMPTS[1], 1)  # leaves 5 pages that only the cache holds
    bench.run()
    assert (len(files.jobs), bench.cache.idle_pages) == (5, 5)
    short = bench.ask([1, 2], 3, ignore_eos=True)
    bench.run(1)
    long = bench.ask(PROMPTS[3], 3, ignore_eos=True)  # needs all 8 pages but one
    while not bench.sequences[1].ended:
        bench.scheduler.step()
    assert files.written == {}
    assert reply(short) == alone([1, 2], 3, ignore_eos=True)
    assert reply(long) == []
    while not bench.sequences[2].ended:
        if files.jobs:
            files.work()
        bench.scheduler.step()
    assert reply(long) == alone(PROMPTS[3], 3, ignore_eos=True)
    assert bench.scheduler.counts.preemptions == 0


@pytest.mark.parametrize("disk", [SlowFiles, FullDisk])
@pytest.mark.parametrize("keep_all", [False, True])
@pytest.mark.parametrize("steps", [1, 7])
def test_slow_or_full_disk_costs_no_reply(disk, keep_all, steps):
    """Pages run out for four replies; the disk takes one page each `steps` steps. Every step returns at once."""
    files = disk()
    bench = Bench(n_pages=16, files=files, keep_all=keep_all, threaded=False)
    for prompt in PROMPTS:
        bench.ask(prompt, 30, ignore_eos=True)
    for number in range(10_000):
        if not bench.scheduler.queue.busy:
            break
        bench.scheduler.step()
        bench.cache._reads.read_next()
        if files.jobs and number % steps == 0:
            files.work()
    assert bench.scheduler.counts.preemptions > 0
    assert bool(files.written) == (disk is SlowFiles)
    for events, prompt in zip(bench.events, PROMPTS, strict=True):
        assert reply(events) == alone(prompt, 30, ignore_eos=True)
    while files.jobs:
        files.work()
    bench.nothing_is_held()


def test_hanging_disk_delays_no_reply_forever(monkeypatch):
    """After a while without a page written, those that wait for it are not counted on: others are evicted unwritten."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(prefix_cache, "time", clock)
    files = SlowFiles()
    pool, cache, _, pages = cached(6, files, keep_all=True)
    pool.release(pages)
    hung = files.jobs[:]
    more = PageKeys("other", PAGE).of(list(range(2 * PAGE)), 2)
    for key, page in zip(more, pool.allocate(2), strict=True):
        cache.add(key, page, list(range(key.start, key.start + PAGE)))
        pool.release([page])
    files.jobs.clear()  # none of them is ever written
    assert not cache.make_room(1)
    assert cache.room() == 6
    now[0] += 5.1
    assert not cache.make_room(1)
    assert cache.room() == 0
    for key, parts, done in hung:
        files.written[key] = parts()
        done(True)
    assert cache.make_room(4)
    assert cache.room() == 6
