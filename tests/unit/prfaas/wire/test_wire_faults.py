"""What happens when the link or a peer fails: the transfer resumes, or ends with one error that says why."""

import threading

import pytest

from earthshine.errors import BlobError
from earthshine.prfaas.wire import Limits, Reason, WireError, link, session
from earthshine.prfaas.wire import peer as peers

from .ends import SECONDS, Pieces, Sink, connected, descriptors, eventually, header, request, serving
from .relay import Relay


@pytest.fixture(autouse=True)
def _short_ticks(monkeypatch):
    """Silence is noticed in a quarter of a second instead of five, but nothing is given up on a busy machine."""
    monkeypatch.setattr(link, "TICK_SECONDS", 0.05)
    monkeypatch.setattr("earthshine.prfaas.wire.server.TICK_SECONDS", 0.05)
    monkeypatch.setattr(session, "RESUME_TICKS", 600)


@pytest.fixture(autouse=True)
def _nothing_stays_open():
    before, threads = descriptors(), threading.active_count()
    yield
    eventually(lambda: descriptors() <= before and threading.active_count() <= threads)


class Gate(Sink):
    """Does something once, after `n_blocks` blocks were verified."""

    def __init__(self, pieces, n_blocks, then):
        super().__init__(pieces)
        self._left, self._then = n_blocks, then

    def block(self, piece, index):
        super().block(piece, index)
        with self.progress:
            self._left -= 1
            due = self._left == 0
        if due:
            self._then()


def _paced(pieces, outs=None):
    """A handler that gives a block only every few milliseconds, so that a fault falls between them."""

    def handler(asked, out):
        if outs is not None:
            outs.append(out)
        pieces.send(asked, out, after=lambda piece, index: threading.Event().wait(0.005))

    return handler


@pytest.mark.parametrize("fault", ["cut", "freeze"])
@pytest.mark.parametrize("connections", [1, 3])
def test_a_transfer_resumes_after_its_connections_were_lost(fault, connections):
    pieces, outs = Pieces(n_pieces=3, n_blocks=20), []
    with (
        serving(_paced(pieces, outs)) as server,
        Relay(server.port) as relay,
        connected(relay.port, connections=connections) as peer,
    ):
        sink = Gate(pieces, 25, getattr(relay, fault))
        transfer = peer.prefill(request(), sink, SECONDS)
        transfer.result()
        sink.require_sound()
        assert relay.connections > connections
        assert transfer.dropped_bytes == 0  # nothing that was verified came again
        assert transfer.received_bytes == pieces.nbytes


def test_only_what_had_not_arrived_is_sent_again():
    pieces, outs = Pieces(n_pieces=1, n_blocks=60), []
    block_bytes = pieces.pages * pieces.page_bytes
    with serving(pieces.send) as server, Relay(server.port) as relay:
        server._handler = lambda asked, out: (outs.append(out), pieces.send(asked, out))
        with connected(relay.port, connections=2, window_bytes=4 * block_bytes) as peer:
            sink = Gate(pieces, 30, relay.cut)
            peer.prefill(request(), sink, SECONDS).result()
            sink.require_sound()
    assert pieces.nbytes <= outs[0].sent_bytes <= pieces.nbytes + 4 * block_bytes


def test_repeated_cuts_lose_nothing():
    pieces = Pieces(n_pieces=4, n_blocks=25)
    with serving(_paced(pieces)) as server, Relay(server.port) as relay, connected(relay.port, connections=2) as peer:
        sinks = [Gate(pieces, 7 * (at + 1), relay.cut) for at in range(6)]
        transfers = [peer.prefill(request(f"r{at}"), sink, SECONDS) for at, sink in enumerate(sinks)]
        for transfer, sink in zip(transfers, sinks, strict=True):
            transfer.result()
            sink.require_sound()


def test_a_link_that_stays_cut_ends_the_transfer_at_both_ends(monkeypatch):
    monkeypatch.setattr(peers, "RESUME_SECONDS", 0.3)
    monkeypatch.setattr(session, "RESUME_TICKS", 6)
    pieces, outs = Pieces(n_pieces=1, n_blocks=1000), []
    with serving(_paced(pieces, outs)) as server, Relay(server.port) as relay, connected(relay.port) as peer:
        sink = Gate(pieces, 5, lambda: relay.cut(refuse=True))
        transfer = peer.prefill(request(), sink, SECONDS)
        assert transfer.wait(SECONDS)
        assert transfer.error.reason is Reason.UNREACHABLE
        sink.require_sound(complete=False)
        eventually(lambda: server.figures["requests"] == 0)
        with pytest.raises(WireError) as raised:
            outs[0].check()
        assert raised.value.reason is Reason.LOST
        eventually(lambda: server.figures["sessions"] == 0)


@pytest.mark.parametrize("offset", [*range(0, 260, 7), 5000, 33_000, 100_000])
def test_a_flipped_byte_is_noticed_and_sent_again(offset):
    """One byte of the sender's stream is changed: in WELCOME, ACCEPTED, BEGIN and its header, BLOCK and its values."""
    pieces = Pieces(n_pieces=2, n_blocks=4)
    with (
        serving(pieces.send) as server,
        Relay(server.port, flip=(offset,)) as relay,
        connected(relay.port, connections=1) as peer,
    ):
        sink = Sink(pieces)
        peer.prefill(request(), sink, SECONDS).result()
        assert relay.flipped == 1
        sink.require_sound()


