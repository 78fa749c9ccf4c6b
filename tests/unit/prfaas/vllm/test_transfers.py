"""Prompts on their way over real connections, from one paged cache into another, and everything that can go wrong."""

import contextlib
import dataclasses
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO

import pytest
import torch

from earthshine.errors import UnavailableError
from earthshine.kv.header import pack_header, unpack_header
from earthshine.net.listen import ListenOptions
from earthshine.prfaas.vllm.orders import Load
from earthshine.prfaas.vllm.receiving import Loaded, Receiving
from earthshine.prfaas.vllm.sending import Sending
from earthshine.prfaas.wire import PrefillPeer, PrefillRequest, WireServer

from .engine import BLOCK, LAYERS, Engine, latents, paged

TOKENS = [7 * n % 501 for n in range(300)]
PAGES = 256  # tokens in whole pages
BLOCKS = [3 * n % 20 for n in range(PAGES // BLOCK)]  # of the receiver
LATE = 300.0


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


class Sender:
    """A vLLM whose connector listens. `wrap`: puts something between the handler and its writer."""

    def __init__(self, stack: contextlib.ExitStack, model: str = "m", submit=None, wrap=lambda out: out) -> None:
        self.engine = Engine(TOKENS)
        handler = Sending(self.engine.prompts, self.engine.cache.layout(model), 501, submit)
        self.server = WireServer(
            ListenOptions(port=0), lambda request, out: handler(request, wrap(out)), fingerprint=model
        )
        self.url = f"earthshine+plain://127.0.0.1:{self.server.port}"
        stack.callback(self.server.close)
        stack.callback(self.engine.prompts.close)

    def computed(self) -> "Sender":
        self.engine.step(0, len(TOKENS), new=True)
        return self


class Receiver:
    """A vLLM that fetches."""

    def __init__(
        self, stack: contextlib.ExitStack, *urls: str, model: str = "m", deadline: float = LATE, now=time.monotonic
    ) -> None:
        self.cache = paged(20)
        peers = {url: PrefillPeer(url) for url in urls}
        self.receiving = Receiving(
            self.cache,
            self.cache.layout(model),
            peers,
            most_transfers=2,
            deadline_seconds=deadline,
            retry_seconds=LATE,
            now=now,
        )
        stack.callback(self.receiving.close)
        for peer in peers.values():
            stack.callback(peer.close)

    def fetch(self, start: int = 0, tokens: list[int] = TOKENS[:PAGES]) -> Loaded:
        self.receiving.begin(Load("r", "", tokens, start, BLOCKS))
        return self.next()

    def next(self) -> Loaded:
        end = time.monotonic() + LATE
        while not (over := self.receiving.over()):
            assert time.monotonic() < end
            time.sleep(0.002)
        (one,) = over
        return one

    def has(self, start: int, end: int) -> bool:
        rows = [self.cache.read(layer, BLOCKS, start, end) for layer in range(LAYERS)]
        return all(torch.equal(found, latents(layer, start, end)) for layer, found in enumerate(rows))

    def is_empty(self) -> bool:
        return not any(self.cache.read(layer, BLOCKS, 0, PAGES).any() for layer in range(LAYERS))


def test_whole_pages_arrive_as_they_are(closing):
    receiver = Receiver(closing, Sender(closing).computed().url)
    loaded = receiver.fetch()
    assert (loaded.whole, loaded.end) == (True, PAGES)
    assert receiver.has(0, PAGES)


def test_tokens_that_are_there_are_not_written_again(closing):
    receiver = Receiver(closing, Sender(closing).computed().url)
    assert receiver.fetch(start=144).whole
    assert receiver.has(144, PAGES)
    assert not any(receiver.cache.read(layer, BLOCKS, 0, 144).any() for layer in range(LAYERS))


def test_pieces_are_sent_while_later_chunks_are_computed(closing):
    sender = Sender(closing)
    receiver = Receiver(closing, sender.url)
    receiver.receiving.begin(Load("r", "", TOKENS[:PAGES], 0, BLOCKS))
    sender.engine.step(0, 100, new=True)  # one page and a part of the next
    end = time.monotonic() + LATE
    while not receiver.has(0, 64):
        assert time.monotonic() < end
        time.sleep(0.002)
    assert not receiver.receiving.over()
    sender.engine.step(100, 230)
    sender.engine.step(230, 300)
    assert receiver.next().whole
    assert receiver.has(0, PAGES)


def test_another_model_is_refused_by_name(closing, caplog):
    receiver = Receiver(closing, Sender(closing, model="theirs").computed().url, model="ours")
    with caplog.at_level(logging.WARNING):
        assert receiver.fetch().end == 0
    assert "'theirs'" in caplog.text
    assert receiver.is_empty()


class Writer:
    """A PieceWriter whose headers and blocks `change` sees first."""

    def __init__(self, out, header=lambda header: header, block=lambda index, buffers: buffers) -> None:
        self._out, self._header, self._block = out, header, block

    def begin(self, header: bytes) -> int:
        found, _ = unpack_header(BytesIO(header), 1 << 20)
        return self._out.begin(pack_header(self._header(found)))

    def block(self, index: int, buffers) -> None:
        self._out.block(index, self._block(index, buffers))

    def __getattr__(self, name: str):
        return getattr(self._out, name)


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": tuple(range(PAGES))},
        {"prior": bytes(32)},
        {"start": 64, "prior": b"p" * 32},
        {"n_tokens": PAGES - 1, "token_ids": tuple(TOKENS[: PAGES - 1])},
        {"tail_dim": 576},
    ],
    ids=str,
)
def test_pieces_of_something_else_are_refused_before_a_row_is_written(closing, change):
    sender = Sender(closing, wrap=lambda out: Writer(out, header=lambda found: dataclasses.replace(found, **change)))
    receiver = Receiver(closing, sender.computed().url)
    assert receiver.fetch().end == 0
    assert receiver.is_empty()


