"""Transfers between two ends over loopback, without faults."""

import subprocess
import sys
import threading

import pytest

from earthshine.errors import UsageError
from earthshine.net.listen import ListenOptions
from earthshine.prfaas.wire import PrefillPeer, PrefillRequest, Reason, WireError, WireServer

from .ends import SECONDS, Pieces, Sink, connected, descriptors, eventually, request, serving


@pytest.mark.parametrize("connections", [1, 4])
def test_pieces_arrive_whole_in_the_sinks_own_buffers(connections):
    pieces = Pieces(n_pieces=3, n_blocks=7)
    seen = []

    def handler(asked, out):
        seen.append(asked)
        pieces.send(asked, out)

    with serving(handler) as server, connected(server.port, connections=connections) as peer:
        asked = request(start=64, parts=(0, 1, 5))
        sink = Sink(pieces)
        transfer = peer.prefill(asked, sink, SECONDS)
        transfer.result()
        sink.require_sound()
        assert transfer.received_bytes == pieces.nbytes
        assert sink.ends == [None]
        arrived = seen[0]
        assert (arrived.request_id, arrived.tenant, arrived.fingerprint) == ("r1", "t", "model-1")
        assert (list(arrived.token_ids), arrived.start, arrived.parts) == (list(range(300)), 64, (0, 1, 5))


def test_many_transfers_share_the_connections_of_a_peer():
    pieces = Pieces(n_pieces=2, n_blocks=4, page_bytes=5000)
    with serving(pieces.send) as server, connected(server.port, connections=3) as peer:
        sinks = [Sink(pieces) for _ in range(30)]
        transfers = [peer.prefill(request(f"r{at}"), sink, SECONDS) for at, sink in enumerate(sinks)]
        for transfer, sink in zip(transfers, sinks, strict=True):
            transfer.result()
            sink.require_sound()
        assert server.figures["connections"] <= 3


def test_blocks_are_sent_while_later_ones_are_computed():
    pieces = Pieces(n_pieces=1, n_blocks=3)
    arrived = threading.Semaphore(0)

    def handler(asked, out):
        pieces.send(asked, out, after=lambda piece, index: arrived.acquire(timeout=SECONDS))

    class Telling(Sink):
        def block(self, piece, index):
            super().block(piece, index)
            arrived.release()

    with serving(handler) as server, connected(server.port) as peer:
        sink = Telling(pieces)
        peer.prefill(request(), sink, SECONDS).result()
        assert [index for _, index in sink.verified] == [0, 1, 2]


def test_a_sender_waits_for_credit():
    pieces = Pieces(n_pieces=1, n_blocks=20)
    block_bytes = pieces.pages * pieces.page_bytes
    gate = threading.Event()
    given = []

    class Slow(Sink):
        def block(self, piece, index):
            assert gate.wait(SECONDS)
            super().block(piece, index)

    def handler(asked, out):
        pieces.send(asked, out, after=lambda piece, index: given.append(index))

    with serving(handler) as server, connected(server.port, window_bytes=4 * block_bytes) as peer:
        sink = Slow(pieces)
        transfer = peer.prefill(request(), sink, SECONDS)
        eventually(lambda: len(given) == 4)
        assert not transfer.wait(0.3)
        assert len(given) == 4
        gate.set()
        transfer.result()
        sink.require_sound()


def test_a_block_larger_than_the_window_is_sent_alone():
    pieces = Pieces(n_pieces=1, n_blocks=3)
    with serving(pieces.send) as server, connected(server.port, window_bytes=1) as peer:
        sink = Sink(pieces)
        peer.prefill(request(), sink, SECONDS).result()
        sink.require_sound()


def test_an_empty_transfer_and_empty_blocks_are_complete():
    for pieces in (Pieces(n_pieces=0), Pieces(n_pieces=1, n_blocks=2, pages=1, page_bytes=0)):
        with serving(pieces.send) as server, connected(server.port) as peer:
            peer.prefill(request(), Sink(pieces), SECONDS).result()