@pytest.mark.parametrize("connections", [1, 3])
def test_a_block_that_is_damaged_at_its_source_ends_the_transfer(connections):
    pieces = Pieces(n_pieces=1, n_blocks=4)

    def handler(asked, out):
        out.begin(header(0))
        for index in range(4):
            out.block(index, pieces.buffers(0, index), digest=bytes(16) if index == 2 else None)
        out.end()

    with serving(handler) as server, connected(server.port, connections=connections) as peer:
        sink = Sink(pieces)
        transfer = peer.prefill(request(), sink, SECONDS)
        assert transfer.wait(SECONDS)
        assert transfer.error.reason is Reason.DAMAGED
        assert (0, 2) not in sink.verified
        sink.require_sound(complete=False)


def test_a_header_that_is_damaged_at_its_source_ends_the_transfer():
    def handler(asked, out):
        out.begin(b"x" + header(0))
        out.end()

    with serving(handler) as server, connected(server.port) as peer:
        sink = Sink(Pieces())
        transfer = peer.prefill(request(), sink, SECONDS)
        assert transfer.wait(SECONDS)
        assert transfer.error.reason is Reason.DAMAGED
        assert sink.headers == {}


@pytest.mark.parametrize("method", ["begin", "buffers", "block"])
@pytest.mark.parametrize("error", [BlobError("another model's"), ValueError("a bug")])
def test_a_sink_that_refuses_ends_its_transfer_alone(method, error):
    class Refusing(Sink):
        pass

    def refuse(*arguments):
        raise error

    setattr(Refusing, method, refuse)
    pieces = Pieces()
    with serving(pieces.send) as server, connected(server.port) as peer:
        good, bad = Sink(pieces), Refusing(pieces)
        transfers = [peer.prefill(request(f"r{at}"), sink, SECONDS) for at, sink in enumerate((bad, good))]
        assert transfers[0].wait(SECONDS)
        assert transfers[0].error.reason is Reason.REFUSED
        assert str(error) in str(transfers[0].error)
        assert len(bad.ends) == 1
        transfers[1].result()
        good.require_sound()
        eventually(lambda: server.figures["requests"] == 0)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BlobError("No page is free."), "No page is free."),
        (ValueError("secret"), "log has the cause"),
        (None, "before"),
    ],
)
def test_a_handler_that_fails_ends_its_transfer_with_the_reason(error, message):
    def handler(asked, out):
        out.begin(header(0))
        if error is not None:
            raise error

    with serving(handler) as server, connected(server.port) as peer:
        transfer = peer.prefill(request(), Sink(Pieces()), SECONDS)
        assert transfer.wait(SECONDS)
        assert transfer.error.reason is Reason.WORKER
        assert message in str(transfer.error)
        assert "secret" not in str(transfer.error)


def test_a_slow_sink_delays_only_its_own_connection_and_its_buffers_are_left_alone_afterwards():
    """While a sink is busy with a block, a cancelled transfer waits for it before it says that it has ended."""
    pieces = Pieces(n_pieces=1, n_blocks=2)
    entered, gate = threading.Event(), threading.Event()

    class Slow(Sink):
        def block(self, piece, index):
            entered.set()
            assert gate.wait(SECONDS)
            super().block(piece, index)

    with serving(pieces.send) as server, connected(server.port, connections=1) as peer:
        sink = Slow(pieces)
        transfer = peer.prefill(request(), sink, SECONDS)
        assert entered.wait(SECONDS)
        transfer.cancel()
        assert not transfer.wait(0.2)
        assert sink.ends == []
        gate.set()
        assert transfer.wait(SECONDS)
        assert [error.reason for error in sink.ends] == [Reason.CANCELLED]


def test_more_requests_than_a_sender_takes_are_refused_as_busy():
    gate = threading.Event()

    def handler(asked, out):
        assert gate.wait(SECONDS)
        out.end()

    with serving(handler, limits=Limits(most_requests=2)) as server, connected(server.port) as peer:
        first = [peer.prefill(request(f"r{at}"), Sink(Pieces()), SECONDS) for at in range(2)]
        eventually(lambda: server.figures["requests"] == 2)
        third = peer.prefill(request("r3"), Sink(Pieces()), SECONDS)
        assert third.wait(SECONDS)
        assert third.error.reason is Reason.BUSY
        gate.set()
        for transfer in first:
            transfer.result()


def test_a_prompt_longer_than_a_sender_takes_and_another_model_are_refused():
    limits = Limits(most_tokens=100)
    with (
        serving(lambda asked, out: out.end(), fingerprint="model-1", limits=limits) as server,
        connected(server.port) as peer,
    ):
        for asked, reason, text in (
            (request(n_tokens=101), Reason.LIMIT, "101 tokens; the most is 100"),
            (request(n_tokens=100, fingerprint="model-2"), Reason.MODEL, "'model-2'; this sender has 'model-1'"),
        ):
            transfer = peer.prefill(asked, Sink(Pieces()), SECONDS)
            assert transfer.wait(SECONDS)
            assert transfer.error.reason is reason
            assert text in str(transfer.error)
        peer.prefill(request(n_tokens=100), Sink(Pieces()), SECONDS).result()
