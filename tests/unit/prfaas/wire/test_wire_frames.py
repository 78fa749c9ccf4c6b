"""The bytes of the wire: what is written is read again, and nothing else crashes the reader or takes memory."""

import socket
import threading
from collections import Counter

import fuzz_wire
import pytest
from hypothesis import given
from hypothesis import strategies as st

from earthshine.prfaas.wire import PrefillRequest, Reason, WireError
from earthshine.prfaas.wire.frames import HEAD, MOST_BODY_BYTES, Kind, check_of, frame, read_head
from earthshine.prfaas.wire.link import Link
from earthshine.prfaas.wire.messages import Ack, Arrived, Begin, Block, End, Failure, Request, Resume, Welcome

from .ends import SECONDS, Pieces, Sink, connected, header, request

u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


def test_a_sound_frame_of_every_kind_is_read_as_it_was_written():
    kinds = Counter()
    for raw in fuzz_wire.samples():
        assert fuzz_wire.read(raw).frame() == raw
        kinds[raw[1]] += 1
    assert set(kinds) == set(Kind)


@given(
    credit=u64,
    ms=u32,
    ids=st.lists(u32, min_size=1, max_size=50),
    name=st.text(max_size=60),
    handle=st.binary(max_size=60),
)
def test_a_request_is_read_as_it_was_written(credit, ms, ids, name, handle):
    asked = PrefillRequest(name, name[:3], name[:9], ids, len(ids) - 1, (3, 1), handle)
    found = fuzz_wire.read(Request(7, credit, ms, asked).frame())
    assert (found.credit, found.deadline_ms, list(found.request.token_ids)) == (credit, ms, ids)
    assert (found.request.request_id, found.request.parts, found.request.handle) == (name, (3, 1), handle)
    assert found.request.binding() == asked.binding()


def test_damaged_frames_are_read_or_refused_within_a_bound_of_memory():
    found = fuzz_wire.fuzz(20_000, seed=1)
    assert found.read.total() + found.refused.total() == 20_000
    assert set(found.refused) >= {"PROTOCOL", "DAMAGED", "VERSION", "LENGTH"}
    assert len(found.read) >= 11  # every class of message came through at times


def test_any_changed_byte_of_a_frame_is_noticed():
    for raw in fuzz_wire.samples():
        for at in range(len(raw)):
            changed = bytearray(raw)
            changed[at] ^= 0x10
            with pytest.raises(WireError):
                fuzz_wire.read(bytes(changed))


def test_another_version_is_named():
    raw = bytearray(frame(Kind.PING))
    raw[0] = 9
    with pytest.raises(WireError, match="version 9") as raised:
        fuzz_wire.read(bytes(fuzz_wire.mended(raw)))
    assert raised.value.reason is Reason.VERSION


@pytest.mark.parametrize("kind", Kind)
def test_a_length_beyond_the_limit_is_refused_before_anything_is_allocated(kind):
    for size in (MOST_BODY_BYTES[kind] + 1, 2**32 - 1):
        with pytest.raises(WireError, match="the most is") as raised:
            read_head(HEAD.pack(1, kind, check_of(1, kind, size, 0), size, 0, 0))
        assert raised.value.reason is Reason.PROTOCOL


class FalseSender:
    """Greets, and then sends what `lies` makes of the request's number."""

    def __init__(self, lies) -> None:
        self._lies, self._closed = lies, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.greeted = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                sock = self._listener.accept()[0]
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
            self._threads[-1].start()

    def _serve(self, sock) -> None:
        link = Link(sock, "the receiver")
        try:
            link.receive()
            self.greeted += 1
            link.send(Welcome(b"i" * 16, 8, 1 << 20, 64).frame())
            while True:
                message = link.receive()
                if isinstance(message, Request):
                    link.send(b"".join(self._lies(message.transfer)))
        except WireError:
            pass
        finally:
            link.close()

    def __enter__(self) -> "FalseSender":
        return self

    def __exit__(self, *raised: object) -> None:
        self._closed = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


def block(transfer, nbytes, seq=1, index=0):
    return Block(transfer, seq, 0, index, nbytes, bytes(16)).frame()


LIES = {
    "a longer block": (Reason.LENGTH, lambda t: [Begin(t, 0, 0, header(0)).frame(), block(t, 30_001), bytes(30_001)]),
    "a shorter block": (Reason.LENGTH, lambda t: [Begin(t, 0, 0, header(0)).frame(), block(t, 29_999), bytes(29_999)]),
    "a block of 1 GiB": (Reason.LENGTH, lambda t: [Begin(t, 0, 0, header(0)).frame(), block(t, 1 << 30)]),
    "a block of 1 TiB": (Reason.LENGTH, lambda t: [Begin(t, 0, 0, header(0)).frame(), block(t, 1 << 40)]),
    "a block without a header": (Reason.PROTOCOL, lambda t: [block(t, 30_000)]),
    "a header of 4 GiB": (Reason.PROTOCOL, lambda t: [HEAD.pack(1, 6, check_of(1, 6, 2**32 - 1, t), 2**32 - 1, t, 0)]),
    "two headers": (Reason.PROTOCOL, lambda t: [Begin(t, seq, 0, header(0)).frame() for seq in (0, 1)]),
    "two ends": (Reason.PROTOCOL, lambda t: [End(t, 5).frame(), End(t, 6).frame()]),
    "a receiver's frame": (Reason.PROTOCOL, lambda t: [Ack(t, 0, [0]).frame()]),
    "a resumption": (Reason.PROTOCOL, lambda t: [Resume(1, t, (Arrived(t, 0, 0, []),)).frame()]),
    "noise": (Reason.DAMAGED, lambda t: [b"HTTP/1.1 200 OK\r\n\r\n" * 3]),
    "a failure": (Reason.WORKER, lambda t: [Failure(t, 0, Reason.WORKER, "no \ud800 page").frame()]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_sender_that_lies_ends_the_transfer_with_the_reason(lie):
    reason, lies = LIES[lie]
    with FalseSender(lies) as sender, connected(sender.port, connections=1) as peer:
        sink = Sink(Pieces(n_pieces=1, n_blocks=2))
        transfer = peer.prefill(request(), sink, SECONDS)
        assert transfer.wait(SECONDS)
        assert transfer.error.reason is reason
        assert sink.verified == []
        assert len(sink.ends) == 1


def test_a_sender_that_hangs_up_after_greeting_is_not_called_without_end():
    """The deadline ends the transfer, and the calls become rarer."""

    def hang_up(transfer):
        raise WireError(Reason.LOST, "enough")

    with FalseSender(hang_up) as sender, connected(sender.port, connections=1) as peer:
        transfer = peer.prefill(request(), Sink(Pieces()), 1.0)
        assert transfer.wait(SECONDS)
        assert transfer.error.reason is Reason.DEADLINE
        assert sender.greeted <= 8  # pauses of 50, 100, 200, 400 ms
