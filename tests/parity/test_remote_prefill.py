"""Two engines in one process, a worker and a server that borrows from it, over real sockets and for every kind of
attention: the replies are those of an engine alone, whatever becomes of a transfer."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from earthshine.engine import (
    Admitted,
    Engine,
    EngineOptions,
    Failed,
    Finished,
    LoadedModel,
    Request,
    SamplingParams,
    TokenEvent,
    load_model,
)
from earthshine.errors import OverloadError
from earthshine.net.listen import ListenOptions
from earthshine.plan import PlanArgs
from earthshine.prfaas import client, live
from earthshine.prfaas.client import RemotePrefill
from earthshine.prfaas.curve import Curve
from earthshine.prfaas.live import LiveFleet
from earthshine.prfaas.profile import Profile
from earthshine.prfaas.wire import PrefillPeer, PrefillRequest, Reason, WireError, WireServer
from earthshine.prfaas.worker import PrefillWorker

from .tiny import VOCAB, Case, KimiLinear, Qwen3, write_tiny

PARAMS = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PAGE = 64
WAIT = 300
PROFILE = Profile("here", "A test.", Curve(((1.0, 1.0),)), Curve(((1.0, 1.0),)), None, 0, False, 0.0)


def prompt(seed: int, length: int = 200) -> list[int]:
    return [(7 * i * i + seed * i + 11 + seed) % (VOCAB - 1) for i in range(length)]


@pytest.fixture(autouse=True)
def _patience(monkeypatch) -> None:
    """A busy machine takes longer than any deadline for prompts as short as these."""
    monkeypatch.setattr(client, "_LEAST_DEADLINE_SECONDS", float(WAIT))


@pytest.fixture(
    scope="module", params=[Case(storage="int4"), Qwen3(), KimiLinear()], ids=["latent", "grouped", "delta"]
)
def model(request, tmp_path_factory) -> Iterator[LoadedModel]:
    loaded = load_model(write_tiny(tmp_path_factory.mktemp("tiny"), request.param), PlanArgs(threads=1, batch=3))
    yield loaded
    loaded.close()


def engine_of(model: LoadedModel, **options) -> Engine:
    """One with pages of its own, as if the plan were its alone."""
    own = replace(model, pages=type(model.pages)(model.plan.memory.pages, model.pages.states_left))
    return Engine(own, EngineOptions(**options))


@pytest.fixture(scope="module")
def alone(model) -> Iterator[Callable[[list[int]], list]]:
    engine = engine_of(model)
    yield lambda tokens: reply(answer(engine, Request(tokens, PARAMS, f"alone {len(tokens)} {tokens[:9]}")))
    engine.close()


class Borrower:
    """The engine of a server with one peer at `port`."""

    def __init__(self, model: LoadedModel, port: int, **options) -> None:
        self.logged: queue.SimpleQueue[dict] = queue.SimpleQueue()
        self.url = f"earthshine+plain://127.0.0.1:{port}"
        self.engine, self.peer = engine_of(model, **options), PrefillPeer(self.url)
        fleet = LiveFleet(PROFILE, {self.url: PROFILE}, {self.url: 1e9}, 256)
        log = lambda name, columns, fields: self.logged.put(fields)  # noqa: E731
        self.remote = RemotePrefill(self.engine, {self.url: self.peer}, fleet, log, PROFILE, above=0)

    def answer(self, tokens: list[int], **more) -> list:
        return answer(self.remote, Request(tokens, PARAMS, **more))

    def line(self) -> dict:
        """The next line of the log."""
        return self.logged.get(timeout=WAIT)

    def is_at_rest(self) -> bool:
        """No page is held but by the cache."""
        gauges = self.engine.gauges()
        return gauges.pages_free + gauges.pages_cached == gauges.pages


class Lender:
    """A worker, its engine and its listener. `gate`: handlers wait for it before they begin."""

    def __init__(self, model: LoadedModel, **options) -> None:
        self.lines: queue.SimpleQueue[dict] = queue.SimpleQueue()
        self.engine, self.gate, self.came = engine_of(model, **options), threading.Event(), threading.Event()
        self.gate.set()
        log = lambda name, columns, fields: self.lines.put(fields)  # noqa: E731
        self.worker = PrefillWorker(self.engine, most_waiting=4, log=log)
        self.wire = WireServer(ListenOptions(port=0), self._handle, fingerprint=model.fingerprint)

    def _handle(self, request, out) -> None:
        self.came.set()
        assert self.gate.wait(WAIT)
        self.worker(request, out)

    def close(self) -> None:
        self.gate.set()
        self.wire.close()
        self.engine.close()


@pytest.fixture
def lender(model) -> Iterator[Lender]:
    made = Lender(model)
    yield made
    made.close()


@pytest.fixture
def borrower(model, lender) -> Iterator[Borrower]:
    made = Borrower(model, lender.wire.port)
    yield made
    made.remote.close()


def answer(engine, request: Request) -> list:
    events: queue.SimpleQueue = queue.SimpleQueue()
    engine.submit(request, events.put)
    return drained(events)


def drained(events: queue.SimpleQueue) -> list:
    found = []
    while not found or not isinstance(found[-1], Finished | Failed):
        found.append(events.get(timeout=WAIT))
    return found


def reply(events: list) -> list:
    return [event for event in events if isinstance(event, TokenEvent | Finished | Failed)]


def at_rest(*engines: Engine) -> bool:
    """Waits until idle engines have taken back what was lent."""
    for _ in range(WAIT * 20):
        if all(each.gauges().pages_free + each.gauges().pages_cached == each.gauges().pages for each in engines):
            return True
        threading.Event().wait(0.05)
    return False


def test_reply_after_a_remote_prefill_is_that_of_an_engine_alone(lender, borrower, alone):
    tokens = prompt(3)
    events = borrower.answer(tokens)
    assert reply(events) == alone(tokens)
    assert events[0] == Admitted(0), "what a peer has computed for a request is not what was cached before it"
    line = borrower.line()
    assert (line["end"], line["arrived_tokens"], line["asked_tokens"]) == ("whole", 192, 192)
    assert borrower.engine.gauges().prompt_tokens == 200 - 192
    assert lender.engine.gauges().prompt_tokens == 192
    assert borrower.answer(tokens)[0] == Admitted(192)
    assert lender.lines.get(timeout=WAIT)["end"] == "sent"
    assert at_rest(lender.engine, borrower.engine)


def test_follow_up_sends_only_what_is_missing(lender, borrower, alone):
    first = prompt(5, 140)
    borrower.answer(first)
    assert borrower.line()["asked_tokens"] == 128
    longer = [*first, *prompt(9, 80)]
    assert reply(borrower.answer(longer)) == alone(longer)
    assert borrower.line()["asked_tokens"] == 192 - 128
    assert lender.engine.gauges().prefix_hits == 128


def test_choices_of_one_prompt_share_one_transfer(lender, borrower, alone):
    tokens, lender_open = prompt(7), lender.gate
    lender_open.clear()
    sinks = [queue.SimpleQueue() for _ in range(3)]
    for sink in sinks:
        borrower.remote.submit(Request(tokens, PARAMS), sink.put)
    lender_open.set()
    assert [reply(drained(sink)) for sink in sinks] == [alone(tokens)] * 3
    assert borrower.line()["end"] == "whole"
    assert borrower.logged.empty()
    assert lender.engine.gauges().prompt_tokens == 192


def test_cancelled_request_ends_before_its_peer_answers(lender, borrower, alone):
    lender.gate.clear()
    events: queue.SimpleQueue = queue.SimpleQueue()
    ticket = borrower.remote.submit(Request(prompt(11), PARAMS), events.put)
    assert lender.came.wait(WAIT)
    borrower.remote.cancel(ticket)
    assert drained(events) == [Finished("cancelled")]
    lender.gate.set()
    assert borrower.line()["end"] == "cancelled"
    tokens = prompt(12)
    assert reply(borrower.answer(tokens)) == alone(tokens), "the peer is still asked"
    assert borrower.line()["end"] == "whole"
    assert at_rest(lender.engine, borrower.engine)


def test_cancelled_request_leaves_the_transfer_to_others_that_wait_for_it(lender, borrower, alone):
    lender.gate.clear()
    first, second = queue.SimpleQueue(), queue.SimpleQueue()
    ticket = borrower.remote.submit(Request(prompt(13), PARAMS), first.put)
    borrower.remote.submit(Request(prompt(13), PARAMS), second.put)
    borrower.remote.cancel(ticket)
    assert drained(first) == [Finished("cancelled")]
    lender.gate.set()
    assert reply(drained(second)) == alone(prompt(13))
    assert borrower.line()["end"] == "whole"


def test_peer_that_dies_leaves_the_prompt_to_this_machine(lender, borrower, alone):
    lender.gate.clear()
    events: queue.SimpleQueue = queue.SimpleQueue()
    borrower.remote.submit(Request(prompt(17), PARAMS), events.put)
    assert lender.came.wait(WAIT)
    threading.Thread(target=lender.close).start()
    assert reply(drained(events)) == alone(prompt(17))
    assert borrower.line()["end"] in ("lost", "closed", "worker", "unreachable", "deadline")
    assert at_rest(borrower.engine)


def test_peer_that_is_silent_beyond_the_deadline_is_left_out(lender, borrower, alone, monkeypatch):
    monkeypatch.setattr(client, "_LEAST_DEADLINE_SECONDS", 0.5)
    monkeypatch.setattr(live, "_BACKOFF_SECONDS", (float(WAIT), float(WAIT)))
    lender.gate.clear()
    tokens = prompt(19)
    assert reply(borrower.answer(tokens)) == alone(tokens)
    assert borrower.line()["end"] == "deadline"
    other = prompt(20)
    assert reply(borrower.answer(other)) == alone(other)
    assert borrower.logged.empty(), "computed here at once"
    figures = {name: values for name, _, _, values in borrower.remote.figures()}
    assert figures["remote_prefills"] == {"deadline": 1, "here": 1}
    assert figures["remote_peer_left_out"] == {borrower.url: 1.0}


def test_peer_with_another_model_is_refused_by_name(model, alone):
    other = Lender(replace(model, fingerprint="another-model"))
    borrower = Borrower(model, other.wire.port)
    try:
        assert reply(borrower.answer(prompt(23))) == alone(prompt(23))
        line = borrower.line()
        assert line["end"] == "model"
        assert "another-model" in line["message"]
        assert model.fingerprint in line["message"]
    finally:
        borrower.remote.close()
        other.close()


def test_prompt_whose_pages_find_no_room_is_computed_here(model, lender, borrower, alone):
    """Other prompts' pages are on their way, which give up their room to it, but not for a remote prefill."""
    holder = borrower.engine.expect(Request(prompt(1, 250), PARAMS, "holder")).result(WAIT)
    others = [holder]
    while (more := borrower.engine.expect(Request(prompt(2, 250), PARAMS, f"{len(others)}")).result(WAIT)) is not None:
        others.append(more)
    assert not any(each.given_up for each in others)
    for each in others:
        each.on_give_up = each.close
    assert reply(borrower.answer(prompt(27))) == alone(prompt(27))
    assert borrower.line()["end"] == "no_room"
    for each in others:
        each.close()
    assert at_rest(borrower.engine)


