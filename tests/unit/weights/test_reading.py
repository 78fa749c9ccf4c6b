"""Reads past the page cache: the right bytes or an error, in order of priority, also after interrupts."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from earthshine.errors import CheckpointError, UsageError
from earthshine.storage import ALIGNMENT as PAGE
from earthshine.storage import padded
from earthshine.weights.reading import Priority, Reader, Segment
from earthshine.weights.slots import Arena

SIZE = 5 * PAGE + 777


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shard.safetensors"
    path.write_bytes(os.urandom(SIZE))
    return path


def test_any_range_arrives_at_its_place_in_a_page(file: Path) -> None:
    whole, buffer = file.read_bytes(), Arena(8 * PAGE, 1).view(0)
    ranges = [(0, 1), (0, SIZE), (1, PAGE), (PAGE - 1, 2), (PAGE, PAGE), (SIZE - 1, 1), (5 * PAGE, 777), (9, 0)]
    with Reader() as reader:
        for offset, nbytes in ranges:
            reader.submit(file, offset, nbytes, buffer).wait()
            assert buffer[offset % PAGE :][:nbytes] == whole[offset : offset + nbytes]
        assert (reader.direct, reader.reason, reader.rereads) == (True, "", 0)


@pytest.mark.parametrize("most", [1, 100, PAGE, PAGE + 1])
def test_short_read_is_continued(file: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Through the page cache, which takes any length; a read that brings less than a page of a last page ends."""
    real = os.preadv

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return real(descriptor, [buffers[0][: PAGE + most]], offset)

    monkeypatch.setattr("earthshine.weights.reading.os.preadv", short)
    buffer = Arena(8 * PAGE, 1).view(0)
    with Reader(direct=False) as reader:
        reader.submit(file, 5, SIZE - 5, buffer).wait()
        assert buffer[5:SIZE] == file.read_bytes()[5:]
        assert (reader.direct, reader.reason) == (False, "Reads past the page cache are turned off.")


def test_a_file_that_ends_early_or_changed_is_named(file: Path) -> None:
    buffer = Arena(8 * PAGE, 1).view(0)
    with Reader() as reader:
        for offset in (SIZE - 1, SIZE, 9 * PAGE):
            with pytest.raises(CheckpointError, match=r"'shard.safetensors' ends at byte \d+, before"):
                reader.submit(file, offset, 2, buffer).wait()
        with pytest.raises(CheckpointError, match=f"has {SIZE} bytes now and had {SIZE + 1}"):
            reader.open(file, SIZE + 1)
        os.utime(file, ns=(1, 1))
        with pytest.raises(CheckpointError, match=r"'shard.safetensors' was written to while in use"):
            reader.submit(file, 0, 2, buffer).wait()
        os.truncate(file, 100)
        with pytest.raises(CheckpointError, match=f"from {SIZE} to 100 bytes"):
            reader.submit(file, 50, 200, buffer).wait()
        with pytest.raises(CheckpointError, match="can't be opened"):
            reader.submit(file.with_name("absent"), 0, 1, buffer)
        with pytest.raises(CheckpointError, match="is not a regular file"):
            reader.open(file.parent)


