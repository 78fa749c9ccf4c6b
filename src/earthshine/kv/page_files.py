"""The tier of pages on disk: one file a page, each a blob of `codec`, up to a limit of bytes on the disk.

Checksums, model, position in the sequence and token ids of a page are verified when it is read. A file that differs in
any of them is deleted and reported as absent, never as an error. One thread writes the pages; where it can't keep up or
the disk fails, a page is not kept on disk, and nothing else happens. Over the limit, the least recently used page is
evicted first. Each model and page size has its own folder, which one process at a time may use; the limit is that
folder's. Folders of older versions are deleted.
"""

import errno
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import BinaryIO

from blake3 import blake3

from earthshine.errors import BlobError, UsageError
from earthshine.kv.header import VERSION, BlobHeader, BlobLayout, pack_header
from earthshine.kv.page_blob import PageBlobs
from earthshine.kv.page_folder import (
    MOST_FILES,
    PageFolder,
    PlaceTakenError,
    folder_name,
    occupied_bytes,
    remove_older,
)
from earthshine.kv.page_key import PageKey
from earthshine.kv.page_tier import PageParts
from earthshine.units import format_bytes
from earthshine.untrusted import shown

_LOGGER = logging.getLogger(__name__)
PAUSE_SECONDS = 30
_END_SECONDS = 10  # that a write under way has when the cache is closed
_BLOCK_BYTES = 4096  # the usual unit of a disk's space
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # not a fault of the file
_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True, slots=True)
class PageFilesStats:
    """`bytes` and `pages` are there now; the others count since the cache was opened."""

    bytes: int
    pages: int
    pages_read: int
    pages_written: int
    damaged: int
    failed_writes: int  # asked for and not done: the disk failed or writes were paused, or the queue was full
    evicted: int


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    key: PageKey
    header: BlobHeader
    parts: Callable[[], PageParts]
    done: Callable[[bool], None]
    with_state: bool

    def write(self, file: BinaryIO) -> None:
        PageBlobs.write(file, self.header, self.parts())


@dataclass(frozen=True, slots=True)
class _File:
    occupied: int  # bytes of the disk
    has_state: bool


