"""vLLM's own server as a prefill worker: it computes what peers ask for, and outlasts whatever they ask for."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from earthshine.prfaas.wire import PrefillPeer, PrefillRequest, Reason

from .latents import LENGTH, PAGES, equal, free_port, new_prompt, require_agreement, url, whole
from .pieces import MODEL, Latents, computed, fetched
from .vllm_engine import SECONDS, VllmServer


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[VllmServer, int]]:
    port = free_port()
    started = VllmServer(folder, folder.parent / "server.log", free_port(), port)
    try:
        yield started.wait(), port
    finally:
        started.close()


def test_prompt_that_a_peer_asks_for_is_computed(server, model):
    prompt = new_prompt()
    latents = whole(fetched(server[1], prompt))
    require_agreement([part[:PAGES] for part in computed(model, prompt)], latents, "vLLM's server's,")
    assert equal(whole(fetched(server[1], prompt, start=128)), [part[128:] for part in latents])


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        (new_prompt(3000), "vLLM answered 400: .*maximum context length is 2048"),
        ([*new_prompt(), 512], "Token ids are below 512"),
        (new_prompt(63), "63 tokens"),
    ],
    ids=["too long", "outside the vocabulary", "no whole page"],
)
def test_prompts_that_vllm_can_not_compute_are_refused_by_name(server, prompt, named):
    error = fetched(server[1], prompt).error
    assert error.reason is Reason.WORKER
    with pytest.raises(type(error), match=named):
        raise error
    assert server[0].is_healthy()


def test_prompt_that_nobody_wants_any_more_is_aborted(server):
    peer, sink = PrefillPeer(url(server[1])), Latents()
    try:
        transfers = [
            peer.prefill(PrefillRequest(f"r{n}", "", MODEL, new_prompt(2000)), sink, SECONDS) for n in range(4)
        ]
        for transfer in transfers:
            transfer.cancel()
    finally:
        peer.close()
    end = time.monotonic() + SECONDS
    while server[0].running():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert len(whole(fetched(server[1], new_prompt(LENGTH)))[0]) == PAGES