def test_draining_server_ends_requests_that_are_at_a_peer(model, lender, alone):
    borrower = Borrower(model, lender.wire.port)
    lender.gate.clear()
    events: queue.SimpleQueue = queue.SimpleQueue()
    borrower.remote.submit(Request(prompt(29), PARAMS), events.put)
    assert lender.came.wait(WAIT)
    drain = threading.Thread(target=borrower.remote.drain, args=(WAIT,))
    drain.start()
    lender.gate.set()
    assert reply(drained(events)) == alone(prompt(29))
    drain.join(WAIT)
    with pytest.raises(OverloadError):
        borrower.remote.submit(Request(prompt(30), PARAMS), events.put)
    borrower.remote.close()


def test_closed_server_gives_every_request_its_last_event(model, lender):
    borrower = Borrower(model, lender.wire.port)
    lender.gate.clear()
    events: queue.SimpleQueue = queue.SimpleQueue()
    borrower.remote.submit(Request(prompt(31), PARAMS), events.put)
    assert lender.came.wait(WAIT)
    borrower.remote.close()
    assert drained(events)[-1] == Finished("cancelled")


class TestWorker:
    def ask(self, peer: PrefillPeer, model: LoadedModel, tokens: list[int], **more) -> WireError | None:
        class Nothing:
            def begin(self, piece, header): ...
            def buffers(self, piece, index):
                raise WireError(Reason.REFUSED, "a test takes nothing")

            def block(self, piece, index): ...
            def ended(self, error): ...

        request = PrefillRequest("a test", "", model.fingerprint, tokens, **more)
        transfer = peer.prefill(request, Nothing(), WAIT)
        assert transfer.wait(WAIT)
        return transfer.error

    def test_requests_that_can_not_be_computed_are_refused_with_the_reason(self, model, lender, borrower):
        for more, tokens, said in (
            ({}, prompt(3, 100), "whole pages of 64"),
            ({"start": 3}, prompt(3, 128), "whole pages of 64"),
            ({"parts": (1,)}, prompt(3, 128), "all parts"),
            ({}, [VOCAB + 5] * 128, "Token ids must be between"),
            ({}, prompt(3, 64 * 4096), "pages"),
        ):
            error = self.ask(borrower.peer, model, tokens, **more)
            assert error is not None, said
            assert said in str(error)
        assert at_rest(lender.engine)

    def test_receiver_that_takes_nothing_costs_the_worker_nothing(self, model, lender, borrower):
        error = self.ask(borrower.peer, model, prompt(3, 192))
        assert error.reason is Reason.REFUSED
        assert lender.lines.get(timeout=WAIT)["end"] == "cancelled"
        assert at_rest(lender.engine)

    def test_draining_worker_refuses_new_prompts(self, model, lender, borrower, alone):
        assert lender.worker.drain(WAIT)
        assert reply(borrower.answer(prompt(33))) == alone(prompt(33))
        assert borrower.line()["end"] == "closed"

    def test_receivers_with_different_keys_share_no_pages(self, model, lender):
        class Out:
            sent_bytes = 0

            def __init__(self, user: str) -> None:
                self.user, self.headers = user, []

            def begin(self, header):
                self.headers.append(header)

            def block(self, index, buffers): ...
            def end(self): ...
            def check(self): ...
            def fail(self, reason, message):
                raise AssertionError(message)

        request = PrefillRequest("a test", "tenant", model.fingerprint, prompt(3, 192))
        one, other, again = Out("one"), Out("other"), Out("one")
        for out, found in ((one, 0), (other, 0), (again, 192)):
            before = lender.engine.gauges().prefix_hits
            lender.worker(request, out)
            assert lender.engine.gauges().prefix_hits - before == found
        assert one.headers == other.headers == again.headers
        assert at_rest(lender.engine)