class PageFiles:
    """Pages of `page_tokens` tokens in `layout`, within `limit_bytes`, in a folder of their own below `folder`.

    At most `most_waiting` pages wait to be written. May be used by several threads. `clock` counts seconds. Raises
    UsageError for a limit below one page and for a folder that can't be made or written or that another process uses.
    """

    def __init__(
        self,
        folder: Path,
        layout: BlobLayout,
        page_tokens: int,
        limit_bytes: int,
        *,
        most_waiting: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._blobs = PageBlobs(layout, page_tokens)
        pattern = self._blobs.pattern
        if limit_bytes < (least := _room_bytes(pattern)):
            raise UsageError(
                f"A disk cache of {format_bytes(limit_bytes)} holds no page of this model; "
                f"one takes {format_bytes(least)}."
            )
        self._limit_bytes, self._most_waiting, self._clock = limit_bytes, most_waiting, clock
        self._pages: OrderedDict[bytes, _File] = OrderedDict()  # the longest unused first
        self._bytes = self._read = self._written = self._damaged = self._failed = self._evicted = 0
        self._jobs: deque[_Job] = deque()
        self._busy = self._closed = False
        self._changed = Condition()  # guards all of the above and below, and is never held while a disk is waited for
        self._problem: str | None = None
        self._paused_until = -float("inf")
        self._stamp_ns = 0
        # The digest of a header covers the model, the layout and the page's size.
        self._folder = PageFolder(folder / folder_name(VERSION, blake3(pack_header(pattern)).digest(16)))
        remove_older(folder, VERSION)
        try:
            self._adopt(self._blobs.sizes)
        except BaseException as error:
            self._folder.close()
            if isinstance(error, OSError):
                raise UsageError(f"The disk cache in {shown(self._folder.path)} fails: {error.strerror}.") from None
            raise
        self._thread = Thread(target=self._write_all, name="page-files", daemon=True)
        self._thread.start()

    def __contains__(self, key: PageKey, /) -> bool:
        """Whether a file has this name; only `read` says whether it is sound."""
        with self._changed:
            return key.key in self._pages

    def has_state(self, key: PageKey) -> bool:
        """Whether the file with this name has the length of a page with the recurrent state after it."""
        with self._changed:
            return key.key in self._pages and self._pages[key.key].has_state

    @property
    def problem(self) -> str | None:
        """One sentence about why pages are not written, or None once one was."""
        return self._problem

    @property
    def stats(self) -> PageFilesStats:
        with self._changed:
            counts = (self._read, self._written, self._damaged, self._failed, self._evicted)
            return PageFilesStats(self._bytes, len(self._pages), *counts)

    def read(self, key: PageKey, tokens: Sequence[int]) -> PageParts | None:
        """The page `key`, if it is there, sound, and of just these tokens.

        Anything else with that name is deleted. Raises UsageError or BlobError only for arguments that name no page.
        """
        header = self._blobs.header(key, tokens)
        if key not in self or self._closed:
            return None
        try:
            with self._folder.open(key.key) as file:
                parts = self._blobs.read(file, header)
                self._folder.stamp(file, self._stamp())
        except FileNotFoundError:
            self._forget(key.key)
            return None
        except (BlobError, OSError) as error:
            if not (isinstance(error, OSError) and error.errno in _NO_DESCRIPTORS):
                self._discard(key.key)
            return None
        with self._changed:
            self._read += 1
            if key.key in self._pages:
                self._pages.move_to_end(key.key)
        return parts

    def used(self, keys: Iterable[PageKey]) -> None:
        """Count `keys` as just used, the last one last, without touching the disk.

        For pages that were found in memory, and for the pages of a sequence from its last to its first: without its
        first page the others are of no use, so that one is evicted last.
        """
        with self._changed:
            for each in keys:
                if each.key in self._pages:
                    self._pages.move_to_end(each.key)

    def write(
        self,
        key: PageKey,
        tokens: Sequence[int],
        parts: Callable[[], PageParts],
        done: Callable[[bool], None],
        *,
        with_state: bool = False,
    ) -> None:
        """Queue a page for the writing thread, which calls `parts` and then `done` with whether the page is in the
        cache, as PageStore.write says.

        `done` must not raise. It is called at once, on this thread, where the page is there already, where writes are
        paused after a failure, and where the queue is full. Raises UsageError or BlobError for arguments that name no
        page.
        """
        job = _Job(key, self._blobs.header(key, tokens, with_state), parts, done, with_state)
        with self._changed:
            known = self._has(job)
            if not known and not self._paused() and len(self._jobs) < self._most_waiting:
                self._jobs.append(job)
                self._changed.notify_all()
                return
            self._failed += not known
        done(known)

    def flush(self, seconds: float) -> bool:
        """Wait until every queued page was tried; False if that takes longer than `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs and not self._busy, seconds)

    def close(self) -> None:
        """End the thread after the page that it writes; those that wait get False. The folder is free again."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._thread.join(_END_SECONDS)
        if not self._thread.is_alive():  # a disk that hangs keeps its descriptors until the process ends
            self._folder.close()

    def _stamp(self) -> int:
        """Nanoseconds since 1970 that grow with every call, so that file names differ by them."""
        with self._changed:
            self._stamp_ns = max(self._stamp_ns + 1, time.time_ns())
            return self._stamp_ns

    def _paused(self) -> bool:
        return self._closed or self._clock() < self._paused_until

    def _has(self, job: _Job) -> bool:
        return self.has_state(job.key) if job.with_state else job.key in self

    def _adopt(self, sizes: Mapping[int, bool]) -> None:
        """Take over the files that an earlier process left; one of another length can't be a page."""
        for key, state in self._folder.scan():
            if state.st_size in sizes:
                self._insert(key, _File(occupied_bytes(state), sizes[state.st_size]))
            else:
                self._discard(key)
        self._make_room(0)

    def _insert(self, key: bytes, file: _File) -> None:
        with self._changed:
            self._forget(key)
            self._bytes += file.occupied
            self._pages[key] = file

    def _forget(self, key: bytes) -> None:
        with self._changed:
            if key in self._pages:
                self._bytes -= self._pages.pop(key).occupied

    def _discard(self, key: bytes) -> None:
        self._forget(key)
        with self._changed:
            self._damaged += 1
        with suppress(OSError):  # what can't be deleted, such as a folder with that name, is no longer listed
            self._folder.remove(key)

    def _make_room(self, need_bytes: int) -> None:
        """Delete the longest unused pages until `need_bytes` more fit. Raises OSError where one can't be deleted."""
        while self._pages and (self._bytes + need_bytes > self._limit_bytes or len(self._pages) >= MOST_FILES):
            self._evict()

    def _evict(self) -> None:
        with self._changed:
            key, file = self._pages.popitem(last=False)
            self._bytes -= file.occupied
        try:
            with suppress(PlaceTakenError):  # then the file is gone
                self._folder.remove(key)
        except OSError:
            with self._changed:
                self._pages[key] = file
                self._pages.move_to_end(key, last=False)
                self._bytes += file.occupied
            raise
        with self._changed:
            self._evicted += 1

    def _write_all(self) -> None:
        while self._write_next():
            pass
        with self._changed:
            left = list(self._jobs)  # to which nothing is added once the cache is closed
            self._jobs.clear()
            self._changed.notify_all()
        for job in left:
            job.done(False)

    def _write_next(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if self._closed:
                return False
            job = self._jobs.popleft()
            self._busy = True
        try:
            job.done(self._store(job))
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
        return True

    def _store(self, job: _Job) -> bool:
        if self._has(job):
            return True
        if not self._paused():
            try:
                self._make_room(_room_bytes(job.header))
                name = job.key.key
                self._insert(name, _File(self._folder.write(name, job.write, self._stamp()), job.with_state))
                self._problem = None
                self._written += 1
                with suppress(OSError):
                    self._make_room(0)  # a fragmented file occupies more than its length
                return True
            except PlaceTakenError as error:
                where = shown(self._folder.path)
                _LOGGER.warning("A page is not kept in %s: %s: %s.", where, error.filename, error.strerror)
            except OSError as error:
                self._pause(error)
            except Exception as error:  # of the caller's function: the thread must outlive it
                self._problem = f"A page could not be taken over into the disk cache: {error}"
        with self._changed:
            self._failed += 1
        return False

    def _pause(self, error: OSError) -> None:
        """After a failed write: pause writes, and where the disk is full evict a sixteenth of the pages."""
        self._problem = (
            f"No page was written to {shown(self._folder.path)}: {error.strerror}. "
            f"It is tried again after {PAUSE_SECONDS} seconds."
        )
        self._paused_until = self._clock() + PAUSE_SECONDS
        if error.errno in _FULL:
            with suppress(OSError):
                for _ in range(-(-len(self._pages) // 16)):
                    self._evict()


def _room_bytes(header: BlobHeader) -> int:
    """Of the disk, for one page."""
    return -(-header.blob_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
