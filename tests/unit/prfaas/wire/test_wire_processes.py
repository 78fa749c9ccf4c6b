"""A sender in another process that is killed, stopped, or started again; a receiver that reads nothing."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from earthshine.prfaas.wire import Limits, Reason, link, session
from earthshine.prfaas.wire import peer as peers
from earthshine.prfaas.wire.link import Link
from earthshine.prfaas.wire.messages import Hello, Request

from .ends import SECONDS, Pieces, Sink, connected, descriptors, eventually, request, serving
from .test_wire_faults import Gate


@contextlib.contextmanager
def process(port: int = 0, n_blocks: int = 40, pause: float = 0.01) -> Iterator[tuple[subprocess.Popen, int]]:
    numbers = map(str, (port, n_blocks, pause, link.TICK_SECONDS))
    command = [sys.executable, str(Path(__file__).with_name("sender.py")), *numbers]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        try:
            yield running, int(running.stdout.readline())
        finally:
            running.kill()


@pytest.fixture(autouse=True)
def _nothing_stays_open():
    before, threads = descriptors(), threading.active_count()
    yield
    eventually(lambda: descriptors() <= before and threading.active_count() <= threads)


@pytest.fixture
def _short(monkeypatch):
    monkeypatch.setattr(link, "TICK_SECONDS", 0.1)
    monkeypatch.setattr(peers, "RESUME_SECONDS", 1.0)


@pytest.mark.usefixtures("_short")
def test_a_sender_that_is_killed_during_a_transfer_ends_it_with_what_was_verified():
    with process() as (running, port), connected(port) as peer:
        sink = Gate(Pieces(n_pieces=1, n_blocks=40), 5, running.kill)
        transfer = peer.prefill(request(), sink, SECONDS)
        assert transfer.wait(SECONDS)
        assert transfer.error.reason is Reason.UNREACHABLE
        assert len(sink.verified) >= 5
        sink.require_sound(complete=False)


def test_a_sender_that_was_killed_before_or_after_a_transfer_is_unreachable_at_once():
    pieces = Pieces(n_pieces=1, n_blocks=3)
    with process(n_blocks=3) as (running, port), connected(port) as peer:
        sink = Sink(pieces)
        peer.prefill(request(), sink, SECONDS).result()
        sink.require_sound()
        running.kill()
        running.wait()
        eventually(lambda: peer.figures().connections == 0)
        transfer = peer.prefill(request("r2"), Sink(pieces), SECONDS)
        assert transfer.wait(SECONDS)
        assert transfer.error.reason is Reason.UNREACHABLE
        assert f"127.0.0.1:{port} can't be reached: Connection refused" in str(transfer.error)


def test_a_sender_that_is_started_again_does_not_know_the_transfer_and_takes_new_ones():
    pieces = Pieces(n_pieces=1, n_blocks=40)
    with contextlib.ExitStack() as stack:
        running, port = stack.enter_context(process())
        peer = stack.enter_context(connected(port))

        def again():
            running.kill()
            running.wait()
            stack.enter_context(process(port))

        sink = Gate(pieces, 5, lambda: threading.Thread(target=again).start())
        transfer = peer.prefill(request(), sink, SECONDS)
        assert transfer.wait(SECONDS)
        assert transfer.error.reason is Reason.LOST
        assert "started again" in str(transfer.error)
        second = Sink(pieces)
        peer.prefill(request("r2"), second, SECONDS).result()
        second.require_sound()


@pytest.mark.usefixtures("_short")
def test_a_sender_that_is_stopped_is_noticed_and_the_transfer_ends():
    with process() as (running, port), connected(port) as peer:
        sink = Gate(Pieces(n_pieces=1, n_blocks=40), 5, lambda: running.send_signal(signal.SIGSTOP))
        transfer = peer.prefill(request(), sink, SECONDS)
        assert transfer.wait(SECONDS)
        assert transfer.error.reason is Reason.UNREACHABLE
        sink.require_sound(complete=False)
        running.send_signal(signal.SIGCONT)
        _take_until_complete(peer)


def _take_until_complete(peer):
    """A call that was made while the sender did not answer may still have to fail."""

    def complete():
        sink = Sink(Pieces(n_pieces=1, n_blocks=40))
        transfer = peer.prefill(request("again"), sink, SECONDS)
        assert transfer.wait(SECONDS)
        if transfer.error is None:
            sink.require_sound()
        return transfer.error is None

    eventually(complete)


def test_a_sender_that_is_stopped_for_a_moment_goes_on_with_the_transfer(monkeypatch):
    monkeypatch.setattr(link, "TICK_SECONDS", 0.1)
    with process() as (running, port), connected(port) as peer:
        noticed = threading.Event()

        def stop():
            running.send_signal(signal.SIGSTOP)
            threading.Thread(target=lambda: (noticed.wait(1.0), running.send_signal(signal.SIGCONT))).start()

        sink = Gate(Pieces(n_pieces=1, n_blocks=40), 5, stop)
        transfer = peer.prefill(request(), sink, SECONDS)
        transfer.result()
        sink.require_sound()
        assert transfer.dropped_bytes == 0


@contextlib.contextmanager
def silent_receiver(port: int, n_bytes: int) -> Iterator[socket.socket]:
    """A receiver that asks for a cache, gives credit for it, and then reads nothing."""
    sock = socket.create_connection(("127.0.0.1", port))
    link_ = Link(sock, "the server")
    try:
        link_.send(Hello(bytes(16), 1, b"").frame())
        link_.receive()
        link_.send(Request(1, n_bytes, 3_600_000, request()).frame())
        yield sock
    finally:
        link_.close()


def test_a_receiver_that_reads_nothing_is_cut_off_and_its_request_ends(monkeypatch):
    monkeypatch.setattr(link, "TICK_SECONDS", 0.05)
    monkeypatch.setattr("earthshine.prfaas.wire.server.TICK_SECONDS", 0.05)
    monkeypatch.setattr(session, "RESUME_TICKS", 5)
    ended = []

    def handler(asked, out):
        from .ends import header

        try:
            out.begin(header(0))
            out._begun.add(0)  # as if its receiver had acknowledged the header
            for index in range(64):
                out.block(index, [bytes(1 << 20)])
            out.end()
        except Exception as error:
            ended.append(error)
            raise

    with serving(handler) as server, silent_receiver(server.port, 1 << 30):
        eventually(lambda: len(ended) == 1)
        assert ended[0].reason is Reason.LOST
        eventually(lambda: server.figures == {"connections": 0, "strangers": 0, "sessions": 0, "requests": 0})


def test_a_receiver_that_never_ends_its_request_is_given_up_after_its_deadline(monkeypatch):
    monkeypatch.setattr("earthshine.prfaas.wire.server.TICK_SECONDS", 0.02)
    monkeypatch.setattr("earthshine.prfaas.wire.writer.LATE_SECONDS", 0.1)
    ended = []

    def handler(asked, out):
        try:
            out.begin(b"x" * 16)
            out.end()
        except Exception as error:
            ended.append(error.reason)
            raise

    with serving(handler, limits=Limits(most_seconds=0.2)) as server, silent_receiver(server.port, 1 << 20):
        eventually(lambda: ended == [Reason.DEADLINE])


def test_a_crowd_of_connections_takes_few_descriptors_and_threads_and_a_receiver_still_gets_through():
    """Strangers beyond the limit push out the oldest; one that greets at once is served."""
    pieces, before, threads_before = Pieces(n_pieces=1, n_blocks=3), descriptors(), threading.active_count()
    most_open = most_threads = 0
    with serving(pieces.send, limits=Limits(most_connections=40, most_strangers=16)) as server:
        for attempt in range(2000):
            crowd = socket.socket()
            crowd.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # leaves no port in TIME_WAIT
            with crowd:
                crowd.connect(("127.0.0.1", server.port))
            most_open = max(most_open, descriptors() - before)
            most_threads = max(most_threads, threading.active_count() - threads_before)
            if attempt % 500 == 0:
                with connected(server.port) as peer:
                    sink = Sink(pieces)
                    peer.prefill(request(), sink, SECONDS).result()
                    sink.require_sound()
        assert most_open < 3 * 40 + 60
        assert most_threads < 40 + 60
        eventually(lambda: server.figures["connections"] == 0)


def test_silent_strangers_are_pushed_out_by_new_ones():
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(lambda asked, out: out.end(), limits=Limits(most_strangers=4)))
        for _ in range(30):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        eventually(lambda: server.figures["connections"] <= 4)
        peer = stack.enter_context(connected(server.port, connections=1))
        peer.prefill(request(), Sink(Pieces(n_pieces=0)), SECONDS).result()