def test_descriptors_and_threads_return_when_both_ends_close():
    pieces = Pieces()
    before, threads = descriptors(), threading.active_count()
    with serving(pieces.send) as server, connected(server.port) as peer:
        peer.prefill(request(), Sink(pieces), SECONDS).result()
    eventually(lambda: descriptors() <= before and threading.active_count() <= threads)


def test_a_cancelled_transfer_ends_at_both_ends():
    pieces = Pieces(n_pieces=1, n_blocks=1000)
    reasons = []

    def handler(asked, out):
        try:
            while True:
                pieces.send(asked, out)
        except WireError as error:
            reasons.append(error.reason)
            raise

    class Refusing(Sink):
        def block(self, piece, index):
            super().block(piece, index)
            if len(self.verified) == 3:
                threading.Thread(target=transfer.cancel).start()

    with serving(handler) as server, connected(server.port) as peer:
        sink = Refusing(pieces)
        transfer = peer.prefill(request(), sink, SECONDS)
        assert transfer.wait(SECONDS)
        assert transfer.error.reason is Reason.CANCELLED
        sink.require_sound(complete=False)
        eventually(lambda: reasons == [Reason.CANCELLED])
        eventually(lambda: server.figures["requests"] == 0)


def test_a_transfer_ends_at_its_deadline_with_what_was_verified():
    def handler(asked, out):
        pieces.send(asked, out, after=lambda piece, index: index < 1 or threading.Event().wait(0.01) or out.check())

    pieces = Pieces(n_pieces=1, n_blocks=100_000)
    with serving(handler) as server, connected(server.port) as peer:
        sink = Sink(pieces)
        transfer = peer.prefill(request(), sink, 0.5)
        assert transfer.wait(SECONDS)
        assert transfer.error.reason is Reason.DEADLINE
        sink.require_sound(complete=False)
        eventually(lambda: server.figures["requests"] == 0)


def test_figures_of_the_link_come_from_the_sender():
    pieces = Pieces()
    with serving(pieces.send) as server, connected(server.port, connections=2) as peer:
        assert peer.figures().rtt_seconds == 0
        peer.prefill(request(), Sink(pieces), SECONDS).result()
        eventually(lambda: peer.figures().rtt_seconds > 0)
        found = peer.figures()
        assert 0 < found.rtt_least_seconds <= 10 * found.rtt_seconds
        assert 0 <= found.retransmitted <= 1
        assert found.bytes_per_second > 0


@pytest.mark.parametrize(
    "url",
    [
        "",
        "10.0.0.1:5",
        "http://h:5",
        "earthshine://h",
        "earthshine://u@h:5",
        "earthshine://h:5/x",
        "earthshine://h:99999",
    ],
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(UsageError, match="not the address of a peer"):
        PrefillPeer(url)


def test_plain_connections_leave_this_machine_only_where_named():
    with pytest.raises(UsageError, match="allow-plain"):
        PrefillPeer("earthshine+plain://192.0.2.7:5000")
    PrefillPeer("earthshine+plain://192.0.2.7:5000", allow_plain=("192.0.2.7",)).close()
    with pytest.raises(UsageError, match="in the clear"):
        WireServer(ListenOptions(host="0.0.0.0", port=0), lambda asked, out: None)
    with pytest.raises(UsageError, match="tokens are needed"):
        WireServer(ListenOptions(host="0.0.0.0", port=0), lambda asked, out: None, allow_plain=("0.0.0.0",))


def test_a_request_that_can_not_be_sent_names_what_is_wrong():
    for changes in ({"n_tokens": 0}, {"start": 300}, {"tenant": "t" * 300}, {"parts": (-1,)}, {"handle": b"h" * 300}):
        with pytest.raises(UsageError):
            request(**changes)
    with pytest.raises(UsageError, match="4294967295"):
        PrefillRequest("r", "t", "m", [1 << 32]).token_digest()


def test_the_wire_imports_nothing_heavy():
    heavy = ["torch", "numpy", "h11", "uvicorn", "starlette", "asyncio", "pydantic"]
    code = f"import sys, earthshine.prfaas.wire; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