def test_disk_error_is_raised_and_the_next_read_works(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = Arena(8 * PAGE, 1).view(0)

    def failing(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with Reader() as reader, monkeypatch.context() as patched:
        patched.setattr("earthshine.weights.reading.os.preadv", failing)
        ticket = reader.submit(file, 2 * PAGE + 1, 2, buffer)
        for _ in range(2):
            with pytest.raises(CheckpointError, match=f"can't be read at byte {2 * PAGE}: Input/output error"):
                ticket.wait()
        patched.undo()
        reader.submit(file, 2 * PAGE + 1, 2, buffer).wait()
        assert reader.direct


def test_failing_direct_reads_fall_back_to_the_page_cache_with_a_reason(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, buffer = os.preadv, Arena(8 * PAGE, 1).view(0)
    asked = []

    def refusing(descriptor: int, *rest: Any) -> int:
        asked.append(os.get_blocking(descriptor))
        if len(asked) == 1:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, *rest)

    monkeypatch.setattr("earthshine.weights.reading.os.preadv", refusing)
    with Reader() as reader:
        reader.submit(file, 3, SIZE - 3, buffer).wait()
        assert buffer[3:SIZE] == file.read_bytes()[3:]
        assert reader.reason == "A read past the page cache failed (Invalid argument), so reads go through it."
        assert (len(asked), reader.direct) == (2, False)


def blocked(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], threading.Event, threading.Event]:
    """Offsets in the order in which they are read, once the gate opens; the second event says that a read began."""
    order: list[int] = []
    gate, begun = threading.Event(), threading.Event()
    real = Reader._read

    def reading(self: Reader, segment: Segment) -> None:
        begun.set()
        assert gate.wait(300)
        order.append(segment.offset)
        real(self, segment)

    monkeypatch.setattr(Reader, "_read", reading)
    return order, gate, begun


def test_demand_goes_before_prefetch_and_a_cancelled_read_never_begins(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = Arena(PAGE, 6)
    with Reader(threads=1) as reader:
        order, gate, begun = blocked(reader, monkeypatch)
        first = reader.submit(file, 0, 1, arena.view(0))
        assert begun.wait(300)
        late = [reader.submit(file, n, 1, arena.view(n), Priority.PREFETCH) for n in (1, 2)]
        soon = [reader.submit(file, n, 1, arena.view(n)) for n in (3, 4, 5)]
        assert (soon[1].cancel(), soon[1].cancel(), first.cancel(), first.ended) == (True, True, False, False)
        gate.set()
        for ticket in (*late, first, soon[0], soon[2]):
            ticket.settle()
        assert order == [0, 3, 5, 1, 2]
        with pytest.raises(CheckpointError, match="cancelled"):
            soon[1].wait()


def test_a_prefetch_that_is_waited_for_goes_before_the_others(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(PAGE, 4)
    with Reader(threads=1) as reader:
        order, gate, begun = blocked(reader, monkeypatch)
        tickets = [reader.submit(file, n, 1, arena.view(n), Priority.PREFETCH) for n in range(4)]
        assert begun.wait(300)
        threading.Timer(0.05, gate.set).start()
        tickets[3].wait()
        for ticket in tickets:
            ticket.wait()
        assert order == [0, 3, 1, 2]


def test_closing_ends_every_ticket(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(PAGE, 2)
    reader = Reader(threads=1)
    order, gate, begun = blocked(reader, monkeypatch)
    tickets = [reader.submit(file, n, 1, arena.view(n)) for n in (0, 1)]
    assert begun.wait(300)
    threading.Timer(0.05, gate.set).start()
    reader.close()
    reader.close()
    assert (order, [ticket.ended for ticket in tickets]) == ([0], [True, True])
    tickets[0].wait()
    with pytest.raises(CheckpointError, match="closed before this was read"):
        tickets[1].wait()
    with pytest.raises(UsageError, match="The reader is closed"):
        reader.submit(file, 0, 1, arena.view(0))


def test_what_fails_its_check_is_read_once_more(file: Path) -> None:
    buffer, failures = Arena(8 * PAGE, 1).view(0), [1]

    def check() -> None:
        assert buffer[:4] == file.read_bytes()[:4]
        buffer[:4] = b"\0\0\0\0"  # so that only a new read passes the line above
        if failures[0]:
            failures[0] -= 1
            raise CheckpointError("spoilt")

    with Reader() as reader:
        reader.submit(file, 0, 4, buffer, check=check).wait()
        assert (reader.rereads, failures) == (1, [0])
        failures[0] = 2
        with pytest.raises(CheckpointError, match="spoilt"):
            reader.submit(file, 0, 4, buffer, check=check).wait()
        assert (reader.rereads, failures) == (2, [0])


def test_a_buffer_that_pages_do_not_fit_is_refused(file: Path) -> None:
    view = Arena(3 * PAGE, 1).view(0)
    assert (padded(PAGE - 1, 2), padded(0, PAGE), padded(5, 0)) == (2 * PAGE, PAGE, PAGE)
    with Reader() as reader:
        for offset, nbytes, buffer in [(0, 1, view[1:]), (0, PAGE + 1, view[:PAGE]), (PAGE - 1, 2, view[:PAGE])]:
            with pytest.raises(UsageError, match="a multiple of 4096 and holds whole pages"):
                reader.submit(file, offset, nbytes, buffer)
        with pytest.raises(UsageError, match="begins at a byte"):
            reader.submit(file, -1, 1, view)
