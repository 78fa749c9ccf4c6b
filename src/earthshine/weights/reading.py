"""Reads of published bytes, past the page cache where the file system can, by a few threads with a queue.

Invariant: a ticket that succeeds has filled its buffers with the file's bytes as they were when the file was opened;
anything else is a CheckpointError that names the file. A file that shrank, grew or was written to since is refused.
Demand reads go before prefetches. A buffer belongs to the reader until its ticket has ended: after an interrupted wait,
call `cancel` or `wait` before using it.
"""

import errno
import fcntl
import heapq
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import numpy as np

from earthshine.errors import CheckpointError, UsageError
from earthshine.storage import ALIGNMENT, padded
from earthshine.untrusted import open_regular, shown

# A decoded layer that misses 5 experts of 24.8 MB, medians of five interleaved runs: 1, 2 and 3 threads take 32.5,
# 33.4 and 35.7 ms, and 53.9, 49.0 and 50.3 where each expert's checksum is verified. More in flight bring the
# first expert later; fewer leave the disk idle during a check.
THREADS = 2

ReadProgress = Callable[[int, int], None]  # bytes done, bytes in all
Check = Callable[[], None]  # judges what was read; raises CheckpointError


class Priority(IntEnum):
    """The urgency of a read. Lower numbers go first, equal ones in the order of submission."""

    DEMAND = 0
    PREFETCH = 1


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """`nbytes` bytes of `file` from `offset`, which are read to `buffer[offset % ALIGNMENT:]`.

    The buffer must begin at a multiple of ALIGNMENT in memory and have at least `padded(offset, nbytes)` bytes. Bytes
    around those requested are overwritten too.
    """

    file: Path
    offset: int
    nbytes: int
    buffer: memoryview


class Ticket:
    """A read of one or more segments, queued or about to be."""

    __slots__ = ("_begun", "_done", "_error", "_gate", "_priority", "_reader", "check", "segments")

    def __init__(self, reader: "Reader", segments: Sequence[Segment], check: Check | None) -> None:
        self.segments = tuple(segments)
        self.check = check
        self._reader = reader
        self._priority = Priority.DEMAND
        self._begun = False
        self._error: BaseException | None = None
        self._done = False
        self._gate = threading.Lock()  # held until the read has ended
        self._gate.acquire()

    @property
    def ended(self) -> bool:
        """Whether the reader is done with the buffers, successfully or not."""
        return self._done

    def wait(self) -> None:
        """Wait until the bytes have been read. Raises CheckpointError, at every call, where they can't be read.

        A read that is waited for takes precedence over prefetches.
        """
        self.hasten()
        self.settle()
        if self._error is not None:
            raise self._error

    def hasten(self) -> None:
        """Give a waiting read precedence over prefetches. Has no effect once it has begun."""
        self._reader._hasten(self)

    def settle(self) -> None:
        """Wait until the reader is done with the buffers, successfully or not."""
        while not self._done:
            with self._gate:
                pass

    def cancel(self) -> bool:
        """Cancel the read if it has not begun. Returns whether the buffers are free now."""
        return self._reader._cancel(self)

    def _end(self, error: BaseException | None) -> None:
        if not self._done:
            self._error, self._done = error, True
            self._gate.release()


@dataclass(slots=True, eq=False)
class _File:
    descriptor: int
    name: str
    nbytes: int
    mtime_ns: int
    direct: bool


