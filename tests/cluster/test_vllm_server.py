"""vLLM's own server as a prefill worker: it computes what peers ask for, and outlasts whatever they ask for."""

import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from earthshine.engine import Failed, Finished, LoadedModel, Request, SamplingParams, TokenEvent
from earthshine.prfaas import client
from earthshine.prfaas.client import RemotePrefill
from earthshine.prfaas.curve import Curve
from earthshine.prfaas.live import LiveFleet
from earthshine.prfaas.profile import Profile
from earthshine.prfaas.wire import PrefillPeer, PrefillRequest, Reason

from .latents import LENGTH, PAGES, equal, free_port, new_prompt, require_agreement, url, whole
from .pieces import Latents, computed, engine_of
from .vllm_engine import SECONDS, VllmServer


@pytest.fixture(scope="module")
def server(folder: Path, model: LoadedModel) -> Iterator[tuple[VllmServer, int]]:
    port = free_port()
    started = VllmServer(folder, folder.parent / "server.log", free_port(), port, model.fingerprint)
    try:
        yield started.wait(), port
    finally:
        started.close()


def test_prompt_that_a_peer_asks_for_is_computed(server, model, fetch):
    prompt = new_prompt()
    latents = whole(fetch(server[1], prompt))
    require_agreement([part[:PAGES] for part in computed(model, prompt)], latents, "vLLM's server's,")
    assert equal(whole(fetch(server[1], prompt, start=128)), [part[128:] for part in latents])


def test_earthshines_server_borrows_from_vllm(server, model, monkeypatch):
    """As `earthshine serve --prefill URL --prefill-above 0` has it."""
    monkeypatch.setattr(client, "_LEAST_DEADLINE_SECONDS", SECONDS)  # a busy machine takes longer than a forecast
    engine, peer = engine_of(model), url(server[1])
    here = Profile("here", "A test.", Curve(((1.0, 1.0),)), Curve(((1.0, 1.0),)), None, 0, False, 0.0)
    fleet = LiveFleet(here, {peer: here}, {peer: 1e9}, 512)
    lines: Queue[dict[str, Any]] = Queue()
    remote = RemotePrefill(
        engine, {peer: PrefillPeer(peer)}, fleet, lambda name, columns, fields: lines.put(fields), here, above=0
    )
    try:
        events: Queue[Any] = Queue()
        params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
        remote.submit(Request(new_prompt(), params, "a tenant"), events.put)
        received = [events.get(timeout=SECONDS)]
        while not isinstance(received[-1], Finished | Failed):
            received.append(events.get(timeout=SECONDS))
        assert received[-1] == Finished("length")
        assert len([each for each in received if isinstance(each, TokenEvent)]) == 12
        line = lines.get(timeout=SECONDS)
        assert line["end"] == "whole", line
        assert engine.gauges().prompt_tokens == LENGTH - PAGES  # computed here
    finally:
        remote.close()


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        (new_prompt(3000), "vLLM answered 400: .*maximum context length is 2048"),
        ([*new_prompt(), 512], "Token ids are below 512"),
        (new_prompt(63), "63 tokens"),
    ],
    ids=["too long", "outside the vocabulary", "no whole page"],
)
def test_prompts_that_vllm_can_not_compute_are_refused_by_name(server, prompt, named, fetch):
    error = fetch(server[1], prompt).error
    assert error.reason is Reason.WORKER
    with pytest.raises(type(error), match=named):
        raise error
    assert server[0].is_healthy()


def test_prompt_that_nobody_wants_any_more_is_aborted(server, model, fetch):
    peer, sink = PrefillPeer(url(server[1])), Latents()
    try:
        transfers = [
            peer.prefill(PrefillRequest(f"r{n}", "", model.fingerprint, new_prompt(2000)), sink, SECONDS)
            for n in range(4)
        ]
        for transfer in transfers:
            transfer.cancel()
    finally:
        peer.close()
    end = time.monotonic() + SECONDS
    while server[0].running():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert len(whole(fetch(server[1], new_prompt(LENGTH)))[0]) == PAGES