def test_what_came_before_a_failure_is_kept(closing):
    blocks = []

    def failing(index, buffers):
        blocks.append(index)
        if len(blocks) == LAYERS + 2:
            raise UnavailableError("The engine is gone.")
        return buffers

    sender = Sender(closing, wrap=lambda out: Writer(out, block=failing))
    receiver = Receiver(closing, sender.url)
    receiver.receiving.begin(Load("r", "", TOKENS[:PAGES], 0, BLOCKS))
    sender.engine.step(0, 130, new=True)
    end = time.monotonic() + LATE
    while not receiver.has(0, 128):
        assert time.monotonic() < end
        time.sleep(0.002)
    sender.engine.step(130, 300)
    loaded = receiver.next()
    assert (loaded.whole, loaded.end) == (False, 128)


def test_next_peer_is_asked_where_one_is_gone(closing):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gone = f"earthshine+plain://127.0.0.1:{unused.getsockname()[1]}"
        receiver = Receiver(closing, gone, Sender(closing).computed().url)
        assert receiver.fetch().whole
    assert receiver.has(0, PAGES)


def test_loads_that_wait_do_not_try_a_peer_that_failed_meanwhile(closing, caplog):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"earthshine+plain://127.0.0.1:{unused.getsockname()[1]}"
        receiver = Receiver(closing, url, now=lambda: 0.0)  # all at once
        with caplog.at_level(logging.WARNING):
            for name in "abcdefgh":
                receiver.receiving.begin(Load(name, "", TOKENS[:PAGES], 0, BLOCKS))
            over: list[Loaded] = []
            end = time.monotonic() + LATE
            while len(over) < 8:
                assert time.monotonic() < end
                over += receiver.receiving.over()
    assert all(each.end == 0 for each in over)
    assert 1 <= len(caplog.records) <= 2  # as many as were under way at once


def test_silent_peer_ends_at_the_deadline(closing):
    silent = Sender(closing)  # whose vLLM never gets the prompt
    receiver = Receiver(closing, silent.url, deadline=0.2)
    assert receiver.fetch().end == 0
    assert receiver.is_empty()


def test_closing_ends_a_load(closing):
    receiver = Receiver(closing, Sender(closing).url)
    receiver.receiving.begin(Load("r", "", TOKENS[:PAGES], 0, BLOCKS))
    closer = threading.Thread(target=receiver.receiving.close)
    closer.start()
    closer.join(LATE)
    assert not closer.is_alive()


def test_prompt_is_given_to_vllm_unless_it_has_it(closing):
    given: list[PrefillRequest] = []

    @contextlib.contextmanager
    def submit(request: PrefillRequest) -> Iterator[Callable[[], None]]:
        given.append(request)
        sender.engine.step(0, 300, new=True)
        yield lambda: None

    sender = Sender(closing, submit=submit)
    receiver = Receiver(closing, sender.url)
    assert receiver.fetch().whole
    assert list(given[0].token_ids) == TOKENS[:PAGES]
    assert receiver.fetch().whole
    assert len(given) == 1


def test_vllm_that_refuses_a_prompt_is_quoted(closing, caplog):
    def refuse() -> None:
        raise UnavailableError("vLLM answered 400: too long")

    sender = Sender(closing, submit=lambda request: contextlib.nullcontext(refuse))
    receiver = Receiver(closing, sender.url)
    with caplog.at_level(logging.WARNING):
        assert receiver.fetch().end == 0
    assert "vLLM answered 400: too long" in caplog.text


def test_tokens_outside_the_vocabulary_do_not_reach_vllm(closing, caplog):
    sender = Sender(closing, submit=lambda request: pytest.fail("vLLM was asked"))
    receiver = Receiver(closing, sender.url)
    with caplog.at_level(logging.WARNING):
        assert receiver.fetch(tokens=[*TOKENS[: PAGES - 1], 501]).end == 0
    assert "below 501 in this model; the prompt has 501" in caplog.text