class Reader:
    """Threads that read files. A context manager, or call `close`. Thread-safe."""

    def __init__(self, *, threads: int = THREADS, direct: bool = True) -> None:
        if threads < 1:
            raise UsageError("A reader needs one thread or more.")
        self._wanted = threads
        self._asked_direct = direct
        self._files: dict[Path, _File] = {}
        self._queue: list[tuple[int, int, Ticket]] = []
        self._asked = 0
        # Plain locks and a queue written in C: an interrupt can't leave one of these half taken, as it can a Condition.
        self._lock = threading.Lock()
        self._wake: SimpleQueue[None] = SimpleQueue()  # one entry or more for each read that waits, put first
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._reason = "" if direct else "Reads past the page cache are turned off."
        self._rereads = 0

    @property
    def direct(self) -> bool:
        """Whether every read so far went past the page cache."""
        return not self._reason

    @property
    def reason(self) -> str:
        """Why reads go through the page cache; empty where they do not."""
        return self._reason

    @property
    def rereads(self) -> int:
        """The number of reads that were repeated because the first result did not pass its check."""
        return self._rereads

    def open(self, file: Path, nbytes: int | None = None) -> None:
        """Open a regular file at a resolved path. It must not change from now on. Opening it again has no effect.

        Raises CheckpointError where it can't be opened or does not have `nbytes` bytes.
        """
        with self._lock:
            self._require_open()
            while len(self._threads) < self._wanted:
                self._start()
            opened = self._files.get(file)
            if opened is None:
                opened = self._files[file] = self._opened(file)
        if nbytes is not None and opened.nbytes != nbytes:
            raise CheckpointError(
                f"{opened.name} has {opened.nbytes} bytes now and had {nbytes}; it was changed after its header was "
                "read."
            )

    def submit(
        self,
        file: Path,
        offset: int,
        nbytes: int,
        buffer: memoryview,
        priority: Priority = Priority.DEMAND,
        check: Check | None = None,
    ) -> Ticket:
        """Queue the read of one Segment. See Segment for where the bytes arrive, and `ticket` for `check`."""
        ticket = self.ticket((Segment(file, offset, nbytes, buffer),), check)
        self.queue(ticket, priority)
        return ticket

    def ticket(self, segments: Sequence[Segment], check: Check | None = None) -> Ticket:
        """A read that is not queued yet, so that its owner can record its buffers before it begins.

        `check` is called on the reading thread. If it raises, everything is read and checked once more, and a second
        CheckpointError is the ticket's. Raises UsageError for a buffer that is too small or not aligned.
        """
        for segment in segments:
            self.open(segment.file)
            _require_room(segment)
        return Ticket(self, segments, check)

    def queue(self, ticket: Ticket, priority: Priority = Priority.DEMAND) -> None:
        """Queue a ticket's read. May be called once per ticket."""
        with self._lock:
            self._require_open()
            self._asked += 1
            ticket._priority = priority
            self._wake.put(None)
            heapq.heappush(self._queue, (priority, self._asked, ticket))

    def close(self) -> None:
        """Cancel queued reads, wait for running ones, and close the files. May be called twice."""
        with self._lock:
            self._closed = True
            for _, _, ticket in self._queue:
                ticket._end(CheckpointError("The checkpoint was closed before this was read."))
            self._queue.clear()
            for _ in self._threads:
                self._wake.put(None)
        for thread in self._threads:
            thread.join()
        for file in self._files.values():
            os.close(file.descriptor)
        self._files.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError("The reader is closed.")

    def _opened(self, file: Path) -> _File:
        name = shown(file.name)
        descriptor = open_regular(file, name, CheckpointError)
        found = os.fstat(descriptor)
        return _File(descriptor, name, found.st_size, found.st_mtime_ns, self._asked_direct and self._past(descriptor))

    def _past(self, descriptor: int) -> bool:
        """Whether the descriptor's reads now go past the page cache."""
        flag = getattr(os, "O_DIRECT", None)
        if flag is None:
            self._reason = "This system has no O_DIRECT, so reads go through the page cache."
            return False
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | flag)
        except OSError:
            self._reason = "The model's file system takes no O_DIRECT, so reads go through the page cache."
            return False
        return True

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name="earthshine-reader", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise UsageError("This system grants no thread more, and reading from disk needs one.") from None
            self._wanted = len(self._threads)
            return
        self._threads.append(thread)

    def _hasten(self, ticket: Ticket) -> None:
        """Makes demand of a prefetch that has not begun; does nothing to any other."""
        if ticket._priority is Priority.DEMAND or ticket.ended:
            return
        with self._lock:
            ticket._priority = Priority.DEMAND
            self._queue = [(Priority.DEMAND, n, t) if t is ticket else (p, n, t) for p, n, t in self._queue]
            heapq.heapify(self._queue)

    def _cancel(self, ticket: Ticket) -> bool:
        with self._lock:
            if not ticket._begun:  # a thread that finds it in the queue leaves it alone
                ticket._end(CheckpointError("This read was cancelled."))
        return ticket.ended

    def _serve(self) -> None:
        while True:
            self._wake.get()
            with self._lock:
                if self._closed:
                    return
                if not self._queue:
                    continue
                _, _, ticket = heapq.heappop(self._queue)
                if ticket.ended:
                    del ticket
                    continue
                ticket._begun = True
            try:
                self._fill(ticket)
            except BaseException as error:  # the waiting thread must learn of any error
                ticket._end(error)
            else:
                ticket._end(None)
            del ticket  # its buffers must not be held while this thread sleeps

    def _fill(self, ticket: Ticket) -> None:
        for segment in ticket.segments:
            self._read(segment)
        if ticket.check is None:
            return
        try:
            ticket.check()
        except CheckpointError:
            with self._lock:
                self._rereads += 1
            for segment in ticket.segments:
                self._read(segment)
            ticket.check()

    def _read(self, segment: Segment) -> None:
        file = self._files[segment.file]
        lead = segment.offset % ALIGNMENT
        start, needed = segment.offset - lead, lead + segment.nbytes
        view = segment.buffer[: padded(segment.offset, segment.nbytes)]
        done = 0
        while done < needed:
            whole = done - done % ALIGNMENT  # O_DIRECT continues at a multiple, after a short read too
            direct = file.direct
            try:
                count = os.preadv(file.descriptor, [view[whole:]], start + whole)
            except OSError as error:
                if direct and error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                    self._go_through_the_cache(file, error)
                    continue
                why = error.strerror
                raise CheckpointError(f"{file.name} can't be read at byte {start + whole}: {why}.") from None
            if whole + count <= done:
                _require_unchanged(file)
                end = segment.offset + segment.nbytes
                raise CheckpointError(f"{file.name} ends at byte {start + done}, before {end}.")
            done = whole + count
        _require_unchanged(file)

    def _go_through_the_cache(self, file: _File, error: OSError) -> None:
        """Turns O_DIRECT off for a file whose reads it makes fail; two threads may find that out at once."""
        with self._lock:
            flags = fcntl.fcntl(file.descriptor, fcntl.F_GETFL)
            fcntl.fcntl(file.descriptor, fcntl.F_SETFL, flags & ~getattr(os, "O_DIRECT", 0))
            file.direct = False
            self._reason = f"A read past the page cache failed ({error.strerror}), so reads go through it."


def _require_room(segment: Segment) -> None:
    if segment.offset < 0 or segment.nbytes < 0:
        raise UsageError("A read begins at a byte of the file and has a length.")
    where = np.frombuffer(segment.buffer, dtype=np.uint8)
    if where.ctypes.data % ALIGNMENT or len(where) < padded(segment.offset, segment.nbytes):
        raise UsageError(
            f"A read's buffer begins at a multiple of {ALIGNMENT} and holds whole pages around what is read."
        )


def _require_unchanged(file: _File) -> None:
    found = os.fstat(file.descriptor)
    if found.st_size != file.nbytes:
        was, now = file.nbytes, found.st_size
        raise CheckpointError(f"{file.name} was changed while in use, from {was} to {now} bytes. Load the model again.")
    if found.st_mtime_ns != file.mtime_ns:
        raise CheckpointError(f"{file.name} was written to while in use. Load the model again.")
